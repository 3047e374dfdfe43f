"""`save_pretrained`: files, shards, what is refused, and that a failure changes nothing."""

import dataclasses
import json
import os

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tests.checkpoints.conftest import small_model, write_folder
from tests.checkpoints.test_gguf_model import same_weights
from workbench import LlamaForCausalLM, LlamaForSequenceClassification
from workbench.checkpoints import CheckpointError
from workbench.checkpoints import save as save_module
from workbench.checkpoints.arguments import parse_size
from workbench.checkpoints.load import load
from workbench.checkpoints.safetensors_write import ALIGNMENT, write_safetensors
from workbench.checkpoints.save import shards_of
from workbench.config import ConfigError
from workbench.generation.config import GenerationConfig

INDEX = "model.safetensors.index.json"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shard", ["5GB", "15kB"])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_saved_and_loaded_again(tmp_path, kind, shard, options):
    model = small_model(kind, **options)
    model.save_pretrained(tmp_path / "x", max_shard_size=shard)
    again, info = LlamaForCausalLM.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert not any(info.values())
    same_weights(again, model)
    ids = torch.randint(1, 90, (1, 7))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config == dataclasses.replace(model.config, architectures=["LlamaForCausalLM"], dtype="float32")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_files_are_those_of_the_format(tmp_path, dtype):
    model = small_model(tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == ["config.json", "model.safetensors"]
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    expected = model.state_dict()
    assert stored.keys() == expected.keys() - {"lm_head.weight"}
    for name, value in stored.items():
        assert torch.equal(value, expected[name]), name
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert model.config.architectures is None  # the model's own config is left alone


def test_shards_and_index(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    index = json.loads((tmp_path / INDEX).read_text())
    state = model.state_dict()
    assert index["metadata"] == {
        "total_size": sum(v.nbytes for v in state.values()),
        "total_parameters": model.num_parameters(),
    }
    assert index["weight_map"].keys() == state.keys()
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 3
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    for name in names:
        part = safetensors.torch.load_file(tmp_path / name)
        assert part.keys() == {key for key, file in index["weight_map"].items() if file == name}
        assert sum(v.nbytes for v in part.values()) <= 20_000 or len(part) == 1


def test_a_shard_is_filled_up_and_a_large_tensor_stands_alone():
    weights = {name: torch.zeros(size, dtype=torch.uint8) for name, size in zip("abcde", (4, 6, 11, 5, 5), strict=True)}
    assert list(shards_of(weights, 10).values()) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(shards_of(weights, 9).values()) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert shards_of(weights, 31) == {"model.safetensors": list("abcde")}
    assert shards_of({}, 1) == {"model.safetensors": []}


def test_neighbours_in_memory_are_neighbours_in_the_file_and_are_read_so(tmp_path):
    """So a folder saved here is loaded without copying the packed projections."""
    write_folder(tmp_path, small_model("mha"))
    model = load(tmp_path).model
    model.save_pretrained(tmp_path / "packed")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "packed")
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if "packed/model.safetensors" in line]
    spans = [(int(start, 16), int(end, 16)) for start, end in spans]
    for name, value in again.named_parameters():
        assert any(start <= value.data_ptr() < end for start, end in spans), name
        assert value.data_ptr() % 4 == 0


def test_tensors_of_every_type_and_layout(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "transposed": base.T,
        "overlapping": base[:2],
        "half": base.half(),
        "brain": base.bfloat16(),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "small": torch.arange(-3, 3, dtype=torch.int8),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value), name
    data = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % ALIGNMENT == 0
    for name, entry in json.loads(data[8:start]).items():
        assert name == "__metadata__" or entry["data_offsets"][0] % tensors[name].itemsize == 0, name
    with pytest.raises(
        CheckpointError, match="x is a torch.strided tensor of torch.complex64; .* dense ones of float64"
    ):
        write_safetensors(tmp_path / "y", {"x": torch.zeros(2, dtype=torch.complex64)})
    assert not (tmp_path / "y").exists()


def test_tensors_that_do_not_lie_at_a_multiple_of_their_size_are_read_too(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = data[8:start].rstrip()
    header += b" " * (1 - (8 + len(header)) % 2)  # the data begin at an odd byte
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[start:])
    assert (8 + len(header)) % 2 == 1
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    same_weights(again, model)
    assert all(value.data_ptr() % 4 == 0 for value in again.parameters())


def test_saving_over_an_earlier_model(tmp_path):
    first, second = small_model(), small_model("mqa")
    first.save_pretrained(tmp_path, max_shard_size="20kB")
    (tmp_path / "model-of-mine.safetensors").write_text("kept")
    (tmp_path / "notes.txt").write_text("kept")
    second.save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == [
        "config.json",
        "model-of-mine.safetensors",
        "model.safetensors",
        "notes.txt",
    ]
    same_weights(LlamaForCausalLM.from_pretrained(tmp_path), second)
    second.save_pretrained(tmp_path, max_shard_size="20kB")
    assert not (tmp_path / "model.safetensors").exists()
    same_weights(LlamaForCausalLM.from_pretrained(tmp_path), second)


def test_saving_into_the_folder_it_was_loaded_from(tmp_path):
    original = small_model()
    original.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)  # its weights lie in the file
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    assert torch.equal(model.model.embed_tokens.weight, original.model.embed_tokens.weight)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, original.lm_head.weight + 1)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("step", [1, 3])
def test_a_failure_leaves_the_folder_as_it_was(tmp_path, monkeypatch, there, step):
    folder = tmp_path / "model"
    if there:
        small_model().save_pretrained(folder)
    before = contents(folder) if there else None
    calls = []
    write = save_module.write_safetensors

    def failing(path, *args):
        calls.append(path)
        if len(calls) == step:
            path.write_bytes(b"half a file")
            raise OSError("no space left on device")
        write(path, *args)

    monkeypatch.setattr(save_module, "write_safetensors", failing)
    with pytest.raises(OSError, match="no space left"):
        small_model("mqa").save_pretrained(folder, max_shard_size="20kB")
    assert len(calls) == step
    assert (contents(folder) if folder.exists() else None) == before


def test_a_config_that_cannot_be_written_changes_nothing(tmp_path):
    model = small_model()
    model.config.hidden_act = torch.tanh
    with pytest.raises(ConfigError, match="hidden_act is the function 'tanh'"):
        model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="dtype is 'float64'; allowed are"):
        small_model().double().save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_generation_defaults_are_kept(tmp_path):
    model = small_model()
    model.generation_config = GenerationConfig(temperature=0.5, do_sample=True, eos_token_id=[2, 3])
    model.save_pretrained(tmp_path)
    assert LlamaForCausalLM.from_pretrained(tmp_path).generation_config == model.generation_config
    assert load_generation(tmp_path).temperature == 0.5
    classifier = LlamaForSequenceClassification(small_model().config)
    classifier.save_pretrained(tmp_path / "c")
    assert not (tmp_path / "c" / "generation_config.json").exists()
    assert LlamaForSequenceClassification.from_pretrained(tmp_path / "c").stored_generation_config is None


def load_generation(folder):
    write_folder(folder / "with-tokenizer", small_model())
    os.replace(folder / "generation_config.json", folder / "with-tokenizer" / "generation_config.json")
    return load(folder / "with-tokenizer").model.generation_config


def test_given_weights(tmp_path):
    model = small_model()
    doubled = {name: value * 2 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight * 2)


def test_one_of_several_processes_writes(tmp_path):
    small_model().save_pretrained(tmp_path / "x", is_main_process=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"max_shard_size": "5"},
            CheckpointError,
            "max_shard_size is '5'; a size is a number and a unit, such as '5GB'",
        ),
        ({"max_shard_size": "-5GB"}, CheckpointError, "max_shard_size is '-5GB'"),
        ({"max_shard_size": 0}, CheckpointError, "max_shard_size is 0 bytes; it must be at least 1"),
        ({"max_shard_size": True}, TypeError, "max_shard_size is True; it must be a whole number of bytes or a text"),
        ({"max_shard_size": 1.5}, TypeError, "max_shard_size is 1.5"),
        ({"safe_serialization": False}, CheckpointError, "safe_serialization is False, but pickles are not written"),
        ({"safe_serialization": 1}, TypeError, "safe_serialization is 1; it must be True or False"),
        ({"push_to_hub": True}, CheckpointError, "push_to_hub is True, but nothing is sent anywhere"),
        ({"is_main_process": None}, TypeError, "is_main_process is None; it must be True or False"),
        ({"state_dict": [1]}, TypeError, "state_dict must be a dictionary of names and tensors"),
        ({"state_dict": {"a": 1}}, TypeError, "state_dict must be a dictionary of names and tensors"),
        ({"variant": "fp16"}, TypeError, "unexpected keyword argument 'variant'"),
    ],
)
def test_arguments(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        small_model().save_pretrained(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_where_to(tmp_path):
    with pytest.raises(TypeError, match="folder is None; it must be the path of a folder"):
        small_model().save_pretrained(None)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file; give a folder to save into"):
        small_model().save_pretrained(tmp_path / "file")
    small_model().save_pretrained(str(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder" / "model.safetensors").is_file()


def test_a_head_that_is_not_tied_after_all(tmp_path):
    model = small_model(tie_word_embeddings=True)
    model.lm_head = torch.nn.Linear(32, model.config.vocab_size, bias=False)
    with pytest.raises(
        CheckpointError, match=r"ties the output .* but lm_head.weight is another tensor. Set model.config"
    ):
        model.save_pretrained(tmp_path / "x")
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "x")
    same_weights(LlamaForCausalLM.from_pretrained(tmp_path / "x"), model)


def test_no_memory(tmp_path):
    with torch.device("meta"):
        model = LlamaForCausalLM(small_model().config)
    with pytest.raises(CheckpointError, match="model.embed_tokens.weight has no memory"):
        model.save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 kB", 1500),
        ("2MiB", 2 << 20),
        ("7b", 7),
        ("3tib", 3 << 40),
        (" 10mb ", 10**7),
        (12, 12),
    ],
)
def test_sizes(text, size):
    assert parse_size("x", text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 bytes", "1e3MB", "5GBs", "5iB", "nan", "٣GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(CheckpointError, match="^x is "):
        parse_size("x", text)

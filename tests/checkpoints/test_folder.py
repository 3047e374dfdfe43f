"""Folders in Hugging Face format: one file, shards, and everything that can be wrong with them."""

import json
import struct

import pytest
import safetensors.torch
import torch

from tests.checkpoints.conftest import small_model, write_folder
from tests.checkpoints.test_gguf_model import same_weights
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.load import load
from workbench.checkpoints.safetensors_header import read_header
from workbench.config import ConfigError

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_gives_the_model_back(tmp_path, kind, shards, tied):
    model = small_model(kind, tie_word_embeddings=tied)
    loaded, tokenizer = load(write_folder(tmp_path / "tiny", model, shards))
    same_weights(loaded, model)
    assert loaded.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert not loaded.training
    ids = torch.tensor([tokenizer.encode("hello world")])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_is_the_files_own_type(tmp_path, dtype):
    folder = write_folder(tmp_path / "tiny", small_model(), dtype=dtype)
    loaded = load(folder).model
    assert {value.dtype for value in loaded.parameters()} == {dtype}
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(folder, dtype=torch.float32).model.config.dtype == "float32"


def test_changing_a_weight_does_not_reach_the_file(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for value in load(folder).model.parameters():
            value.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def rewrite(folder, change, file="model.safetensors"):
    tensors = safetensors.torch.load_file(folder / file)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / file)


def test_old_rotary_buffers_are_ignored(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)


def test_tied_head_that_is_stored_too(tmp_path):
    model = small_model(tie_word_embeddings=True)
    folder = write_folder(tmp_path / "tiny", model)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    loaded = load(folder).model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"ties the output to the embedding.*another lm_head.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "1 missing: model.norm.weight"),
        (lambda tensors: tensors.update({"extra": torch.ones(1)}), "1 unexpected: extra"),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors)[:18]],
            "18 missing: model.embed_tokens.weight, .*, .* and 15 more",
        ),
        (lambda tensors: tensors.clear(), "asks for 2 layers, but there are only 0 tensors"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}),
            r"1 of another shape: model.norm.weight is \[31\] instead of \[32\]",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, change, message):
    folder = write_folder(tmp_path / "tiny", small_model())
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_stored_type_that_is_no_float(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="model.norm.weight is stored as I8; supported are F32, F16, BF16"):
        load(folder)


# Files missing --------------------------------------------------------------------------------------------------------


def test_no_config(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(CheckpointNotFoundError, match=r"has no config.json.*Found: README.md"):
        load(tmp_path)


def test_config_of_another_model(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="model_type is 'gpt2'"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": 99999}, "pad_token_id is 99999, but vocab_size is 273: it must be below that"),
        ({"hidden_size": 1 << 40, "vocab_size": 1 << 40}, "describes no model that can be built"),
        ({"vocab_size": 1 << 70}, "vocab_size is 1180591620717411303424; it must be .* below 2..63"),
        ({"num_hidden_layers": 1 << 40}, f"asks for {1 << 40} layers, but there are only 21 tensors"),
    ],
)
def test_config_of_an_impossible_model(tmp_path, change, message):
    folder = write_folder(tmp_path / "tiny", small_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(folder)


def test_no_weights(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="has neither model.safetensors nor model.safetensors.index.json"):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_with_the_conversion(tmp_path, name):
    folder = write_folder(tmp_path / "tiny", small_model())
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)
    for source in (folder, folder / name):
        with pytest.raises(CheckpointError, match=r"holds pickled weights") as error:
            load(source)
        assert "save_pretrained('converted', safe_serialization=True)" in str(error.value)
        assert f"AutoModelForCausalLM.from_pretrained({str(folder)!r})" in str(error.value)


def test_no_tokenizer(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model(), tokenizer=False)
    with pytest.raises(CheckpointNotFoundError, match=r"has no tokenizer.json. Save it with transformers"):
        load(folder)


# Shards ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    return write_folder(tmp_path / "tiny", small_model(), shards=3)


def change_index(folder, change):
    values = json.loads((folder / INDEX).read_text())
    change(values["weight_map"])
    (folder / INDEX).write_text(json.dumps(values))


def test_missing_shard(sharded):
    (sharded / SHARD).unlink()
    with pytest.raises(CheckpointNotFoundError, match=f"lacks 1 of the 3 files that {INDEX} lists: {SHARD}"):
        load(sharded)


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors", "x.bin", 5],
)
def test_shard_names_that_leave_the_folder(sharded, name):
    safetensors.torch.save_file({}, sharded.parent / "x.safetensors")
    change_index(sharded, lambda names: names.update({"model.norm.weight": name}))
    with pytest.raises(CheckpointError, match=r"only plain names of .safetensors files in the same folder"):
        load(sharded)


def test_tensor_in_two_shards(sharded):
    rewrite(sharded, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}), SHARD)
    rewrite(sharded, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}), SHARD.replace("02-", "01-"))
    with pytest.raises(CheckpointError, match="1 tensors are in more than one file: model.norm.weight"):
        load(sharded)


def test_tensor_in_another_shard_than_the_index_says(sharded):
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    moved = next(name for name, shard in names.items() if shard != SHARD)
    change_index(sharded, lambda names: names.update({moved: SHARD}))
    with pytest.raises(CheckpointError, match=f"1 tensors are not in the file where {INDEX} says: {moved}"):
        load(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "has no weight_map"), ('{"weight_map": {}}', "has no weight_map")],
)
def test_malformed_index(sharded, text, message):
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(sharded)


# Headers --------------------------------------------------------------------------------------------------------------


def test_every_truncation_is_an_error(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model(num_hidden_layers=1))
    whole = (folder / "model.safetensors").read_bytes()
    for cut in [*range(0, 60), *range(60, len(whole), 997), len(whole) - 1]:
        (folder / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="truncated|malformed"):
            load(folder)


def header_bytes(entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header_bytes({}, length=1 << 60), f"its header should have {1 << 60} bytes, but the file has 10"),
        (header_bytes(b"[]"), "its header is a list, not an object"),
        (header_bytes(b'{"a": 1, "a": 1}'), "'a' appears twice"),
        (header_bytes(b"[" * 100_000), "cannot be read"),
        (header_bytes(b"\xff"), "cannot be read"),
        (header_bytes({"a": 1}), "a has no byte range"),
        (header_bytes({"a": entry(offsets=(0, "8"))}), "a has no byte range"),
        (header_bytes({"a": entry(offsets=(8, 0))}, bytes(8)), "a has the byte range 8 to 0"),
        (header_bytes({"a": entry(offsets=(4, 12))}, bytes(12)), "a starts at byte 4 of the data"),
        (header_bytes({"a": entry(), "b": entry()}, bytes(8)), "b starts at byte 0 of the data"),
        (header_bytes({"a": entry()}, bytes(9)), "truncated or malformed: its tensors end at byte"),
        (header_bytes({"a": entry()}, bytes(7)), "truncated or malformed: its tensors end at byte"),
        (header_bytes({"a": entry(shape=(1 << 60,))}, bytes(8)), "cannot have 8 bytes"),
        (header_bytes({"a": entry(shape=(-2,))}, bytes(8)), "a has the shape"),
        (header_bytes({"a": entry(dtype="F8_E4M3")}, bytes(8)), "a is stored as F8_E4M3; supported are"),
        (header_bytes({"a": entry(dtype=["F32"])}, bytes(8)), "a is stored as"),
    ],
)
def test_malformed_header(tmp_path, data, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)

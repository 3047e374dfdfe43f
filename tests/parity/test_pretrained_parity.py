"""What one saves the other loads: models, shards, types and heads, both ways, with equal logits."""

import json
import warnings

import pytest
import torch
import transformers

import workbench
from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from tests.parity.test_load_parity import same

HEADS = ["ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model"]
OPTIONS = {
    "plain": {},
    "bias": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "head_dim": {"head_dim": 16},
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


def both(head):
    return getattr(workbench, f"Llama{head}"), getattr(transformers, f"Llama{head}")


def tensors_of(output):
    return {k: output[k] for k in output.keys() if isinstance(output[k], torch.Tensor)}  # noqa: SIM118


@torch.no_grad()
def equal_outputs(ours, theirs):
    """Bit-equal weights by their names, and outputs within 1e-5 of the largest."""
    mine, reference = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == reference.keys()
    for name, value in reference.items():
        assert mine[name].dtype == value.dtype, name
        assert torch.equal(mine[name], value), name
    ids = torch.randint(3, 90, (2, 9))
    a, b = tensors_of(ours.eval()(ids)), tensors_of(theirs.eval()(ids))
    assert a.keys() == b.keys()
    assert a
    for name, value in b.items():
        assert (a[name] - value).abs().max() <= 1e-5 * value.abs().max(), name


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*args, **options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shard", ["5GB", 20_000], ids=["one file", "shards"])
def test_they_load_what_we_save(tmp_path, head, kind, shard):
    our_class, their_class = both(head)
    ours = our_class(small_model(kind, num_labels=3).config).eval()
    ours.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    theirs, info = their_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    equal_outputs(ours, theirs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shard", ["5GB", 20_000], ids=["one file", "shards"])
def test_we_load_what_they_save(tmp_path, head, kind, shard):
    our_class, their_class = both(head)
    sizes = {k: v for k, v in small_model(kind, num_labels=3).config.to_dict().items() if k != "architectures"}
    theirs = their_class(transformers.LlamaConfig(**sizes))
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    equal_outputs(quiet(our_class.from_pretrained, tmp_path), theirs)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shard", ["5GB", 20_000], ids=["one file", "shards"])
def test_options_of_the_config_survive(tmp_path, name, shard):
    ours = small_model(**OPTIONS[name])
    ours.save_pretrained(tmp_path / "a", max_shard_size=shard)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    equal_outputs(ours, theirs)
    theirs.save_pretrained(tmp_path / "b", max_shard_size=shard)
    again = quiet(workbench.LlamaForCausalLM.from_pretrained, tmp_path / "b")
    same(again, theirs)
    stored = json.loads((tmp_path / "a" / "config.json").read_text())
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    del written["transformers_version"]
    assert stored == written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [None, "auto", "float32", torch.bfloat16, "half"])
@pytest.mark.parametrize("stated", [True, False], ids=["in the config", "only in the weights"])
def test_the_type_of_the_weights_is_chosen_as_theirs(tmp_path, dtype, asked, stated):
    folder = write_folder(tmp_path / "tiny", small_model(), dtype=dtype, tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16" if stated else None
    (folder / "config.json").write_text(json.dumps(config))
    asked = "float16" if asked == "half" else asked
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=asked)
    ours = workbench.LlamaForCausalLM.from_pretrained(folder, dtype=asked)
    older = workbench.LlamaForCausalLM.from_pretrained(folder, torch_dtype=asked)
    assert ours.dtype == older.dtype == theirs.dtype
    same(ours, theirs)


@pytest.mark.parametrize(
    ("stored", "asked"),
    # Without its optional kernels, theirs takes torch's default type for "auto" whatever the file holds.
    [("F32", "auto"), ("Q8_0", "auto"), ("Q4_1", "auto"), ("F16", "float16"), ("F16", "float32"), ("Q8_0", "bfloat16")],
)
def test_gguf_file_of_a_folder(tmp_path, stored, asked):
    path = write_gguf(tmp_path / "tiny.gguf", small_model(), stored)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=asked)
    ours = workbench.LlamaForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=asked)
    same(ours, theirs)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "Model", "ForCausalLM"])
def test_what_is_missing_and_left_over_is_what_they_say(tmp_path, head):
    our_class, their_class = both(head)
    source = "ForSequenceClassification" if head == "ForCausalLM" else "ForCausalLM"
    both(source)[0](small_model().config).save_pretrained(tmp_path)
    theirs, expected = their_class.from_pretrained(tmp_path, output_loading_info=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, info = our_class.from_pretrained(tmp_path, output_loading_info=True)
    assert {k: set(v) for k, v in info.items()} == {k: set(v) for k, v in expected.items()}
    base = {name for name in ours.state_dict() if "layers" in name}
    assert base
    for name in base:
        assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name]), name


def test_mismatched_sizes_are_reported_as_theirs(tmp_path):
    our_class, their_class = both("ForSequenceClassification")
    our_class(small_model(num_labels=3).config).save_pretrained(tmp_path)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True, "output_loading_info": True}
    _, expected = their_class.from_pretrained(tmp_path, **options)
    with pytest.warns(UserWarning, match="score.weight"):
        ours, info = our_class.from_pretrained(tmp_path, **options)
    shapes = {(name, tuple(has), tuple(needs)) for name, has, needs in expected["mismatched_keys"]}
    assert info["mismatched_keys"] == shapes == {("score.weight", (3, 32), (5, 32))}
    assert ours.score.weight.shape == (5, 32)


def test_their_question_answering_does_not_find_the_base(tmp_path):
    ours = small_model()
    ours.save_pretrained(tmp_path)
    _, info = transformers.LlamaForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert "transformer.embed_tokens.weight" in info["missing_keys"]  # if not: drop the difference from the docs
    with pytest.warns(UserWarning, match="qa_outputs.weight, qa_outputs.bias"):
        mine = workbench.LlamaForQuestionAnswering.from_pretrained(tmp_path)
    assert torch.equal(mine.transformer.embed_tokens.weight, ours.model.embed_tokens.weight)


def test_shards_are_cut_where_the_limit_says(tmp_path):
    """Sizes and names as theirs; which tensor goes where is not said by the format."""
    ours = small_model()
    ours.save_pretrained(tmp_path / "a", max_shard_size="20kB")
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b", max_shard_size="20kB")
    a, b = (json.loads((tmp_path / x / "model.safetensors.index.json").read_text()) for x in "ab")
    assert a["metadata"] == b["metadata"]
    assert a["weight_map"].keys() == b["weight_map"].keys()
    names = sorted(set(a["weight_map"].values()))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]

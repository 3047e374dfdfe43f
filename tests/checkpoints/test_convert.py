"""Other numbers of key/value heads, and whole checkpoints into Hugging Face's format."""

import json

import pytest
import torch

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from tests.checkpoints.test_gguf_model import same_weights
from tests.conftest import tiny_config
from workbench import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    convert_kv_heads,
)
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints import convert as convert_module
from workbench.checkpoints.convert import convert_folder, possible_kv_heads
from workbench.checkpoints.load import load
from workbench.generation.config import GenerationConfig
from workbench.model.joined import _adjacent

BIAS = {"attention_bias": True}


def model_with(heads, kv_heads, **options):
    config = tiny_config(num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=48, **options)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    return model


@pytest.mark.parametrize("options", [{}, BIAS, {"head_dim": 10}], ids=["plain", "bias", "head_dim"])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_fewer_heads_are_means_of_their_groups(n, options):
    model = model_with(12, 6, **options)
    new = convert_kv_heads(model, n)
    d, group = model.config.d_head, 6 // n
    old, made = model.state_dict(), new.state_dict()
    for name, value in made.items():
        if "k_proj" not in name and "v_proj" not in name:
            assert torch.equal(value, old[name]), name
            continue
        for head in range(n):
            for row in range(d):
                rows = [old[name][(head * group + member) * d + row] for member in range(group)]
                expected = sum(rows[1:], rows[0].clone()) / group
                torch.testing.assert_close(value[head * d + row], expected, rtol=1e-6, atol=1e-7)
    assert new.config.num_key_value_heads == n
    assert model.config.num_key_value_heads == 6


@pytest.mark.parametrize("options", [{}, BIAS, {"tie_word_embeddings": True}], ids=["plain", "bias", "tied"])
@pytest.mark.parametrize(("kv_heads", "n"), [(1, 2), (1, 12), (2, 4), (3, 6), (4, 12), (12, 12), (2, 2)])
@torch.no_grad()
def test_repeated_heads_give_the_same_logits(kv_heads, n, options):
    model = model_with(12, kv_heads, **options)
    new = convert_kv_heads(model, n)
    assert new.model.layers[0].self_attn.k_proj.weight.shape[0] == n * model.config.d_head
    ids = torch.randint(1, 97, (2, 11))
    expected = model(ids, output_attentions=True)
    actual = new(ids, output_attentions=True)
    scale = expected.logits.abs().max()
    assert (actual.logits - expected.logits).abs().max() <= 1e-6 * scale
    for a, b in zip(actual.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@torch.no_grad()
def test_there_and_back():
    model = model_with(12, 3, **BIAS)
    same_weights(convert_kv_heads(convert_kv_heads(model, 12), 3), model)
    one = convert_kv_heads(model, 1)
    again = convert_kv_heads(convert_kv_heads(one, 12), 1)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    direct, steps = convert_kv_heads(model_12 := model_with(12, 12), 1), convert_kv_heads(model_12, 4)
    for name, value in convert_kv_heads(steps, 1).state_dict().items():
        torch.testing.assert_close(value, direct.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [LlamaModel, LlamaForSequenceClassification, LlamaForTokenClassification])
def test_any_model(head):
    model = head(tiny_config("mha"))
    new = convert_kv_heads(model, 2)
    assert type(new) is head
    assert new.training
    assert new.base_model.layers[0].self_attn.v_proj.weight.shape == (16, 32)


def test_the_new_model_is_its_own():
    model = model_with(12, 12, tie_word_embeddings=True).to(torch.bfloat16)
    model.generation_config = GenerationConfig(temperature=0.5)
    model.model.norm.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = convert_kv_heads(model, 4)
    assert new.dtype == torch.bfloat16
    assert new.lm_head.weight is new.model.embed_tokens.weight
    assert not new.model.norm.weight.requires_grad
    assert new.model.embed_tokens.weight.requires_grad
    assert not new.training
    assert new.generation_config == model.generation_config
    assert new.generation_config is not model.generation_config
    attention = new.model.layers[0].self_attn
    assert _adjacent([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    with torch.no_grad():
        for value in new.parameters():
            value.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("heads", "kv_heads", "allowed"),
    [(12, 12, "1, 2, 3, 4, 6, 12"), (12, 4, "1, 2, 4, 12"), (12, 6, "1, 2, 3, 6, 12"), (12, 1, "1, 2, 3, 4, 6, 12")],
)
def test_possible_numbers(heads, kv_heads, allowed):
    model = model_with(heads, kv_heads)
    assert ", ".join(map(str, possible_kv_heads(model.config))) == allowed
    for n in (0, -1, 5, 24):
        with pytest.raises(
            CheckpointError,
            match=f"n is {n}; this model has 12 query heads and {kv_heads} key/value heads, which can become {allowed}",
        ):
            convert_kv_heads(model, n)


def test_wrong_arguments():
    model = model_with(12, 4)
    for n in (True, 2.0, "2", None):
        with pytest.raises(TypeError, match="n is .*; it must be a whole number of key/value heads"):
            convert_kv_heads(model, n)
    with pytest.raises(TypeError, match="model is a Linear; a Llama model of the workbench is needed"):
        convert_kv_heads(torch.nn.Linear(2, 2), 1)
    with torch.device("meta"):
        nowhere = model_with(12, 4)
    with pytest.raises(CheckpointError, match="model.embed_tokens.weight is on the meta device or offloaded"):
        convert_kv_heads(nowhere, 1)
    model.model.layers[0].mlp.register_buffer("scale", torch.zeros(3, dtype=torch.int8))
    with pytest.raises(CheckpointError, match="layers.0.mlp.scale is of torch.int8, so quantised"):
        convert_kv_heads(model, 1)


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["F32", "F16", "Q8_0"])
def test_gguf_file_to_folder(tmp_path, stored):
    source = write_gguf(tmp_path / "tiny.gguf", small_model(), stored)
    folder = convert_folder(source, tmp_path / "out", max_shard_size="20kB")
    assert folder == tmp_path / "out"
    before, after = load(source), load(folder)
    same_weights(after.model, before.model)
    text = "hello world\n\n12 <|im_end|>"
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    assert after.tokenizer.special_tokens_map == before.tokenizer.special_tokens_map
    assert (folder / "model.safetensors.index.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf", "out"}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_folder_to_folder_with_other_heads_and_type(tmp_path):
    source = write_folder(tmp_path / "in", small_model("mha"))
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "do_sample": True}))
    (tmp_path / "out").mkdir()
    folder = convert_folder(str(source), str(tmp_path / "out"), kv_heads=2, dtype="bfloat16", progress=False)
    model = load(folder).model
    expected = convert_kv_heads(LlamaForCausalLM.from_pretrained(source, dtype="bfloat16"), 2)
    same_weights(model, expected)
    assert model.config.attention_kind == "GQA"
    assert model.dtype == torch.bfloat16
    assert model.generation_config.temperature == 0.3


def test_a_model_with_another_head_keeps_it(tmp_path):
    source = write_folder(tmp_path / "in", small_model())
    for file in ("config.json", "model.safetensors"):
        (source / file).unlink()
    classifier = LlamaForSequenceClassification(small_model(num_labels=4).config)
    classifier.save_pretrained(source)
    folder = convert_folder(source, tmp_path / "out", kv_heads=1)
    again = LlamaForSequenceClassification.from_pretrained(folder)
    assert torch.equal(again.score.weight, classifier.score.weight)
    assert again.config.kv_heads == 1


def test_what_cannot_be_converted_leaves_nothing(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "in", small_model())
    with pytest.raises(CheckpointError, match="n is 3; this model has 4 query heads and 2 key/value heads"):
        convert_folder(source, tmp_path / "out", kv_heads=3)
    with pytest.raises(CheckpointError, match="in is there already. Give the name of a new folder"):
        convert_folder(source, source)
    with pytest.raises(CheckpointError, match="config.json is there already"):
        convert_folder(source, source / "config.json")
    with pytest.raises(CheckpointNotFoundError, match="There is nothing at"):
        convert_folder(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(TypeError, match="target is None; it must be the path of a folder"):
        convert_folder(source, None)
    with pytest.raises(CheckpointError, match="dtype is 'int4'"):
        convert_folder(source, tmp_path / "out", dtype="int4")
    with pytest.raises(CheckpointError, match="max_shard_size is 'x'"):
        convert_folder(source, tmp_path / "out", max_shard_size="x")

    def failing(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(convert_module.LlamaPreTrainedModel, "save_pretrained", failing)
    with pytest.raises(OSError, match="no space left"):
        convert_folder(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]

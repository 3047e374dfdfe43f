"""Quantizing models: what is asked for, what is refused, and what such a model can still do."""

import copy
import json

import pytest
import torch
from torch import nn

from tests.checkpoints.conftest import byte_level_metadata
from tests.conftest import hooks, tiny_config
from workbench.analysis.lens import lens_columns
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.convert import convert_kv_heads
from workbench.checkpoints.quantization import TorchAoConfig, requested
from workbench.checkpoints.quantize import quantize
from workbench.instrument import POINTS, capture
from workbench.model import LlamaForCausalLM
from workbench.model.quantized import QuantizedEmbedding, QuantizedLinear

SIZES = dict(hidden_size=128, intermediate_size=256, vocab_size=len(byte_level_metadata()["tokenizer.ggml.tokens"]))
IDS = torch.randint(1, 97, (1, 11), generator=torch.Generator().manual_seed(3))
INT4 = TorchAoConfig("int4_weight_only", group_size=32)
INT8 = TorchAoConfig("int8_weight_only")


def floats(kind="gqa", **changes):
    torch.manual_seed(1)
    return LlamaForCausalLM(tiny_config(kind, **{**SIZES, "initializer_range": 0.1, **changes})).eval()


def storage_bytes(model):
    """Of every piece of memory that holds weights, once."""
    held = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())


def quantized_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear | QuantizedEmbedding)}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


# What is asked for ----------------------------------------------------------------------------------------------------


def test_the_documented_calls():
    config = TorchAoConfig("int4_weight_only", group_size=128)
    assert (config.quant_type, config.group_size, config.bits) == ("int4_weight_only", 128, 4)
    assert TorchAoConfig("int4_weight_only") == config
    assert (INT8.group_size, INT8.bits) == (None, 8)
    config = TorchAoConfig(quant_type="int4_weight_only", group_size=64, modules_to_not_convert=["lm_head"])
    assert config.modules_to_not_convert == ("lm_head",)
    assert TorchAoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert requested("int4") == INT4
    assert requested("int8") == INT8
    assert requested(config.to_dict()) == config


def test_torchaos_own_configurations():
    class Int4WeightOnlyConfig:
        group_size = 64

    class Int8WeightOnlyConfig:
        group_size = None

    assert TorchAoConfig(Int4WeightOnlyConfig()) == TorchAoConfig("int4_weight_only", group_size=64)
    assert TorchAoConfig(Int8WeightOnlyConfig()) == INT8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("int3_weight_only",), ValueError, "quant_type is 'int3_weight_only'; it can be 'int4_weight_only' or"),
        ((4,), TypeError, "quant_type is a int; it must be 'int4_weight_only' or"),
        (("int4_weight_only", "lm_head"), TypeError, "modules_to_not_convert is 'lm_head'; it must be a list"),
        (("int4_weight_only", [1]), TypeError, r"modules_to_not_convert is \[1\]"),
        (("int4_weight_only", None, 48), ValueError, "group_size is 48; it can be 32, 64, 128, 256"),
        (("int4_weight_only", None, True), ValueError, "group_size is True"),
        (("int4_weight_only", None, "32"), ValueError, "group_size is '32'"),
        (("int8_weight_only", None, 32), ValueError, "group_size is 32, but int8_weight_only has one scale an output"),
    ],
)
def test_bad_arguments(arguments, error, message):
    kind, names, size = (*arguments, None, None)[:3]
    with pytest.raises(error, match=message):
        TorchAoConfig(kind, names, group_size=size)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("int2", ValueError, "quantization is 'int2'; it can be 'int4', 'int8' or a TorchAoConfig"),
        (4, TypeError, "quantization is a int; give a TorchAoConfig, 'int4' or 'int8'"),
        ({"group_size": 32}, ValueError, "has the keys group_size; quant_type is needed"),
        ({"quant_type": "int8_weight_only", "x": 1}, ValueError, "has the keys quant_type, x"),
        ({"quant_type": "int8_weight_only", "quant_method": "gptq"}, ValueError, "of the method 'gptq', format 1"),
        ({**INT4.to_dict(), "format": 2}, ValueError, "of the method 'workbench', format 2"),
    ],
)
def test_bad_requests(given, error, message):
    with pytest.raises(error, match=message):
        requested(given)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        (
            {"hidden_size": 96, "num_attention_heads": 4},
            TorchAoConfig("int4_weight_only"),
            r"group_size is 128, .* width of 18 layers \(width 96: model.layers.0.self_attn.q_proj, .* 15 more\). "
            r"Group sizes that divide every width of this model: 32. Take one",
        ),
        (
            {"intermediate_size": 48},
            INT4,
            r"group_size is 32, .* of 3 layers \(width 48: model.layers.0.mlp.down_proj, .*width of this model: none",
        ),
        (
            {"head_dim": 6},
            INT4,
            "q_proj has 24 outputs; in 4 bits they have to be a multiple of 16. Name it in modules_to_not_convert",
        ),
        ({}, TorchAoConfig("int8_weight_only", ["nothing"]), "modules_to_not_convert names 'nothing', but no module"),
        ({}, TorchAoConfig("int8_weight_only", ["proj"]), "modules_to_not_convert names 'proj', but no module"),
        ({}, TorchAoConfig("int8_weight_only", [""]), "modules_to_not_convert names '', but no module"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_changed(changes, config, message):
    model = floats(**changes)
    before = logits(model)
    with pytest.raises(CheckpointError, match=message):
        quantize(model, config)
    assert not quantized_names(model)
    assert torch.equal(logits(model), before)
    assert model.config.quantization_config is None
    assert all(p.requires_grad for p in model.parameters())


def test_other_things_than_float_models_are_refused():
    with pytest.raises(TypeError, match="model is a Linear; a Llama model of the workbench is needed"):
        quantize(nn.Linear(2, 2), INT8)
    model = quantize(floats(), INT8)
    with pytest.raises(CheckpointError, match="quantized already. Load it in floats"):
        quantize(model, INT4)
    with torch.device("meta"):
        model = LlamaForCausalLM(tiny_config())
    with pytest.raises(CheckpointError, match="weights are on meta; to be quantized"):
        quantize(model, INT8)


@pytest.mark.parametrize("names", [["lm_head"], ["down_proj"], ["layers.1"], ["model.layers.0.mlp", "o_proj"]])
@pytest.mark.parametrize("tied", [False, True])
def test_modules_to_not_convert(names, tied):
    model = quantize(floats(tie_word_embeddings=tied), TorchAoConfig("int4_weight_only", names, group_size=32))
    everything = quantized_names(quantize(floats(tie_word_embeddings=tied), INT4))
    expected = {name for name in everything if not any(f".{n}." in f".{name}." for n in names)}
    if tied and names == ["lm_head"]:
        expected -= {"model.embed_tokens"}  # it is the same weight
    assert quantized_names(model) == expected
    assert len(expected) < len(everything)
    assert torch.isfinite(logits(model)).all()


# What becomes of a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [INT4, TorchAoConfig("int4_weight_only", group_size=128), INT8], ids=str)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_a_quantized_model_computes_with_its_weights_made_floats(kind, tied, config):
    model = quantize(floats(kind, tie_word_embeddings=tied), config)
    reference = floats(kind, tie_word_embeddings=tied)
    for name in quantized_names(model):
        value = model.get_submodule(name).dequantize()
        original = reference.get_submodule(name).weight
        assert (value - original).norm() < (0.15 if "4" in config.quant_type else 0.02) * original.norm()
        original.data.copy_(value)
    expected = logits(reference)
    assert (logits(model) - expected).abs().max() <= 0.03 * expected.abs().max()  # activations in bfloat16
    assert model.num_parameters() == reference.num_parameters()
    without = {"exclude_embeddings": True}
    assert model.num_parameters(**without) == reference.num_parameters(**without)
    assert model.num_parameters(only_trainable=True) == 0


@pytest.mark.parametrize(("config", "bits"), [(INT4, 5), (TorchAoConfig("int4_weight_only"), 4.25), (INT8, 8)], ids=str)
def test_bytes_are_really_saved(config, bits):
    model = floats(tie_word_embeddings=True)
    before, linear = storage_bytes(model), sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    assert before == model.get_memory_footprint() == model.num_parameters() * 4
    norms = sum(p.nbytes for n, p in model.named_parameters() if "norm" in n)
    quantize(model, config)
    vocabulary, width = model.config.vocab_size, model.config.hidden_size
    scales = 0 if bits < 8 else 2 * sum(m.out_features for n, m in model.named_modules() if "_proj" in n)
    expected = linear * bits / 8 + scales + vocabulary * (width + 2) + norms
    assert storage_bytes(model) == model.get_memory_footprint() == expected
    assert model.get_memory_footprint(return_buffers=False) == norms


@pytest.mark.parametrize("config", [INT4, INT8], ids=str)
def test_every_point_is_captured_and_attention_is_exact(config):
    model = quantize(floats(tie_word_embeddings=True), config)
    expected = logits(model)
    with torch.no_grad(), capture(model, *POINTS) as acts:
        out = model(IDS)
    assert torch.equal(out.logits, acts["logits"])
    assert (out.logits - expected).abs().max() <= 0.01 * expected.abs().max()
    for i in range(3):
        assert torch.equal(acts["resid_pre", i] + acts["attn_out", i], acts["resid_mid", i])
        assert torch.allclose(acts["pattern", i].sum(-1), torch.ones(()))
        layer = model.model.layers[i]
        assert torch.equal(layer.mlp.down_proj(acts["act", i]), acts["mlp_out", i])
        assert torch.equal(layer.self_attn.q_proj(acts["attn_norm", i]), acts["q", i].flatten(2))
    assert hooks(model) == 0


def test_generation_with_and_without_cache_and_one_token_at_a_time():
    model = quantize(floats(tie_word_embeddings=True), INT4)
    options = dict(max_new_tokens=12, pad_token_id=0, eos_token_id=-1)
    assert model.generate(IDS, **options).tolist() == model.generate(IDS, use_cache=False, **options).tolist()
    whole, cache, parts = model(IDS).logits, None, []
    for token in IDS[0]:
        out = model(token[None, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert (torch.cat(parts, 1) - whole).abs().max() <= 0.02 * whole.abs().max()


def test_the_lens_reads_a_quantized_head():
    model = quantize(floats(tie_word_embeddings=True), INT4)
    with torch.no_grad(), capture(model, "resid_post") as acts:
        out = model(IDS).logits[0]
    lens = lens_columns(model, acts["resid_post", 2], torch.full((11,), -1))
    assert lens.top_ids[0, :, 0].tolist() == out.argmax(-1).tolist()


def test_no_forward_needs_gradients_but_those_of_inputs_are_there():
    model, reference = quantize(floats(), INT4), floats()
    assert not model(IDS).logits.requires_grad or model.lm_head.bits == 8
    assert not any(p.requires_grad for p in model.model.parameters())
    for name in quantized_names(model):
        reference.get_submodule(name).weight.data.copy_(model.get_submodule(name).dequantize())
    gradients = []
    for one in (model, reference):
        x = floats().model.embed_tokens(IDS).detach().requires_grad_()
        one(inputs_embeds=x).logits[0, -1, 5].backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5)


def test_what_a_quantized_model_cannot_do_is_refused():
    model = quantize(floats(tie_word_embeddings=True), INT4)
    before = logits(model)
    with pytest.raises(
        ValueError, match="embedding or the output is quantized and cannot be resized. Resize the model"
    ):
        model.resize_token_embeddings(400)
    with pytest.raises(CheckpointError, match="so quantised; convert the model before that"):
        convert_kv_heads(model, 1)
    with pytest.raises(RuntimeError, match="packed for the CPU and cannot be moved to 'meta'"):
        model.to("meta")
    assert torch.equal(logits(model), before)


def test_half_precision_keeps_the_codes():
    model = quantize(floats(tie_word_embeddings=True), INT4)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        out = logits(model.to(dtype))
        assert out.dtype == dtype
        assert (out - before).abs().max() <= 0.05 * before.abs().max()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if "norm" not in name)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), logits(model))
    assert other.lm_head.codes is other.model.embed_tokens.codes

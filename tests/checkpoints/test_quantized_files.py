"""Quantized models and files: GGUF's own blocks, loading, saving, torchao, and the report of what it cost."""

import json
import sys

import gguf
import numpy as np
import pytest
import torch

from tests.checkpoints.conftest import byte_level_metadata, write_folder, write_gguf
from tests.conftest import tiny_config
from workbench import model as models
from workbench.checkpoints import CheckpointError, quality
from workbench.checkpoints.dequantize import dequantize, four_bit_codes
from workbench.checkpoints.load import load
from workbench.checkpoints.quality import quantization_report
from workbench.checkpoints.quantization import TorchAoConfig
from workbench.checkpoints.quantize import quantize
from workbench.model import LlamaForCausalLM, packing
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


# GGUF's own blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_blocks_of_4_bits_become_the_same_values(kind):
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(0).integers(0, 256, (24, nbytes), dtype=np.uint8)
    raw[:, :4] = np.array([0.05, -0.3], np.float16).view(np.uint8)[: 4 if kind != "Q4_0" else 2].tolist() + (
        raw[0, 2:4].tolist() if kind == "Q4_0" else []
    )
    shape = (8, 3 * block)
    codes, scales = four_bit_codes(raw.reshape(-1), kind, shape)
    expected = torch.from_numpy(gguf.quants.dequantize(raw.reshape(-1, nbytes), gguf.GGMLQuantizationType[kind]))
    assert torch.equal(dequantize(raw.reshape(-1), kind, shape), expected.view(shape))
    groups = codes.view(8, -1, 32).float() - 8
    found = groups * scales[..., 0].T[..., None].float() + scales[..., 1].T[..., None].float()
    spread = expected.abs().max()
    assert (found.view(shape) - expected.view(shape)).abs().max() <= 2**-8 * spread
    layer = QuantizedLinear(shape[1], 8 * 2, 4, 32).set_codes(codes.repeat(2, 1), scales.repeat(1, 2, 1))
    assert torch.equal(packing.unpack_int4(layer.codes)[:8], codes)


def test_other_types_have_no_4_bit_codes():
    assert four_bit_codes(np.zeros(34, np.uint8), "Q8_0", (1, 32)) is None


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_files_own_blocks_are_taken_as_they_are(tmp_path, kind):
    path = write_gguf(tmp_path / "tiny.gguf", floats(), kind)
    plain, packed = load(path).model, load(path, quantization="int4").model
    for name in quantized_names(packed) - {"lm_head"}:
        layer, weight = packed.get_submodule(name), plain.get_submodule(name).weight
        assert layer.bits == 4
        assert (layer.dequantize() - weight).abs().max() <= 2**-7 * weight.abs().max(), name
        # A code that is one off would be this far.
        step = layer.scales[..., 0].float().abs().T.repeat_interleave(32, 1)
        assert ((layer.dequantize() - weight).abs() <= 0.2 * step).all(), name
    assert (logits(packed) - logits(plain)).abs().max() <= 0.05 * logits(plain).abs().max()
    anew = load(path, quantization=TorchAoConfig("int4_weight_only", group_size=64)).model
    assert anew.model.layers[0].mlp.up_proj.scales.shape == (2, 256, 2)


def test_types_of_more_bits_are_rounded_anew(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", floats(), "Q8_0")
    packed, plain = load(path, quantization="int4").model, load(path).model
    expected = quantize(plain, "int4")
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in packed.state_dict().items())


# Loading and saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [INT4, TorchAoConfig("int4_weight_only", ["layers.1"], group_size=64), INT8], ids=str
)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_gives_the_same_logits(tmp_path, tied, config):
    write_folder(tmp_path / "floats", floats(tie_word_embeddings=tied, attention_bias=True))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "floats", quantization_config=config)
    at_once = quantize(LlamaForCausalLM.from_pretrained(tmp_path / "floats"), config)
    assert torch.equal(logits(model), logits(at_once))
    model.save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"] == config.to_dict()
    names = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(name.startswith("lm_head") for name in names) != tied
    assert "model.embed_tokens.codes" in names if tied else "model.embed_tokens.weight" in names
    for again in (
        LlamaForCausalLM.from_pretrained(tmp_path / "saved"),
        LlamaForCausalLM.from_pretrained(tmp_path / "saved", quantization_config=config),
    ):
        assert torch.equal(logits(again), logits(model))
        assert quantized_names(again) == quantized_names(model)
        assert again.dtype == torch.float32
        assert again.get_memory_footprint() == model.get_memory_footprint()
        assert not any(p.requires_grad for p in again.model.parameters())
    again.save_pretrained(tmp_path / "again")
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("again", "floats")
    ]
    assert sizes[0] < sizes[1] / 2


def test_another_head_on_a_quantized_base(tmp_path):
    quantize(floats(tie_word_embeddings=True), INT4).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="score.weight"):
        model = models.LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert isinstance(model.model.embed_tokens, QuantizedEmbedding)
    base = models.LlamaModel.from_pretrained(tmp_path)
    expected = LlamaForCausalLM.from_pretrained(tmp_path).model(IDS).last_hidden_state
    assert torch.equal(base(IDS).last_hidden_state, expected)
    model(IDS, labels=torch.tensor([1])).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("tied", [False, True])
def test_a_stored_head_beside_a_tied_embedding_is_compared(tmp_path, tied):
    model = floats(tie_word_embeddings=True)
    other = model.lm_head.weight.data if tied else torch.randn_like(model.lm_head.weight)
    path = write_gguf(tmp_path / "tiny.gguf", model, "F32")
    write_folder(tmp_path / "folder", model)
    import safetensors.torch

    file = tmp_path / "folder" / "model.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(file), "lm_head.weight": other.clone()}, file)
    if tied:
        loaded = LlamaForCausalLM.from_pretrained(tmp_path / "folder", quantization_config="int8")
        assert torch.equal(logits(loaded), logits(load(path, quantization="int8").model))
    else:
        with pytest.raises(CheckpointError, match="ties the output to the embedding"):
            LlamaForCausalLM.from_pretrained(tmp_path / "folder", quantization_config="int8")


@pytest.mark.parametrize("method", ["torchao", "gptq", None, 3])
def test_what_others_quantized_is_refused(tmp_path, method):
    write_folder(tmp_path, floats())
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": method, "quant_type": {"default": {}}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    for read in (load, LlamaForCausalLM.from_pretrained):
        with pytest.raises(CheckpointError, match=f"was quantized by {method!r} .* cannot be read; what this package"):
            read(tmp_path)


def test_damaged_quantized_folders(tmp_path):
    import safetensors.torch

    quantize(floats(), INT4).save_pretrained(tmp_path)
    file, good = tmp_path / "model.safetensors", safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    for changed, message in (
        ({f"{name}.codes": good[f"{name}.codes"].float()}, f"{name}: codes is torch.float32 of shape"),
        ({f"{name}.codes": good[f"{name}.codes"][:-16]}, rf"of another shape: {name}.codes is \[240, 64\]"),
        ({f"{name}.scales": None}, f"missing: {name}.scales"),
        ({f"{name}.codes": None, f"{name}.scales": None}, f"missing: {name}.weight"),
    ):
        tensors = {key: value for key, value in {**good, **changed}.items() if value is not None}
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(CheckpointError, match=message):
            LlamaForCausalLM.from_pretrained(tmp_path)
    safetensors.torch.save_file(good, file)
    with pytest.raises(CheckpointError, match="the checkpoint is quantized as .*, which cannot become"):
        LlamaForCausalLM.from_pretrained(tmp_path, quantization_config="int8")
    values = json.loads((tmp_path / "config.json").read_text())
    for change, message in (({"group_size": 7}, "config.json: group_size is 7"), ({"format": 9}, "format 9")):
        changed = {**values, "quantization_config": {**values["quantization_config"], **change}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            LlamaForCausalLM.from_pretrained(tmp_path)


def test_whole_numbers_are_no_weights_of_a_float_model(tmp_path):
    import safetensors.torch

    write_folder(tmp_path, floats())
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int8)}, file)
    with pytest.raises(CheckpointError, match="model.norm.weight is stored as I8; supported are F32"):
        load(tmp_path)


def test_several_places_are_refused(tmp_path):
    write_folder(tmp_path, floats())
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    with pytest.raises(CheckpointError, match="but a quantized model is on one device. Use 'cpu' or 'cuda'"):
        LlamaForCausalLM.from_pretrained(tmp_path, quantization_config="int4", device_map=places)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config="int4", device_map="auto")
    assert torch.equal(logits(model), logits(quantize(floats(), "int4")))


def test_a_config_that_says_quantized_of_floats_is_not_saved(tmp_path):
    model = floats()
    model.config.quantization_config = INT4.to_dict()
    with pytest.raises(CheckpointError, match="quantization_config is set, but no weight is in 4 or 8 bits"):
        model.save_pretrained(tmp_path / "saved")


def test_without_torchao_cuda_says_what_to_install(monkeypatch):
    from workbench.checkpoints.quantize import _with_torchao

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        CheckpointError, match="torchao is needed and not installed. Install it with `pip install torchao`"
    ):
        _with_torchao(floats(), INT4, {})


def test_torchao_is_told_which_layers(monkeypatch):
    """The package itself is not there: what it would be called with."""
    from types import SimpleNamespace

    from workbench.checkpoints.quantize import _with_torchao, planned

    seen = {}

    def quantize_(model, config, filter_fn):
        seen["config"], seen["names"] = config, {n for n, m in model.named_modules() if filter_fn(m, n)}

    made = SimpleNamespace(
        Int4WeightOnlyConfig=lambda group_size: ("int4", group_size),
        Int8WeightOnlyConfig=lambda: "int8",
        quantize_=quantize_,
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=made))
    monkeypatch.setitem(sys.modules, "torchao.quantization", made)
    for config, expected in ((INT4, ("int4", 32)), (INT8, "int8")):
        model = floats()
        _with_torchao(model, config, planned(model, config))
        assert seen["config"] == expected
        assert seen["names"] == {name for name, _ in model.named_modules() if name.endswith("_proj")}


# The report -----------------------------------------------------------------------------------------------------------


def test_the_report_counts_bytes_and_compares_predictions(monkeypatch):
    monkeypatch.setattr(quality, "CHUNK", 4)
    model, reference = quantize(floats(tie_word_embeddings=True), INT4), floats(tie_word_embeddings=True)
    report = quantization_report(model, reference, ids=IDS)
    with torch.no_grad():
        own, other = (m(IDS).logits[0, :-1].log_softmax(-1) for m in (model, reference))
    kl = (other.exp() * (other - own)).sum(-1)
    targets = IDS[0, 1:, None]
    assert report.positions == 10
    assert report.mean_kl == pytest.approx(kl.mean().item(), rel=1e-3)
    assert report.max_kl == pytest.approx(kl.max().item(), rel=1e-3)
    assert report.perplexity == pytest.approx(own.gather(1, targets).mean().neg().exp().item(), rel=1e-4)
    assert report.reference_perplexity == pytest.approx(other.gather(1, targets).mean().neg().exp().item(), rel=1e-4)
    assert report.top1_agreement == pytest.approx((own.argmax(-1) == other.argmax(-1)).float().mean().item())
    assert (report.bytes, report.reference_bytes) == (storage_bytes(model), storage_bytes(reference))
    assert report.bytes_by_kind["output"] == (0, 0)
    frame = report.to_pandas()
    assert frame.loc["all", "bytes"] == frame["bytes"].drop("all").sum() == report.bytes
    assert frame.loc["mlp", "ratio"] == pytest.approx(32 / 5)
    assert f"KL divergence {report.mean_kl:.5f} nats" in str(report)
    same = quantization_report(reference, reference, ids=IDS)
    assert (same.mean_kl, same.top1_agreement, same.perplexity) == (0, 1, same.reference_perplexity)


def test_bad_reports():
    model = floats()
    for arguments, message in (
        ({}, "neither a tokenizer nor ids are given"),
        ({"ids": IDS[0]}, r"ids has shape \(11,\); give either"),
        ({"ids": IDS[:, :1]}, r"ids has shape \(1, 1\)"),
        ({"ids": IDS, "text": "a"}, r"ids has shape \(1, 11\) and text is given too"),
    ):
        with pytest.raises(CheckpointError, match=message):
            quantization_report(model, model, **arguments)
    with pytest.raises(CheckpointError, match="the models know 273 and 97 tokens"):
        quantization_report(model, floats(vocab_size=97), ids=IDS)

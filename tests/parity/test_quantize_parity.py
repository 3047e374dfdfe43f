"""Quantized models against transformers: with the same weights as floats, and the default model against its floats."""

import pytest
import torch

from tests.parity.test_model_parity import pair
from workbench.checkpoints.load import load
from workbench.checkpoints.quality import TEXT, quantization_report
from workbench.checkpoints.quantize import quantize
from workbench.model.quantized import QuantizedWeight

SIZES = dict(hidden_size=128, intermediate_size=256, initializer_range=0.1)


@pytest.mark.parametrize("config", ["int4", "int8"])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}], ids=str)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_logits_of_the_same_weights(kind, options, config):
    ours, theirs = pair(kind, "sdpa", **SIZES, **options)
    ids = torch.randint(1, 97, (2, 70))
    exact = theirs(ids).logits
    quantize(ours, config)
    for name, module in ours.named_modules():
        if isinstance(module, QuantizedWeight):
            theirs.get_submodule(name).weight.copy_(module.dequantize())
    reference = theirs(ids).logits
    # The kernels take activations as bfloat16, so what is left is compared with what transformers loses in bfloat16.
    allowed = rms(theirs.bfloat16()(ids).logits.float() - reference)
    for width in (70, 9):  # many rows, by unpacked weights, and few, by the kernels
        assert rms(ours(ids[:, :width]).logits - reference[:, :width]) <= allowed
    assert rms(reference - exact) > 1.5 * allowed  # the rounding of weights is not lost in that


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(("config", "megabytes"), [("int4", 94.9), ("int8", 135.0)])
@torch.no_grad()
def test_the_default_model_loses_little(default_pair, config, megabytes):
    floats, theirs = default_pair
    model = load(quantization=config, progress=False).model
    report = quantization_report(model, floats.model, floats.tokenizer)
    assert report.positions > 300
    assert report.mean_kl <= 0.01
    assert report.top1_agreement >= 0.93
    assert abs(report.perplexity / report.reference_perplexity - 1) <= 0.02
    assert (report.bytes / 1e6, report.reference_bytes / 1e6) == pytest.approx((megabytes, 538.1), abs=0.1)
    ids = torch.tensor([floats.tokenizer.encode(TEXT)[:128]])
    own, other = model(ids).logits.log_softmax(-1), theirs(ids).logits.log_softmax(-1)
    assert (other.exp() * (other - own)).sum(-1).mean() <= 0.01

"""Quantized caches on the default model: how far they are from an exact one."""

import functools

import pytest
import torch

import workbench
from workbench.cache import DynamicCache, QuantizedCache

TEXT = " ".join(f"On day {i} the ship sailed {i * i} miles and met {i % 7} whales." for i in range(30))


@functools.cache
def loaded():
    return workbench.load(progress=False)


@pytest.mark.parametrize(("bits", "most"), [(8, 1e-4), (4, 0.02), (2, 0.6)])
@torch.no_grad()
def test_the_divergence_is_small(bits, most):
    model, tokenizer = loaded()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    exact, cache = DynamicCache(), QuantizedCache(bits, residual_length=32)
    for one in (exact, cache):
        model(ids[:, :-64], past_key_values=one, logits_to_keep=1)
    expected = model(ids[:, -64:], past_key_values=exact).logits.log_softmax(-1)
    found = model(ids[:, -64:], past_key_values=cache).logits.log_softmax(-1)
    divergence = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert 0 < divergence < most
    assert cache.quantized_length() > 300

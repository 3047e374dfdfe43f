"""The sliding cache against transformers' Mistral, whose weights and arithmetic are Llama's with a sliding window."""

import pytest
import torch
import transformers

from tests.conftest import tiny_config
from workbench.cache import SlidingCache
from workbench.model import LlamaForCausalLM
from workbench.model.mask import causal, window

IDS = torch.randint(6, 97, (2, 40), generator=torch.Generator().manual_seed(3))


def pair(kind, size):
    torch.manual_seed(11)
    config = tiny_config(kind, eos_token_id=None)
    values = {k: v for k, v in config.to_dict().items() if k not in ("architectures", "model_type")}
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**{**values, "sliding_window": size})).eval()
    ours = LlamaForCausalLM(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("size", [4, 16, 64])
@torch.no_grad()
def test_a_sliding_window_has_the_numbers_of_transformers(kind, size):
    ours, theirs = pair(kind, size)
    expected = theirs(IDS, use_cache=False).logits
    torch.testing.assert_close(
        ours(IDS, attention_mask=[causal(), window(size)]).logits, expected, rtol=1e-4, atol=1e-4
    )
    mine, reference = SlidingCache(size), transformers.DynamicCache(config=theirs.config)
    for a, b in ((0, 9), (9, 10), (10, 30), (30, 31), (31, 40)):
        found = ours(IDS[:, a:b], past_key_values=mine).logits
        torch.testing.assert_close(found, expected[:, a:b], rtol=1e-4, atol=1e-4)
        cached = theirs(IDS[:, a:b], past_key_values=reference).logits
        torch.testing.assert_close(found, cached, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [0, 5])
def test_greedy_generation_with_a_sliding_cache_is_that_of_transformers(padded):
    ours, theirs = pair("gqa", 8)
    keep = torch.ones_like(IDS[:, :12])
    keep[0, :padded] = 0
    options = dict(attention_mask=keep, max_new_tokens=40, do_sample=False)
    found = ours.generate(IDS[:, :12], cache_implementation="sliding", cache_config={"window": 8}, **options)
    expected = theirs.generate(IDS[:, :12], **options)
    assert found.tolist() == expected.tolist()
    assert ours.generate(IDS[:, :12], **options).tolist() != expected.tolist(), "the window matters here"

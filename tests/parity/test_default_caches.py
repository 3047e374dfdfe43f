"""Caches on the default model: the lossless ones change nothing, the others as little as they promise."""

import pytest
import torch

import workbench
from workbench.cache import make_cache

TEXT = workbench.Timeline.__doc__
PROMPT, NEW = 24, 200
LOSSLESS = {
    "static": {},
    "offloaded": {},
    "sink": {"window": PROMPT + NEW - 4, "sinks": 4},
}
pytestmark = pytest.mark.filterwarnings("ignore:an offloaded cache")


@pytest.fixture(scope="module")
def ids(default_pair):
    ours, _ = default_pair
    return torch.tensor([ours.tokenizer.encode(TEXT)])


@pytest.fixture(scope="module")
def by_dynamic(default_pair, ids):
    """200 greedy tokens, and the logits of each step."""
    return generated(default_pair[0].model, ids, cache_implementation="dynamic")


def generated(model, ids, **options):
    options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    out = model.generate(ids[:, :PROMPT], return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences, torch.stack(out.logits)


@torch.no_grad()
def test_greedy_tokens_are_those_of_transformers(default_pair, by_dynamic):
    sequences, _ = by_dynamic
    choices = default_pair[1](sequences[:, :-1]).logits[:, PROMPT - 1 :].argmax(-1)
    assert torch.equal(sequences[:, PROMPT:], choices)


@pytest.mark.parametrize("name", LOSSLESS)
@torch.no_grad()
def test_lossless_caches_give_the_same_200_tokens_and_logits(name, default_pair, ids, by_dynamic):
    sequences, logits = generated(
        default_pair[0].model, ids, cache_implementation=name, cache_config=LOSSLESS[name] or None
    )
    assert torch.equal(sequences, by_dynamic[0])
    assert (logits - by_dynamic[1]).abs().max() <= 1e-5 * by_dynamic[1].abs().max()


@torch.no_grad()
def test_one_pass_gives_the_logits_of_every_step(default_pair, by_dynamic):
    sequences, steps = by_dynamic
    whole = default_pair[0].model(sequences[:, :-1], use_cache=False).logits[0, PROMPT - 1 :]
    assert (whole - steps[:, 0]).abs().max() <= 1e-5 * whole.abs().max()


@torch.no_grad()
def test_fewer_bits_move_predictions_more_and_eight_hardly(default_pair, ids):
    model, length, steps = default_pair[0].model, 300, 24
    rows = {bits: make_cache("quantized", model.config, bits=bits, residual_length=0) for bits in (8, 4, 2)}
    rows["exact"] = make_cache("dynamic", model.config)
    kl = dict.fromkeys((8, 4, 2), 0.0)
    for cache in rows.values():
        model(ids[:, :length], past_key_values=cache, logits_to_keep=1)
    for at in range(length, length + steps):
        found = {
            name: model(ids[:, at : at + 1], past_key_values=cache).logits[0, -1].double().log_softmax(-1)
            for name, cache in rows.items()
        }
        for bits in kl:
            kl[bits] += float((found["exact"].exp() * (found["exact"] - found[bits])).sum()) / steps
    assert kl[8] <= 1e-3, kl
    assert kl[8] < kl[4] / 10 < kl[2] / 10, kl
    assert kl[4] < 0.02, kl
    assert kl[2] < 0.5, kl

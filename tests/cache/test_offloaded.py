"""The offloaded cache: without a GPU, and its movements with one that is only pretended."""

import warnings

import pytest
import torch

from tests.cache.caches import IDS, assert_equal, contents
from tests.conftest import tiny_model
from workbench.cache import DynamicCache, OffloadedCache


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(OffloadedCache, "_said", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@torch.no_grad()
def test_without_a_gpu_it_is_a_dynamic_cache_and_says_so_once(said):
    message = (
        r"an offloaded cache keeps keys and values in the host's memory instead of the GPU's, but this machine has no "
        r"CUDA device: they are there already, so it works as a dynamic cache and frees nothing"
    )
    with pytest.warns(UserWarning, match=message):
        cache = OffloadedCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OffloadedCache()
    model, plain = tiny_model(), DynamicCache()
    for a, b in ((0, 10), (10, 11), (11, 30)):
        found = model(IDS[:, a:b], past_key_values=cache).logits
        assert torch.equal(found, model(IDS[:, a:b], past_key_values=plain).logits)
    assert_equal(contents(cache), contents(plain))
    assert cache.nbytes == plain.nbytes
    assert cache.exact


class Pretended(OffloadedCache):
    """Moves everything as if the model were on another device."""

    @staticmethod
    def _is_elsewhere(new):
        return True

    fetched: list

    def _fetch(self, layer):
        self.fetched.append(layer)
        super()._fetch(layer)


@pytest.fixture
def pretended(said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = Pretended()
    cache.fetched = []
    return cache


@torch.no_grad()
def test_the_next_layer_is_fetched_while_one_computes(pretended):
    model, plain, cache = tiny_model(), DynamicCache(), pretended
    model(IDS[:, :10], past_key_values=cache)
    model(IDS[:, :10], past_key_values=plain)
    assert cache.fetched == [], "the first forward has nothing to fetch"
    model(IDS[:, 10:11], past_key_values=cache)
    model(IDS[:, 10:11], past_key_values=plain)
    assert cache.fetched == [0, 1, 2, 0], "each once, and the first one for the next forward"
    model(IDS[:, 11:12], past_key_values=cache)
    model(IDS[:, 11:12], past_key_values=plain)
    assert cache.fetched[4:] == [1, 2, 0]
    cache.crop(8)
    plain.crop(8)
    found = model(IDS[:, 8:9], past_key_values=cache).logits
    torch.testing.assert_close(found, model(IDS[:, 8:9], past_key_values=plain).logits)
    for rows in (torch.tensor([1, 0]), torch.tensor([0, 0, 1])):
        cache.reorder(rows)
        plain.reorder(rows)
    for a, b in ((9, 30), (30, 31), (31, 32)):  # what was fetched before is of no use now
        found = model(IDS[[0, 0, 1], a:b], past_key_values=cache).logits
        torch.testing.assert_close(found, model(IDS[[0, 0, 1], a:b], past_key_values=plain).logits)
    assert_equal(contents(cache), contents(plain))


@torch.no_grad()
def test_slots_lie_behind_each_other_on_the_host(pretended):
    tiny_model()(IDS, past_key_values=pretended)
    store = pretended._keys[0]
    assert store.permute(2, 0, 1, 3).is_contiguous()
    assert store.shape[2] == 40 + 64


def test_gradients_are_refused(pretended, model):
    with pytest.raises(ValueError, match=r"writes in place, so no gradient can be recorded through it"):
        model(IDS, past_key_values=pretended)


@torch.no_grad()
def test_what_does_not_continue_it_is_refused(pretended, model):
    model(IDS, past_key_values=pretended)
    with pytest.raises(ValueError, match=r"do not continue a cache of"):
        model(IDS[:1, :1], past_key_values=pretended)
    assert pretended.length == 40

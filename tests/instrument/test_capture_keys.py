"""Patterns and cached keys are computed from captured keys only where attention was given just those."""

import threading

import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache, SinkCache, SlidingCache, StaticCache
from workbench.instrument import capture, edit
from workbench.instrument.edits import zero

IDS = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(3))
OTHER = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(4))
POINTS = ("pattern", "scores", "k_cached", "v_cached")


def both(run, **options):
    """What two captures of the same forwards hold: one may compute, the other stores."""
    model, found = tiny_model(), []
    for derive in (True, False):
        with torch.no_grad(), capture(model, *POINTS, derive=derive, **options) as acts:
            run(model, acts)
        found.append(acts)
    return found


def assert_right(run, computed, **options):
    """The same numbers, and of the last forward's pattern in layer 0 whether it is computed from keys."""
    acts, stored = both(run, **options)
    assert set(acts) == set(stored)
    for name in acts:
        for step in range(len(acts.spans)):
            torch.testing.assert_close(acts.step(name, step), stored.step(name, step), rtol=1e-4, atol=1e-5)
    assert (acts.series("layers.0.pattern").parts[-1].nbytes == 0) == computed


def test_a_text_read_on_with_its_own_cache():
    def run(model, acts):
        cache = DynamicCache()
        for start, end in ((0, 5), (5, 6), (6, 12)):
            model(IDS[:, start:end], past_key_values=cache)

    assert_right(run, computed=True)


def test_a_cache_that_the_model_made():
    def run(model, acts):
        cache = model(IDS[:, :5]).past_key_values
        cache = model(IDS[:, 5:6], past_key_values=cache, return_dict=False)[1]
        model(IDS[:, 6:], past_key_values=cache)

    assert_right(run, computed=True)


@pytest.mark.parametrize("layers", [[0], None], ids=["first layer", "all"])
def test_another_cache_that_is_as_long(layers):
    """In the first layer keys depend on nothing but their own token: the last ones may be the same."""

    def run(model, acts):
        other = DynamicCache()
        model(OTHER[:, :5], past_key_values=other)
        model(torch.cat((IDS[:, :4], OTHER[:, 4:5]), 1), past_key_values=DynamicCache())
        model(IDS[:, 5:7], past_key_values=other)

    assert_right(run, computed=False, layers=layers)


def test_an_edit_of_the_text_before():
    def run(model, acts):
        cache = DynamicCache()
        with edit(model, zero("k_rot", layers=1, positions=[2])):
            model(IDS[:, :7], past_key_values=cache)
        model(IDS[:, 7:], past_key_values=cache)

    assert_right(run, computed=False)


@pytest.mark.parametrize(
    "make", [DynamicCache, lambda: StaticCache(tiny_model().config, 20)], ids=["dynamic", "static"]
)
@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.reorder(torch.tensor([1, 0])),
        lambda cache: cache.keys(0)[:, :, :3].zero_(),
        lambda cache: cache.values(2)[:, :, :3].zero_(),
    ],
    ids=["reordered", "keys written", "values written"],
)
def test_somebody_changes_the_cache(change, make):
    two = torch.cat((IDS, OTHER))

    def run(model, acts):
        cache = make()
        model(two[:, :7], past_key_values=cache)
        change(cache)
        model(two[:, 7:9], past_key_values=cache)
        model(two[:, 9:], past_key_values=cache)

    assert_right(run, computed=False)


def test_a_cache_that_was_cropped_and_read_on_by_another_thread():
    def run(model, acts):
        cache = DynamicCache()
        model(IDS[:, :7], past_key_values=cache)
        cache.crop(3)
        thread = threading.Thread(target=lambda: torch.no_grad()(model)(OTHER[:, 3:7], past_key_values=cache))
        thread.start()
        thread.join()
        model(IDS[:, 7:], past_key_values=cache)

    assert_right(run, computed=False)


def test_a_capture_and_its_cache_that_were_cropped_together():
    def run(model, acts):
        cache = DynamicCache()
        model(IDS[:, :7], past_key_values=cache)
        cache.crop(3)
        acts.crop(3)
        model(OTHER[:, 3:], past_key_values=cache)

    assert_right(run, computed=True)


class Coarse(DynamicCache):
    """Gives other keys than it takes, as a quantized cache does."""

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        return (k * 2).round() / 2, v


@pytest.mark.parametrize(
    ("make", "computed"),
    [
        (Coarse, False),
        (lambda: DynamicCache(dtype=torch.bfloat16), False),
        (lambda: DynamicCache(dtype=torch.float32), True),
    ],
    ids=["a class of its own", "bfloat16", "float32"],
)
def test_a_cache_that_may_give_other_keys_than_it_takes(make, computed):
    def run(model, acts):
        cache = make()
        for start, end in ((0, 5), (5, 12)):
            model(IDS[:, start:end], past_key_values=cache)

    assert_right(run, computed=computed)


def test_a_method_that_was_put_over_a_cache():
    def run(model, acts):
        cache = DynamicCache()
        cache.update = Coarse().update
        model(IDS, past_key_values=cache)

    assert_right(run, computed=False)


@pytest.mark.parametrize("make", [lambda: SlidingCache(4), lambda: SinkCache(4, 2)], ids=["sliding", "sink"])
@pytest.mark.parametrize("ends", [(12,), (3, 5, 6, 12)], ids=["one pass", "chunks"])
def test_caches_that_forget(make, ends):
    def run(model, acts):
        cache, start = make(), 0
        for end in ends:
            model(IDS[:, start:end], past_key_values=cache)
            start = end

    assert_right(run, computed=len(ends) == 1)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}], ids=["beams", "several samples"]
)
def test_a_generation_of_more_rows_than_the_prompt(options):
    def run(model, acts):
        torch.manual_seed(0)
        model.generate(IDS[:, :5], max_new_tokens=4, pad_token_id=0, eos_token_id=None, **options)

    assert_right(run, computed=False)


def test_in_inference_mode_nobody_can_tell_whether_the_cache_was_changed():
    def run(model, acts):
        with torch.inference_mode():
            cache = DynamicCache()
            for start, end in ((0, 5), (5, 12)):
                model(IDS[:, start:end], past_key_values=cache)

    assert_right(run, computed=False)

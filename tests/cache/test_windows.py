"""Caches that forget: against a pass over the whole text under their mask, however the text is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.caches import IDS, LENGTH, assert_equal, contents, piece, rules_of
from tests.conftest import tiny_model
from tests.strategies import splits
from workbench.cache import DynamicCache, SinkCache, SlidingCache
from workbench.model.mask import causal, padding, sink, window

MODEL = {kind: tiny_model(kind) for kind in ("mha", "gqa", "mqa")}
CLOSE = dict(rtol=1e-4, atol=1e-4)


def make(size, sinks):
    return SinkCache(size, sinks) if sinks else SlidingCache(size)


class Planted(Exception):
    pass


def fail_in(module, model, *args, **options):
    """A forward that fails in a module."""

    def fail(module, args):
        raise Planted

    handle = module.register_forward_pre_hook(fail)
    with pytest.raises(Planted):
        model(*args, **options)
    handle.remove()


@pytest.mark.parametrize("source", [DynamicCache, lambda: SinkCache(3, 5), lambda: SlidingCache(9)])
@pytest.mark.parametrize("length", range(6))
@torch.no_grad()
def test_a_text_that_is_shorter_than_the_sinks_is_taken_over(source, length):
    model, theirs, mine, alone = MODEL["gqa"], source(), SinkCache(8, 4), SinkCache(8, 4)
    if length:
        model(IDS[:, :length], past_key_values=theirs)
        model(IDS[:, :length], past_key_values=alone)
    mine.copy_from(theirs)
    assert mine.length == length
    assert_equal(contents(mine), contents(alone))
    for at in range(length, 30):
        found = model(IDS[:, at : at + 1], past_key_values=mine).logits
        torch.testing.assert_close(found, model(IDS[:, at : at + 1], past_key_values=alone).logits, **CLOSE)
    assert_equal([c[2:] for c in contents(mine)], [c[2:] for c in contents(alone)])


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["mha", "gqa", "mqa"]),
    size=st.sampled_from([1, 2, 5, 16, LENGTH, 100]),
    sinks=st.sampled_from([0, 1, 4]),
    sizes=splits(LENGTH),
    padded=st.sampled_from([0, 1, 6]),
    picked=st.permutations([0, 1, 0]),
    twice=st.booleans(),
)
@torch.no_grad()
def test_any_chunks_are_one_pass_under_its_mask(kind, size, sinks, sizes, padded, picked, twice):
    model, cache = MODEL[kind], make(size, sinks)
    keep = torch.ones_like(IDS)
    keep[0, :padded] = 0
    whole = model(IDS, attention_mask=[*rules_of(cache), padding(keep)], use_cache=False).logits
    rows = torch.arange(2)
    at = 0
    for count in sizes:
        pos = cache.positions(0, count)
        seen = []
        handle = model.model.hook_mask.register_forward_hook(lambda module, args, mask, seen=seen: seen.append(mask))
        for _ in range(1 + twice):  # the last forward can be taken back, whatever it overwrote
            cache.crop(at)
            chunk = IDS[rows, at : at + count]
            found = model(chunk, attention_mask=keep[rows, : at + count], past_key_values=cache).logits
            tokens = keep[rows, at : at + count].bool()
            torch.testing.assert_close(found[tokens], whole[rows, at : at + count][tokens], **CLOSE)
        handle.remove()
        assert torch.equal(seen[0].k_pos, pos)
        at += count
        if at > LENGTH // 2 and len(rows) == 2:
            cache.reorder(torch.tensor(picked))
            rows = rows[torch.tensor(picked)]
    assert cache.length == LENGTH
    held = cache.positions(2)
    assert sorted(held[held >= 0].tolist()) == sorted(
        {*range(min(sinks, LENGTH)), *range(max(0, LENGTH - size), LENGTH)}
    )


@pytest.mark.parametrize("sinks", [0, 4])
@torch.no_grad()
def test_a_ring_that_went_round_many_times(sinks):
    model = tiny_model(max_position_embeddings=512)
    ids = torch.randint(1, 97, (2, 300), generator=torch.Generator().manual_seed(5))
    cache = make(16, sinks)
    whole = model(ids, attention_mask=rules_of(cache), use_cache=False).logits
    found = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(300)]
    torch.testing.assert_close(torch.cat(found, 1), whole, **CLOSE)


def test_storage_grows_to_the_window_and_is_written_in_place():
    cache, sizes = make(100, 4), set()
    for _ in range(40):
        cache.update(0, piece(1), piece(1))
        sizes.add(cache.nbytes)
    assert sizes == {2 * 2 * 2 * 65 * 8 * 4}, "1 position and 64 spare ones"
    for _ in range(500):
        keys, _ = cache.update(0, piece(1), piece(1))
    assert cache.nbytes == 2 * 2 * 2 * 104 * 8 * 4
    pointer = keys.data_ptr()
    new = piece(1)
    keys, _ = cache.update(0, new, new)
    assert keys.data_ptr() == pointer == cache.keys(0).data_ptr(), "the storage itself, not a copy"
    assert torch.equal(keys[:, :, cache.positions(0).tolist().index(540)], new[:, :, 0])


def test_what_takes_a_forward_back_is_counted_and_dropped_when_the_next_begins():
    cache = make(16, 4)
    slots = 2 * 2 * 2 * 20 * 8 * 4
    for layer in range(2):
        cache.update(layer, piece(30), piece(30))
    assert cache.nbytes == 2 * slots, "nothing was held before"
    for layer in range(2):
        cache.update(layer, piece(30), piece(30))
    assert cache.nbytes == 4 * slots
    cache.update(0, piece(1), piece(1))
    assert cache.nbytes == 2 * slots


@pytest.mark.parametrize("failing", [0, 1, 2, "norm"], ids=lambda where: f"in {where}")
@pytest.mark.parametrize("count", [1, 2, 25])
@pytest.mark.parametrize(("size", "sinks"), [(1, 0), (7, 0), (7, 3), (64, 2)])
@pytest.mark.parametrize("start", [0, 3, 14])
@torch.no_grad()
def test_a_forward_that_fails_is_taken_back(size, sinks, count, failing, start):
    model, cache = MODEL["gqa"], make(size, sinks)
    whole = model(IDS, attention_mask=rules_of(cache), use_cache=False).logits
    if start:
        model(IDS[:, :start], past_key_values=cache)
    before = contents(cache)
    module = model.model.norm if failing == "norm" else model.model.layers[failing].mlp
    fail_in(module, model, IDS[:, start : start + count], past_key_values=cache)
    assert cache.length == start
    assert all(torch.equal(cache.positions(i), cache.positions(0)) for i in range(cache.layers)), "in all layers alike"
    if count > 1 and start:
        assert_equal(contents(cache), before)
    for _ in range(2):
        found = model(IDS[:, start : start + 20], past_key_values=cache).logits
        torch.testing.assert_close(found, whole[:, start : start + 20], **CLOSE)
        cache.crop(start)
    one = model(IDS[:, start : start + 1], past_key_values=cache).logits
    torch.testing.assert_close(one, whole[:, start : start + 1], **CLOSE)


@torch.no_grad()
def test_cropping_goes_as_far_as_what_the_next_position_sees_is_held():
    model, cache = MODEL["gqa"], make(8, 0)
    whole = model(IDS, attention_mask=rules_of(cache), use_cache=False).logits
    model(IDS[:, :6], past_key_values=cache)
    for i in range(6, 30):
        model(IDS[:, i : i + 1], past_key_values=cache)
    assert [cache.can_crop(n) for n in (30, 29, 28, 10, 0, -1, -2, -31)] == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        False,
    ]
    before = contents(cache)
    message = (
        r"crop\(20\): cropping past the window\. This sliding cache of window=8 has overwritten positions that "
        r"position 20 would see; it can be cropped to 29 or more\. Reset it and read the text again"
    )
    with pytest.raises(ValueError, match=message):
        cache.crop(20)
    with pytest.raises(ValueError, match=r"crop\(-31\): the cache holds 30 positions only"):
        cache.crop(-31)
    assert cache.length == 30
    assert_equal(contents(cache), before)
    cache.crop(29)
    assert cache.positions(0).tolist().count(-1) == 1, "the slot of 21 holds 29, which is gone"
    found = model(IDS[:, 29:33], past_key_values=cache).logits
    torch.testing.assert_close(found, whole[:, 29:33], **CLOSE)
    cache.crop(-4)
    assert cache.length == 29
    cache.crop(0)
    assert (cache.length, cache.positions(0).tolist()) == (0, [])
    assert torch.equal(
        model(IDS[:, :5], past_key_values=cache).logits, model(IDS[:, :5], past_key_values=make(8, 0)).logits
    )


@torch.no_grad()
def test_a_sink_cache_goes_back_into_its_sinks():
    model, cache = MODEL["gqa"], make(8, 4)
    whole = model(IDS, attention_mask=rules_of(cache), use_cache=False).logits
    for i in range(30):
        model(IDS[:, i : i + 1], past_key_values=cache)
    assert [n for n in range(31) if cache.can_crop(n)] == [0, 1, 2, 3, 4, 29, 30]
    cache.crop(3)
    assert cache.positions(0).tolist() == [0, 1, 2]
    for a, b in ((3, 4), (4, 20), (20, 21)):
        found = model(IDS[:, a:b], past_key_values=cache).logits
        torch.testing.assert_close(found, whole[:, a:b], **CLOSE)


@torch.no_grad()
def test_the_model_adds_the_rules_of_the_cache_to_any_list_or_padding():
    model, seen = tiny_model(), []
    model.model.hook_mask.register_forward_hook(lambda module, args, mask: seen.append(mask))
    keep = torch.ones_like(IDS)
    keep[0, :2] = 0
    for mask, names in (
        (None, ["causal", "window", "sink"]),
        (keep, ["causal", "window", "sink", "padding"]),
        ([causal(), padding(keep)], ["causal", "padding", "window", "sink"]),
        ([causal(), window(6), sink(3)], ["causal", "window", "sink"]),
    ):
        model(IDS, attention_mask=mask, past_key_values=SinkCache(6, 3))
        assert [rule.name for rule in seen[-1].rules] == names
    whole = seen[0]
    model(IDS, attention_mask=whole, past_key_values=SinkCache(2, 1))
    assert seen[-1].rules == whole.rules, "a whole mask is used as it is"


@torch.no_grad()
def test_rules_that_would_mix_with_those_of_the_cache_are_refused():
    model = tiny_model()
    model(IDS, attention_mask=[causal(), window(4)], past_key_values=SlidingCache(6))  # both hold
    for cache, rules in (
        (SlidingCache(6), [causal(), window(6), sink(2)]),
        (SlidingCache(6), [causal(), window(4), sink(2)]),
        (SinkCache(6, 3), [causal(), window(4)]),
        (SinkCache(6, 3), [causal(), window(6), sink(2)]),
    ):
        with pytest.raises(ValueError, match=r"the sinks of one would be exceptions from the window of the other"):
            model(IDS, attention_mask=rules, past_key_values=cache)
        assert cache.length == 0


@torch.no_grad()
def test_a_text_within_the_window_is_computed_as_without_one():
    model, seen = tiny_model(), []
    model.model.hook_mask.register_forward_hook(lambda module, args, mask: seen.append(mask.is_causal))
    plain = model(IDS, past_key_values=DynamicCache()).logits
    assert torch.equal(model(IDS, past_key_values=SlidingCache(LENGTH)).logits, plain)
    assert not torch.equal(model(IDS, past_key_values=SlidingCache(LENGTH - 1)).logits, plain), "the last sees one less"
    assert seen == [True, True, False]


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), [("sliding", {"window": 16}), ("sink", {"window": 12, "sinks": 4})])
def test_generate_is_recomputation_under_its_mask(name, config):
    model = tiny_model(eos_token_id=None)
    keep = torch.ones_like(IDS[:, :10])
    keep[0, :3] = 0
    found = model.generate(
        IDS[:, :10], attention_mask=keep, max_new_tokens=30, cache_implementation=name, cache_config=config
    )
    ids = IDS[:, :10]
    rules = [causal(), window(config["window"]), *([sink(4)] if name == "sink" else [])]
    for _ in range(30):
        whole = torch.cat((keep, keep.new_ones((2, ids.shape[1] - 10))), 1)
        logits = model(ids, attention_mask=[*rules, padding(whole)], use_cache=False).logits
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), 1)
    assert found.tolist() == ids.tolist()
    plain = model.generate(IDS[:, :10], attention_mask=keep, max_new_tokens=30)
    assert plain.tolist() != found.tolist(), "the window matters here"


@torch.no_grad()
def test_beams_over_a_ring_are_those_over_recomputation():
    model = tiny_model(eos_token_id=None)
    options = dict(max_new_tokens=12, num_beams=3)
    found = model.generate(IDS, cache_implementation="sliding", cache_config={"window": 100}, **options)
    assert found.tolist() == model.generate(IDS, cache_implementation="none", **options).tolist()
    ring = model.generate(IDS, cache_implementation="sliding", cache_config={"window": 9}, **options)
    assert ring.tolist() != found.tolist()


def test_gradients_are_refused(model):
    for cache in (SlidingCache(4), SinkCache(4, 2)):
        with pytest.raises(ValueError, match=r"a S\w+Cache writes in place, so no gradient can be recorded through it"):
            model(IDS, past_key_values=cache)
        assert cache.length == 0


@torch.no_grad()
def test_filled_in_inference_mode_it_goes_on_outside_of_it():
    model = tiny_model()
    whole = model(IDS, attention_mask=[causal(), window(5)], use_cache=False).logits
    cache = SlidingCache(5)
    with torch.inference_mode():
        model(IDS[:, :20], past_key_values=cache)
        model(IDS[:, 20:21], past_key_values=cache)
    for a, b in ((21, 22), (22, 30), (30, 31)):
        found = model(IDS[:, a:b], past_key_values=cache).logits
        torch.testing.assert_close(found, whole[:, a:b], **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SlidingCache(0), r"window is 0; it must be a whole number of at least 1"),
        (lambda: SinkCache(4, 0), r"sinks is 0; it must be a whole number of at least 1"),
        (lambda: SinkCache(2.5), r"window is 2\.5; it must be a whole number"),
        (
            lambda: SlidingCache(4, dtype=torch.int8),
            r"dtype is torch\.int8; keys and values are stored in torch\.float32",
        ),
        (lambda: SlidingCache(4).update(1, piece(1), piece(1)), r"layer 1 was given before layer 0"),
    ],
    ids=["window", "sinks", "fraction", "dtype", "layer"],
)
def test_what_is_no_window_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_does_not_continue_it_is_refused():
    cache = SlidingCache(8)
    cache.update(0, piece(10), piece(10))
    before = contents(cache)
    for k, v in (
        (piece(1, batch=3), piece(1, batch=3)),
        (piece(1), piece(1).bfloat16()),
        (piece(5), piece(5, width=4)),
    ):
        with pytest.raises(ValueError, match=r"do not continue a cache of \(batch, kv_head, ·, d_head\) = \(2, 2, 8\)"):
            cache.update(0, k, v)
    assert_equal(contents(cache), before)

"""Edits over caches, chunks, decode steps, beams and padding: the same numbers as computing everything again."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, KINDS, KV, OTHER, VECTOR, assert_same
from workbench.cache import DynamicCache, StaticCache
from workbench.instrument import capture
from workbench.instrument.edit import edit
from workbench.instrument.edits import add, knock_out, mean, patch, scale, swap_kv, zero
from workbench.model.mask import window

TENSOR = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(7))


def edits(kind):
    """Of every kind; positions and edges in the prompt (0 … 4), in the chunk behind it (5 … 8) and in decode steps."""
    found = {
        "zero heads": zero("z", heads=[0, -1], layers=[0, 2]),
        "zero positions": zero("resid_mid", positions=[2, 6, 10]),
        "zero keys": zero("k_rot", heads=-1, positions=[1, 7]),
        "zero cached values": zero("v_cached", positions=[0, 6], layers=1),
        "zero scores": zero("scores", heads=1, positions=slice(4, None)),
        "scale neurons": scale("act", -2.0, neurons=[0, 5, 47]),
        "add from here on": add("layers.1.resid_post", VECTOR, 2.0, positions=slice(6, None)),
        "given mean": mean("z", VECTOR[:8], heads=1),
        "patch": patch("layers.0.resid_post", TENSOR, positions=[3, 8, 11]),
        "edges": knock_out([0, 1], edges=[(3, 1), (7, 2), (7, 7), (9, 8), (11, 0)]),
        "edges of a head": knock_out(heads=[0, -1], edges=[(3, 1), (7, 2), (9, 8), (11, 0)]),
        "keys": knock_out(1, keys=[0, 6]),
        "queries": knock_out(1, heads=2, queries=slice(6, None), keys=slice(2, 6)),
        "all keys of a query": knock_out(queries=[4, 10]),
        "function": {"z": lambda x, site: x * (1 + site.positions[None, :, None, None] % 3)},
        "mask function": {"layers.1.mask": lambda mask: mask.with_rules(window(4))},
    }
    if KV[kind] > 1:
        found["swap"] = swap_kv(None, 0, -1)
    return found


CASES = [(kind, name) for kind in KINDS for name in edits(kind)]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("kind", "name"), CASES)
@torch.no_grad()
def test_chunks_and_decode_steps_give_what_one_pass_gives(kind, name, cache):
    model, which = tiny_model(kind), edits(kind)[name]
    with edit(model, which):
        whole = model(IDS, use_cache=False).logits
    store = DynamicCache() if cache == "dynamic" else StaticCache(model.config, 20)
    found, sizes = [], (5, 4, 1, 1, 1)
    with edit(model, which):
        for start, size in zip((0, 5, 9, 10, 11), sizes, strict=True):
            found.append(model(IDS[:, start : start + size], past_key_values=store).logits)
    assert_same(torch.cat(found, 1), whole, model(IDS).logits)
    assert hooks(model) == 0


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind == "gqa"])
@torch.no_grad()
def test_each_generated_token_is_the_likeliest_of_a_whole_pass(name):
    model, which = tiny_model(), edits("gqa")[name]
    for inputs in ({}, {"cache_implementation": "static"}):
        with edit(model, which):
            out = model.generate(
                IDS[:, :7],
                max_new_tokens=6,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **inputs,
            )
        with edit(model, which):
            whole = model(out.sequences[:, :-1], use_cache=False).logits[:, 6:]
        assert_same(torch.stack(out.logits, 1), whole)
        assert torch.equal(out.sequences[:, 7:], whole.argmax(-1))


@torch.no_grad()
def test_beams_are_edited_as_without_a_cache():
    model = tiny_model()
    which = [
        zero("z", heads=1),
        add("layers.1.resid_post", VECTOR, positions=slice(7, None)),
        knock_out(edges=[(5, 2), (9, 3)]),
        patch("layers.0.resid_post", TENSOR, positions=[3, 7, 8]),
    ]
    texts = []
    for use_cache in (True, False):
        with edit(model, which) as active:
            texts.append(model.generate(IDS[:, :7], max_new_tokens=5, num_beams=3, use_cache=use_cache))
        assert min(active.hits) > 0
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], model.generate(IDS[:, :7], max_new_tokens=5, num_beams=3))


@pytest.mark.parametrize(
    "which",
    [
        knock_out(1, edges=[(6, 4), (9, 5)]),
        knock_out(1, 2, queries=slice(8, None), keys=[5, 6]),
        add("layers.1.resid_post", VECTOR, positions=[6, 9]),
        zero("z", heads=1),
    ],
    ids=str,
)
@torch.no_grad()
def test_left_padding_shifts_positions_and_nothing_else(which):
    """A row of a padded batch is edited at the columns of the batch: what an unpadded row is four positions earlier."""
    model = tiny_model()
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), IDS[:1, :4]), 1)
    ids, mask = torch.cat((padded, OTHER[:1, :8])), torch.ones(2, 8, dtype=torch.long)
    mask[0, :4] = 0
    with edit(model, which):
        both = model.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5)

    def earlier(numbers):
        if numbers is None:
            return None
        return slice(numbers.start - 4, None) if isinstance(numbers, slice) else [n - 4 for n in numbers]

    if which.kind == "knock_out":
        edges = None if which.edges is None else [(q - 4, k - 4) for q, k in which.edges]
        shifted = knock_out(1, which.heads, edges=edges, queries=earlier(which.queries), keys=earlier(which.keys))
    elif which.kind == "add":
        shifted = add("layers.1.resid_post", VECTOR, positions=earlier(which.positions))
    else:
        shifted = which
    with edit(model, shifted):
        alone = model.generate(IDS[:1, :4], max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(both[0, 4:], alone[0])


@torch.no_grad()
def test_what_the_cache_received_stays():
    model, cache = tiny_model(), DynamicCache()
    with edit(model, zero("v", positions=[2])):
        model(IDS[:, :6], past_key_values=cache)
    assert (cache.values(1)[:, :, 2] == 0).all()
    with edit(model, zero("v_cached", positions=[3])):
        model(IDS[:, 6:7], past_key_values=cache)
    assert (cache.values(1)[:, :, 3] != 0).all(), "what attention is shown is no part of the cache"


@torch.no_grad()
def test_patching_a_decode_step_from_a_captured_one():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "z") as acts:
        model(OTHER[:, :9], past_key_values=cache)
        model(OTHER[:, 9:10], past_key_values=cache)
    store = DynamicCache()
    model(IDS[:, :9], past_key_values=store)
    with edit(model, patch("z", acts, positions=9, heads=[1])), capture(model, "z") as found:
        model(IDS[:, 9:10], past_key_values=store)
    assert torch.equal(found["z", 0][:, :, 1], acts["z", 0][:, 9:, 1])
    assert torch.equal(found["z", 2][:, :, 1], acts["z", 2][:, 9:, 1])
    assert not torch.equal(found["z", 0][:, :, 0], acts["z", 0][:, 9:, 0])

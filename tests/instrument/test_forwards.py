"""Which forwards a capture takes: those of its own thread, and what it knows of the text they read."""

import threading
from contextlib import ExitStack

import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import Activations, Cancelled, cancellable, capture, edit

IDS = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_another_thread_s_forwards_are_neither_captured_nor_stopped():
    """The page runs its model while a cell captures from it: neither may end up in the other's tensors."""
    model = tiny_model()
    with capture(model, "q_rot", layers=[0]) as acts, cancellable(model, lambda: True):
        thread = threading.Thread(target=lambda: torch.no_grad()(model)(IDS))
        thread.start()
        thread.join()
        assert len(acts) == 0
        with pytest.raises(Cancelled):
            model(IDS)
    with capture(model, "q_rot", layers=[0]) as acts:
        thread = threading.Thread(target=lambda: torch.no_grad()(model)(IDS))
        model(IDS[:, :3])
        thread.start()
        thread.join()
    assert acts["q_rot", 0].shape[1] == 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("forwards", "expected"),
    [
        (lambda m, c: [m(IDS, past_key_values=c)], True),
        (lambda m, c: [m(IDS[:, :5], past_key_values=c), m(input_ids=IDS[:, 5:], past_key_values=c)], True),
        (lambda m, c: [m(IDS, torch.ones_like(IDS))], True),
        (lambda m, c: [m(IDS), m(IDS)], False),
        (lambda m, c: [m(IDS, attention_mask=torch.ones_like(IDS).index_fill(1, torch.tensor([0]), 0))], False),
        (lambda m, c: [m(IDS, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool).tril())], False),
    ],
    ids=["one pass", "chunks", "a mask of ones", "two texts", "padding", "4-D mask"],
)
def test_a_capture_knows_whether_it_is_one_text(forwards, expected):
    model = tiny_model()
    with capture(model, "q_rot") as acts:
        forwards(model, DynamicCache())
    assert acts.is_one_text == expected


@torch.no_grad()
def test_a_capture_that_begins_later_is_not_one_text():
    model, cache = tiny_model(), DynamicCache()
    model(IDS[:, :5], past_key_values=cache)
    with capture(model, "q_rot") as acts:
        model(IDS[:, 5:], past_key_values=cache)
    assert not acts.is_one_text
    assert (acts.spans[0].start, acts.spans[0].count) == (5, IDS.shape[1] - 5)


# --- forwards that are forgotten and added


@torch.no_grad()
def test_cropped_forwards_and_what_is_read_after_them_are_one_text():
    model, cache, other = tiny_model(), DynamicCache(), IDS.flip(1)
    with capture(model, "q_rot") as acts:
        model(IDS[:, :3], past_key_values=cache)
        model(IDS[:, 3:], past_key_values=cache)
        cache.crop(5)
        acts.crop(5)
        assert [(span.start, span.count) for span in acts.spans] == [(0, 3), (3, 2)]
        model(other[:, 5:], past_key_values=cache)
    assert acts.is_one_text
    read = torch.cat([span.tokens for span in acts.spans], 1)
    assert torch.equal(read, torch.cat((IDS[:, :5], other[:, 5:]), 1))


@torch.no_grad()
def test_a_crop_of_two_texts_moves_nothing_of_the_second():
    """What is computed from rows of another point may not find others there when the first text gets shorter."""
    model = tiny_model()
    with capture(model, "embed", "attn_out", "resid_mid", "attn_norm", "pattern") as acts:
        model(IDS)
        model(IDS.flip(1)[:, :5])
    before = {name: acts.step(name, 1).clone() for name in acts}
    acts.crop(7)
    for name, expected in before.items():
        assert torch.equal(acts.step(name, 1), expected), name


@torch.no_grad()
def test_an_extended_capture_has_the_forwards_heads_and_names_of_both():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "q_rot", "pattern", heads=[3]) as first:
        model(IDS[:, :7], past_key_values=cache)
    with capture(model, "pattern", heads=[3]) as second:
        model(IDS[:, 7:10], past_key_values=cache)
        model(IDS[:, 10:], past_key_values=cache)
    everything = Activations()
    everything.extend(first)
    everything.extend(second)
    assert (everything.heads, everything.kv_heads) == ((3,), (1,))
    assert [(span.start, span.count) for span in everything.spans] == [(0, 7), (7, 3), (10, 2)]
    for index, (acts, step) in enumerate([(first, 0), (second, 0), (second, 1)]):
        assert torch.equal(everything.step(("pattern", 1), index), acts.step(("pattern", 1), step))
    assert "layers.1.q_rot" in everything, "the first was asked for it, though the second holds it for patterns only"
    assert everything["q_rot", 1].shape[1] == 12


@torch.no_grad()
def test_a_forward_of_which_nothing_is_kept_is_not_mistaken_for_the_next_one():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "q_rot", positions=[7, 11]) as acts:
        for start, end in ((0, 5), (5, 8), (8, 12)):
            model(IDS[:, start:end], past_key_values=cache)
    assert torch.equal(acts.step(("q_rot", 0), 1), acts["q_rot", 0][:, :1])
    assert torch.equal(acts.step(("q_rot", 0), -1), acts["q_rot", 0][:, 1:])


@torch.no_grad()
def test_positions_of_slots_are_those_of_the_last_forward():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "v_cached") as acts:
        model(IDS[:, :5], past_key_values=cache)
        model(IDS[:, 5:], past_key_values=cache)
    assert acts.positions(("v_cached", 1)).tolist() == list(range(12))


# --- forwards that fail, and forwards inside forwards


class Burst(Exception):
    pass


def burst(*args):
    raise Burst


@torch.no_grad()
def test_forwards_that_were_refused_leave_nothing():
    model = tiny_model()
    with capture(model, "resid_post", "pattern", "logits") as acts:
        with pytest.raises(ValueError, match="9999"):
            model(torch.tensor([[1, 2, 9999]]))
        with pytest.raises(ValueError):
            model()
        model(IDS)
    assert len(acts.spans) == 1
    assert acts.spans[0].mask is not None
    assert torch.equal(acts.step(("resid_post", 0), 0), acts["resid_post", 0])
    assert acts.is_one_text


@pytest.mark.parametrize("options", [{}, {"derive": False}, {"spill": True}], ids=["computed", "stored", "spilled"])
@torch.no_grad()
def test_forwards_that_failed_leave_nothing(options, tmp_path):
    if "spill" in options:
        options = {"spill": tmp_path}
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "*", **options) as acts:
        model(IDS[:, :5], past_key_values=cache)
        files = set(tmp_path.iterdir())
        handle = model.model.layers[1].mlp.hook_up.register_forward_hook(burst)
        with pytest.raises(Burst):
            model(IDS[:, 5:], past_key_values=cache)
        handle.remove()
        assert set(tmp_path.iterdir()) == files
        model(IDS[:, 5:], past_key_values=cache)
    with capture(model, "*") as whole:
        model(IDS)
    assert [(span.start, span.count) for span in acts.spans] == [(0, 5), (5, 7)]
    for name in whole:
        assert acts.positions(name).tolist() == whole.positions(name).tolist()
        torch.testing.assert_close(acts[name], whole[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_interrupted_forward_leaves_nothing():
    """Ctrl-C, after which PyTorch calls no hook."""
    model = tiny_model()

    def interrupt(*args):
        raise KeyboardInterrupt

    with capture(model, "resid_post", "logits") as acts:
        handle = model.model.layers[1].hook_resid_pre.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IDS)
        handle.remove()
        for end in (5, 7):
            model(IDS[:, :end])
    assert [span.count for span in acts.spans] == [5, 7]
    for name in acts:
        assert [acts.step(name, step).shape[1] for step in (0, 1)] == [5, 7]


@pytest.mark.parametrize("fails", [False, True], ids=["well", "failing"])
@pytest.mark.parametrize("around", [True, False], ids=["edit around", "edit inside"])
@torch.no_grad()
def test_a_forward_inside_another_is_captured_before_it(around, fails):
    model, depth = tiny_model(), []
    other = IDS[:, :4].flip(1)

    def look_elsewhere(x):
        if not depth:
            depth.append(1)
            if fails:
                with pytest.raises(ValueError):
                    model(torch.tensor([[9999]]))
            else:
                model(other)
            depth.pop()
        return x

    plain = {}
    for name, ids in (("inner", other), ("outer", IDS)):
        with capture(model, "*", derive=False) as plain[name]:
            model(ids)
    recorded, elsewhere = capture(model, "*"), {"layers.1.resid_mid": look_elsewhere}
    with ExitStack() as stack:
        if around:
            stack.enter_context(edit(model, elsewhere))
        acts = stack.enter_context(recorded)
        if not around:
            stack.enter_context(edit(model, elsewhere))
        model(IDS)
    expected = ["outer"] if fails else ["inner", "outer"]
    assert [span.count for span in acts.spans] == [plain[name].spans[0].count for name in expected]
    for step, which in enumerate(expected):
        for name in plain[which]:
            torch.testing.assert_close(acts.step(name, step), plain[which][name], rtol=1e-4, atol=1e-5)

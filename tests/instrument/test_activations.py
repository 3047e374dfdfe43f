"""What was captured, in chunks and joined: reading, windows, forgetting and adding positions."""

import copy
import pickle
import threading
import time

import pytest
import torch

from tests.conftest import tiny_model
from tests.instrument.test_capture import IDS, assert_same
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, Activations, capture
from workbench.instrument.series import Series
from workbench.model.mask import causal, window


def filled(name="layers.0.q", sizes=(4, 1, 3), width=2):
    """Hand-made activations of consecutive numbers, so that every position is recognised."""
    acts, start = Activations(), 0
    for size in sizes:
        acts.append(
            name, torch.arange(start, start + size).float()[None, :, None, None].expand(1, size, 1, width).clone()
        )
        start += size
    return acts


def test_what_was_not_captured_is_named_with_what_was():
    message = "'layers.1.q' was not captured; captured are layers.0.q"
    with pytest.raises(KeyError, match=message):
        filled()["q", 1]
    with pytest.raises(KeyError, match=message):
        filled().window("layers.1.q", 0, 1)
    with pytest.raises(KeyError, match="'embed' was not captured; captured are no points"):
        Activations()["embed"]


def test_nothing_captured_has_no_length():
    acts = Activations()
    assert (len(acts), acts.length, acts.nbytes, list(acts)) == (0, 0, 0, [])
    assert repr(acts) == "Activations(0 tensors of 0 positions, 0.0 MB)"


def test_nbytes_and_length_count_all_chunks_without_joining_them():
    acts = filled(sizes=(4, 1, 3), width=2)
    acts.append("logits", torch.zeros(1, 1, 97))
    assert acts.nbytes == 8 * 2 * 4 + 97 * 4
    assert acts.length == 8
    assert repr(acts) == "Activations(2 tensors of 8 positions, 0.0 MB)"


@pytest.mark.parametrize("joined", [False, True], ids=["in chunks", "joined"])
@pytest.mark.parametrize("start", range(8))
def test_a_window_is_a_slice_of_the_whole(start, joined):
    acts = filled()
    if joined:
        acts["q", 0]
    for stop in range(start + 1, 9):
        assert acts.window("layers.0.q", start, stop)[0, :, 0, 0].tolist() == list(range(start, stop))
    assert acts.window("layers.0.q", start, 50)[0, :, 0, 0].tolist() == list(range(start, 8)), "as far as there is any"


def test_of_a_window_only_its_rows_are_copied():
    acts = filled(sizes=(4, 1, 3))
    part = acts.window("layers.0.q", 5, 7)
    assert part.untyped_storage().nbytes() == 2 * 2 * 4
    assert len(acts.series("layers.0.q").parts) == 3, "the whole was not joined"
    part.zero_()
    assert acts["q", 0][0, :, 0, 0].tolist() == list(range(8))


@torch.no_grad()
def test_a_window_of_patterns_is_padded_to_common_keys():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "pattern", layers=[0]) as acts:
        for part in (IDS[:, :5], IDS[:, 5:6], IDS[:, 6:9]):
            model(part, past_key_values=cache)
    window = acts.window("layers.0.pattern", 3, 7)
    torch.testing.assert_close(window, acts["pattern", 0][:, :, 3:7], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("start", "stop"), [(8, 9), (3, 3), (5, 2)], ids=["past the end", "empty", "reversed"])
def test_a_window_without_positions_is_refused(start, stop):
    with pytest.raises(IndexError, match=rf"'layers\.0\.q' has 8 positions; {start} … {stop} was asked for"):
        filled().window("layers.0.q", start, stop)


@pytest.mark.parametrize("length", [0, 3, 4, 8, 20])
def test_crop_forgets_what_is_behind_and_goes_on_from_there(length):
    acts = filled()
    acts.crop(length)
    kept = min(length, 8)
    assert acts.length == kept
    assert acts["q", 0][0, :, 0, 0].tolist() == list(range(kept))
    acts.append("layers.0.q", torch.full((1, 2, 1, 2), 99.0))
    assert acts["q", 0][0, :, 0, 0].tolist() == [*range(kept), 99, 99]


@torch.no_grad()
def test_after_a_crop_another_continuation_equals_its_own_single_pass():
    model, cache = tiny_model(), DynamicCache()
    other = torch.cat((IDS[:, :5], IDS.flip(1)[:, :3]), 1)
    with capture(model, *POINTS) as acts:
        model(IDS, past_key_values=cache)
        cache.crop(5)
        acts.crop(5)
        model(other[:, 5:], past_key_values=cache)
    with capture(model, *POINTS) as whole:
        model(other)
    for name in whole:  # patterns too: no column of the forgotten keys is left
        assert_same(acts[name], whole[name], name)


@torch.no_grad()
def test_extend_adds_another_captures_positions():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "q", "pattern") as first:
        model(IDS[:, :7], past_key_values=cache)
    with capture(model, "q", "pattern") as second:
        model(IDS[:, 7:10], past_key_values=cache)
        model(IDS[:, 10:], past_key_values=cache)
    with capture(model, "q", "pattern") as whole:
        model(IDS)
    everything = Activations()
    everything.extend(first)
    everything.extend(second)
    assert everything.length == 12
    for name in whole:
        assert_same(everything[name], whole[name], name)
    assert first.length == 7, "what was added stays as it was"


def test_reading_while_another_thread_appends_loses_nothing(monkeypatch):
    real = Series.join

    def slow(self, chunks):  # leaves another thread time between reading the chunks and putting the joined one back
        joined = real(self, chunks)
        time.sleep(0.0005)
        return joined

    monkeypatch.setattr(Series, "join", slow)
    acts, count, errors = filled(sizes=(1,)), 200, []

    def write():
        for i in range(1, count):
            acts.append("layers.0.q", torch.full((1, 1, 1, 2), float(i)))
            time.sleep(0.0001)

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while writer.is_alive():
        for read in (lambda: acts["q", 0], lambda: acts.window("layers.0.q", 0, count)):
            values = read()[0, :, 0, 0].tolist()
            if values != list(range(len(values))) or len(values) < seen:
                errors.append(values)
            seen = len(values)
        assert acts.length >= seen
        assert acts.nbytes >= seen * 8
    writer.join()
    assert not errors
    assert acts["q", 0][0, :, 0, 0].tolist() == list(range(count))


# --- what is given away is nobody else's


@pytest.mark.parametrize("options", [{}, {"derive": False}], ids=["computed", "stored"])
@pytest.mark.parametrize(
    "read",
    [
        lambda acts, name: acts[name],
        lambda acts, name: acts.step(name, 0),
        lambda acts, name: acts.window(name, 0, 12),
        lambda acts, name: acts.window(name, 3, 5),
    ],
    ids=["whole", "step", "window of all", "window"],
)
def test_an_edit_of_what_was_read_changes_nothing_that_is_held(read, options):
    model = tiny_model(hidden_size=256, intermediate_size=1500)  # some tensors are shared until they are written to
    with torch.no_grad(), capture(model, *POINTS, **options) as acts:
        model(torch.cat((IDS, IDS)))
    before = {name: acts[name].clone() for name in acts}
    for name in acts:
        read(acts, name).zero_()
        for other, expected in before.items():
            if other.split(".")[:2] == name.split(".")[:2] or "resid_pre" in other:
                assert torch.equal(acts[other], expected), (name, other)


# --- masks


@pytest.mark.parametrize("layer", [None, 1], ids=["of the forward", "of a layer"])
@torch.no_grad()
def test_masks_are_those_of_the_forwards_whatever_rows_were_kept(layer):
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "mask", positions=slice(3, 6)) as acts:
        for start, end in ((0, 3), (3, 6), (6, 9)):
            model(IDS[:, start:end], past_key_values=cache)
    assert acts.mask(layer, 1).q_pos.tolist() == acts.mask(layer, -2).q_pos.tolist() == [3, 4, 5]
    for step in (0, 2, -1):
        if layer is None:
            assert acts.mask(layer, step).q_pos[0] == 3 * (step % 3)
        else:
            with pytest.raises(IndexError, match=f"forward {step} computed none of the positions that were to be kept"):
                acts.mask(layer, step)
    with pytest.raises(IndexError, match=r"there is no forward 3; captured are 0 … 2"):
        acts.mask(layer, 3)


RULES = [
    None,
    (torch.arange(12) >= torch.tensor([[3], [0]])).long(),
    torch.ones(12, 12, dtype=torch.bool).tril()[None, None],
    torch.randn(2, 4, 12, 12).masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -torch.inf),
    [causal(), window(3)],
]


@pytest.mark.parametrize("given", RULES, ids=["causal", "padding", "custom", "bias", "rules"])
@pytest.mark.parametrize("positions", [None, slice(2, 8, 2)], ids=["all rows", "some"])
@torch.no_grad()
def test_masks_after_a_crop_are_of_what_is_left(given, positions):
    model = tiny_model()
    with capture(model, "mask", "pattern", positions=positions) as acts:
        model(IDS, attention_mask=given)
    before, whole = acts.mask(1), acts["mask", 1]
    acts.crop(5)
    rows = len(acts.positions(("mask", 1)))
    assert rows == (5 if positions is None else 2)
    assert torch.equal(acts["mask", 1], whole[:, :rows, :5])
    for mask in (acts.mask(1), acts.mask()):
        assert torch.equal(mask.reasons(), before.reasons()[:, :5, :5])
        assert (mask.q_pos.tolist(), mask.k_pos.tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
        assert (mask.extra is None) == (before.extra is None)


@torch.no_grad()
def test_a_mask_keeps_keys_that_were_forgotten_if_what_is_left_saw_them():
    model, everything = tiny_model(), torch.ones(12, 12, dtype=torch.bool)[None, None]
    with capture(model, "mask") as acts:
        model(IDS, attention_mask=everything)
    acts.crop(5)
    for mask in (acts.mask(1), acts.mask()):
        assert (mask.q_pos.tolist(), mask.k_pos.tolist()) == ([0, 1, 2, 3, 4], list(range(12)))
        assert mask.allowed().all()


# --- forgetting parts of several texts


@torch.no_grad()
def test_after_a_crop_the_forwards_that_are_left_are_numbered_anew():
    model, cache = tiny_model(), DynamicCache()
    points = ("resid_post", "resid_pre", "pattern", "k_cached", "mask", "logits")
    with capture(model, *points) as acts:
        model(IDS[:, :5], past_key_values=cache)
        model(IDS[:, 5:6], past_key_values=cache)
        model(IDS[:, 6:9], past_key_values=cache)
        model(IDS.flip(1)[:, :3])
    last = {name: acts.step(name, -1).clone() for name in acts}
    first = {name: acts.step(name, 0).clone() for name in acts}
    acts.crop(4)
    assert [(span.start, span.count) for span in acts.spans] == [(0, 4), (0, 3)]
    for name, expected in last.items():
        assert acts.series(name).steps == [0, 1], name
        for step in (1, -1):
            assert torch.equal(acts.step(name, step), expected), name
    assert torch.equal(acts.step(("resid_post", 1), 0), first["layers.1.resid_post"][:, :4])
    assert torch.equal(acts.step(("k_cached", 1), 0), first["layers.1.k_cached"][:, :4])
    with torch.no_grad(), capture(model, "resid_post") as more:
        model(IDS[:, :2])
    acts.extend(more)
    assert torch.equal(acts.step(("resid_post", 1), 2), more["resid_post", 1])


@torch.no_grad()
def test_after_everything_was_forgotten_a_capture_begins_anew():
    model = tiny_model()
    with capture(model, "resid_post", "pattern") as acts:
        model(IDS)
        acts.crop(0)
        assert len(acts) == len(acts.spans) == acts.length == 0
        model(IDS[:1, :5])
    assert acts["resid_post", 0].shape == (1, 5, 32)
    assert acts.step(("pattern", 2), 0).shape == (1, 4, 5, 5)


# --- names


@torch.no_grad()
def test_points_are_read_by_all_names_that_they_are_captured_by(tmp_path):
    model = tiny_model()
    with capture(model, "blocks.1.hook_resid_post", "layers.-2.q", "embed", "pattern", layers=[0, 2]) as acts:
        model(IDS)
    acts.save(tmp_path / "a")
    for found in (acts, Activations.load(tmp_path / "a")):
        for key, name in {
            "blocks.1.hook_resid_post": "layers.1.resid_post",
            ("resid_post", -2): "layers.1.resid_post",
            ("hook_resid_post", 1): "layers.1.resid_post",
            "hidden_states[2]": "layers.1.resid_post",
            "layers.-2.q": "layers.1.q",
            ("q", -2): "layers.1.q",
            "model.embed_tokens": "embed",
            ("pattern", -1): "layers.2.pattern",
            "attentions[-3]": "layers.0.pattern",
        }.items():
            assert torch.equal(found[key], found[name])
            assert key in found
            assert torch.equal(found.step(key, 0), found[name])
    for key in ("resid_post", ("resid_post", -1), ("q", -4), "layers.*.pattern", "nonsense"):
        assert key not in acts
        with pytest.raises(KeyError, match="was not captured; captured are embed, layers.0.pattern, layers.1.q, "):
            acts[key]


@torch.no_grad()
def test_captures_of_other_heads_are_not_joined():
    model = tiny_model()
    found = []
    for heads in ([1], [2], None):
        with capture(model, "q", heads=heads) as acts:
            model(IDS[:, :3])
        found.append(acts)
    for one, other, message in (
        (0, 1, "has the heads 1, the other one 2"),
        (2, 0, "has the heads all, the other one 1"),
    ):
        with pytest.raises(ValueError, match=message):
            found[one].extend(found[other])
        assert found[one].length == 3
    everything = Activations()
    everything.extend(found[1])
    assert everything.heads == (2,)


# --- copies


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda acts: pickle.loads(pickle.dumps(acts))], ids=["deep", "pickle"]
)
@pytest.mark.parametrize("kind", ["in memory", "loaded", "empty"])
@torch.no_grad()
def test_copies_are_the_same_and_independent(copied, kind, tmp_path):
    model, cache = tiny_model(), DynamicCache()
    acts = Activations()
    if kind != "empty":
        with capture(model, *POINTS, positions=slice(1, None), heads=[0, 3]) as acts:
            for start, end in ((0, 5), (5, 12)):
                model(IDS[:, start:end], past_key_values=cache)
    if kind == "loaded":
        acts.save(tmp_path / "a")
        acts = Activations.load(tmp_path / "a")
        (tmp_path / "a").unlink()
    twin = copied(acts)
    assert list(twin) == list(acts)
    assert (twin.heads, twin.kv_heads, twin.layer_count) == (acts.heads, acts.kv_heads, acts.layer_count)
    before = {name: acts[name].clone() for name in acts}
    acts.crop(2)
    for name, expected in before.items():
        assert torch.equal(twin[name], expected), name
    assert len(twin.spans) == (0 if kind == "empty" else 2)

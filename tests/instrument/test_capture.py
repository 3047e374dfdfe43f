import threading
import time

import pytest
import torch
from hypothesis import given, settings

from tests.conftest import hooks, tiny_model
from tests.strategies import splits
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, Activations, Cancelled, cancellable, capture
from workbench.instrument.series import Series

KINDS = ["mha", "gqa", "mqa"]
IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
EXPLICIT = ("scores", "pattern")
FUSED = [name for name in POINTS if name not in EXPLICIT]


def assert_same(actual, expected, name):
    """Equal up to rounding, relative to the largest magnitude; infinities (masked scores) in the same places."""
    assert actual.shape == expected.shape, name
    if actual.dtype == torch.bool:
        actual, expected = actual.float(), expected.float()
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), name
    error = (actual - expected)[finite].abs().max() / expected[finite].abs().max()
    assert error < 1e-5, f"{name}: {error:.1e}"


def filled(name="layers.0.q", sizes=(4, 1, 3), width=2):
    """Hand-made activations of consecutive numbers, so that every position is recognised."""
    acts, start = Activations(), 0
    for size in sizes:
        acts.append(
            name, torch.arange(start, start + size).float()[None, :, None, None].expand(1, size, 1, width).clone()
        )
        start += size
    return acts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_capturing_leaves_the_logits_bit_identical(kind, batch):
    model = tiny_model(kind)
    plain = model(IDS[:batch]).logits
    with capture(model, *FUSED) as acts:
        watched = model(IDS[:batch]).logits
    assert len(acts) == 3 * 19 + 3
    assert torch.equal(watched, plain)
    assert torch.equal(model(IDS[:batch]).logits, plain)


@torch.no_grad()
def test_with_eager_attention_even_scores_and_patterns_leave_them_bit_identical():
    model = tiny_model(attn_implementation="eager")
    plain = model(IDS).logits
    with capture(model, *POINTS):
        assert torch.equal(model(IDS).logits, plain)


@pytest.fixture
def fused(monkeypatch):
    """One entry for each layer whose attention a fused kernel computed."""
    from workbench.model import attention

    layers, real = [], attention.sdpa_attention
    monkeypatch.setattr(attention, "sdpa_attention", lambda *args: layers.append(1) or real(*args))
    return layers


@pytest.mark.parametrize("point", EXPLICIT)
@torch.no_grad()
def test_scores_and_patterns_follow_from_queries_and_keys_and_layers_stay_fused(point, fused):
    model = tiny_model()
    plain = model(IDS).logits
    fused.clear()
    with capture(model, point) as acts:
        watched = model(IDS).logits
    assert len(fused) == 3
    assert torch.equal(watched, plain)
    assert list(acts) == [f"layers.{i}.{point}" for i in range(3)], "what they follow from was not asked for"
    assert acts.nbytes == 3 * 2 * 12 * (32 + 16) * 4, "queries and keys"


@pytest.mark.parametrize("point", EXPLICIT)
@torch.no_grad()
def test_where_somebody_may_change_something_they_are_stored_as_they_were_used(point, fused):
    model = tiny_model()
    plain = model(IDS).logits
    fused.clear()
    model.model.layers[1].hook_resid_pre.register_forward_hook(lambda *a: None)  # nobody knows that it only looks
    with capture(model, f"layers.1.{point}") as acts:
        watched = model(IDS).logits
    assert len(fused) == 2, "only its own layer leaves the fused kernel"
    torch.testing.assert_close(watched, plain, rtol=1e-5, atol=1e-5)
    assert acts.nbytes == acts[point, 1].nbytes + 2 * 12 * (32 + 16) * 4
    fused.clear()
    model(IDS)
    assert len(fused) == 3, "afterwards all layers are fused again"


@pytest.mark.parametrize("name", POINTS)
def test_captures_survive_later_edits_in_place(name):
    model = tiny_model()
    with capture(model, name) as acts:
        out = model(IDS, output_hidden_states=True, output_attentions=True)
    kept = {key: acts[key].clone() for key in acts}
    with torch.no_grad():
        for tensor in (*model.parameters(), out.logits, *out.hidden_states, *out.attentions):
            tensor.fill_(7.0)
        for layer in range(3):
            out.past_key_values.keys(layer).fill_(7.0)
            out.past_key_values.values(layer).fill_(7.0)
    for key, before in kept.items():
        assert torch.equal(acts[key], before), key
        assert not acts[key].requires_grad
        assert acts[key].is_contiguous()
        assert acts[key].untyped_storage().nbytes() == acts[key].nbytes, "nothing else is kept alive"


@torch.no_grad()
def test_an_edit_right_after_the_capture_does_not_reach_it():
    """The sharpest case: the very tensor that was captured is changed while the forward still runs."""
    model = tiny_model()
    expected = model(IDS, output_hidden_states=True).hidden_states[1]
    with capture(model, "layers.0.resid_post") as acts:
        model.model.layers[0].hook_resid_post.register_forward_hook(lambda module, args, out: out.mul_(0))
        model(IDS)
    assert torch.equal(acts["layers.0.resid_post"], expected)


@torch.no_grad()
def test_no_hook_is_left_after_success():
    model = tiny_model()
    with capture(model, *POINTS):
        assert hooks(model) > 3
        model(IDS)
    assert hooks(model) == 0


@torch.no_grad()
def test_no_hook_is_left_after_an_exception_in_the_block():
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt), capture(model, *POINTS):
        raise KeyboardInterrupt
    assert hooks(model) == 0


@torch.no_grad()
def test_no_hook_is_left_after_an_exception_in_a_forward():
    model = tiny_model()
    plain = model(IDS).logits
    with capture(model, *POINTS) as acts, pytest.raises(ValueError, match="attention_mask has shape"):
        model(IDS, attention_mask=torch.ones(1, 1))
    assert hooks(model) == 0
    assert set(acts) == {"embed", "layers.0.resid_pre", "layers.0.attn_norm"}, "what was computed before is kept"
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_no_hook_is_left_after_a_cancel():
    model = tiny_model()
    with capture(model, *POINTS), cancellable(model, lambda: True):
        assert hooks(model) > 6
        with pytest.raises(Cancelled):
            model(IDS)
    with pytest.raises(Cancelled), capture(model, *POINTS), cancellable(model, lambda: True):
        model(IDS)
    assert hooks(model) == 0


@pytest.mark.parametrize("names", [["q", "qq"], ["q", "layers.9.q"], []], ids=["unknown", "no such layer", "none"])
def test_nothing_is_hooked_if_a_name_is_wrong(names):
    model = tiny_model()
    with pytest.raises(ValueError), capture(model, *names):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


def test_no_hook_is_left_if_hooking_itself_fails(monkeypatch):
    model = tiny_model()

    def refuse(hook):
        raise RuntimeError("planted")

    monkeypatch.setattr(model.model.layers[2].self_attn.hook_q, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="planted"), capture(model, "q"):
        pass
    assert hooks(model) == 0


@torch.no_grad()
def test_captures_may_be_nested():
    model = tiny_model()
    with capture(model, "q") as outer:
        with capture(model, "q", layers=[1]) as inner:
            model(IDS[:, :5])
        model(IDS[:, :2])
    assert inner["q", 1].shape[1] == 5
    assert outer["q", 1].shape[1] == 7
    inner["q", 1].zero_()
    assert outer["q", 1].abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@given(sizes=splits())
@settings(max_examples=8, deadline=None, derandomize=True)
@torch.no_grad()
def test_chunks_and_decode_steps_join_to_one_pass(kind, sizes):
    torch.manual_seed(0)
    model = tiny_model(kind)
    with capture(model, *POINTS) as whole:
        model(IDS)
    cache, start = DynamicCache(), 0
    with capture(model, *POINTS) as acts:
        for size in sizes:
            model(IDS[:, start : start + size], past_key_values=cache)
            start += size
    assert set(acts) == set(whole)
    assert acts.length == whole.length == 12
    assert acts.nbytes <= whole.nbytes
    for name in whole:
        assert_same(acts[name], whole[name], name)
    assert acts.nbytes == whole.nbytes


@torch.no_grad()
def test_patterns_of_steps_are_padded_with_exact_zeros_and_scores_with_minus_infinity():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, *EXPLICIT, layers=[0]) as acts:
        for start in range(4):
            model(IDS[:, start : start + 1], past_key_values=cache)
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    assert (acts["pattern", 0][..., later] == 0).all()
    assert (acts["scores", 0][..., later] == -torch.inf).all()
    assert acts["scores", 0][..., ~later].isfinite().all()


@torch.no_grad()
def test_layers_may_be_chosen_also_from_the_end():
    model = tiny_model()
    with capture(model, "q", "logits", layers=[0, -1]) as acts:
        model(IDS)
    assert list(acts) == ["layers.0.q", "layers.2.q", "logits"]
    assert ("q", 2) in acts
    assert ("q", 1) not in acts
    assert "layers.1.q" not in acts
    assert torch.equal(acts["q", 2], acts["layers.2.q"])


@torch.no_grad()
def test_the_dtype_to_store_as_does_not_change_the_computation():
    model = tiny_model()
    plain = model(IDS).logits
    with capture(model, "q", "logits", dtype=torch.bfloat16) as half, capture(model, "q", "logits") as full:
        assert torch.equal(model(IDS).logits, plain)
    assert half["q", 1].dtype == torch.bfloat16
    assert torch.equal(half["q", 1], full["q", 1].bfloat16())
    assert half.nbytes * 2 == full.nbytes


@torch.no_grad()
def test_the_device_to_store_on():
    model = tiny_model()
    with capture(model, "q", device="cpu") as acts:
        model(IDS)
    assert acts["q", 0].device.type == "cpu"


def test_captures_are_detached_while_the_model_is_trained():
    model = tiny_model()
    model(IDS, labels=IDS).loss.backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    with capture(model, *FUSED) as acts:
        model(IDS, labels=IDS).loss.backward()
    assert torch.equal(model.lm_head.weight.grad, expected)
    assert not any(acts[name].requires_grad for name in acts)


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


def test_a_window_of_one_chunk_copies_nothing():
    acts = filled(sizes=(4, 1, 3))
    part = acts.window("layers.0.q", 5, 7)
    assert part.untyped_storage().nbytes() == 3 * 2 * 4, "the chunk's own storage: the whole was not joined"


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

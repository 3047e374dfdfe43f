import pytest
import torch
from hypothesis import given, settings

from tests.conftest import hooks, tiny_model
from tests.strategies import splits
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, Cancelled, cancellable, capture

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
    assert len(acts) == 0
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

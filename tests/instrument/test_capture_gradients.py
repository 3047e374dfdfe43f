"""Gradients flow through captured points when asked."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.instrument import POINTS, capture, resolve

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
KINDS = ["mha", "gqa", "mqa"]
FUSED = [name for name in POINTS if name not in ("mask", "scores", "pattern")]


@pytest.mark.parametrize("name", FUSED)
def test_gradients_flow_through_captured_points(name):
    model = tiny_model()
    with capture(model, f"layers.1.{name}" if POINTS[name].per_layer else name, gradients=True) as acts:
        out = model(IDS)
        full = next(iter(acts))
        kept = acts[full]
        score = out.logits[:, -1, 3].sum()
    score.backward()
    gradient = acts.grad(full)
    assert gradient.shape == kept.shape
    direction = torch.randn_like(kept)
    step = 1e-3
    values = []
    module = resolve(model, [full])[0].module
    for sign in (1, -1):
        handle = module.register_forward_hook(lambda m, a, o, s=sign: o + s * step * direction)
        with torch.no_grad():
            values.append(model(IDS).logits[:, -1, 3].sum())
        handle.remove()
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=2e-2, atol=2e-3)


def test_gradients_that_cannot_flow_are_an_error():
    model = tiny_model()
    with (
        torch.no_grad(),
        capture(model, "q", gradients=True),
        pytest.raises(
            RuntimeError, match=r"'layers\.0\.q' has no gradient to flow through it: gradients are switched off"
        ),
    ):
        model(IDS)
    with torch.no_grad(), capture(model, "q") as acts:
        model(IDS)
    with pytest.raises(ValueError, match=r"'layers\.0\.q' has no gradient\. Capture it with gradients=True"):
        acts.grad(("q", 0))
    assert hooks(model) == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("name", [*FUSED[1:-2], "scores", "pattern"])
def test_what_was_looked_at_is_what_gradients_flow_through(name, use_cache, attention):
    model, found = tiny_model(attn_implementation=attention), []
    for _ in range(2):
        with capture(model, name, layers=[1], gradients=True) as acts:
            score = model(IDS, use_cache=use_cache).logits.square().sum()
        found.append((acts, score, acts[name, 1]))
    (acts, score, kept), (_, other_score, other) = found
    score.backward()
    assert acts[name, 1] is kept
    torch.testing.assert_close(acts.grad((name, 1)), torch.autograd.grad(other_score, other)[0])


def test_gradients_of_several_forwards_that_were_looked_at_before():
    model = tiny_model()
    with capture(model, "resid_post", layers=[1], gradients=True) as acts:
        score = model(IDS[:, :5]).logits.sum() + model(IDS[:, 5:]).logits.square().sum()
    assert acts["resid_post", 1].shape == (2, 12, 32)
    parts = [acts.step(("resid_post", 1), i) for i in (0, 1)]
    score.backward()
    assert torch.equal(acts.grad(("resid_post", 1)), torch.cat([part.grad for part in parts], 1))
    assert parts[1].grad.abs().sum() > 0

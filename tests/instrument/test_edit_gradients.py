"""Gradients flow through edits as through plain hooks."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, A, edited, hooked, put
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import EditError
from workbench.instrument.edits import Edit, add, knock_out, mean, patch, scale, swap_kv, zero

PROBE = torch.randn(2, 12, 97, generator=torch.Generator().manual_seed(6))


def halved(x):
    return torch.cat((x[..., :1], x[..., 1:2] / 2, x[..., 2:]), -1)


def test_gradients_flow_through_functions():
    model, offsets = tiny_model(), [torch.randn(32).requires_grad_() for _ in range(2)]
    with torch.no_grad():
        offsets[1].copy_(offsets[0])
    (edited(model, {"layers.1.resid_post": lambda x: x.add_(offsets[0])}) * PROBE).sum().backward()
    weight = model.model.embed_tokens.weight
    found, weight.grad = weight.grad, None
    (hooked(model, (1, "hook_resid_post"), lambda x: x + offsets[1]) * PROBE).sum().backward()
    torch.testing.assert_close(offsets[0].grad, offsets[1].grad)
    torch.testing.assert_close(found, weight.grad)
    assert found.abs().max() > 0


@pytest.mark.parametrize(
    ("which", "at", "change"),
    [
        (zero("z", heads=1, positions=[3, 4]), "self_attn.hook_z", put(A, [3, 4], 1)),
        (
            scale("act", 0.5, neurons=[1]),
            "mlp.hook_act",
            halved,
        ),
        (add("resid_post", 0.5), "hook_resid_post", lambda x: x + 0.5),
        (mean("z", heads=2), "self_attn.hook_z", lambda x: put(A, A, 2, value=x[:, :, 2].mean(1, True))(x)),
        (patch("resid_mid", torch.ones(1, 2, 32), positions=[1, 4]), "hook_resid_mid", put(A, [1, 4], value=1.0)),
        (swap_kv(None, 0, 1), "self_attn.hook_v", lambda x: x.flip(2)),
        (knock_out(queries=5), "self_attn.hook_scores", put(A, A, 5, value=-torch.inf)),
        (knock_out(None, 0, keys=2), "self_attn.hook_scores", put(A, 0, A, 2, value=-torch.inf)),
    ],
    ids=lambda x: str(x) if isinstance(x, Edit) else "",
)
def test_gradients_flow_through_ready_made_edits(which, at, change):
    model = tiny_model()
    weight = model.model.embed_tokens.weight
    (edited(model, which) * PROBE).sum().backward()
    found, weight.grad = weight.grad, None
    handles = []
    if which.kind == "swap_kv":  # the keys of two heads too
        points = [layer.self_attn.hook_k for layer in model.model.layers]
        handles = [point.register_forward_hook(lambda m, args, x: x.flip(2)) for point in points]
    (hooked(model, at, change) * PROBE).sum().backward()
    assert weight.grad.isfinite().all()
    torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-4 * float(weight.grad.abs().max()))
    for handle in handles:
        handle.remove()


def test_gradient_checkpointing_is_refused():
    model = tiny_model()
    model.gradient_checkpointing_enable()
    model.train()
    message = r"edits are refused under gradient checkpointing.*Call gradient_checkpointing_disable\(\)"
    with pytest.raises(EditError, match=message), edit(model, zero("z")):
        model(IDS)
    assert hooks(model) == 0
    model.eval()
    edited(model, zero("z"))

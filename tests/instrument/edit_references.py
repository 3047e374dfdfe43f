"""What edits are compared with: plain PyTorch hooks on the model's own modules."""

import torch

from workbench.instrument.edit import edit

KINDS = ["mha", "gqa", "mqa"]
KV = {"mha": 4, "gqa": 2, "mqa": 1}
IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
OTHER = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(4))
A = slice(None)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))


def edited(model, edits, ids=IDS, **inputs):
    with edit(model, edits):
        return model(ids, **inputs).logits


def hooked(model, at, change, before=False, ids=IDS, **inputs):
    """The logits with `change` applied to what a module returns, or is given; `at` is a path inside each layer, or
    (layer, path).
    """
    layers = range(3) if isinstance(at, str) else [at[0]]
    path, handles = at if isinstance(at, str) else at[1], []
    for i in layers:
        module = model.model.layers[i].get_submodule(path)
        if before:
            handles.append(module.register_forward_pre_hook(lambda m, args: (change(args[0].clone()), *args[1:])))
        else:
            handles.append(module.register_forward_hook(lambda m, args, out: change(out.clone())))
    try:
        return model(ids, **inputs).logits
    finally:
        for handle in handles:
            handle.remove()


def assert_same(actual, expected, plain=None):
    """Equal up to rounding, relative to the largest magnitude: a hook on scores leaves the fused kernel."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    if plain is not None:
        assert (actual - plain).abs().max() > 1e-3, "the edit changes something"


def put(*index, value=0.0):
    """A change in place of one part."""

    def change(x):
        x[index] = value
        return x

    return change


def forbid(model, cells, layers=range(3), heads=range(4), ids=IDS, **inputs):
    """The logits with chosen scores at −∞, by plain hooks."""

    def change(module, args, scores):
        scores = scores.clone()
        for head in heads:
            for query, key in cells:
                scores[:, head, query, key] = -torch.inf
        return scores

    handles = [model.model.layers[i].self_attn.hook_scores.register_forward_hook(change) for i in layers]
    try:
        return model(ids, **inputs).logits
    finally:
        for handle in handles:
            handle.remove()

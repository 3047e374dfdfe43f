import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import tiny_model
from workbench.model import joined, linear
from workbench.model.joined import pack, project
from workbench.model.linear import Linear

SIZES = (6, 4, 4)


def linears(bias=False, packed=True):
    parts = [Linear(8, size, bias=bias) for size in SIZES]
    if packed:
        pack(parts)
    return parts


@pytest.fixture
def made(monkeypatch):
    """The number of rows of each matrix that is multiplied by."""
    rows, real = [], joined.linear
    for module in (joined, linear):
        monkeypatch.setattr(module, "linear", lambda x, w, b=None: rows.append(len(w)) or real(x, w, b))
    return rows


@pytest.fixture
def x():
    return torch.randn(2, 3, 8)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_packing_keeps_parameters_and_values_and_needs_one_product(bias, x, made):
    parts = linears(bias, packed=False)
    weights, expected = [part.weight for part in parts], [part(x) for part in parts]
    values = [w.detach().clone() for w in weights]
    pack(parts)
    assert all(part.weight is weight for part, weight in zip(parts, weights, strict=True))
    assert all(torch.equal(weight, value) for weight, value in zip(weights, values, strict=True))
    made.clear()
    with torch.no_grad():
        actual = project(x, parts)
    assert made == [sum(SIZES)]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_packing_moves_nothing():
    parts = linears(True)
    before = [p.data_ptr() for part in parts for p in part.parameters()]
    pack(parts)
    assert before == [p.data_ptr() for part in parts for p in part.parameters()]


SEPARATE = {
    "a forward hook": lambda parts: parts[1].register_forward_hook(lambda m, a, out: out * 0),
    "a pre-hook": lambda parts: parts[1].register_forward_pre_hook(lambda m, a: (a[0] * 0,)),
    "a forward put over it": lambda parts: setattr(parts[1], "forward", lambda x: F.linear(x, parts[1].weight) * 0),
    "another module": lambda parts: parts.__setitem__(1, nn.Sequential(nn.Linear(8, 4, bias=False))),
    "PyTorch's own": lambda parts: parts.__setitem__(1, nn.Linear(8, 4, bias=False)),
    "a subclass": lambda parts: parts.__setitem__(1, type("Lora", (Linear,), {})(8, 4, bias=False)),
    "a new weight": lambda parts: setattr(parts[1], "weight", nn.Parameter(torch.randn(4, 8))),
    "new data": lambda parts: setattr(parts[1].weight, "data", torch.randn(4, 8)),
    "a bias on one": lambda parts: setattr(parts[1], "bias", nn.Parameter(torch.ones(4))),
    "another order": lambda parts: parts.reverse(),
    "a parametrization": lambda parts: nn.utils.parametrizations.weight_norm(parts[1]),
}


@pytest.mark.parametrize("change", SEPARATE.values(), ids=SEPARATE.keys())
def test_what_is_changed_is_called_by_itself(change, x):
    parts = linears()
    change(parts)
    expected = [part(x) for part in parts]
    with torch.no_grad():
        actual = project(x, parts)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_neighbours_in_memory_that_share_no_storage_are_not_read_as_one(x, made):
    parts = linears(packed=False)
    block = torch.randn(14, 8)
    addresses = iter((0, 6, 10))
    for part in parts:  # adjacent addresses, but each tensor's storage is its own view of foreign memory
        start = next(addresses)
        rows = part.out_features
        part.weight.data = torch.frombuffer(block.numpy()[start : start + rows], dtype=torch.float32).view(rows, 8)
    assert parts[1].weight.data_ptr() == parts[0].weight.data_ptr() + parts[0].weight.nbytes
    made.clear()
    with torch.no_grad():
        project(x, parts)
    assert made == list(SIZES)


def test_gradients_reach_each_weight(x):
    parts = linears()
    sum(out.pow(2).sum() for out in project(x, parts)).backward()
    for part in parts:
        weight = part.weight.detach().requires_grad_()
        F.linear(x, weight).pow(2).sum().backward()
        torch.testing.assert_close(part.weight.grad, weight.grad)


def test_gradients_of_the_input_pass_through_frozen_weights(x):
    parts = linears()
    for part in parts:
        part.requires_grad_(False)
    x.requires_grad_()
    sum(out.sum() for out in project(x, parts)).backward()
    torch.testing.assert_close(x.grad, sum(part.weight.sum(0) for part in parts).expand(2, 3, 8))


def test_what_trains_is_what_is_read(x):
    parts = linears()
    with torch.no_grad():
        parts[2].weight.add_(1.0)
        actual = project(x, parts)[2]
    torch.testing.assert_close(actual, F.linear(x, parts[2].weight))


MOVES = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "double": lambda model: model.double(),
    "deepcopy": copy.deepcopy,
    "a state dict": lambda model: model.load_state_dict(model.state_dict()) and model,
    "as it was made": lambda model: model,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
@torch.no_grad()
def test_a_model_stays_packed(move, made):
    model, rows = move(tiny_model()), made
    model(torch.tensor([[1, 2, 3]]))
    attention, mlp = (4 + 2 + 2) * 8, 2 * 48
    assert rows.count(attention) == 3
    assert rows.count(mlp) == 3


def test_assigning_a_state_dict_still_computes_right():
    ids, model, other = torch.tensor([[5, 6, 7]]), tiny_model(), tiny_model()
    model.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, other(ids).logits)


def test_a_global_hook_sees_every_module(x):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    parts = linears()
    try:
        with torch.no_grad():
            project(x, parts)
    finally:
        handle.remove()
    assert seen == parts

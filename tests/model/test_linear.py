import pytest
import torch
import torch.nn.functional as F

from workbench.model import linear as module
from workbench.model.linear import Linear, linear

SHAPES = {
    "a row": (1, 1, 48),
    "a vector": (48,),
    "some positions": (1, 7, 48),
    "a batch of rows": (3, 1, 48),
    "a batch": (2, 5, 48),
}


@pytest.fixture(params=[1, 2, 3, 4], ids=lambda n: f"{n} threads")
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def _kernel(request, monkeypatch):
    if request.param and not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(module, "_onednn_is_faster", lambda: request.param)


@pytest.mark.usefixtures("_threads", "_kernel")
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("rows", [36, 35, 1], ids=lambda n: f"{n} rows")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_it_is_the_product(shape, rows, bias):
    x, weight = torch.randn(shape), torch.randn(rows, 48)
    b = torch.randn(rows) if bias else None
    actual = linear(x, weight, b)
    assert actual.shape == (*shape[:-1], rows)
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(x, weight, b), actual, rtol=0, atol=0)


@pytest.mark.usefixtures("_threads", "_kernel")
@torch.no_grad()
def test_weights_and_inputs_may_be_views():
    weight = torch.randn(60, 96)[:, ::2]
    x = torch.randn(2, 48, 5).transpose(1, 2)
    for part in (x, x[:1, :1], x[:, :, :48]):
        torch.testing.assert_close(linear(part, weight), part @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_threads", "_kernel")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_gradients(shape):
    x, part = torch.randn(shape, requires_grad=True), Linear(48, 36)
    part(x).square().sum().backward()
    grads = [x.grad.clone(), part.weight.grad.clone(), part.bias.grad.clone()]
    x.grad, part.weight.grad, part.bias.grad = None, None, None
    F.linear(x, part.weight, part.bias).square().sum().backward()
    for a, b in zip(grads, (x.grad, part.weight.grad, part.bias.grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("_kernel")
@torch.no_grad()
def test_function_transforms_and_other_types():
    x, weight = torch.randn(3, 1, 48), torch.randn(36, 48)
    torch.testing.assert_close(torch.func.vmap(lambda row: linear(row, weight))(x), x @ weight.T)
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))


@torch.no_grad()
def test_one_row_is_split_over_the_threads(monkeypatch):
    seen = []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append(a.shape[0]) or real(a, b))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            linear(torch.randn(1, 1, 48), torch.randn(36, 48))
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 4]

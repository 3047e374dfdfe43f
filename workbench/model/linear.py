"""`x @ weightᵀ + bias` on a CPU, by the kernel that is fastest for its shape, and the linear module that uses it.

PyTorch gives float32 products to Intel's MKL. Two of its choices cost a Llama much:

- A product with a single row (each new token) is computed by one thread on some processors, whatever the number of
  threads. Here the rows of the weight are split over the threads.
- On processors of other makers its matrix product is slower than oneDNN's, which PyTorch has too.

Which kernel is taken depends on the shape, the processor and the number of threads only, so numbers are repeatable.
What wants more than numbers (gradients, a compiler, a function transform) gets PyTorch's own operation.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """`x @ weightᵀ + bias`."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "... d_out"]:
    """The same as `torch.nn.functional.linear`, up to rounding."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not only_numbers(x):
        return F.linear(x, weight, bias)
    if x.numel() == x.shape[-1]:
        return _one_row(x, weight, bias)
    if _onednn_is_faster() and x.is_contiguous():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def only_numbers(x: Tensor) -> bool:
    """Whether nothing but the numbers of an operation on `x` is wanted, on a CPU."""
    return (
        x.is_cpu
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _one_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, width = weight.shape
    parts = torch.get_num_threads()
    if parts == 1 or rows % parts or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    split = weight.view(parts, rows // parts, width).transpose(1, 2)
    out = torch.bmm(x.reshape(1, 1, width).expand(parts, 1, width), split).view(*x.shape[:-1], rows)
    return out if bias is None else out.add_(bias)


@functools.cache
def _onednn_is_faster() -> bool:
    """Not on Intel's processors, which MKL is made for; measured on AMD's Zen 4 (docs/log.md)."""
    try:
        maker = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return False
    here: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return here and hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in maker

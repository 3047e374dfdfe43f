"""Several projections of one input as one matrix product.

Queries, keys and values read the same vector, and so do gate and up. Their weights stay parameters of their own, under
Hugging Face's names, but lie one behind the other in one storage, so that one product reads them all: fewer, larger
products are what makes decoding faster. Whether they still lie so is looked up at every call, so replacing a weight or
a module, moving it or hooking it is always allowed: then each projection is called by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from workbench.model.linear import Linear, linear
from workbench.model.quantized import QuantizedLinear, join, joined_product

Projection = Callable[[Tensor], Tensor]


def project(x: Float[Tensor, "batch pos d_in"], linears: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """`tuple(part(x) for part in linears)`, with one matrix product where that is the same.

    Gradients of the weights need the separate products; hooks, replaced modules and moved weights get them too.
    """
    product = None if _called_for(linears) else joined(linears)
    if product is None:
        return tuple(part(x) for part in linears)
    return torch.split(product(x), [part.out_features for part in linears], -1)  # type: ignore[misc]


def joined(linears: Sequence[nn.Module]) -> Projection | None:
    """The outputs of all, one behind the other, by one product that reads their weights where they are.

    `None` if their weights do not lie so, or are more than plain parameters.
    """
    if type(linears[0]) is QuantizedLinear:
        return joined_product(linears)
    if any(type(part) is not Linear for part in linears):
        return None
    weights: list[Any] = [part.weight for part in linears]
    biases: list[Any] = [part.bias for part in linears]
    if not _adjacent(weights):
        return None
    weight = _span(weights)
    if all(bias is None for bias in biases):
        return lambda x: linear(x, weight)
    if any(bias is None for bias in biases) or not _adjacent(biases):
        return None
    bias = _span(biases)
    return lambda x: linear(x, weight, bias)


def pack(linears: Sequence[nn.Module]) -> None:
    """Moves the weights of plain linear modules behind each other, and their biases; values and parameters stay.

    Does nothing for other modules, for weights without memory (the meta device), and where it is done already.
    """
    if all(isinstance(part, QuantizedLinear) for part in linears):
        join(linears)  # type: ignore[arg-type]
    if not all(type(part) is Linear for part in linears):
        return
    for name in ("weight", "bias"):
        parameters: list[Any] = [getattr(part, name) for part in linears]
        if any(type(p) is not nn.Parameter for p in parameters) or _adjacent(parameters):
            continue
        first = parameters[0]
        if first.is_meta or any(p.dtype != first.dtype or p.device != first.device for p in parameters):
            continue
        with torch.no_grad():
            joined = torch.cat([p.data for p in parameters])
            for parameter, part in zip(parameters, torch.split(joined, [len(p) for p in parameters]), strict=True):
                parameter.data = part


class Packed(nn.Module):
    """A module some of whose projections read the same input; they are packed again whenever weights get new memory.

    `packed` names them.
    """

    packed: tuple[str, ...] = ()

    def pack(self) -> None:
        """Lays the weights of these projections behind each other, if they do not lie so."""
        pack([getattr(self, name) for name in self.packed])

    def _apply(self, fn: Any, recurse: bool = True) -> Packed:  # .to(), .half(), .cuda()
        before = self._places()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._places() != before:
            self.pack()
        return self

    def _places(self) -> list[tuple[int, torch.dtype, torch.device]]:
        return [(p.data_ptr(), p.dtype, p.device) for p in self.parameters()]

    def __setstate__(self, state: dict[str, Any]) -> None:  # copy.deepcopy, pickle
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pack()


def _called_for(linears: Sequence[nn.Module]) -> bool:
    """Whether a call of each module does more than compute: hooks, a forward put over it (as accelerate does),
    gradients of its weights.
    """
    if torch.compiler.is_compiling() or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return True
    if torch.is_grad_enabled() and any(p.requires_grad for linear in linears for p in linear.parameters(False)):
        return True
    return any(
        linear._forward_hooks
        or linear._forward_pre_hooks
        or linear._backward_hooks
        or linear._backward_pre_hooks
        or "forward" in vars(linear)
        for linear in linears
    )


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether each tensor begins where the one before it ends, in the same storage."""
    first = parts[0]
    if type(first) is not nn.Parameter:
        return False
    storage, address = first.untyped_storage()._cdata, first.data_ptr()
    if not address:
        return False
    for part in parts:
        if (
            type(part) is not nn.Parameter
            or part.data_ptr() != address
            or part.dtype != first.dtype
            or part.shape[1:] != first.shape[1:]
            or not part.is_contiguous()
            or part.untyped_storage()._cdata != storage
        ):
            return False
        address += part.nbytes
    return True


def _span(parts: Sequence[Tensor]) -> Tensor:
    first = parts[0].detach()
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())

"""Linear layers and embeddings with weights of 4 or 8 bits, for running a model on the CPU.

They stand in for `nn.Linear` and `nn.Embedding`: same inputs, same outputs in the model's dtype, hooks as everywhere. A
quantized weight is no parameter and cannot be trained; the gradient of the *input* is computed from the weight in
floats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int
from torch import Tensor, nn

from workbench.model import packing

Self = TypeVar("Self", bound="QuantizedWeight")


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """The weights of several layers behind each other; each layer's own `codes` and `scales` are views into these."""

    codes: Tensor
    scales: Tensor
    sizes: tuple[int, ...]


class QuantizedWeight(nn.Module):
    """A matrix in 4 or 8 bits: what quantized layers have in common.

    Args:
        rows, columns: sizes of the matrix.
        bits: 4 or 8.
        group_size: columns that share a scale; of 4 bits only.

    It is empty, on the meta device, until `set_weight`, `set_codes` or `set_stored` gives it. `state_dict` holds
    `scales` and `codes`; of 4 bits two a byte (`packing.two_a_byte`), whatever order this CPU reads them in.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int, bits: int, group_size: int = 0) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        with torch.device("meta"):
            if bits == 4:
                self.register_buffer("codes", torch.empty(rows, columns // 2, dtype=torch.uint8))
                self.register_buffer("scales", torch.empty(columns // group_size, rows, 2, dtype=torch.bfloat16))
            else:
                self.register_buffer("codes", torch.empty(rows, columns, dtype=torch.int8))
                self.register_buffer("scales", torch.empty(rows, dtype=torch.bfloat16))
        self._joined: Joined | None = None

    def set_weight(self: Self, weight: Float[Tensor, "row col"]) -> Self:
        """Rounds a weight in floats to codes; gives itself."""
        if self.bits == 4:
            return self.set_codes(*packing.round_to_int4(weight, self.group_size))
        return self.set_codes(*packing.round_to_int8(weight))

    def set_codes(self: Self, codes: Int[Tensor, "row col"], scales: BFloat16[Tensor, "*axes"]) -> Self:
        """Takes codes, one a value, and scales as `packing.round_to_int4` and `round_to_int8` give them."""
        self.codes = packing.pack_int4(codes) if self.bits == 4 else codes
        self.scales, self._joined = scales, None
        return self

    def set_stored(self, name: str, value: Tensor) -> None:
        """Takes `"codes"` or `"scales"` as `state_dict` has them.

        Raises:
            ValueError: for another shape or dtype.
        """
        expected: Any = self._buffers[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}; in {self.bits} bits it is {expected.dtype} of "
                f"shape {tuple(expected.shape)}."
            )
        self._buffers[name], self._joined = self._packed(name, value), None

    def is_made_of(self, weight: Float[Tensor, "row col"]) -> bool:
        """Whether rounding a weight in floats gives this."""
        columns = self.codes.shape[1] * (2 if self.bits == 4 else 1)
        other = QuantizedWeight(len(weight), columns, self.bits, self.group_size).set_weight(weight)
        return torch.equal(other.codes, self.codes) and torch.equal(other.scales, self.scales)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "row col"]:
        """The matrix in floats, a new tensor. From 4 bits it comes rounded to bfloat16."""
        return _floats(self.bits, self.codes, self.scales.contiguous(), dtype)

    def _packed(self, name: str, value: Tensor) -> Tensor:
        if name == "codes" and self.bits == 4:
            return packing.pack_int4(packing.one_a_byte(value))
        return packing.aligned(value)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.bits == 4:
            destination[prefix + "codes"] = packing.two_a_byte(packing.unpack_int4(self.codes))
        destination[prefix + "scales"] = self.scales.contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = dict(state_dict)
        for name in ("codes", "scales"):
            value, expected = state_dict.get(prefix + name), self._buffers[name]
            if value is None or expected is None or value.shape != expected.shape:
                continue  # torch says so
            if value.dtype != expected.dtype:
                rest[-1].append(f"{prefix}{name} is {value.dtype} instead of {expected.dtype}.")
                return
            own[prefix + name] = self._packed(name, value)
        super()._load_from_state_dict(own, prefix, *rest)

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # .to(), .half(), .cuda()
        check_device(self, fn)
        buffers = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Floating-point types are not for scales: another one would be another weight.
        self._buffers.update({k: v for k, v in buffers.items() if v is not None and not v.is_meta})
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                f"this {type(self).__name__} has no weight to read or change in place: it is packed into {self.bits} "
                "bits. dequantize() makes floats of it."
            )
        return super().__getattr__(name)


class QuantizedLinear(QuantizedWeight):
    """`x @ weight.T + bias` with the weight in 4 or 8 bits.

    Args:
        in_features, out_features: as of `nn.Linear`.
        bits: 4 or 8.
        group_size: columns that share a scale; of 4 bits only.
        bias: a parameter of shape (out_features,), or `None`.
    """

    def __init__(
        self, in_features: int, out_features: int, bits: int, group_size: int = 0, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__(out_features, in_features, bits, group_size)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", bias)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Computed from bfloat16 inputs; the result has the dtype of `x`."""
        out = _product(x, self.bits, self.codes, self.scales.contiguous())
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        """Sizes and bits, for `print(model)`."""
        group = f", group_size={self.group_size}" if self.bits == 4 else ""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}{group}, bias={self.bias is not None}"


class QuantizedEmbedding(QuantizedWeight):
    """Token ids → rows of a matrix in 8 bits, which a tied output shares.

    Args:
        num_embeddings, embedding_dim, padding_idx: as of `nn.Embedding`.
        dtype: of the result; follows `.to(dtype)`.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, padding_idx: int | None = None
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, 8)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.dtype = dtype

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows d_model"]:
        """The rows, in `dtype`."""
        return self.codes[ids].to(self.dtype) * self.scales[ids][..., None].to(self.dtype)

    def as_output(self) -> QuantizedLinear:
        """The layer from vectors to logits that shares this memory."""
        return QuantizedLinear(self.embedding_dim, self.num_embeddings, 8).set_codes(self.codes, self.scales)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedEmbedding:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits=8, dtype={self.dtype}"


def join(linears: Sequence[QuantizedLinear]) -> None:
    """Lays weights that read the same input behind each other, so that one product reads them all.

    Does nothing where they differ in bits or groups, are empty, or where 4-bit rows do not fill blocks of memory.
    """
    first = linears[0]
    sizes = [linear.out_features for linear in linears]
    if _common(linears) is not None or any(x.codes.is_meta or x.scales.is_meta for x in linears):
        return
    if len({(linear.bits, linear.group_size, linear.in_features) for linear in linears}) > 1:
        return
    if first.bits == 4 and any(size % packing.rows_together() for size in sizes[:-1]):
        return
    axis = 1 if first.bits == 4 else 0
    codes, scales = torch.cat([x.codes for x in linears]), torch.cat([x.scales for x in linears], axis)
    joined = Joined(codes, scales, tuple(sizes))
    parts = zip(linears, torch.split(codes, sizes), torch.split(scales, sizes, axis), strict=True)
    for linear, own_codes, own_scales in parts:
        linear.codes, linear.scales, linear._joined = own_codes, own_scales, joined


def joined_product(linears: Sequence[nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """The outputs of all, one behind the other, by one product; `None` if their weights do not lie for that."""
    own: list[Any] = list(linears)
    if any(type(linear) is not QuantizedLinear for linear in own):
        return None
    biases = [linear.bias for linear in own]
    found = _common(own)
    if found is None or any(bias is None for bias in biases) != all(bias is None for bias in biases):
        return None
    bits, codes, scales = own[0].bits, found.codes, found.scales
    if biases[0] is None:
        return lambda x: _product(x, bits, codes, scales)
    return lambda x: _product(x, bits, codes, scales) + torch.cat(biases)


def check_device(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Raises `RuntimeError` if `fn`, what `.to()` does to each tensor, would take quantized weights from the CPU."""
    if not any(isinstance(module, QuantizedWeight) for module in model.modules()):
        return
    device = fn(torch.empty(0)).device
    if device.type != "cpu":
        raise RuntimeError(
            f"the model's weights are packed for the CPU and cannot be moved to {str(device)!r}. Load it there: "
            "from_pretrained(..., device_map='cuda', quantization_config=...) quantizes through torchao."
        )


def quantized_count(model: nn.Module) -> int:
    """Number of weights that are quantized; shared ones count once."""
    counts = {
        module.codes.data_ptr(): module.codes.numel() * (2 if module.bits == 4 else 1)
        for module in model.modules()
        if isinstance(module, QuantizedWeight)
    }
    return sum(counts.values())


def _common(linears: Sequence[QuantizedLinear]) -> Joined | None:
    """The memory that these layers, in this order, are all of; one layer is that by itself."""
    first = linears[0]
    if len(linears) == 1:
        return Joined(first.codes, first.scales.contiguous(), (first.out_features,))
    joined = first._joined
    if joined is None or len(joined.sizes) != len(linears):
        return None
    start, row = joined.codes.data_ptr(), 0
    rows = joined.scales.dim() - (2 if first.bits == 4 else 1)  # the axis of the rows
    for linear in linears:
        scales = joined.scales.narrow(rows, row, linear.out_features)
        if linear._joined is not joined or linear.codes.data_ptr() != start:
            return None
        if linear.scales.data_ptr() != scales.data_ptr():
            return None
        start, row = start + linear.codes.nbytes, row + linear.out_features
    return joined


def _product(x: Tensor, bits: int, codes: Tensor, scales: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:  # the kernels have no derivative
        return F.linear(x, _floats(bits, codes, scales, x.dtype))
    product = packing.int4_linear if bits == 4 else packing.int8_linear
    return product(x.flatten(0, -2), codes, scales).view(*x.shape[:-1], -1)


def _floats(bits: int, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    if bits == 4:
        return packing.int4_weight(codes, scales).t().to(dtype)
    return packing.int8_weight(codes, scales, dtype)

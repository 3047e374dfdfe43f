"""Root-mean-square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.model.linear import only_numbers


def rms_norm(
    x: Float[Tensor, "batch pos d_model"], gain: Float[Tensor, " d_model"], eps: float
) -> Float[Tensor, "batch pos d_model"]:
    """`x / sqrt(mean(x²) + eps) * gain`, computed in float32 at least up to the gain; same shape and dtype
    as `x`.
    """
    if x.numel() == x.shape[-1] and only_numbers(x):
        return _one_position(x, gain, eps)
    wide = _wide(x)
    # Written out, because PyTorch's rms_norm takes half as long again for few positions on a CPU.
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return gain * normed.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _one_position(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """The same for one token's vector: a number is cheaper than tensors of one element (7 µs instead of 14)."""
    wide = _wide(x)
    flat = wide.view(-1)
    scale: float = (torch.dot(flat, flat).item() / flat.shape[0] + eps) ** -0.5
    return gain * (wide * scale).to(x.dtype)


class LlamaRMSNorm(nn.Module):
    """Divides by the root mean square, then multiplies by a gain."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Same shape and dtype."""
        return rms_norm(x, self.weight, self.variance_epsilon)

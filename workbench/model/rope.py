"""Rotary position embeddings (arXiv 2104.09864), in the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.config import LlamaConfig


def inverse_frequencies(config: LlamaConfig, device: torch.device | None = None) -> Float[Tensor, " half"]:
    """Angle per position, in radians, of each of the `d_head / 2` rotated planes: θ^(−2i / d_head)."""
    assert config.rope_parameters is not None
    theta: float = config.rope_parameters["rope_theta"]
    exponents = torch.arange(0, config.d_head, 2, device=device).float() / config.d_head
    return torch.pow(theta, -exponents)


def rotate_half(x: Float[Tensor, "... d_head"]) -> Float[Tensor, "... d_head"]:
    """Turns each plane (i, i + d_head/2) by 90 degrees."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rope(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "row pos 1 d_head"],
    sin: Float[Tensor, "row pos 1 d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotates queries or keys by their position's angles."""
    return x * cos + rotate_half(x) * sin


class LlamaRotaryEmbedding(nn.Module):
    """Positions → the cosines and sines that all layers share. Has no weights and no buffers."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self._frequencies: dict[torch.device, Tensor] = {}  # a constant of the config, computed once a device

    def forward(
        self, x: Tensor, position_ids: Int[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos 1 d_head"], Float[Tensor, "row pos 1 d_head"]]:
        """Computes in float32 and returns the dtype of `x`."""
        if x.device not in self._frequencies:
            self._frequencies[x.device] = inverse_frequencies(self.config, x.device)
        angles = position_ids[..., None].float() * self._frequencies[x.device]
        angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

"""Rotary position embeddings (arXiv 2104.09864) and their context extensions, in the half-split layout of Hugging
Face checkpoints.

A head of width d is d/2 planes; position p turns plane i by the angle p·ω_i. "default" has ω_i = θ^(−2i/d). The other
types stretch the angles, so that positions beyond those of the training fall among known ones:

- "linear" (position interpolation, arXiv 2306.15595): ω_i / factor.
- "dynamic" (dynamic NTK scaling, by the Reddit users bloc97 and emozilla; described in arXiv 2309.00071, section 3.3):
  a larger θ as soon as the text is longer than `max_position_embeddings`.
- "yarn" (arXiv 2309.00071): interpolates slow planes, leaves fast ones, and a ramp between; scales cosines and sines.
- "longrope" (arXiv 2402.13753): a divisor for each plane, from one list for short texts, from another for long ones.
- "llama3" (Llama 3.1, arXiv 2407.21783, as in Meta's released code): as yarn, with bounds given as wavelengths.

**Text length.** "dynamic" and "longrope" depend on it. Here it is the largest position of this forward plus one, of all
rows together, and nothing is remembered from earlier forwards. Keys that are in a cache stay as they were rotated, so a
text fed in pieces that cross the limit has other numbers than in one pass; `transformers` does the same. It differs in
one respect: its "dynamic" remembers the longest text, of M tokens, that the module has met, and uses the θ of M for
every text of `max_position_embeddings` to M tokens, until one shorter than `max_position_embeddings` comes. Such a text
(another one, or the same after its cache was cropped) gets other numbers there than from a fresh model; here the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.config import LlamaConfig

# Cosines and signed sines of the positions of a forward: see `signed`.
Rope = tuple[Float[Tensor, "row pos 1 d_head"], Float[Tensor, "row pos 1 d_head"]]
VARYING = ("dynamic", "longrope")  # the types whose angles depend on the length of the text


def angles_change_after(config: LlamaConfig) -> int | None:
    """The length of text after which all angles change, so that keys cached before are not those of one pass; `None`
    for the types whose angles do not depend on it.
    """
    if config.rope["rope_type"] not in VARYING:
        return None
    limit: int = config.rope.get("original_max_position_embeddings") or config.max_position_embeddings
    return min(limit, config.max_position_embeddings)


def inverse_frequencies(
    config: LlamaConfig, device: torch.device | None = None, length: int | Int[Tensor, ""] | None = None
) -> Float[Tensor, " half"]:
    """Angle per position, in radians, of each of the `d_head / 2` rotated planes, in float32.

    Args:
        config: `config.rope_parameters` says the type and its parameters; see this module's docstring for sources.
        device: where the result is.
        length: tokens of the text, for "dynamic" and "longrope"; `None` is a short one.
    """
    rope, d = config.rope, config.d_head
    tokens = torch.as_tensor(0 if length is None else length, device=device)
    theta: Any = _dynamic_theta(config, tokens) if rope["rope_type"] == "dynamic" else rope["rope_theta"]
    spans = torch.pow(theta, torch.arange(0, d, 2, device=device).float() / d)  # positions per radian
    match rope["rope_type"]:
        case "linear":
            return 1 / spans / float(rope["factor"])
        case "yarn":
            return _yarn(config, spans)
        case "longrope":
            short, long = (torch.tensor(rope[f"{name}_factor"], device=device).float() for name in ("short", "long"))
            return 1 / (torch.where(tokens > rope["original_max_position_embeddings"], long, short) * spans)
        case "llama3":
            return _llama3(rope, 1 / spans)
    return 1 / spans


def attention_factor(config: LlamaConfig) -> float:
    """What cosines and sines are multiplied by: 1 but for "yarn" and "longrope".

    It scales queries and keys, hence all scores by its square. Unless given: for yarn 0.1·ln(factor) + 1 (arXiv
    2309.00071, equation 22; with `mscale` and `mscale_all_dim` the ratio of two such terms, as DeepSeek-V3 has it), for
    longrope √(1 + ln(factor) / ln(original length)) (arXiv 2402.13753).
    """
    rope = config.rope
    if rope["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    scale = _factor(config)
    if scale <= 1:
        return 1.0
    if rope["rope_type"] == "longrope":
        return math.sqrt(1 + math.log(scale) / math.log(rope["original_max_position_embeddings"]))
    above, below = rope.get("mscale"), rope.get("mscale_all_dim")
    if above and below:
        return float((0.1 * above * math.log(scale) + 1) / (0.1 * below * math.log(scale) + 1))
    return 0.1 * math.log(scale) + 1


def _factor(config: LlamaConfig) -> float:
    """How many times longer texts may be than in the first training."""
    factor = config.rope.get("factor")
    if factor is None:
        factor = config.max_position_embeddings / config.rope["original_max_position_embeddings"]
    return float(factor)


def _dynamic_theta(config: LlamaConfig, length: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """θ·((factor·L/L_max) − (factor − 1))^(d/(d−2)) for a text of L > L_max tokens; θ for others."""
    theta, factor, d = config.rope["rope_theta"], config.rope["factor"], config.d_head
    limit = config.max_position_embeddings
    stretch = factor * length.float() / limit - (factor - 1)
    return torch.where(length > limit, theta * stretch ** (d / (d - 2)), theta)


def _yarn(config: LlamaConfig, spans: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
    """Planes that turn more than `beta_fast` times in the original length are kept, fewer than `beta_slow` divided.

    Between them the share of the divided one grows linearly with the plane (arXiv 2309.00071, equations 17 to 23).

    Args:
        config: a yarn one.
        spans: positions per radian of each plane, before scaling.
    """
    rope, d = config.rope, config.d_head

    def plane(turns: float) -> float:
        """The plane, as a fraction, that turns so many times in the original length."""
        length = rope["original_max_position_embeddings"]
        return d * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = plane(rope.get("beta_fast") or 32), plane(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    planes = torch.arange(d // 2, device=spans.device).float()
    kept = 1 - ((planes - low) / ((high - low) or 0.001)).clamp(0, 1)
    return (1 / (_factor(config) * spans)) * (1 - kept) + (1 / spans) * kept


def _llama3(rope: dict[str, Any], inverse: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
    """Wavelengths above L/`low_freq_factor` are stretched by `factor`, those below L/`high_freq_factor` kept.

    Between them the two are mixed, linearly in the number of turns in L, the original length.
    """
    length, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi / inverse
    kept = (length / wavelengths - low) / (high - low)
    mixed = (1 - kept) * inverse / rope["factor"] + kept * inverse
    result = torch.where(wavelengths > length / low, inverse / rope["factor"], mixed)
    return torch.where(wavelengths < length / high, inverse, result)


def signed(cos: Float[Tensor, "row pos 1 d_head"], sin: Float[Tensor, "row pos 1 d_head"]) -> Rope:
    """Cosines, and sines with the sign that `apply_rope` needs: negative in the first half."""
    first, second = sin.chunk(2, dim=-1)
    return cos, torch.cat((-first, second), dim=-1)


def apply_rope(
    x: Float[Tensor, "batch pos head d_head"],
    cos: Float[Tensor, "row pos 1 d_head"],
    signed_sin: Float[Tensor, "row pos 1 d_head"],
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotates queries or keys by their position's angles.

    Plane i is made of the components i and i + d_head / 2: `x·cos + (−x₂, x₁)·sin`, where exchanging the halves is a
    roll and the minus is in the sines (see `signed`), which makes three operations of six.
    """
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)


class LlamaRotaryEmbedding(nn.Module):
    """Positions → the cosines and sines that all layers share. Has no weights and no buffers."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_factor = attention_factor(config)
        self.rope_type: str = config.rope["rope_type"]
        self._frequencies: dict[torch.device, Tensor] = {}  # constants of the config, computed once a device

    def forward(
        self, x: Tensor, position_ids: Int[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos 1 d_head"], Float[Tensor, "row pos 1 d_head"]]:
        """Computes in float32 and returns the dtype of `x`. See this module's docstring for what a length is."""
        if x.device not in self._frequencies:
            self._frequencies[x.device] = self._constant(x.device)
        frequencies = self._frequencies[x.device]
        if self.rope_type in VARYING:
            length = position_ids.max() + 1  # a tensor: no waiting for a GPU
            if self.rope_type == "dynamic":
                frequencies = inverse_frequencies(self.config, x.device, length)
            else:
                short, long = frequencies
                frequencies = torch.where(length > self.config.rope["original_max_position_embeddings"], long, short)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, :, None, :]
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos.to(x.dtype), sin.to(x.dtype)

    def _constant(self, device: torch.device) -> Tensor:
        """The frequencies of a short text, shape (half,); of "longrope" also those of a long one, shape (2, half)."""
        cpu = torch.device("cpu")  # where they are computed whatever the device, so that all devices rotate alike
        frequencies = inverse_frequencies(self.config, cpu)
        if self.rope_type == "longrope":
            length = self.config.rope["original_max_position_embeddings"] + 1
            frequencies = torch.stack((frequencies, inverse_frequencies(self.config, cpu, length)))
        return frequencies.to(device)

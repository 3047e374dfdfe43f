"""Direct logit attribution: what the embedding, every head and every MLP add to a logit.

The residual stream is a sum of what its parts wrote into it, and the final norm only scales it. With the scale held at
the value that was executed, a logit is a sum too (Elhage et al. 2021, "A Mathematical Framework for Transformer
Circuits", https://transformer-circuits.pub/2021/framework; the convention of TransformerLens). What a part does through
later layers is not in its own number but in theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.arguments import row_of, whole, whole_numbers
from workbench.analysis.lens import check_tokens
from workbench.analysis.stream import EMBED, choose_positions
from workbench.instrument import Activations
from workbench.model import LlamaForCausalLM

MARGIN = 6.0  # standard deviations of the rounding that a sum of contributions may be off by


@dataclasses.dataclass(frozen=True)
class _Part:
    """What one component wrote: its vector, and how much of the logit each of its heads (or it alone) makes.

    `squares` is the sum of the squares of all numbers that were added up for it: eps² times that is about the variance
    of their rounding.
    """

    component: str
    layer: int
    vector: Float[Tensor, "row d_model"]
    contributions: Float[Tensor, "row token head"]
    squares: Float[Tensor, "row token"]


@torch.no_grad()
def logit_attribution(
    model: LlamaForCausalLM,
    acts: Activations,
    tokens: int | Sequence[int],
    position: int = -1,
    against: int | None = None,
    row: int | None = 0,
) -> pd.DataFrame:
    """Splits the logit of a token into what each component adds to it.

        with capture(model, "embed", "z", "mlp_out", "resid_post") as acts:
            model(ids)
        logit_attribution(model, acts, tokenizer.encode(" Paris")[-1], against=tokenizer.encode(" Rome")[-1])

    With `x` the last residual stream, `g` the final norm's gain and `w` the token's row of the head (minus that of
    `against`), a component that wrote `c` contributes `c · (g ⊙ w) / sqrt(mean(x²) + eps)`; head h wrote
    `z[h] @ W_O[h].T`. Computed in float64 from what was captured.

    Args:
        acts: a capture of `embed`, `z` and `mlp_out` of all layers and `resid_post` of the last; with `logits` too,
            the sum is compared with the logit that was really computed.
        tokens: one id or several; one that is named twice counts once.
        position: in the text; negative from the end.
        against: a distractor; the difference of the two logits is split then.
        row: of the batch; `None` for all.

    Returns:
        One row a component: `row`, `token`, `component` (`embed`, `head`, `mlp`, and `attn_bias`, `mlp_bias` where the
        output projections have biases), `layer` (−1 for the embedding), `head` (NA unless it is one), `contribution`
        in logits (nats). For each row of the batch and token the contributions sum to the logit.

    Raises:
        KeyError: for a point that was not captured.
        ValueError: for a position, row or token that does not exist, heads left out of the capture, or contributions
            that do not sum to the logit.
        TypeError: for a token, position or row that is no whole number.
    """
    ids = list(dict.fromkeys(whole_numbers(tokens, "token")))
    against = None if against is None else whole(against, "against")
    check_tokens([*ids, *([] if against is None else [against])], model.config.vocab_size)
    source = _Source.of(model, acts, position, row)
    direction, logit, rounding = _direction(source, ids, against)
    parts = list(_parts(source, direction))
    _check_sum(source, parts, direction, logit, rounding)
    frames = []
    for part in parts:
        heads = part.contributions.shape[2]
        index = pd.MultiIndex.from_product([source.rows, ids, range(heads)], names=["row", "token", "head"])
        frame = pd.DataFrame({"contribution": part.contributions.flatten().numpy()}, index).reset_index()
        frame["head"] = (
            frame["head"].astype("Int64") if part.component == "head" else pd.array([pd.NA] * len(frame), "Int64")
        )
        frames.append(frame.assign(component=part.component, layer=part.layer))
    table = pd.concat(frames, ignore_index=True)
    return table[["row", "token", "component", "layer", "head", "contribution"]]


def accumulated_attribution(
    model: LlamaForCausalLM,
    acts: Activations,
    tokens: int | Sequence[int],
    position: int = -1,
    against: int | None = None,
    row: int | None = 0,
) -> pd.DataFrame:
    """The logit that the residual stream holds after each step, under the final norm's scale: a running sum.

    Arguments and errors as `logit_attribution`.

    Returns:
        One row a step: `row`, `token`, `layer` (−1 for the embedding), `point` (`embed`, `resid_mid`, `resid_post`),
        `logit` in nats. The last one is the logit itself.
    """
    frame = logit_attribution(model, acts, tokens, position, against, row)
    points = {"embed": "embed", "head": "resid_mid", "attn_bias": "resid_mid"}
    frame["point"] = frame["component"].map(points).fillna("resid_post")
    steps = frame.groupby(["row", "token", "layer", "point"], sort=False)["contribution"].sum().reset_index()
    steps["order"] = steps["layer"] * 2 + (steps["point"] == "resid_post")
    steps = steps.sort_values(["row", "token", "order"], kind="stable").drop(columns="order").reset_index(drop=True)
    steps["logit"] = steps.groupby(["row", "token"])["contribution"].cumsum()
    return steps.drop(columns="contribution")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Captured tensors at one position of some rows of a batch."""

    model: LlamaForCausalLM
    acts: Activations
    at: int  # on the captured position axis
    position: int
    rows: tuple[int, ...]

    @classmethod
    def of(cls, model: LlamaForCausalLM, acts: Activations, position: int, row: int | None) -> _Source:
        layers = range(model.config.num_hidden_layers)
        needed = ["embed", *(f"layers.{i}.{point}" for i in layers for point in ("z", "mlp_out"))]
        for name in (*needed, f"layers.{layers[-1]}.resid_post"):
            if name not in acts:
                raise KeyError(
                    f"logit attribution needs 'embed', 'z' and 'mlp_out' of every layer and 'resid_post' of the last; "
                    f"{name!r} was not captured. Capture them: capture(model, 'embed', 'z', 'mlp_out', 'resid_post')."
                )
        if acts.heads is not None and len(acts.heads) < model.config.num_attention_heads:
            raise ValueError(
                f"only heads {', '.join(map(str, acts.heads))} were captured of "
                f"{model.config.num_attention_heads}, so contributions cannot sum to the logit. Leave heads= out."
            )
        found, positions = choose_positions(acts, "embed", whole(position, "position"))
        batch = len(acts.window("embed", int(found), int(found) + 1))
        rows = tuple(range(batch)) if row is None else (row_of(row, batch),)
        return cls(model, acts, int(found), int(positions), rows)

    def take(self, name: str) -> Tensor:
        """A point at the position, in float64: (row, …)."""
        return self.acts.window(name, self.at, self.at + 1)[list(self.rows), 0].double().cpu()

    @property
    def final(self) -> Float[Tensor, "row d_model"]:
        """The last residual stream, as captured."""
        name = f"layers.{self.model.config.num_hidden_layers - 1}.resid_post"
        return self.acts.window(name, self.at, self.at + 1)[list(self.rows), 0]

    def eps(self) -> tuple[float, float, float]:
        """How coarse are the model's sums, the captured numbers, and the model's products."""
        kept = (self.acts.window(name, self.at, self.at + 1).dtype for name in ("embed", "layers.0.z"))
        packed = any(hasattr(part, "dequantize") for part in self.model.modules())  # multiplied in bfloat16
        least = torch.finfo(torch.float32).eps  # the norms compute in float32
        sums = max(least, torch.finfo(self.model.dtype).eps)
        captured = max(least, *(torch.finfo(kind).eps for kind in kept))
        return sums, captured, max(sums, captured, torch.finfo(torch.bfloat16).eps if packed else 0.0)


def _direction(
    source: _Source, ids: list[int], against: int | None
) -> tuple[Float[Tensor, "row token d_model"], Float[Tensor, "row token"], Float[Tensor, "row token"]]:
    """What a vector in the stream is multiplied with to get its part of the logits; those logits, as computed; and the
    variance of the rounding of that.

    Where they were captured, each token's logit was rounded by itself, and so was each of the sums on the way to it: of
    n products in any order these have squares of about n · (Σ product² / 2 + logit² / 3), each rounded by eps² / 12.
    """
    norm, vocabulary = source.model.model.norm, _weight(source.model.lm_head)

    def pick(x: Tensor) -> Tensor:  # of (…, vocab): the tokens, minus the distractor
        kept = x[..., ids].double().cpu()
        return kept if against is None else kept - x[..., [against]].double().cpu()

    def squares(x: Tensor) -> Tensor:  # of (…, vocab): the tokens' and the distractor's together
        kept = x[..., ids].double().cpu().square()
        return kept if against is None else kept + x[..., [against]].double().cpu().square()

    products = source.eps()[2]
    final = source.final.to(source.model.device, source.model.dtype)
    wide = final.double().cpu()
    scale = (wide.square().mean(-1) + norm.variance_epsilon).rsqrt()
    chosen = pick(vocabulary.T).T
    gain = scale[:, None] * norm.weight.double().cpu()  # (row, d_model)
    direction = gain[:, None] * chosen
    if "logits" in source.acts and source.position in (where := source.acts.positions("logits").tolist()):
        at = where.index(source.position)
        computed = source.acts.window("logits", at, at + 1)[list(source.rows), 0]
        terms, logits = (gain * wide).square() @ squares(vocabulary.T), squares(computed)
        on_the_way = wide.shape[-1] * (terms / 2 + logits / 3) / 12 * torch.finfo(torch.float32).eps ** 2
        return direction, pick(computed), products**2 * (terms + logits) + on_the_way
    normed = norm.forward(final[:, None])[:, 0]  # .forward: nobody's hooks are to take this for a forward of the model
    logit = normed.double().cpu() @ chosen.T
    return direction, logit, products**2 * ((direction * wide[:, None]).square().sum(-1) + logit.square())


def _parts(source: _Source, direction: Float[Tensor, "row token d_model"]) -> Iterator[_Part]:
    """What was written into the stream, in the order of writing."""

    def plain(component: str, layer: int, vector: Tensor) -> _Part:
        terms = direction * vector[:, None]
        return _Part(component, layer, vector, terms.sum(-1, keepdim=True), terms.square().sum(-1))

    yield plain("embed", EMBED, source.take("embed"))
    for i, layer in enumerate(source.model.model.layers):
        block: Any = layer
        z, out = source.take(f"layers.{i}.z"), _weight(block.self_attn.o_proj).double().cpu()
        shape = (*direction.shape[:2], *z.shape[1:])
        seen = (direction @ out).view(shape)  # (row, token, head, d_head): the direction as it is before o_proj
        squares = ((direction.square() @ out.square()).view(shape) * z.square()[:, None]).sum((-2, -1))
        yield _Part("head", i, z.flatten(1) @ out.T, (seen * z[:, None]).sum(-1), squares)
        mlp, added = source.take(f"layers.{i}.mlp_out"), _bias(block.mlp.down_proj)
        if (bias := _bias(block.self_attn.o_proj)) is not None:
            yield plain("attn_bias", i, bias.expand_as(mlp))
        yield plain("mlp", i, mlp if added is None else mlp - added)
        if added is not None:
            yield plain("mlp_bias", i, added.expand_as(mlp))


def _check_sum(
    source: _Source,
    parts: list[_Part],
    direction: Float[Tensor, "row token d_model"],
    logit: Float[Tensor, "row token"],
    rounding: Float[Tensor, "row token"],
) -> None:
    """Raises `ValueError` where contributions do not sum to the logit, up to the rounding of the model's own sums.

    Each number that is added to the stream, stored, or multiplied is rounded by up to eps / 2 of itself, independently
    of the others: their variances add up, each about (eps · number · direction)².
    """
    sums, captured, products = source.eps()
    stream, variance = torch.zeros_like(parts[0].vector), torch.zeros_like(logit)
    for part in parts:
        stream = stream + part.vector
        variance += sums**2 * (stream[:, None] * direction).square().sum(-1)
        variance += (products if part.component == "head" else captured) ** 2 * part.squares
    variance += rounding
    total = sum((part.contributions.sum(-1) for part in parts), torch.zeros_like(logit))
    tolerance = MARGIN * variance.sqrt()
    gap = (total - logit).abs()
    if (wrong := ~(gap <= tolerance)).any():
        i, j = (int(x) for x in wrong.nonzero()[0])
        raise ValueError(
            f"the contributions sum to {total[i, j]:.6g} but the logit is {logit[i, j]:.6g}: a gap of {gap[i, j]:.3g}, "
            f"where rounding explains {tolerance[i, j]:.3g}. The captured tensors do not add up to the last "
            "resid_post: something was edited between these points, or they are not of one forward of this model."
        )


def _weight(part: Any) -> Tensor:
    """The weight of a linear map; of a packed one, in floats."""
    weight: Tensor = part.dequantize() if hasattr(part, "dequantize") else part.weight
    return weight.detach()


def _bias(part: Any) -> Float[Tensor, " d_model"] | None:
    bias: Tensor | None = getattr(part, "bias", None)
    return None if bias is None else bias.detach().double().cpu()

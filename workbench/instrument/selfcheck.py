"""`selfcheck`: does every hook point hold what the table says, on this very model?

Each invariant of `POINTS` is computed from other points by plain formulas (not by the model's own functions) and
compared with what was captured. A model that was patched, converted or loaded wrongly shows where.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from workbench.cache import DynamicCache
from workbench.instrument.activations import Activations
from workbench.instrument.capture import capture
from workbench.instrument.points import POINTS, base_of
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.linear import Linear
from workbench.model.rope import attention_factor, inverse_frequencies

if TYPE_CHECKING:
    import pandas as pd

# The largest difference that rounding explains, as a share of the largest magnitude. Angles are computed in
# float32 at best.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@dataclasses.dataclass(frozen=True)
class Check:
    """One invariant: the largest difference over all layers, as a share of the largest magnitude, and where it was."""

    name: str
    error: float
    layer: int | None
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains the difference."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """What `selfcheck` found; printed, it is a table."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all invariants hold."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """Those that do not."""
        return tuple(check for check in self.checks if not check.passed)

    def to_pandas(self) -> pd.DataFrame:
        """One row an invariant."""
        import pandas as pd

        return pd.DataFrame([{**dataclasses.asdict(check), "passed": check.passed} for check in self.checks])

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'invariant':<{width}}  largest error  layer  allowed"]
        for check in self.checks:
            layer = "–" if check.layer is None else str(check.layer)
            verdict = "ok" if check.passed else "WRONG"
            lines.append(f"{check.name:<{width}}  {check.error:>13.1e}  {layer:>5}  {check.tolerance:>7.0e}  {verdict}")
        wrong = len(self.failures)
        lines.append(f"{len(self.checks) - wrong} of {len(self.checks)} invariants hold.")
        return "\n".join(lines)


@torch.no_grad()
def selfcheck(
    model: LlamaForCausalLM | LlamaModel, input_ids: Int[Tensor, "batch pos"] | None = None, verbose: bool = True
) -> SelfCheck:
    """Checks every invariant of every point and layer on a short batch, read in two chunks, one row left-padded.

    Args:
        input_ids: what to read instead of random tokens; at least two of them.
        verbose: print the table.

    Raises:
        TypeError: if it is no LlamaForCausalLM or LlamaModel.
        ValueError: for fewer than two tokens.
    """
    base = base_of(model)
    if input_ids is None:
        draw = torch.Generator().manual_seed(0)
        input_ids = torch.randint(0, model.config.vocab_size, (2, 12), generator=draw)
    if input_ids.dim() != 2 or input_ids.shape[1] < 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; (batch, positions) with at least 2 is needed.")
    run = _Run(model, base, input_ids.to(base.device))
    names = list(dict.fromkeys(name for point in POINTS.values() for name in point.invariants))
    if not isinstance(model, LlamaForCausalLM):
        names = [name for name in names if "logits" not in name]
    tolerance = TOLERANCE.get(base.dtype, 6e-2)
    found = SelfCheck(tuple(_check(run, name, tolerance) for name in names))
    if verbose:
        print(found)
    return found


class _Run:
    """Two chunks of one batch, every point stored as it was computed; `run("q")` is that point in `run.layer`."""

    def __init__(self, model: Any, base: LlamaModel, ids: Tensor) -> None:
        self.model, self.base, self.ids, self.layer = model, base, ids, 0
        self.config, self.start = model.config, ids.shape[1] // 2
        self.padding = torch.zeros(len(ids), dtype=torch.long)
        self.padding[-1] = min(3, self.start) if len(ids) > 1 else 0
        keep = (torch.arange(ids.shape[1]) >= self.padding[:, None]).to(ids.device).long()
        points = [name for name in POINTS if name != "logits" or model is not base]
        self.cache, self.acts = DynamicCache(), Activations()
        self.outputs: list[Tensor] = []
        was_training = model.training
        model.eval()
        try:
            for low, high in ((0, self.start), (self.start, ids.shape[1])):
                with capture(model, *points, derive=False) as acts:
                    out = model(ids[:, low:high], attention_mask=keep[:, :high], past_key_values=self.cache)
                self.acts.extend(acts)
                self.outputs.append(out[0])
        finally:
            model.train(was_training)

    def __call__(self, short: str) -> Tensor:
        """The point in the layer looked at, both chunks joined."""
        return self.acts[f"layers.{self.layer}.{short}" if POINTS[short].per_layer else short]

    @property
    def module(self) -> Any:
        """The layer looked at."""
        return self.base.layers[self.layer]

    @property
    def attention(self) -> Any:
        """Its attention."""
        return self.module.self_attn

    def per_query_head(self, short: str) -> Tensor:
        """(batch, pos, kv_head, d_head) → (batch, q_head, pos, d_head): each query head with its key/value head."""
        x = self(short)
        return x[:, :, [head // self.config.n_rep for head in range(self.config.num_attention_heads)]].transpose(1, 2)

    def allowed(self) -> Tensor:
        """Which cells may attend, one by one: no later position, no padding."""
        rows, count = self.ids.shape
        cells = [
            [[k <= q and k >= int(self.padding[row]) for k in range(count)] for q in range(count)]
            for row in range(rows)
        ]
        return torch.tensor(cells, device=self.ids.device)

    def rotated(self, x: Tensor) -> Tensor:
        """Each plane (i, i + d_head / 2) as a complex number, turned by position × frequency."""
        count, half = x.shape[1], x.shape[-1] // 2
        length = max(self.start, 1), count
        turned = []
        for low, high, seen in ((0, self.start, length[0]), (self.start, count, length[1])):
            angles = torch.outer(torch.arange(low, high).float(), inverse_frequencies(self.config, length=seen).cpu())
            by = torch.polar(torch.ones_like(angles).double(), angles.double()) * attention_factor(self.config)
            part = x[:, low:high].cpu().double()
            turned.append(torch.complex(part[..., :half], part[..., half:]) * by[None, :, None])
        whole = torch.cat(turned, 1)
        return torch.cat((whole.real, whole.imag), -1).to(x.device, x.dtype)


def _check(run: _Run, name: str, tolerance: float) -> Check:
    compute = INVARIANTS[name]
    inside = any(name in point.invariants and point.per_layer for point in POINTS.values())
    worst, where = 0.0, None
    first = 1 if compute is _before else 0  # no layer is before layer 0
    for layer in range(first, len(run.base.layers)) if inside else (0,):
        run.layer = layer
        error = _error(*compute(run))
        if error > worst or math.isnan(error):
            worst, where = error, layer if inside else None
    run.layer = 0
    return Check(name, worst if not math.isnan(worst) else math.inf, where, tolerance)


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest magnitude; infinite where only one side is."""
    if actual.shape != expected.shape:
        return math.inf
    a, b = actual.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a[~finite], b[~finite]):
        return math.inf
    size = float(b[finite].abs().max()) if finite.any() else 0.0
    return float((a - b)[finite].abs().max()) / (size or 1.0) if finite.any() else 0.0


def _norm(r: _Run, x: Tensor, module: nn.Module) -> Tensor:
    at: Any = module
    wide = x.double()
    normed: Tensor = wide / (wide.square().mean(-1, keepdim=True) + r.config.rms_norm_eps).sqrt() * at.weight.double()
    return normed


# What `hidden_act` of a config means; a config may also hold a function of its own.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * x.sigmoid(),
    "gelu": lambda x: x * (1 + (x / math.sqrt(2)).erf()) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()) / 2,
    "relu": lambda x: x.clamp(min=0),
}


def _act(r: _Run) -> tuple[Tensor, Tensor]:
    given = r.config.hidden_act
    activation = given if callable(given) else ACTIVATIONS[given]
    return r("act"), activation(r("gate").double()) * r("up").double()


def _product(x: Tensor, module: nn.Module) -> Tensor:
    at: Any = module
    if type(at) is not Linear:
        found: Tensor = at.forward(x)  # 4 and 8 bits: its own product is what there is
    else:
        found = F.linear(x.double(), at.weight.double(), None if at.bias is None else at.bias.double())
    return found


def _heads(r: _Run, module: nn.Module) -> Tensor:
    x = r("attn_norm")
    return _product(x, module).view(*x.shape[:2], -1, r.config.d_head)


def _scores(r: _Run) -> Tensor:
    products = r("q_rot").transpose(1, 2).double() @ r.per_query_head("k_cached").double().transpose(2, 3)
    return (products / math.sqrt(r.config.d_head)).masked_fill(~r.allowed()[:, None], -torch.inf)


def _softmax(scores: Tensor) -> Tensor:
    """A query that may attend to nothing gets zeros."""
    return scores.double().softmax(-1).nan_to_num(0.0)


def _embedding(r: _Run) -> tuple[Tensor, Tensor]:
    at: Any = r.base.embed_tokens
    if type(at) is not nn.Embedding:
        return r("embed"), at.forward(r.ids)  # 8 bits: its own look-up is what there is
    return r("embed"), at.weight[r.ids]


def _before(r: _Run) -> tuple[Tensor, Tensor]:
    return r("resid_pre"), r.acts["resid_post", r.layer - 1]


def _first(r: _Run) -> tuple[Tensor, Tensor]:
    return r.acts["resid_pre", 0], r("embed")


def _last(r: _Run) -> tuple[Tensor, Tensor]:
    return r("final_norm"), _norm(r, r.acts["resid_post", len(r.base.layers) - 1], r.base.norm)


INVARIANTS: dict[str, Callable[[_Run], tuple[Tensor, Tensor]]] = {
    "embed is row input_ids of the embedding": _embedding,
    "resid_pre of layer 0 is embed": _first,
    "resid_pre is resid_post of the layer before": _before,
    "attn_norm is RMSNorm of resid_pre": lambda r: (r("attn_norm"), _norm(r, r("resid_pre"), r.module.input_layernorm)),
    "q is q_proj(attn_norm)": lambda r: (r("q"), _heads(r, r.attention.q_proj)),
    "k is k_proj(attn_norm)": lambda r: (r("k"), _heads(r, r.attention.k_proj)),
    "v is v_proj(attn_norm)": lambda r: (r("v"), _heads(r, r.attention.v_proj)),
    "mask is what the rules allow, cell by cell": lambda r: (r("mask"), r.allowed()),
    "q_rot is RoPE of q": lambda r: (r("q_rot"), r.rotated(r("q"))),
    "k_rot is RoPE of k": lambda r: (r("k_rot"), r.rotated(r("k"))),
    "the cache received k_rot": lambda r: (r("k_cached"), r("k_rot")),
    "the cache received v": lambda r: (r("v_cached"), r("v")),
    "scores are q_rot · k_cached / √d_head, masked": lambda r: (r("scores"), _scores(r)),
    "pattern is the softmax of scores": lambda r: (r("pattern"), _softmax(r("scores"))),
    "rows of pattern sum to 1": lambda r: (
        r("pattern").sum(-1),
        r.allowed().any(-1)[:, None].expand_as(r("pattern")[..., 0]),
    ),
    "pattern is 0 where the mask forbids": lambda r: (
        r("pattern").masked_fill(r.allowed()[:, None], 0.0),
        torch.zeros_like(r("pattern")),
    ),
    "pattern @ v_cached is z": lambda r: (
        r("z"),
        (r("pattern").double() @ r.per_query_head("v_cached").double()).transpose(1, 2),
    ),
    "attn_out is o_proj(z)": lambda r: (r("attn_out"), _product(r("z").flatten(2), r.attention.o_proj)),
    "resid_pre + attn_out is resid_mid": lambda r: (r("resid_mid"), r("resid_pre").double() + r("attn_out").double()),
    "mlp_norm is RMSNorm of resid_mid": lambda r: (
        r("mlp_norm"),
        _norm(r, r("resid_mid"), r.module.post_attention_layernorm),
    ),
    "gate is gate_proj(mlp_norm)": lambda r: (r("gate"), _product(r("mlp_norm"), r.module.mlp.gate_proj)),
    "up is up_proj(mlp_norm)": lambda r: (r("up"), _product(r("mlp_norm"), r.module.mlp.up_proj)),
    "act is act_fn(gate) · up": _act,
    "mlp_out is down_proj(act)": lambda r: (r("mlp_out"), _product(r("act"), r.module.mlp.down_proj)),
    "resid_mid + mlp_out is resid_post": lambda r: (r("resid_post"), r("resid_mid").double() + r("mlp_out").double()),
    "final_norm is RMSNorm of the last resid_post": _last,
    "logits are lm_head(final_norm)": lambda r: (r("logits"), _product(r("final_norm"), r.model.lm_head)),
    "logits are the output's": lambda r: (r("logits"), torch.cat(r.outputs, 1)),
}

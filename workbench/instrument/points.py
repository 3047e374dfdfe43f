"""The table of hook points: every tensor that can be captured, where it is, and what its axes mean."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable

from torch import nn

from workbench.model import LlamaForCausalLM, LlamaModel


@dataclasses.dataclass(frozen=True)
class Point:
    """One inspectable tensor.

    `path` is the module whose output it is, relative to its layer (`per_layer`), to the base model, or (logits) to the
    language model. `meaning` says what it equals.
    """

    name: str
    path: str
    axes: tuple[str, ...]
    meaning: str
    per_layer: bool = True

    @property
    def position_axis(self) -> int:
        """The axis along which successive forwards are joined."""
        return self.axes.index("q_pos" if "q_pos" in self.axes else "pos")


_STREAM = ("batch", "pos", "d_model")
_QUERY = ("batch", "pos", "q_head", "d_head")
_KEY = ("batch", "pos", "kv_head", "d_head")
_ATTENTION = ("batch", "q_head", "q_pos", "k_pos")
_INNER = ("batch", "pos", "d_mlp")

POINTS: dict[str, Point] = {
    point.name: point
    for point in (
        Point("embed", "hook_embed", _STREAM, "token embeddings; resid_pre of layer 0", per_layer=False),
        Point("resid_pre", "hook_resid_pre", _STREAM, "residual stream before the layer"),
        Point("attn_norm", "input_layernorm", _STREAM, "resid_pre after RMSNorm and its gain"),
        Point("q", "self_attn.hook_q", _QUERY, "queries before RoPE"),
        Point("k", "self_attn.hook_k", _KEY, "keys before RoPE"),
        Point("v", "self_attn.hook_v", _KEY, "values"),
        Point("q_rot", "self_attn.hook_q_rot", _QUERY, "queries after RoPE"),
        Point("k_rot", "self_attn.hook_k_rot", _KEY, "keys after RoPE: what the cache receives"),
        Point("scores", "self_attn.hook_scores", _ATTENTION, "q_rot · k_rot / sqrt(d_head), -inf where masked"),
        Point("pattern", "self_attn.hook_pattern", _ATTENTION, "softmax of scores over keys; rows sum to 1"),
        Point("z", "self_attn.hook_z", _QUERY, "pattern @ v, before o_proj"),
        Point("attn_out", "hook_attn_out", _STREAM, "resid_mid - resid_pre"),
        Point("resid_mid", "hook_resid_mid", _STREAM, "resid_pre + attn_out"),
        Point("mlp_norm", "post_attention_layernorm", _STREAM, "resid_mid after RMSNorm and its gain"),
        Point("gate", "mlp.hook_gate", _INNER, "gate_proj(mlp_norm)"),
        Point("up", "mlp.hook_up", _INNER, "up_proj(mlp_norm)"),
        Point("act", "mlp.hook_act", _INNER, "act_fn(gate) * up"),
        Point("mlp_out", "hook_mlp_out", _STREAM, "down_proj(act) = resid_post - resid_mid"),
        Point("resid_post", "hook_resid_post", _STREAM, "residual stream after the layer"),
        Point("final_norm", "norm", _STREAM, "the last resid_post after the final norm", per_layer=False),
        Point("logits", "hook_logits", ("batch", "pos", "vocab"), "lm_head(final_norm)", per_layer=False),
    )
}


@dataclasses.dataclass(frozen=True)
class Located:
    """A point of a given model: its full name (`layers.3.q_rot`), the module and the table's entry."""

    full_name: str
    module: nn.Module
    point: Point


def resolve(
    model: LlamaForCausalLM | LlamaModel, names: Iterable[str], layers: Iterable[int] | None = None
) -> list[Located]:
    """The modules behind point names.

    Args:
        names: `"resid_post"` means that point in every layer, `"layers.3.resid_post"` in one.
        layers: restricts names without a layer to these; negative numbers count from the end.

    Raises:
        ValueError: for an unknown point (naming the nearest ones), a layer the model does not have, no point at all, or
            `logits` of a model without a head.
    """
    base = model.model if isinstance(model, LlamaForCausalLM) else model
    chosen = [_layer_index(i, len(base.layers)) for i in (range(len(base.layers)) if layers is None else layers)]
    found: dict[str, Located] = {}
    for name in names:
        prefix, _, short = name.rpartition(".")
        point = _known(short, name)
        if not point.per_layer:
            root = model if point.name == "logits" else base
            if not hasattr(root, point.path):
                raise ValueError("'logits' is not a point of LlamaModel: it has no language-model head.")
            found[point.name] = Located(point.name, root.get_submodule(point.path), point)
            continue
        for i in chosen if not prefix else [_layer_of(prefix, name, len(base.layers))]:
            full = f"layers.{i}.{point.name}"
            found[full] = Located(full, base.layers[i].get_submodule(point.path), point)
    if not found:
        raise ValueError(f"no hook point was named. Points are {', '.join(POINTS)}.")
    return list(found.values())


def _known(short: str, name: str) -> Point:
    if short not in POINTS:
        near = difflib.get_close_matches(short, POINTS, n=3, cutoff=0.5) or list(POINTS)
        raise ValueError(f"{name!r} is no hook point; did you mean {', '.join(near)}?")
    return POINTS[short]


def _layer_of(prefix: str, name: str, count: int) -> int:
    head, _, number = prefix.partition(".")
    if head != "layers" or not number.isdigit():
        raise ValueError(f"{name!r} is no hook point; a point of one layer is written 'layers.3.resid_post'.")
    return _layer_index(int(number), count)


def _layer_index(i: int, count: int) -> int:
    if not -count <= i < count:
        raise ValueError(f"layer {i} does not exist; this model has layers 0 … {count - 1}.")
    return i % count

"""The table of hook points: every tensor that can be captured or edited, where it is, and what its axes mean."""

from __future__ import annotations

import dataclasses
import functools

from torch import nn

from workbench.model import LlamaForCausalLM, LlamaModel


@dataclasses.dataclass(frozen=True)
class Point:
    """One inspectable tensor.

    Attributes:
        name: how it is called here; TransformerLens' name for activations where it has one.
        path: the module whose output it is, relative to its layer (`per_layer`), to the base model, or (logits) to the
            language model.
        axes: what each axis counts.
        formula: what it equals, in terms of other points.
        invariants: the checks of `selfcheck` that say so.
        aliases: other names, of TransformerLens (`hook_…`) and of the modules of transformers; relative to the layer.
        per_layer: whether there is one in each layer.
    """

    name: str
    path: str
    axes: tuple[str, ...]
    formula: str
    invariants: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    per_layer: bool = True

    @functools.cached_property
    def position_axis(self) -> int:
        """The axis along which successive forwards are joined; of what the cache returns, its slots."""
        return next(i for i, axis in enumerate(self.axes) if axis in ("q_pos", "pos", "slot"))

    @functools.cached_property
    def head_axis(self) -> int | None:
        """The axis of query heads or key/value heads, if there is one."""
        return next((i for i, axis in enumerate(self.axes) if axis in ("q_head", "kv_head")), None)


_STREAM = ("batch", "pos", "d_model")
_QUERY = ("batch", "pos", "q_head", "d_head")
_KEY = ("batch", "pos", "kv_head", "d_head")
_SLOT = ("batch", "slot", "kv_head", "d_head")
_ATTENTION = ("batch", "q_head", "q_pos", "k_pos")
_INNER = ("batch", "pos", "d_mlp")


def _table(*points: Point) -> dict[str, Point]:
    return {point.name: point for point in points}


# In the order in which a forward computes them.
POINTS: dict[str, Point] = _table(
    Point(
        "embed",
        "hook_embed",
        _STREAM,
        "embedding of each token; resid_pre of layer 0",
        ("embed is row input_ids of the embedding", "resid_pre of layer 0 is embed"),
        ("hook_embed", "embed_tokens"),
        per_layer=False,
    ),
    Point(
        "resid_pre",
        "hook_resid_pre",
        _STREAM,
        "residual stream before the layer",
        ("resid_pre of layer 0 is embed", "resid_pre is resid_post of the layer before"),
        ("hook_resid_pre",),
    ),
    Point(
        "attn_norm",
        "input_layernorm",
        _STREAM,
        "RMSNorm of resid_pre, after the gain",
        ("attn_norm is RMSNorm of resid_pre",),
        ("input_layernorm",),
    ),
    Point(
        "q",
        "self_attn.hook_q",
        _QUERY,
        "q_proj(attn_norm), before RoPE",
        ("q is q_proj(attn_norm)",),
        ("attn.hook_q", "self_attn.q_proj"),
    ),
    Point(
        "k",
        "self_attn.hook_k",
        _KEY,
        "k_proj(attn_norm), before RoPE",
        ("k is k_proj(attn_norm)",),
        ("attn.hook_k", "self_attn.k_proj"),
    ),
    Point(
        "v",
        "self_attn.hook_v",
        _KEY,
        "v_proj(attn_norm)",
        ("v is v_proj(attn_norm)",),
        ("attn.hook_v", "self_attn.v_proj"),
    ),
    Point(
        "mask",
        "self_attn.hook_mask",
        ("batch", "q_pos", "k_pos"),
        "which keys a query may attend to: a Mask, with the rules that forbid",
        ("mask is what the rules allow, cell by cell", "pattern is 0 where the mask forbids"),
    ),
    Point("q_rot", "self_attn.hook_q_rot", _QUERY, "RoPE of q", ("q_rot is RoPE of q",), ("attn.hook_rot_q",)),
    Point(
        "k_rot",
        "self_attn.hook_k_rot",
        _KEY,
        "RoPE of k: what the cache receives",
        ("k_rot is RoPE of k", "the cache received k_rot"),
        ("attn.hook_rot_k",),
    ),
    Point(
        "k_cached",
        "self_attn.hook_k_cached",
        _SLOT,
        "keys of every cache slot, as attention uses them",
        ("the cache received k_rot",),
    ),
    Point(
        "v_cached",
        "self_attn.hook_v_cached",
        _SLOT,
        "values of every cache slot, as attention uses them",
        ("the cache received v",),
    ),
    Point(
        "scores",
        "self_attn.hook_scores",
        _ATTENTION,
        "q_rot · k_cached / √d_head, −∞ where masked",
        ("scores are q_rot · k_cached / √d_head, masked",),
        ("attn.hook_attn_scores",),
    ),
    Point(
        "pattern",
        "self_attn.hook_pattern",
        _ATTENTION,
        "softmax of scores over keys",
        ("pattern is the softmax of scores", "rows of pattern sum to 1", "pattern is 0 where the mask forbids"),
        ("attn.hook_pattern",),
    ),
    Point(
        "z",
        "self_attn.hook_z",
        _QUERY,
        "pattern @ v_cached, before o_proj",
        ("pattern @ v_cached is z",),
        ("attn.hook_z",),
    ),
    Point(
        "attn_out",
        "hook_attn_out",
        _STREAM,
        "o_proj(z): what attention adds",
        ("attn_out is o_proj(z)", "resid_pre + attn_out is resid_mid"),
        ("hook_attn_out", "self_attn", "self_attn.o_proj"),
    ),
    Point(
        "resid_mid",
        "hook_resid_mid",
        _STREAM,
        "resid_pre + attn_out",
        ("resid_pre + attn_out is resid_mid",),
        ("hook_resid_mid",),
    ),
    Point(
        "mlp_norm",
        "post_attention_layernorm",
        _STREAM,
        "RMSNorm of resid_mid, after the gain",
        ("mlp_norm is RMSNorm of resid_mid",),
        ("post_attention_layernorm",),
    ),
    Point(
        "gate",
        "mlp.hook_gate",
        _INNER,
        "gate_proj(mlp_norm)",
        ("gate is gate_proj(mlp_norm)",),
        ("mlp.hook_pre", "mlp.gate_proj"),
    ),
    Point(
        "up",
        "mlp.hook_up",
        _INNER,
        "up_proj(mlp_norm)",
        ("up is up_proj(mlp_norm)",),
        ("mlp.hook_pre_linear", "mlp.up_proj"),
    ),
    Point("act", "mlp.hook_act", _INNER, "act_fn(gate) · up", ("act is act_fn(gate) · up",), ("mlp.hook_post",)),
    Point(
        "mlp_out",
        "hook_mlp_out",
        _STREAM,
        "down_proj(act): what the MLP adds",
        ("mlp_out is down_proj(act)", "resid_mid + mlp_out is resid_post"),
        ("hook_mlp_out", "mlp", "mlp.down_proj"),
    ),
    Point(
        "resid_post",
        "hook_resid_post",
        _STREAM,
        "resid_mid + mlp_out: residual stream after the layer",
        ("resid_mid + mlp_out is resid_post", "resid_pre is resid_post of the layer before"),
        ("hook_resid_post",),
    ),
    Point(
        "final_norm",
        "norm",
        _STREAM,
        "RMSNorm of the last resid_post, after the gain",
        ("final_norm is RMSNorm of the last resid_post",),
        ("norm", "last_hidden_state"),
        per_layer=False,
    ),
    Point(
        "logits",
        "hook_logits",
        ("batch", "pos", "vocab"),
        "lm_head(final_norm)",
        ("logits are lm_head(final_norm)", "logits are the output's"),
        ("lm_head",),
        per_layer=False,
    ),
)


@dataclasses.dataclass(frozen=True)
class Located:
    """A point of a given model: its full name (`layers.3.q_rot`), its module, the table's entry, the layer if any."""

    full_name: str
    module: nn.Module
    point: Point
    layer: int | None = None


@functools.cache
def point_of(full_name: str) -> Point:
    """The table's entry of a full name."""
    return POINTS[full_name.rpartition(".")[2]]


def layer_of(full_name: str) -> int | None:
    """The layer in a full name."""
    return int(full_name.split(".")[1]) if full_name.startswith("layers.") else None


@functools.cache
def execution_order(full_name: str) -> tuple[int, int]:
    """A key that sorts full names in the order in which a forward computes them."""
    point, layer = point_of(full_name), layer_of(full_name)
    outside = -1 if point.name == "embed" else 1 << 30
    return (outside if layer is None else layer, list(POINTS).index(point.name))


def base_of(model: LlamaForCausalLM | LlamaModel) -> LlamaModel:
    """The model without a head.

    Raises:
        TypeError: for anything else.
    """
    base = model.model if isinstance(model, LlamaForCausalLM) else model
    if not isinstance(base, LlamaModel):
        raise TypeError(
            f"hook points belong to a LlamaForCausalLM or LlamaModel; got {type(model).__name__}. "
            "Give model.model of a model with another head, or session.model."
        )
    return base


def layer_index(i: int, count: int) -> int:
    """A layer's number from 0.

    Raises:
        ValueError: if the model does not have it.
    """
    if not isinstance(i, int) or isinstance(i, bool) or not -count <= i < count:
        raise ValueError(f"layer {i!r} does not exist; this model has layers 0 … {count - 1}.")
    return i % count

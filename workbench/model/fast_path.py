"""The layers of a forward that only numbers are wanted of.

The same computation as the modules of `llama`, in the same order and with the same functions, so that every bit of the
result is equal, but without calling modules: one token of a small model spends as long in those calls as in everything
that is not a matrix product. A layer whose hook points are hooked calls just them. Whatever else makes calling a module
more than computing (a hook on it, a replaced part, a forward put over it, gradients, training) is looked up at every
forward and sends it to the modules.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from workbench.cache import KVCache
from workbench.config import LlamaConfig
from workbench.model.attention import fused_attention
from workbench.model.hook_point import HookPoint, Watchers
from workbench.model.joined import Projection, joined
from workbench.model.mask import Mask
from workbench.model.norm import LlamaRMSNorm, rms_norm
from workbench.model.rope import Rope, apply_rope

Structure = dict[type, Any]
RunLayer = Callable[..., Tensor]  # of `run_layer`, all but the layer itself
SETTINGS = ("variance_epsilon", "scaling", "act_fn", "layer_idx", "head_dim")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its place in the cache, its projections and attention as functions, its gains, its activation."""

    index: int
    query_key_value: Projection
    output: Projection
    gate_up: Projection
    down: Projection
    attend: Callable[..., tuple[Tensor, Tensor | None]]
    activation: Callable[[Tensor], Tensor]
    attention_gain: Float[Tensor, " d_model"]
    mlp_gain: Float[Tensor, " d_model"]
    attention_eps: float
    mlp_eps: float
    scaling: float


def run_layer(
    layer: Layer,
    x: Float[Tensor, "batch pos d_model"],
    rope: Rope,
    mask: Mask,
    cache: KVCache | None,
    config: LlamaConfig,
) -> Float[Tensor, "batch pos d_model"]:
    """What `LlamaDecoderLayer.forward` computes."""
    batch, length, _ = x.shape
    heads, rotated_heads = config.num_attention_heads, config.num_attention_heads + config.kv_heads
    normed = rms_norm(x, layer.attention_gain, layer.attention_eps)
    projected = layer.query_key_value(normed).view(batch, length, -1, config.d_head)
    rotated = apply_rope(projected[:, :, :rotated_heads], *rope).transpose(1, 2)
    q, k = rotated[:, :heads], rotated[:, heads:]  # (batch, q_head, pos, d_head), (batch, kv_head, pos, d_head)
    v = projected[:, :, rotated_heads:].transpose(1, 2)
    if cache is not None:
        k, v = cache.update(layer.index, k, v)
    z = fused_attention(config.attn_implementation, q, k, v, mask, layer.scaling)
    # Sums and products go into the new tensor: a large one costs a page fault every 4 kB.
    x = layer.output(z.transpose(1, 2).reshape(batch, length, -1)).add_(x)
    gate, up = layer.gate_up(rms_norm(x, layer.mlp_gain, layer.mlp_eps)).chunk(2, -1)
    return layer.down(layer.activation(gate).mul_(up)).add_(x)


def run_watched_layer(
    layer: Layer,
    see: Watchers,
    x: Float[Tensor, "batch pos d_model"],
    rope: Rope,
    mask: Mask,
    cache: KVCache | None,
    config: LlamaConfig,
) -> Float[Tensor, "batch pos d_model"]:
    """The same with hook points called. Whoever was shown a tensor may keep it: nothing is changed in place."""
    x = see("resid_pre", x)
    normed = see("attn_norm", x) if "attn_norm" in see else rms_norm(x, layer.attention_gain, layer.attention_eps)
    projected = layer.query_key_value(normed).view(*x.shape[:2], -1, config.d_head)
    q, k, v = projected.split_with_sizes((config.num_attention_heads, config.kv_heads, config.kv_heads), 2)
    z, _ = layer.attend(see, q, k, v, rope, mask, cache)
    x = see("resid_mid", x + see("attn_out", layer.output(z.flatten(2))))
    normed = see("mlp_norm", x) if "mlp_norm" in see else rms_norm(x, layer.mlp_gain, layer.mlp_eps)
    gate, up = layer.gate_up(normed).chunk(2, -1)
    act = see("act", layer.activation(see("gate", gate)) * see("up", up))
    after: Tensor = see("resid_post", x + see("mlp_out", layer.down(act)))
    return after


def forwards(*kinds: type) -> Structure:
    """These types of modules with the forward that each has now: whoever puts another one in its place is heard."""
    return {kind: vars(kind)["forward"] for kind in kinds}


def forget(model: nn.Module) -> None:
    """Lets go of the weights of a model."""
    _MADE.pop(model, None)


def fast_layers(model: Any, structure: Structure, device: torch.device) -> list[RunLayer] | None:
    """The layers of a `LlamaModel` as plain functions, or `None` if this forward has to call the modules.

    Args:
        model: the model.
        structure: the types of modules, besides the projections, whose forward is what `run_layer` computes.
        device: where the forward begins.
    """
    if torch.is_grad_enabled() or model.training or model.config.attn_implementation == "eager":
        return None
    if torch.is_autocast_enabled(device.type):
        return None
    if any(vars(kind)["forward"] is not forward for kind, forward in structure.items()):
        return None
    if torch.compiler.is_compiling() or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    made = _MADE.get(model)
    if made is None or made.source is not model.layers or not made.holds():
        made = _MADE[model] = _FastLayers(model.layers, structure)
    return made.runs()


def hook_tables(model: Any) -> list[dict[int, Any]]:
    """The hooks on every module in the layers of a `LlamaModel`, most of them empty tables."""
    made = _MADE.get(model)
    if made is not None and made.source is model.layers and made.holds():
        return [*made.hooks, *made.all_point_hooks]
    return _hooks(model.layers.modules())


class _FastLayers:
    """All layers as plain functions, and what has to stay as it is for them to be right."""

    def __init__(self, layers: nn.ModuleList, structure: Structure) -> None:
        parts = list(layers.modules())
        self.source = layers
        self.attributes = [vars(part) for part in parts]
        self.points = [_points(layer) for layer in layers]
        self.point_hooks = [_hooks(points.values()) for points in self.points]
        self.all_point_hooks = list(itertools.chain.from_iterable(self.point_hooks))
        self.hooks = _hooks(part for part in parts if not _may_be_hooked(part))
        self.children = [part._modules for part in parts if part._modules]
        self.child = list(_values(self.children))
        self.tables = [table for part in parts for table in (part._parameters, part._buffers) if table]
        self.weights = list(_values(self.tables))
        self.tensors = [weight for weight in self.weights if weight is not None]
        self.addresses = list(map(Tensor.data_ptr, self.tensors))
        self.settings = [(table, name, table[name]) for table in self.attributes for name in SETTINGS if name in table]
        self.layers = _functions(layers, structure)
        self.unwatched = [functools.partial(run_layer, layer) for layer in self.layers or ()]

    def holds(self) -> bool:
        """Whether modules, weights and their places in memory are still those that were read."""
        return (
            _same(_values(self.children), self.child)
            and _same(_values(self.tables), self.weights)
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
            and all(table.get(name) is value for table, name, value in self.settings)
        )

    def runs(self) -> list[RunLayer] | None:
        """One function a layer, unless calling some module now does more than compute."""
        if self.layers is None or any(self.hooks):
            return None
        if any(map(operator.contains, self.attributes, itertools.repeat("forward"))):
            return None
        if not any(self.all_point_hooks):
            return list(self.unwatched)
        return [
            functools.partial(run_watched_layer, layer, _watchers(points)) if any(hooks) else plain
            for layer, plain, points, hooks in zip(
                self.layers, self.unwatched, self.points, self.point_hooks, strict=True
            )
        ]


_MADE: weakref.WeakKeyDictionary[nn.Module, _FastLayers] = weakref.WeakKeyDictionary()


def _functions(layers: nn.ModuleList, structure: Structure) -> list[Layer] | None:
    made, projections = [], []
    for layer in layers:
        parts: Any = layer
        if not structure.keys() >= set(map(type, (parts, *parts.children()))):
            return None
        attention, mlp = parts.self_attn, parts.mlp
        groups = (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        )
        products = [joined(group) for group in groups]
        if None in products:
            return None
        projections += [id(part) for group in groups for linear in group for part in linear.modules()]
        norms = parts.input_layernorm, parts.post_attention_layernorm
        gains = [norm.weight.detach() for norm in norms]
        numbers = *(norm.variance_epsilon for norm in norms), attention.scaling
        made.append(Layer(attention.layer_idx, *products, attention.attend, mlp.act_fn, *gains, *numbers))  # type: ignore[call-arg,arg-type]
    known = {*projections, id(layers)}
    strange = [part for part in layers.modules() if type(part) not in structure and id(part) not in known]
    return None if strange else made


def _hooks(parts: Iterable[nn.Module]) -> list[dict[int, Any]]:
    return [hooks for part in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]


def _may_be_hooked(part: nn.Module) -> bool:
    """The modules that `run_watched_layer` calls: hook points, and the norms whose output is one."""
    return isinstance(part, (HookPoint, LlamaRMSNorm))


def _points(layer: nn.Module) -> dict[str, nn.Module]:
    """The hook points of a layer by the names that `run_watched_layer` has for them."""
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    parts = {path.rpartition(".")[2]: part for path, part in layer.named_modules() if _may_be_hooked(part)}
    return {norms.get(name, name.removeprefix("hook_")): part for name, part in parts.items()}


def _watchers(points: dict[str, nn.Module]) -> Watchers:
    return Watchers({n: part for n, part in points.items() if part._forward_hooks or part._forward_pre_hooks})


def _values(tables: Iterable[dict[str, Any]]) -> Iterable[Any]:
    return itertools.chain.from_iterable(map(dict.values, tables))


def _same(actual: Iterable[Any], expected: list[Any]) -> bool:
    found = list(actual)
    return len(found) == len(expected) and all(map(operator.is_, found, expected))

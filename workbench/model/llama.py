"""Llama, in reading order: norm, MLP, attention, layer, model. The heads are in `heads`.

Parameter names are exactly those of `transformers`, so `load_state_dict(hf.state_dict())` is strict. Modules hold
weights only: the cache is an argument, the mask is built once per forward, nothing is kept between calls. A `hook_…`
attribute is a `HookPoint`: see `workbench.instrument.points` for the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.cache import DynamicCache, KVCache
from workbench.config import LlamaConfig
from workbench.model.attention import attention_pattern, attention_scores, fused_attention, mix_values
from workbench.model.fast_path import fast_layers, forget, forwards
from workbench.model.hook_point import HookPoint, Watchers
from workbench.model.inputs import check_cache, check_embeddings, check_positions, check_token_ids
from workbench.model.joined import Packed, project
from workbench.model.linear import Linear
from workbench.model.mask import Mask, Rule, build_mask, cache_rules, documents
from workbench.model.norm import LlamaRMSNorm
from workbench.model.outputs import BaseModelOutputWithPast
from workbench.model.pretrained import LlamaPreTrainedModel, initialise
from workbench.model.rope import LlamaRotaryEmbedding, Rope, apply_rope, signed

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class LlamaMLP(Packed):
    """`down(act(gate(x)) * up(x))` (arXiv 2002.05202)."""

    packed = ("gate_proj", "up_proj")

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)
        self.act_fn = config.hidden_act if callable(config.hidden_act) else ACTIVATIONS[config.hidden_act]
        self.hook_gate, self.hook_up, self.hook_act = HookPoint(), HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        gate, up = project(x, (self.gate_proj, self.up_proj))
        gate, up = self.hook_gate(gate), self.hook_up(up)
        out: Tensor = self.down_proj(self.hook_act(self.act_fn(gate) * up))
        return out


class LlamaAttention(Packed):
    """Self-attention with rotary positions and grouped key/value heads (MHA, GQA and MQA alike)."""

    packed = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_head
        self.scaling = self.head_dim**-0.5
        width, bias = config.hidden_size, config.attention_bias
        q_width, kv_width = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = Linear(width, q_width, bias=bias)
        self.k_proj = Linear(width, kv_width, bias=bias)
        self.v_proj = Linear(width, kv_width, bias=bias)
        self.o_proj = Linear(q_width, width, bias=bias)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_q_rot, self.hook_k_rot = HookPoint(), HookPoint()
        self.hook_mask, self.hook_k_cached, self.hook_v_cached = HookPoint(), HookPoint(), HookPoint()
        self.hook_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        rope: Rope,
        mask: Mask,
        cache: KVCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch q_head pos k_pos"] | None]:
        """What attention adds to the residual stream, and the pattern if it was asked for."""
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (part.view(heads) for part in project(x, (self.q_proj, self.k_proj, self.v_proj)))
        z, pattern = self.attend(Watchers.of(self), q, k, v, rope, mask, cache, output_attentions)
        return self.o_proj(z.flatten(2)), pattern

    def attend(
        self,
        see: Watchers,
        q: Float[Tensor, "batch pos q_head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        rope: Rope,
        mask: Mask,
        cache: KVCache | None,
        output_attentions: bool = False,
    ) -> tuple[Float[Tensor, "batch pos q_head d_head"], Float[Tensor, "batch q_head pos k_pos"] | None]:
        """What is between the projections: `z`, and the pattern if it was asked for."""
        q, k, v, mask = see("q", q), see("k", k), see("v", v), see("mask", mask)
        q = see("q_rot", apply_rope(q, *rope)).transpose(1, 2)  # (batch, q_head, pos, d_head)
        k = see("k_rot", apply_rope(k, *rope)).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer_idx, k, v)
        if "k_cached" in see or "v_cached" in see:  # shown as (batch, slot, kv_head, d_head)
            k = see("k_cached", k.transpose(1, 2)).transpose(1, 2)
            v = see("v_cached", v.transpose(1, 2)).transpose(1, 2)

        dropout = self.config.attention_dropout if self.training else 0.0
        explicit = output_attentions or "scores" in see or "pattern" in see
        pattern = None
        if explicit or self.config.attn_implementation == "eager":
            scores = see("scores", attention_scores(q, k, mask, self.scaling))
            pattern = see("pattern", attention_pattern(scores))
            z = mix_values(F.dropout(pattern, dropout, self.training), v)
        else:
            z = fused_attention(self.config.attn_implementation, q, k, v, mask, self.scaling, dropout)
        return see("z", z.transpose(1, 2)), pattern if output_attentions else None


class Patterns:
    """Where layers leave their attention patterns. No list, because accelerate hands copies of lists to a layer."""

    def __init__(self) -> None:
        self.taken: list[Float[Tensor, "batch q_head pos k_pos"]] = []


class LlamaDecoderLayer(nn.Module):
    """Attention and MLP, each reading the normed residual stream and adding to it."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hook_resid_pre, self.hook_resid_mid, self.hook_resid_post = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        rope: Rope,
        mask: Mask,
        cache: KVCache | None = None,
        patterns: Patterns | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this layer; its attention pattern goes to `patterns`, if there is one."""
        x = self.hook_resid_pre(x)
        attn_out, pattern = self.self_attn(self.input_layernorm(x), rope, mask, cache, patterns is not None)
        if patterns is not None:
            patterns.taken.append(pattern)
        x = self.hook_resid_mid(x + self.hook_attn_out(attn_out))
        mlp_out = self.hook_mlp_out(self.mlp(self.post_attention_layernorm(x)))
        after: Tensor = self.hook_resid_post(x + mlp_out)
        return after


# The modules that `fast_layers` knows by heart.
STRUCTURE = forwards(LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, Linear, HookPoint)


class LlamaModel(LlamaPreTrainedModel):
    """Token ids (or embeddings) → hidden states.

    Args:
        config: the sizes; `config.attn_implementation` is `"sdpa"`, `"eager"` or `"flex_attention"`.

    Raises:
        ValueError: for an unknown attention implementation.
    """

    base_model_prefix = ""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.hook_embed, self.hook_mask = HookPoint(), HookPoint()
        initialise(self, config.initializer_range)
        self.pack()

    @property
    def base_model(self) -> nn.Module:
        """Itself."""
        return self

    def pack(self) -> None:
        """Lays weights that are read together behind each other; done by the loader and whenever weights move."""
        for part in self.modules():
            if isinstance(part, Packed):
                part.pack()

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Runs all layers over the new positions, continuing `past_key_values` if given.

        Args:
            input_ids: new tokens; or `inputs_embeds`, their embeddings. Exactly one of them.
            attention_mask: (batch, cached + new positions) with 0 at padding, a 4-D mask, or a list of rules such as
                `[causal(), window(64)]` (see `build_mask`).
            position_ids: rotary position of each new token; by default they count on from the cache's length. Without a
                mask and a cache, positions that do not count on begin another document, which sees only itself: so
                several texts are packed in one row.
            past_key_values: a cache, extended in place; after an exception in a layer it is as it was before. One that
                forgets old positions adds its rules, `window(n)` and `sink(s)`, to whatever mask there is but a 4-D
                mask or a whole `Mask`.
            use_cache: whether to make one if none is given; default `config.use_cache`.
            output_hidden_states: keep the embedding and each layer's output; default the config's.
            output_attentions: keep each layer's pattern, exact under every attention implementation; default the
                config's.
            return_dict: False for a plain tuple of what there is; default the config's.

        Raises:
            ValueError: for both or neither input, no token, a token outside the vocabulary, a mask or positions that
                do not fit.
            TypeError: for a cache that is none.
        """
        x = self.hook_embed(self._embed(input_ids, inputs_embeds))
        batch, length, _ = x.shape
        past_key_values = self._cache(past_key_values, use_cache)
        positions = position_ids if attention_mask is None and past_key_values is None else None
        start = past_key_values.length if past_key_values is not None else 0
        q_pos = torch.arange(start, start + length)
        k_pos = past_key_values.positions(0, length) if past_key_values is not None else q_pos
        heads, rules = self.config.num_attention_heads, cache_rules(past_key_values)
        mask = build_mask(attention_mask, q_pos, k_pos, batch, heads, documents(positions), rules)
        mask = self.hook_mask(mask)
        rope = signed(*self.rotary_emb(x, check_positions(position_ids, q_pos, batch).to(x.device)))
        try:
            out = self._layers(
                x,
                rope,
                mask,
                past_key_values,
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
                self.config.output_attentions if output_attentions is None else output_attentions,
            )
        except BaseException:  # a hook that fails, Ctrl-C: some layers have taken the positions, later ones have not
            if past_key_values is not None:
                past_key_values.crop(start)
            raise
        return out.as_asked(self.config, return_dict)

    def _layers(
        self, x: Tensor, rope: Rope, mask: Mask, cache: KVCache | None, keep_states: bool, keep_patterns: bool
    ) -> BaseModelOutputWithPast:
        hidden_states: list[Tensor] = []
        patterns = Patterns() if keep_patterns else None
        fast = None if keep_patterns else fast_layers(self, STRUCTURE, x.device)
        for index, layer in zip(range(self.config.num_hidden_layers), self.layers, strict=False):
            if keep_states:
                hidden_states.append(x)
            if fast:
                x = fast[index](x, rope, mask, cache, self.config)
            elif self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, rope, mask, None, patterns, **self.gradient_checkpointing)
            else:
                x = layer(x, rope, mask, cache, patterns)
        attentions = (
            None if patterns is None else tuple(patterns.taken)
        )  # before gradients run checkpointed layers again
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*hidden_states, x) if keep_states else None,
            attentions=attentions,
        )

    def _cache(self, given: KVCache | None, use_cache: bool | None) -> KVCache | None:
        """The cache to fill: the given one, a new one, or none."""
        check_cache(given)
        if self.gradient_checkpointing and self.training:
            if given is not None:
                raise ValueError(
                    "past_key_values is given, but gradient checkpointing computes each layer twice and would fill it "
                    "twice. Leave it out, or call gradient_checkpointing_disable()."
                )
            return None
        wanted = self.config.use_cache if use_cache is None else use_cache
        return DynamicCache() if given is None and wanted else given

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of input_ids and inputs_embeds is needed; {given} was given.")
        if inputs_embeds is not None:
            return check_embeddings(inputs_embeds, self.config.hidden_size)
        assert input_ids is not None
        known = getattr(self.embed_tokens, "num_embeddings", self.config.vocab_size)
        embedded: Tensor = self.embed_tokens(check_token_ids(input_ids, known))
        return embedded

    def train(self, mode: bool = True) -> LlamaModel:
        """Training or evaluation mode."""
        forget(self)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> LlamaModel:  # .to(), .half(): the old weights go
        forget(self)
        super()._apply(fn, recurse)
        return self

"""Llama, in reading order: norm, MLP, attention, layer, model. The heads are in `heads`.

Parameter names are exactly those of `transformers`, so `load_state_dict(hf.state_dict())` is strict. Modules hold
weights only: the cache is an argument, the mask is built once per forward, nothing is kept between calls. A `hook_…`
attribute is a `HookPoint`: see `workbench.instrument.points` for the table of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.cache import DynamicCache, KVCache
from workbench.config import LlamaConfig
from workbench.model.attention import (
    IMPLEMENTATIONS,
    attention_pattern,
    attention_scores,
    mix_values,
    sdpa_attention,
)
from workbench.model.hook_point import HookPoint
from workbench.model.mask import Mask, build_mask
from workbench.model.outputs import BaseModelOutputWithPast
from workbench.model.rope import LlamaRotaryEmbedding, apply_rope

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
Rope = tuple[Float[Tensor, "row pos 1 d_head"], Float[Tensor, "row pos 1 d_head"]]


class LlamaRMSNorm(nn.Module):
    """Divides by the root mean square, then multiplies by a gain (arXiv 1910.07467). Computes in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Same shape and dtype."""
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.variance_epsilon).to(x.dtype)


class LlamaMLP(nn.Module):
    """`down(act(gate(x)) * up(x))` (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act_fn = ACTIVATIONS[config.hidden_act]
        self.hook_gate, self.hook_up, self.hook_act = HookPoint(), HookPoint(), HookPoint()

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the residual stream."""
        gate = self.hook_gate(self.gate_proj(x))
        up = self.hook_up(self.up_proj(x))
        out: Tensor = self.down_proj(self.hook_act(self.act_fn(gate) * up))
        return out


class LlamaAttention(nn.Module):
    """Self-attention with rotary positions and grouped key/value heads (MHA, GQA and MQA alike)."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.d_head
        self.scaling = self.head_dim**-0.5
        width, bias = config.hidden_size, config.attention_bias
        q_width, kv_width = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, width, bias=bias)
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_q_rot, self.hook_k_rot = HookPoint(), HookPoint()
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
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.head_dim)
        q = self.hook_q(self.q_proj(x).view(heads))  # (batch, pos, q_head, d_head)
        k = self.hook_k(self.k_proj(x).view(heads))  # (batch, pos, kv_head, d_head)
        v = self.hook_v(self.v_proj(x).view(heads))
        q = self.hook_q_rot(apply_rope(q, *rope)).transpose(1, 2)  # (batch, q_head, pos, d_head)
        k = self.hook_k_rot(apply_rope(k, *rope)).transpose(1, 2)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(self.layer_idx, k, v)

        dropout = self.config.attention_dropout if self.training else 0.0
        explicit = output_attentions or self.hook_scores.hooked or self.hook_pattern.hooked
        pattern = None
        if explicit or self.config.attn_implementation == "eager":
            scores = self.hook_scores(attention_scores(q, k, mask, self.scaling))
            pattern = self.hook_pattern(attention_pattern(scores))
            z = mix_values(F.dropout(pattern, dropout, self.training), v)
        else:
            z = sdpa_attention(q, k, v, mask, self.scaling, dropout)
        z = self.hook_z(z.transpose(1, 2))  # (batch, pos, q_head, d_head)
        out = self.o_proj(z.reshape(batch, length, -1))
        return out, pattern if output_attentions else None


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
        output_attentions: bool = False,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch q_head pos k_pos"] | None]:
        """The residual stream after this layer, and the attention pattern if it was asked for."""
        x = self.hook_resid_pre(x)
        attn_out, pattern = self.self_attn(self.input_layernorm(x), rope, mask, cache, output_attentions)
        x = self.hook_resid_mid(x + self.hook_attn_out(attn_out))
        mlp_out = self.hook_mlp_out(self.mlp(self.post_attention_layernorm(x)))
        return self.hook_resid_post(x + mlp_out), pattern


class LlamaModel(nn.Module):
    """Token ids (or embeddings) → hidden states.

    Args:
        config: the sizes; `config.attn_implementation` is `"sdpa"` or `"eager"`.

    Raises:
        ValueError: for an unknown attention implementation.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        if config.attn_implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation is {config.attn_implementation!r}; allowed are {', '.join(IMPLEMENTATIONS)}."
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.hook_embed = HookPoint()
        initialise(self, config.initializer_range)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BaseModelOutputWithPast:
        """Runs all layers over the new positions, continuing `past_key_values` if given.

        Args:
            input_ids: new tokens; or `inputs_embeds`, their embeddings. Exactly one of them.
            attention_mask: (batch, cached + new positions) with 0 at padding, or a 4-D mask (see `build_mask`).
            position_ids: rotary position of each new token; by default they count on from the cache's length.
            past_key_values: a cache, extended in place; after an exception in a layer it is as it was before.
            use_cache: whether to make one if none is given; default `config.use_cache`.
            output_hidden_states: keep the embedding and each layer's output.
            output_attentions: keep each layer's pattern, exact under every attention implementation.

        Raises:
            ValueError: for both or neither input, no token, a token outside the vocabulary, a mask or positions that
                do not fit.
        """
        x = self.hook_embed(self._embed(input_ids, inputs_embeds))
        batch, length, _ = x.shape
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache()
        start = past_key_values.length if past_key_values is not None else 0
        q_pos = torch.arange(start, start + length)
        k_pos = past_key_values.positions(0, length) if past_key_values is not None else q_pos
        mask = build_mask(attention_mask, q_pos, k_pos, batch, self.config.num_attention_heads)
        rope = self.rotary_emb(x, _positions(position_ids, q_pos, batch).to(x.device))

        hidden_states, attentions = [], []
        try:
            for layer in self.layers:
                if output_hidden_states:
                    hidden_states.append(x)
                x, pattern = layer(x, rope, mask, past_key_values, output_attentions)
                attentions.append(pattern)
            x = self.norm(x)
        except BaseException:  # a hook that fails, Ctrl-C: some layers have taken the positions, later ones have not
            if past_key_values is not None:
                past_key_values.crop(start)
            raise
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise ValueError(f"exactly one of input_ids and inputs_embeds is needed; {given} was given.")
        if inputs_embeds is not None:
            width = self.config.hidden_size
            if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != width or inputs_embeds.numel() == 0:
                raise ValueError(
                    f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; expected (batch, positions, {width}), "
                    "one position at least."
                )
            return inputs_embeds
        assert input_ids is not None
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, positions), one at least."
            )
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"input_ids holds {wrong}; token ids of this model lie in 0 … {self.config.vocab_size - 1}. "
                "Is this the tokenizer of another model?"
            )
        embedded: Tensor = self.embed_tokens(input_ids)
        return embedded


def _positions(position_ids: Tensor | None, q_pos: Int[Tensor, " pos"], batch: int) -> Int[Tensor, "row pos"]:
    if position_ids is None:
        return q_pos[None]
    if tuple(position_ids.shape) not in ((1, len(q_pos)), (batch, len(q_pos))):  # another one might broadcast silently
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}; expected ({batch} or 1, {len(q_pos)}): one position "
            "a new token."
        )
    return position_ids


def initialise(module: nn.Module, std: float) -> None:
    """Normal weights, zero biases, as a fresh `transformers` model."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()

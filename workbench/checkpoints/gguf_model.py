"""A GGUF file as a Llama checkpoint: config from the metadata, Hugging Face's names, llama.cpp's permutation undone.

Key and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `gguf-py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.checkpoints.checkpoint import Checkpoint
from workbench.checkpoints.dequantize import PLAIN, Bytes, dequantize, four_bit_codes
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.gguf_rope import ROPE_FREQS, rope_from_metadata, with_rope_freqs
from workbench.config import ConfigError, LlamaConfig

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]*)\.(\w+)\.(weight|bias)")
_TOP_NAME = re.compile(r"(\w+)\.(weight|bias)")


def open_gguf(file: GGUFFile) -> Checkpoint:
    """The checkpoint in a GGUF file; the weights are not read yet.

    Raises:
        CheckpointError: if the file holds another architecture, or what this version would compute wrongly.
        ConfigError: if its metadata describe no Llama that can be computed here.
    """
    _check_computable(file)
    config = config_from_gguf(file)
    stored = {huggingface_name(name): info for name, info in file.tensors.items() if name != ROPE_FREQS}
    kinds = {info.type for info in file.tensors.values()}

    def raw(name: str) -> Bytes:
        info = stored[name]
        if ".q_proj." not in name and ".k_proj." not in name:
            return file.blocks(info.name)
        heads = config.num_attention_heads if ".q_proj." in name else config.kv_heads
        return unpermute(file.blocks(info.name).reshape(info.shape[0], -1), heads).reshape(-1)

    def four_bits(name: str) -> tuple[Tensor, Tensor] | None:
        return four_bit_codes(raw(name), stored[name].type, stored[name].shape)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        quantized = not kinds <= PLAIN.keys()
        for name, info in stored.items():
            value = dequantize(raw(name), info.type, info.shape)
            if quantized and info.type in PLAIN:
                # Norms: a copy, or a few kilobytes would keep the whole file mapped.
                value = value.clone()
            yield name, value

    shapes = {name: info.shape for name, info in stored.items()}
    return Checkpoint(str(file.path), config, shapes, _float_type(kinds), tensors, four_bits)


def huggingface_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; the name itself if it is none of a Llama."""
    if (match := _LAYER_NAME.fullmatch(name)) and match[2] in _LAYER:
        return f"model.layers.{int(match[1])}.{_LAYER[match[2]]}.{match[3]}"
    if (match := _TOP_NAME.fullmatch(name)) and match[1] in _TOP:
        return f"{_TOP[match[1]]}.{match[2]}"
    return name


def unpermute(rows: Bytes, heads: int) -> Bytes:
    """Rows of a query or key projection, from llama.cpp's order to Hugging Face's; a copy.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, Hugging Face rows (i, i + d_head / 2), so its converter
    interleaves the halves of each head (`LlamaModel.permute` in convert_hf_to_gguf.py). This is the inverse.

    Args:
        rows: stored bytes, shape (heads · d_head, bytes a row): blocks never cross the end of a row.
        heads: query heads for a query projection, key/value heads for a key projection.
    """
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def config_from_gguf(file: GGUFFile) -> LlamaConfig:
    """The config that a file's metadata describe.

    Raises:
        CheckpointError: if a key is missing or contradicts another.
        ConfigError: naming the file, if the values fit no Llama.
    """
    keys = _Keys(file.path, file.metadata)
    heads = keys.get("llama.attention.head_count")
    width = keys.get("llama.embedding_length")
    values = {
        "vocab_size": keys.get("llama.vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ())) or None),
        "hidden_size": width,
        "intermediate_size": keys.get("llama.feed_forward_length"),
        "num_hidden_layers": keys.get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": keys.get("llama.context_length"),
        "rms_norm_eps": keys.get("llama.attention.layer_norm_rms_epsilon"),
        "head_dim": file.metadata.get("llama.attention.key_length"),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_parameters": rope_from_metadata(str(file.path), file.metadata),
    }
    try:
        config = LlamaConfig(**values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file.path}: {error}") from error
    keys.must_equal("llama.rope.dimension_count", config.d_head, "the head width: only full rotation is computed")
    keys.must_equal("llama.attention.value_length", config.d_head, "the width of keys")
    return with_rope_freqs(file, config)


class _Keys:
    """Metadata look-up with errors that name the key."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self.path, self.metadata = path, metadata

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(key, default)
        if value is None:
            raise CheckpointError(f"{self.path} has no {key} in its metadata. Convert the model again.")
        return value

    def must_equal(self, key: str, expected: int, what: str) -> None:
        value = self.metadata.get(key, expected)
        if value != expected:
            raise CheckpointError(f"{self.path}: {key} is {value!r}, but must be {expected}, {what}.")


def _check_computable(file: GGUFFile) -> None:
    metadata, where = file.metadata, file.path
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{where} holds a model of the architecture {architecture!r}; only 'llama' can be loaded. "
            "Choose a Llama-family model."
        )
    if metadata.get("llama.expert_count"):
        raise CheckpointError(
            f"{where} is a mixture of {metadata['llama.expert_count']} experts; only models with one MLP a layer can "
            "be loaded."
        )


def _float_type(kinds: set[str]) -> torch.dtype:
    """The half type if there is one (norms beside it are float32 anyway); float32 as soon as blocks are among them."""
    halves = kinds & {"F16", "BF16"}
    if kinds <= PLAIN.keys() and len(halves) == 1:
        return PLAIN[halves.pop()]
    return torch.float32

"""Small checkpoints in every format, written by other libraries than the code under test."""

import json
import struct

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import tiny_config
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.model import LlamaForCausalLM
from workbench.tokenizer.token_bytes import byte_alphabet

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_metadata(**changes):
    """A byte-level vocabulary of 4 special tokens, 256 bytes and a few merges."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ċ Ċ", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "' s"]
    tokens = SPECIALS + sorted(byte_alphabet()) + [merge.replace(" ", "") for merge in merges]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def sentencepiece_metadata(**changes):
    """A SentencePiece vocabulary: 3 named tokens, 256 byte tokens, pieces with scores, the likelier the higher."""
    pieces = [
        "▁hello",
        "▁world",
        "hello",
        "world",
        "▁he",
        "he",
        "ll",
        "llo",
        "or",
        "wor",
        "ld",
        "▁w",
        "▁▁",
        "▁",
        *"helowrd",
    ]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of a query or key projection's rows, as its converter makes it."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    if owner.startswith("model.layers."):
        _, _, index, part = owner.split(".", 3)
        return f"blk.{index}.{GGUF_NAMES[part]}.{leaf}"
    return f"{GGUF_NAMES[owner]}.{leaf}"


def model_metadata(config):
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.rope.dimension_count": config.d_head,
        "llama.vocab_size": config.vocab_size,
    }


def write_gguf(path, model, kind="F32", extra=None, vocabulary=None, architecture="llama", **metadata):
    """A file as llama.cpp's converter makes it: matrices as `kind`, vectors as F32; `extra` tensors on top."""
    writer = gguf.GGUFWriter(path, architecture)
    values = {**model_metadata(model.config), **(vocabulary or byte_level_metadata()), **metadata}
    for key, value in values.items():
        if value is not None:
            add_value(writer, key, value)
    tied = model.config.tie_word_embeddings
    tensors = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    for name, value in {**tensors, **(extra or {})}.items():
        if "q_proj" in name or "k_proj" in name:
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.kv_heads
            value = permute(value, heads)
        stored = "F32" if value.dim() == 1 else kind
        quantization = gguf.GGMLQuantizationType[stored]
        data = gguf.quants.quantize(value.float().numpy(), quantization)
        writer.add_tensor(gguf_name(name) if name in tensors else name, data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer, key, value):
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])


def write_folder(folder, model, shards=1, dtype=None, tokenizer=True):
    """A folder as `save_pretrained` makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    tensors = {name: value.detach().to(dtype or value.dtype) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    names = list(tensors)
    if shards == 1:
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        files = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
        weight_map = {name: files[index % shards] for index, name in enumerate(names)}
        for file in files:
            part = {name: tensors[name] for name in names if weight_map[name] == file}
            safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_tokenizer(folder, **config):
    tokenizer_from_gguf(byte_level_metadata()).backend_tokenizer.save(str(folder / "tokenizer.json"))
    values = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def raw_gguf(pairs=b"", n_pairs=0, tensors=b"", n_tensors=0, version=3, magic=b"GGUF", pad=64):
    """A GGUF file byte by byte, to be wrong on purpose."""
    return magic + struct.pack("<IQQ", version, n_tensors, n_pairs) + pairs + tensors + bytes(pad)


def raw_string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def vocabulary_size(metadata=None):
    return len((metadata or byte_level_metadata())["tokenizer.ggml.tokens"])


def small_model(kind="gqa", **changes):
    """A tiny model whose vocabulary is that of `byte_level_metadata` and whose rows fill whole blocks of 32."""
    sizes = {"vocab_size": vocabulary_size(), "intermediate_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 2.0**-17}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    return LlamaForCausalLM(tiny_config(kind, **{**sizes, **changes})).eval()


@pytest.fixture
def random_bytes():
    return np.random.default_rng(0)

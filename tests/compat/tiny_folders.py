"""Tiny random models with tokenizers, in folders as `save_pretrained` makes them."""

import json

import torch

from tests.checkpoints.conftest import (
    TEMPLATE,
    byte_level_metadata,
    sentencepiece_metadata,
    vocabulary_size,
    write_folder,
)
from tests.conftest import tiny_config
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.model import classifiers, heads, llama

CLASSES = {
    name: getattr(module, name)
    for module, name in [
        (llama, "LlamaModel"),
        (heads, "LlamaForCausalLM"),
        (classifiers, "LlamaForSequenceClassification"),
        (classifiers, "LlamaForTokenClassification"),
        (classifiers, "LlamaForQuestionAnswering"),
    ]
}
WORDS = (
    "Plants create energy through a process known as Hey , are you conscious ? Can talk to me Hello this is test hello "
    "world Banana"
)


def words_metadata():
    """A SentencePiece vocabulary in which each of `WORDS` is one token, with all that merging to it needs."""
    words = ["▁" + word for word in WORDS.split()] + [",", "?"]
    pieces = sorted({character for word in words for character in word})
    pieces += [word[:end] for word in words for end in range(2, len(word) + 1)]
    pieces = list(dict.fromkeys(pieces))
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], *pieces]
    return sentencepiece_metadata(**{
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
    })  # fmt: skip


VOCABULARIES = {"byte": byte_level_metadata, "sentencepiece": sentencepiece_metadata, "words": words_metadata}
# A Llama 2 file names no padding token; one is needed for batches.
NAMED = {
    "byte": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "sentencepiece": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
}
NAMED["words"] = NAMED["sentencepiece"]


def tiny_folder(folder, kind="LlamaForCausalLM", vocabulary="byte", tokenizer=None, seed=0, **changes):
    """Writes a model of class `kind` and its tokenizer; gives the folder."""
    metadata = VOCABULARIES[vocabulary]()
    sizes = {
        "vocab_size": vocabulary_size(metadata),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 1024,
        "architectures": [kind],
    }
    torch.manual_seed(seed)
    model = CLASSES[kind](tiny_config(**{**sizes, **changes})).eval()
    write_folder(folder, model, tokenizer=False)
    tokenizer_from_gguf(metadata).backend_tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "chat_template": TEMPLATE,
        **NAMED[vocabulary],
        **(tokenizer or {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder

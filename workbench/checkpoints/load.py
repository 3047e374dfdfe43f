"""`load`: a model and its tokenizer from a GGUF file, a folder, the Hub, or the default model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from workbench.checkpoints.arguments import parse_dtype
from workbench.checkpoints.build import build, size_of
from workbench.checkpoints.errors import CheckpointNotFoundError
from workbench.checkpoints.gguf_model import open_gguf
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.locate import default_model, locate, open_checkpoint, open_gguf_file
from workbench.checkpoints.placement import usable_device
from workbench.checkpoints.pretrained import generation_config_of, quantization_of
from workbench.checkpoints.progress import Progress
from workbench.model import LlamaForCausalLM
from workbench.tokenizer import LlamaTokenizer

__all__ = ["Loaded", "default_model", "load"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of these makes a tokenizer


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What `load` gives; also unpacks: `model, tokenizer = load()`.

    Attributes:
        model: in evaluation mode.
        tokenizer: the one the checkpoint came with.
        name: a short name to show.
        source: the file or folder that was read.
    """

    model: LlamaForCausalLM
    tokenizer: LlamaTokenizer
    name: str
    source: str

    def __iter__(self) -> Iterator[Any]:
        yield self.model
        yield self.tokenizer


def load(
    source: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Any = None,
    progress: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Loaded:
    """Loads a model and its tokenizer.

    Args:
        source: `None` for the default model (SmolLM2-135M-Instruct); a .gguf file; a folder in Hugging Face format; or
            a model on the Hub, `"owner/name"`. What exists on this machine is never looked for elsewhere.
        device: `"auto"` (CUDA if there is one, else the CPU) or a torch device.
        dtype: `"auto"` for the checkpoint's own float type (float32 for a block-quantised GGUF file), `"float32"`,
            `"bfloat16"`, `"float16"`, or the torch dtype.
        quantization: keep the weights in fewer bits: `"int4"` (4-bit blocks of a GGUF file are taken as they are),
            `"int8"`, or a `TorchAoConfig`. `None` for what the checkpoint is: floats, also of a GGUF file.
        progress: show one line on stderr if loading takes longer than a second.
        revision, token: for the Hub: branch, tag or commit; access token.

    Weights that need no conversion stay in a private memory mapping of the file, so they are never held twice. The
    exception are projections of one input that do not lie side by side in the file: they are copied, to lie so.

    Raises:
        CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`, or a file of it is missing.
        CheckpointError: (a `ValueError`) if it cannot be read, or device or dtype are not available.
        ConfigError, TokenizerError: (`ValueError`s) if its config or its tokenizer cannot be used.
    """
    cuda = device == "auto" and torch.cuda.is_available()
    target = usable_device(("cuda" if cuda else "cpu") if device == "auto" else device)
    kind = parse_dtype(dtype)
    at = locate(source, revision=revision, token=token)
    if at.path.is_file():
        file = open_gguf_file(at.path)
        checkpoint, tokenizer = open_gguf(file), tokenizer_from_gguf(file.metadata)
    else:
        checkpoint = open_checkpoint(at)
        tokenizer = folder_tokenizer(at.path)
    way = quantization_of(checkpoint.config, quantization)
    with Progress(f"Loading {at.name}", size_of(checkpoint), progress) as line:
        model: LlamaForCausalLM = build(checkpoint, target, kind, line, quantization=way)
    model.generation_config = generation_config_of(LlamaForCausalLM, at)
    return Loaded(model, tokenizer, at.name, str(at.path))


def folder_tokenizer(folder: Path, **options: Any) -> LlamaTokenizer:
    """The tokenizer in a folder.

    Raises:
        CheckpointNotFoundError: if there is none.
        TokenizerError: if it cannot be used.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointNotFoundError(
            f"{folder} has no tokenizer.json. Save it with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})."
        )
    return LlamaTokenizer.from_folder(folder, **options)

"""A folder in Hugging Face format as a Llama checkpoint: config.json, safetensors in one file or in shards."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoints.checkpoint import Checkpoint, first_few
from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.quantization import stored_config
from workbench.checkpoints.safetensors_header import StoredTensor, map_tensors, read_header
from workbench.config import LlamaConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Rotary frequencies that older checkpoints carry; they are computed from the config.
_IGNORED = re.compile(r"(model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; the weights are not read yet.

    Raises:
        CheckpointNotFoundError: if config.json or the weights are missing.
        CheckpointError: if only pickles are there, or a file is truncated, malformed or names one outside the folder.
        ConfigError: if config.json describes no Llama that can be computed here.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"{folder} has no config.json, so it is no model in Hugging Face format. Found: {_contents(folder)}."
        )
    config = LlamaConfig.from_json_file(folder / "config.json")
    quantized = config.quantization_config is not None
    if quantized:
        stored_config(config.quantization_config, str(folder))
    shards = _shards(folder)
    headers = {shard: read_header(shard, quantized) for shard in shards}
    _check_index(folder, headers)
    stored = {name: info for header in headers.values() for name, info in header.items() if not _ignored(name)}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for shard, header in headers.items():
            for name, value in map_tensors(shard, header):
                if not _ignored(name):
                    yield name, value

    shapes = {name: info.shape for name, info in stored.items()}
    return Checkpoint(str(folder), config, shapes, _main_dtype(stored), tensors)


def refuse_pickle(path: Path) -> CheckpointError:
    """The error for weights that are pickles: reading one runs whatever program it contains."""
    folder = str(path if path.is_dir() else path.parent)
    return CheckpointError(
        f"{path} holds pickled weights ({', '.join(PICKLES[:3])}). They are not read, because a pickle can run any "
        "program while it is opened. If you trust it, convert it once, with transformers:\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"    model = AutoModelForCausalLM.from_pretrained({folder!r})\n"
        "    model.save_pretrained('converted', safe_serialization=True)\n"
        f"    AutoTokenizer.from_pretrained({folder!r}).save_pretrained('converted')\n"
        "and load the folder 'converted'."
    )


def _shards(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = list(dict.fromkeys(_weight_map(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointNotFoundError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX} lists: {first_few(missing)}. "
                "Download them too."
            )
        return [folder / name for name in names]
    if any(path.suffix in PICKLES for path in folder.iterdir()):
        raise refuse_pickle(folder)
    raise CheckpointNotFoundError(
        f"{folder} has neither {SINGLE} nor {INDEX}. Found: {_contents(folder)}. Download the weights too; a .gguf "
        "file is loaded by its own path."
    )


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name → file name, from the index; every file name is a plain one."""
    file = folder / INDEX
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}). Download the file again.") from error
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{file} has no weight_map, the table of tensors and files. Download the file again.")
    for name in names.values():
        # A name is not followed out of the folder. (Symlinks are: the Hub's cache is made of them.)
        if not isinstance(name, str) or not name.endswith(".safetensors") or re.search(r"[/\\:\0]|^\.", name):
            raise CheckpointError(
                f"{file} names the file {name!r}; only plain names of .safetensors files in the same folder are "
                "allowed. Do not trust this checkpoint, or download it again."
            )
    return names


def _check_index(folder: Path, headers: dict[Path, dict[str, StoredTensor]]) -> None:
    """Each tensor is in one file, and in the one where the index says it is."""
    counts = Counter(name for header in headers.values() for name in header)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{folder}: {len(twice)} tensors are in more than one file: {first_few(twice)}. "
            "Which one is meant is unknown; download the model again."
        )
    if list(headers) == [folder / SINGLE]:
        return
    absent = [name for name, shard in _weight_map(folder).items() if name not in headers[folder / shard]]
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} tensors are not in the file where {INDEX} says: {first_few(absent)}. "
            "The files belong to different downloads; download the model again."
        )


def _ignored(name: str) -> bool:
    return _IGNORED.fullmatch(name) is not None


def _main_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    """The type of most of the bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for name, info in stored.items():
        if not name.endswith((".codes", ".scales")):  # quantized weights have no type of their own
            sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return first_few(names) if names else "nothing"

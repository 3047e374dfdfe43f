"""`save_pretrained`: a model as a folder in Hugging Face format, which `transformers` reads too."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.checkpoints.arguments import check_flag, parse_size
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.fit import HEAD
from workbench.checkpoints.folder import INDEX, SINGLE
from workbench.checkpoints.placement import accelerate
from workbench.checkpoints.safetensors_write import check_type, write_safetensors
from workbench.model import LlamaPreTrainedModel
from workbench.model.quantized import QuantizedLinear, quantized_count

MAX_SHARD = "5GB"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


def save_pretrained(
    model: LlamaPreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = MAX_SHARD,
    safe_serialization: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    is_main_process: bool = True,
    push_to_hub: bool = False,
) -> None:
    """Writes config.json, the weights, and generation_config.json if the model has one.

    All is written beside its place first and moved there when it is complete: after an error the folder is as it was.
    Weights that an earlier save left are removed. A model may be saved into the folder that it was loaded from.

    Args:
        model: on any device, also in parts on several or on the disk.
        folder: is made if it is not there.
        max_shard_size: bytes of one file at most, as a number or such as `"5GB"`; a larger model becomes
            `model-00001-of-0000N.safetensors` … and an index. A tensor is never divided.
        safe_serialization: must be True: pickles are not written, as reading one runs whatever program it contains.
        state_dict: name → tensor, instead of the model's own weights.
        is_main_process: False writes nothing: one of several processes that train a model together saves it.
        push_to_hub: must be False: nothing is sent anywhere.

    Raises:
        CheckpointError: (a `ValueError`) naming the argument, or what cannot be written.
        ConfigError: (a `ValueError`) for a config that JSON cannot hold.
        TypeError: naming an argument of another type.
    """
    flags = {"safe_serialization": safe_serialization, "is_main_process": is_main_process, "push_to_hub": push_to_hub}
    for name, value in flags.items():
        check_flag(name, value)
    if not safe_serialization:
        raise CheckpointError(
            "safe_serialization is False, but pickles are not written: reading one runs whatever program it contains. "
            "Leave it out; every current library reads safetensors."
        )
    if push_to_hub:
        raise CheckpointError("push_to_hub is True, but nothing is sent anywhere. Use `hf upload` on the saved folder.")
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is {folder!r:.80}; it must be the path of a folder.")
    limit = parse_size("max_shard_size", max_shard_size)
    weights = _weights(model, state_dict)
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a folder to save into.")
    if is_main_process:
        _write(model, weights, shards_of(weights, limit), target)


def shards_of(weights: Mapping[str, Tensor], limit: int) -> dict[str, list[str]]:
    """File name → names of the tensors in it: in their order, as many as fit into `limit` bytes, at least one."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, value in weights.items():
        if groups[-1] and size + value.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += value.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _weights(model: LlamaPreTrainedModel, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """What is written: everything but a tied head, which is the embedding's weight."""
    if given is not None and not (
        isinstance(given, Mapping) and all(isinstance(v, Tensor) and isinstance(k, str) for k, v in given.items())
    ):
        raise TypeError("state_dict must be a dictionary of names and tensors, as model.state_dict() gives.")
    weights = dict(model.state_dict() if given is None else given)
    embedding = weights.get(f"{model.base_model_prefix}.embed_tokens.weight")
    if model.config.tie_word_embeddings and HEAD in weights and embedding is not None:
        head = weights.pop(HEAD)
        if not head.is_meta and not (head.data_ptr() == embedding.data_ptr() or torch.equal(head, embedding)):
            raise CheckpointError(
                f"The config ties the output to the embedding (tie_word_embeddings), but {HEAD} is another tensor. "
                "Set model.config.tie_word_embeddings = False, or call model.tie_weights()."
            )
    if model.config.quantization_config is not None and not quantized_count(model):
        raise CheckpointError(
            "model.config.quantization_config is set, but no weight is in 4 or 8 bits: the model was quantized by "
            "torchao (on CUDA), which cannot be saved. Save it before it is quantized, or on the CPU; or set the entry "
            "to None if the weights are floats."
        )
    if model.config.tie_word_embeddings and isinstance(model.get_output_embeddings(), QuantizedLinear):
        weights = {name: value for name, value in weights.items() if not name.startswith("lm_head.")}
    for name, value in weights.items():
        check_type(name, value)
    return weights


def _write(model: LlamaPreTrainedModel, weights: dict[str, Tensor], shards: dict[str, list[str]], target: Path) -> None:
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        for file, names in shards.items():
            write_safetensors(work / file, {name: weights[name] for name in names}, _reader(model))
        if len(shards) > 1:
            (work / INDEX).write_text(_index(weights, shards), encoding="utf-8")
        names = [type(model).__name__]
        dataclasses.replace(model.config, dtype=str(model.dtype), architectures=names).save_pretrained(work)
        if model.stored_generation_config is not None:
            model.stored_generation_config.save_pretrained(work)
        _move(work, target)
    except BaseException:
        shutil.rmtree(target if made else work, ignore_errors=True)
        raise
    work.rmdir()


def _move(work: Path, target: Path) -> None:
    """Puts complete files into their places, and takes away the weights that are not of this model."""
    new = {path.name for path in work.iterdir()}
    for name in sorted(new):
        os.replace(work / name, target / name)
    for path in list(target.iterdir()):
        if _WEIGHTS.fullmatch(path.name) and path.name not in new:
            path.unlink()


def _index(weights: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> str:
    metadata = {
        "total_parameters": sum(value.numel() for value in weights.values()),
        "total_size": sum(value.nbytes for value in weights.values()),
    }
    weight_map = {name: file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


def _reader(model: nn.Module) -> Any:
    """Gives a weight's values; those that accelerate keeps elsewhere are brought for the moment."""

    def read(name: str, value: Tensor) -> Tensor:
        if not value.is_meta:
            return value
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if not hasattr(module, "_hf_hook"):
            raise CheckpointError(f"{name} has no memory (it is on the meta device), so there is nothing to write.")
        with accelerate("the disk").utils.align_module_device(module):
            found: Tensor = getattr(module, leaf).detach().clone()
        return found

    return read

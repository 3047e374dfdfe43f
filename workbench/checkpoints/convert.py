"""Conversions: the number of key/value heads of a model, and whole checkpoints into Hugging Face's format."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench import model as models
from workbench.checkpoints.build import NoInitialisation, assign
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.load import folder_tokenizer
from workbench.checkpoints.locate import locate, open_gguf_file
from workbench.checkpoints.pretrained import from_pretrained
from workbench.checkpoints.save import MAX_SHARD
from workbench.config import LlamaConfig
from workbench.model import LlamaForCausalLM, LlamaPreTrainedModel

Model = TypeVar("Model", bound=LlamaPreTrainedModel)


def convert_kv_heads(model: Model, n: int) -> Model:
    """The same model with another number of key/value heads: MHA, GQA and MQA into each other.

    Fewer heads: each new one is the mean of the projections it replaces (arXiv 2305.13245, section 2.1); the result is
    a starting point for further training, with other logits. More heads: each one is repeated, and the logits stay.

    Args:
        model: any Llama model; it stays as it is.
        n: key/value heads a layer. It divides the number of query heads, and divides the model's own number of
            key/value heads or is a multiple of it.

    Returns:
        A new model on the same device, of the same dtype and mode, that shares no memory with the old one.

    Raises:
        TypeError: if `model` is no Llama model of the workbench, or `n` no whole number.
        CheckpointError: (a `ValueError`) naming the numbers that are possible; and for weights that are quantised or
            not in memory.
    """
    if not isinstance(model, LlamaPreTrainedModel):
        raise TypeError(f"model is a {type(model).__name__}; a Llama model of the workbench is needed.")
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n is {n!r:.80}; it must be a whole number of key/value heads.")
    allowed = possible_kv_heads(model.config)
    if n not in allowed:
        raise CheckpointError(
            f"n is {n}; this model has {model.config.num_attention_heads} query heads and {model.config.kv_heads} "
            f"key/value heads, which can become {', '.join(map(str, allowed))}."
        )
    _check_plain(model)
    config = copy.deepcopy(model.config)
    config.num_key_value_heads = n
    with torch.device("meta"), NoInitialisation():
        new = type(model)(config)
    for name, value in model.state_dict().items():
        if ".k_proj." in name or ".v_proj." in name:
            value = regroup_heads(value, model.config.kv_heads, n)
        assign(new, name, value.clone())
    for name, parameter in model.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    new.tie_weights()
    new.base_model.pack()  # type: ignore[operator]
    new.generation_config = copy.deepcopy(model.stored_generation_config)
    return new.train(model.training)


def possible_kv_heads(config: LlamaConfig) -> list[int]:
    """The numbers of key/value heads that `convert_kv_heads` can make."""
    heads, now = config.num_attention_heads, config.kv_heads
    return [n for n in range(1, heads + 1) if heads % n == 0 and (now % n == 0 or n % now == 0)]


def regroup_heads(weight: Float[Tensor, "rows ..."], heads: int, n: int) -> Float[Tensor, "new_rows ..."]:
    """Weight or bias of a key or value projection, for `n` heads instead of `heads`.

    Args:
        weight: shape (heads · d_head, …), head after head.
        heads: heads there are.
        n: heads there shall be: a divisor of `heads` (each the mean of its group, computed in float32) or a multiple of
            it (each repeated).
    """
    split = weight.reshape(heads, -1, *weight.shape[1:])
    if n >= heads:
        return split.repeat_interleave(n // heads, 0).flatten(0, 1)
    return split.reshape(n, heads // n, *split.shape[1:]).float().mean(1).flatten(0, 1).to(weight.dtype)


def convert_folder(
    source: str | os.PathLike[str] | None,
    target: str | os.PathLike[str],
    *,
    kv_heads: int | None = None,
    dtype: str | torch.dtype = "auto",
    max_shard_size: int | str = MAX_SHARD,
    progress: bool = True,
    **where: Any,
) -> Path:
    """Writes a checkpoint of any format as a folder in Hugging Face format, with its tokenizer.

    Args:
        source: `None` for the default model; a .gguf file; a folder; or a model on the Hub, `"owner/name"`.
        target: the folder to make; it must not be there yet, or be empty.
        kv_heads: key/value heads a layer, see `convert_kv_heads`; `None` keeps them.
        dtype: of the weights; `"auto"` keeps it (float32 for a block-quantised GGUF file).
        max_shard_size: bytes of one file of weights at most, as a number or such as `"5GB"`.
        progress: show one line on stderr if loading takes longer than a second.
        **where: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, `gguf_file` as for
            `workbench.checkpoints.locate.locate`.

    Returns:
        The folder. It appears when it is complete: after an error there is none.

    Raises:
        CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`.
        CheckpointError: (a `ValueError`) if it cannot be read or converted, or `target` is taken.
        TypeError: naming an argument of another type.
    """
    if not isinstance(target, str | os.PathLike):
        raise TypeError(f"target is {target!r:.80}; it must be the path of a folder.")
    folder = Path(target).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} is there already. Give the name of a new folder, or remove it first.")
    at = locate(source, **where)
    if at.path.is_file():
        tokenizer = tokenizer_from_gguf(open_gguf_file(at.path).metadata)
        model_class: type[LlamaPreTrainedModel] = LlamaForCausalLM
    else:
        tokenizer = folder_tokenizer(at.path)
        model_class = class_of(LlamaConfig.from_json_file(at.path / "config.json"))
    model = from_pretrained(model_class, at.path, dtype=dtype, progress=progress)
    if kv_heads is not None:
        model = convert_kv_heads(model, kv_heads)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(work, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(work)
        work.chmod(0o755)  # mkdtemp's is for its owner only
        if folder.exists():
            folder.rmdir()
        os.replace(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder


def class_of(config: LlamaConfig) -> type[LlamaPreTrainedModel]:
    """The model that a config was saved with; the language model if it does not say."""
    for name in config.architectures or ():
        if name in models.__all__:
            found: type[LlamaPreTrainedModel] = getattr(models, name)
            return found
    return LlamaForCausalLM


def _check_plain(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if value.is_meta or not value.is_floating_point():
            what = "on the meta device or offloaded" if value.is_meta else f"of {value.dtype}, so quantised"
            raise CheckpointError(f"{name} is {what}; convert the model before that, with all weights in memory.")

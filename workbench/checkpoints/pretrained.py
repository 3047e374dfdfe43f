"""`from_pretrained`: any Llama model from any Llama checkpoint, with the arguments that `transformers` documents."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from workbench.checkpoints.arguments import check_flag, parse_dtype
from workbench.checkpoints.build import (
    Quantization,
    base_prefix,
    fill,
    is_tied,
    pack_complete,
    place,
    shapes_of,
    size_of,
    without_memory,
)
from workbench.checkpoints.checkpoint import Checkpoint, first_few
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.fit import HEADS, Fit, fit
from workbench.checkpoints.locate import WHERE, Located, locate, open_checkpoint
from workbench.checkpoints.placement import DISK, Placement, placement
from workbench.checkpoints.progress import Progress
from workbench.config import LlamaConfig
from workbench.model import LlamaPreTrainedModel

Model = TypeVar("Model", bound=LlamaPreTrainedModel)
GENERATION = "generation_config.json"
CONFIG = tuple(field.name for field in dataclasses.fields(LlamaConfig) if field.name != "dtype")
IGNORED = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


def from_pretrained(
    model_class: type[Model],
    source: str | os.PathLike[str] | None = None,
    *,
    config: LlamaConfig | str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    quantization_config: Any = None,
    ignore_mismatched_sizes: bool = False,
    output_loading_info: bool = False,
    progress: bool = True,
    **options: Any,
) -> Any:
    """A model with the weights of a checkpoint, in evaluation mode.

    The base of a checkpoint fills the base of any model, whatever either calls it. A head that the checkpoint lacks
    gets fresh weights, which one warning names; a head of another task is left out. Anything else that is missing or
    too much is an error, because the model would compute something else than the one that was saved.

    Args:
        model_class: `LlamaForCausalLM` for one; its own `from_pretrained` calls this.
        source: `None` for the default model; a folder in Hugging Face format; a .gguf file; or a model on the Hub,
            `"owner/name"`.
        config: a `LlamaConfig`, or where one is, instead of the checkpoint's. It is copied.
        dtype: of the weights: `"auto"` (the default) is the config's, or, if that says nothing, the checkpoint's own;
            or `"float32"`, `"bfloat16"`, `"float16"`, or the torch dtype.
        torch_dtype: the older name of `dtype`.
        device_map: one device (`"cpu"`, `"cuda:0"`, `0`); or `"auto"`: what fits goes onto the GPUs, the rest onto the
            CPU, then the disk; or a dictionary of module names and devices or `"disk"`. `None` is torch's default
            device. Several devices and the disk need the package accelerate.
        max_memory: for `"auto"`: `{0: "10GB", "cpu": "30GB"}`, the bytes that may be used of each device.
        offload_folder: for weights on the disk; `None` is a temporary folder.
        quantization_config: a `TorchAoConfig`, a dictionary of its values, or `"int4"` (groups of 32) or `"int8"`; by
            default the checkpoint's own.
        ignore_mismatched_sizes: give fresh weights, with a warning, where the checkpoint's have another shape.
        output_loading_info: return the model and a dictionary of `missing_keys`, `unexpected_keys`, `mismatched_keys`
            (name, stored shape, the model's shape) and `error_msgs` (always empty: errors are raised).
        progress: show one line on stderr if loading takes longer than a second.
        **options: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, `gguf_file` as for
            `workbench.checkpoints.locate.locate`; and any argument of `LlamaConfig`, such as `num_labels=3` or
            `attn_implementation="eager"`, which goes before the checkpoint's. Accepted and without influence:
            `low_cpu_mem_usage` (weights are never held twice anyway), `trust_remote_code` (no code of a checkpoint is
            ever run), `use_safetensors` (nothing else is read; False is refused).

    Raises:
        CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`, or a file of it is missing.
        CheckpointError: (a `ValueError`) if it cannot be read, does not fit, or an argument cannot be met.
        ConfigError: (a `ValueError`) if its config, or one of yours, describes no Llama.
        TypeError: naming an argument that does not exist, or is of another type.
    """
    for name, value in (
        ("ignore_mismatched_sizes", ignore_mismatched_sizes),
        ("output_loading_info", output_loading_info),
        ("progress", progress),
    ):
        check_flag(name, value)
    where, overrides = _sorted_options(model_class, options)
    kind = parse_dtype(dtype if dtype is not None else torch_dtype)
    at = locate(source, **where)
    checkpoint = open_checkpoint(at)
    settings = overridden(checkpoint.config if config is None else _given_config(config), overrides)
    kind = kind or parse_dtype(settings.dtype) or checkpoint.dtype
    settings.dtype = str(kind).removeprefix("torch.")
    quantization = quantization_of(settings, quantization_config)
    model = without_memory(model_class, settings, checkpoint)
    if quantization:
        quantization.prepare(model, checkpoint)
    cut = config is not None or "num_hidden_layers" in overrides
    parts = fit(
        checkpoint,
        shapes_of(model),
        prefix=base_prefix(model),
        tied=is_tied(model),
        other_task=True,
        layers=settings.num_hidden_layers if cut else None,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    places = placement(
        model, device_map, kind, tied=is_tied(model), max_memory=max_memory, offload_folder=offload_folder
    )
    used = set(places.devices.values())
    if quantization and (len(used) > 1 or DISK in used):
        raise CheckpointError(
            f"device_map is {device_map!r:.80}, but a quantized model is on one device. Use 'cpu' or 'cuda'."
        )
    model.generation_config = generation_config_of(model_class, at)
    with Progress(f"Loading {at.name}", size_of(checkpoint), progress) as line:
        _complete(model, checkpoint, parts, kind, places, line, quantization)
    if device_map is not None:
        places.finish(model)
    _warn(model, checkpoint, parts)
    return (model.eval(), _info(parts)) if output_loading_info else model.eval()


def overridden(config: LlamaConfig, overrides: Mapping[str, Any]) -> LlamaConfig:
    """A copy of a config with other values; a number of labels goes before the names of others.

    Raises:
        ConfigError: if the values fit no Llama.
    """
    values = {field.name: copy.deepcopy(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if "id2label" in overrides:
        values.update(num_labels=None, label2id=None)
    elif overrides.get("num_labels", config.num_labels) != config.num_labels:
        values.update(id2label=None, label2id=None)
    return type(config)(**{**values, **overrides})


def generation_config_of(model_class: type[LlamaPreTrainedModel], at: Located) -> Any:
    """The defaults of `generate` that lie beside a model; `None` if there are none or it generates nothing.

    Raises:
        CheckpointError: if the file cannot be used.
    """
    if not hasattr(model_class, "generate") or not (at.path / GENERATION).is_file():
        return None
    from workbench.generation.config import GenerationConfig  # generation builds on the model, and so do checkpoints

    try:
        return GenerationConfig.from_pretrained(at.path)
    except (ValueError, TypeError) as error:
        raise CheckpointError(str(error)) from error


def quantization_of(config: LlamaConfig, given: Any = None) -> Quantization | None:
    """The way to keep weights in fewer bits that was asked for, or in which the checkpoint is stored; mostly `None`.

    Raises:
        CheckpointError: if it is not known.
    """
    given = config.quantization_config if given is None else given
    if given is None:
        return None
    from workbench.checkpoints.quantize import quantization

    found: Quantization = quantization(given, config)
    return found


def _given_config(config: Any) -> LlamaConfig:
    if isinstance(config, LlamaConfig):
        return config
    if not isinstance(config, str | os.PathLike):
        raise TypeError(f"config is a {type(config).__name__}; it must be a LlamaConfig, or the path of one.")
    return LlamaConfig.from_pretrained(config)


def _sorted_options(model_class: type[Model], options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that say where the model is, and those that are arguments of the config."""
    where = {name: value for name, value in options.items() if name in WHERE}
    overrides = {name: value for name, value in options.items() if name in CONFIG}
    for name in options:
        if name not in (*WHERE, *CONFIG, *IGNORED):
            own = [
                name
                for name, kind in inspect.signature(from_pretrained).parameters.items()
                if kind.default != kind.empty
            ]
            close = difflib.get_close_matches(name, [*own, *WHERE, *CONFIG, *IGNORED], n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else " See help(workbench.checkpoints.pretrained)."
            raise TypeError(f"{model_class.__name__}.from_pretrained has no argument {name!r}.{hint}")
    for name in IGNORED:
        if options.get(name) is not None:
            check_flag(name, options[name])
    if options.get("use_safetensors") is False:
        raise CheckpointError(
            "use_safetensors is False, but nothing else is read: a pickle can run any program while it is opened. "
            "Leave it out."
        )
    return where, overrides


def _complete(
    model: LlamaPreTrainedModel,
    checkpoint: Checkpoint,
    parts: Fit,
    dtype: torch.dtype,
    places: Placement,
    line: Progress,
    quantization: Quantization | None,
) -> None:
    """Reads the weights there are, and makes the others; after an error nothing is left on the disk."""
    try:
        fill(model, checkpoint, parts, dtype, places, line, quantization)
        for name in parts.fresh:
            fresh = _fresh(name, model.state_dict()[name].shape, model.config.initializer_range)
            place(model, name, fresh, dtype, places)
            pack_complete(model, name)
        model.tie_weights()
    except BaseException:
        places.discard()
        raise


def _fresh(name: str, shape: torch.Size, std: float) -> torch.Tensor:
    """What a new model would have: ones for gains, zeros for biases, normal weights."""
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    return torch.zeros(shape) if name.endswith(".bias") else torch.empty(shape).normal_(std=std)


def _warn(model: LlamaPreTrainedModel, checkpoint: Checkpoint, parts: Fit) -> None:
    """One warning for all that makes this model another one than the checkpoint's."""
    said = []
    if parts.missing:
        said.append(f"not in {checkpoint.where}, and newly initialised: {', '.join(parts.missing)}")
    if parts.mismatched:
        shapes = [f"{name} ({list(has)}, here {list(needs)})" for name, has, needs in parts.mismatched]
        said.append(f"of another shape in {checkpoint.where}, and newly initialised: {first_few(shapes)}")
    cut = [name for name in parts.unexpected if not name.startswith(HEADS)]
    if cut:
        said.append(f"left out: {first_few(cut)}")
    if said:
        train = " Train the new weights before you use what they give." if parts.fresh else ""
        warnings.warn(f"{type(model).__name__}: {'; '.join(said)}.{train}", stacklevel=4)


def _info(parts: Fit) -> dict[str, Any]:
    return {
        "missing_keys": set(parts.missing),
        "unexpected_keys": set(parts.unexpected),
        "mismatched_keys": set(parts.mismatched),
        "error_msgs": [],
    }

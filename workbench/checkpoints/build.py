"""Puts a checkpoint's weights into a model, one by one: no half-loaded model, no second copy of the weights."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.checkpoints.checkpoint import Checkpoint
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.fit import HEAD, Fit, fit
from workbench.checkpoints.placement import Placement
from workbench.checkpoints.progress import Progress
from workbench.config import LlamaConfig
from workbench.model import LlamaForCausalLM, LlamaPreTrainedModel
from workbench.model.joined import Packed
from workbench.model.quantized import QuantizedLinear

UNIT = 4  # progress counts every weight as four bytes, so that both ends agree whatever is stored and made
Model = TypeVar("Model", bound=LlamaPreTrainedModel)


class Quantization(Protocol):
    """What is asked of a way to keep weights in fewer bits."""

    def prepare(self, model: LlamaPreTrainedModel, checkpoint: Checkpoint) -> None:
        """Changes modules of a model that has no memory yet, for a checkpoint that is stored in fewer bits.

        The names and shapes of `model.state_dict()` afterwards are those that the checkpoint has to have.
        """

    def place(
        self, model: LlamaPreTrainedModel, name: str, stored: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Puts one stored tensor into the model in fewer bits; False leaves it to the caller, who assigns it as it is.

        Args:
            model: some of its weights may be there already.
            name: the model's name of the parameter.
            stored: as it lies in the file, on the CPU.
            device: where it goes.
            dtype: the type that the model computes in.
        """

    def finish(self, model: LlamaPreTrainedModel) -> None:
        """Called when all weights that the checkpoint has are there."""


def build(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    *,
    model_class: type[Model] = LlamaForCausalLM,  # type: ignore[assignment]
    config: LlamaConfig | None = None,
    quantization: Quantization | None = None,
) -> Model:
    """The model of a checkpoint, in evaluation mode; every one of its weights has to be there.

    Shapes are compared before the first weight is read.

    Args:
        checkpoint: an opened one.
        device: where the weights go.
        dtype: `None` for the checkpoint's own.
        progress: told the bytes of each tensor.
        model_class: which model; the default is the one with the language-model head.
        config: instead of the checkpoint's.
        quantization: keeps weights in fewer bits.

    Raises:
        CheckpointError: if the tensors do not fit the config.
    """
    dtype = dtype or checkpoint.dtype
    config = dataclasses.replace(config or checkpoint.config, dtype=str(dtype))
    model = without_memory(model_class, config, checkpoint)
    if quantization:
        quantization.prepare(model, checkpoint)
    parts = fit(checkpoint, shapes_of(model), prefix=base_prefix(model), tied=is_tied(model))
    fill(model, checkpoint, parts, dtype, Placement({"": device}), progress, quantization)
    return model.eval()


def without_memory(model_class: type[Model], config: LlamaConfig, checkpoint: Checkpoint) -> Model:
    """A model on the meta device.

    Raises:
        CheckpointError: for a config that no model can be built of, or that needs more layers than there are tensors.
    """
    if config.num_hidden_layers > len(checkpoint.shapes):  # before as many layers are made
        raise CheckpointError(
            f"{checkpoint.where}: the config asks for {config.num_hidden_layers} layers, but there are only "
            f"{len(checkpoint.shapes)} tensors. Weights and config must be of one model."
        )
    try:
        with torch.device("meta"), NoInitialisation():
            return model_class(config)
    except (AssertionError, RuntimeError, OverflowError, TypeError) as error:  # torch's ways of refusing a size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{checkpoint.where}: the config describes no model that can be built ({reason})."
        ) from error


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter name → shape."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def base_prefix(model: LlamaPreTrainedModel) -> str:
    """How the names of the base's parameters begin."""
    return f"{model.base_model_prefix}." if model.base_model_prefix else ""


def is_tied(model: LlamaPreTrainedModel) -> bool:
    """Whether the model has an output that shares the embedding's weight."""
    return model.config.tie_word_embeddings and model.get_output_embeddings() is not None


def fill(
    model: LlamaPreTrainedModel,
    checkpoint: Checkpoint,
    parts: Fit,
    dtype: torch.dtype,
    placement: Placement,
    progress: Progress | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Reads the weights into a model without memory, lays together what is read together, and ties the head.

    Args:
        model: on the meta device.
        checkpoint: where the weights come from.
        parts: which tensor goes where.
        dtype: of the floating-point weights.
        placement: which weight goes to which device.
        progress: told the bytes of each tensor.
        quantization: keeps weights in fewer bits.

    Raises:
        CheckpointError: for a stored head that is not the embedding's weight in a config that ties them.
    """
    tied, head = is_tied(model), None
    for stored_name, stored in checkpoint.tensors():
        name = parts.targets.get(stored_name)
        if name is None:
            continue
        if tied and name == HEAD:
            head = stored.to(dtype=dtype)
        elif not (quantization and quantization.place(model, name, stored, placement.device(name), dtype)):
            place(model, name, stored, dtype, placement)
        pack_complete(model, name)
        if progress:
            progress.add(stored.numel() * UNIT)
    model.tie_weights()
    if tied and placement.is_on_disk(HEAD):  # there each weight is looked up by its own name
        placement.write(HEAD, placement.read(model, f"{base_prefix(model)}embed_tokens.weight"))
    if head is not None:
        _check_tied(model, checkpoint, head, placement)
    if quantization:
        quantization.finish(model)


def place(model: nn.Module, name: str, value: Tensor, dtype: torch.dtype, placement: Placement) -> None:
    """Puts a weight where it belongs: onto its device, or into a file; floating-point ones as `dtype`."""
    value = value.to(device=placement.device(name), dtype=dtype if value.is_floating_point() else None)
    if placement.is_on_disk(name):
        placement.write(name, value)
        value = value.to("meta")
    assign(model, name, value)


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Makes a tensor the parameter or buffer of that name, without a copy."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:
        module.register_buffer(leaf, value)
    else:
        learns = module.get_parameter(leaf).requires_grad and value.is_floating_point()
        module.register_parameter(leaf, nn.Parameter(value, requires_grad=learns))


def pack_complete(model: nn.Module, name: str) -> None:
    """Lays the weights that are read together behind each other, as soon as the last of them is there.

    Block by block, because both copies are in memory meanwhile.
    """
    block = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
    if isinstance(block, Packed) and not any(value.is_meta for value in block.parameters()):
        block.pack()


def size_of(checkpoint: Checkpoint) -> int:
    """The bytes that `fill` counts for `progress`."""
    return sum(torch.Size(shape).numel() for shape in checkpoint.shapes.values()) * UNIT


class NoInitialisation(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`.

    They have nothing to do on the meta device, and the first random one there imports the compiler, which takes longer
    than loading the default model.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _check_tied(model: LlamaPreTrainedModel, checkpoint: Checkpoint, head: Tensor, placement: Placement) -> None:
    output = model.get_output_embeddings()
    if isinstance(output, QuantizedLinear):
        same = output.is_made_of(head)
    else:
        same = torch.equal(head, placement.read(model, HEAD).to(head.device))
    if not same:
        raise CheckpointError(
            f"{checkpoint.where}: the config ties the output to the embedding (tie_word_embeddings), but the file has "
            f"another {HEAD}. Set tie_word_embeddings to false in config.json if the head is its own."
        )

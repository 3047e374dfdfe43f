"""Models with weights of 4 or 8 bits: quantizing one that is there, and while one is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from workbench.checkpoints.checkpoint import Checkpoint, first_few
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.quantization import TorchAoConfig, requested, stored_config
from workbench.config import LlamaConfig
from workbench.model import LlamaPreTrainedModel
from workbench.model.linear import Linear
from workbench.model.packing import GROUP_SIZES, INT4_ROWS
from workbench.model.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedWeight

Model = TypeVar("Model", bound=LlamaPreTrainedModel)
FILE_GROUP = 32  # columns of a group in the 4-bit types of GGUF files
_BASE = re.compile(r"(model\.|transformer\.)?(?=(embed_tokens|layers)\.)")


class Bits(NamedTuple):
    """How a weight is kept: 4 bits in groups of that many columns, or 8 bits."""

    bits: int
    group_size: int = 0


def quantize(model: Model, config: TorchAoConfig | str) -> Model:
    """Quantizes a model in place: its linear layers become `QuantizedLinear`, and its base is frozen.

    On the CPU by rounding to the nearest code; on CUDA through torchao, which has to be installed. Forward hooks of the
    replaced layers are lost; those of hook points (`workbench.capture`) are not.

    Args:
        model: with its weights as floats, on one device.
        config: a `TorchAoConfig`, `"int4"` (in groups of 32) or `"int8"`.

    Returns:
        The model.

    Raises:
        CheckpointError: (a `ValueError`) naming the layers that do not fit, before anything is changed.
        TypeError: naming an argument of another type.
    """
    if not isinstance(model, LlamaPreTrainedModel):
        raise TypeError(f"model is a {type(model).__name__}; a Llama model of the workbench is needed.")
    wanted = requested(config)
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices not in ({"cpu"}, {"cuda"}):
        raise CheckpointError(
            f"the model's weights are on {', '.join(sorted(devices))}; to be quantized, all have to be on the CPU, or "
            "all on CUDA."
        )
    plan = planned(model, wanted)
    if devices == {"cpu"}:
        for name, bits in plan.items():
            module: Any = model.get_submodule(name)
            model.set_submodule(name, _empty(module, bits, module.weight.dtype).set_weight(module.weight))
        model.tie_weights()
        model.base_model.pack()  # type: ignore[operator]
    return _finished(model, wanted, plan)


def planned(model: LlamaPreTrainedModel, config: TorchAoConfig) -> dict[str, Bits]:
    """Name of each module to quantize → how. A head that is tied to the embedding is not among them: it follows.

    Raises:
        CheckpointError: naming the layers that do not fit; for a name in `modules_to_not_convert` that fits none; for a
            model that is quantized already.
    """
    if any(isinstance(module, QuantizedWeight) for module in model.modules()):
        raise CheckpointError("the model is quantized already. Load it in floats to quantize it in another way.")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and model.config.tie_word_embeddings
    kept = _kept(model, config.modules_to_not_convert or [])
    keep_head = any(name in kept for name, module in model.named_modules() if module is head)
    keep_head |= tied and any(name in kept for name, module in model.named_modules() if module is embedding)
    plan = {}
    for name, module in model.named_modules():
        if module is head or (tied and module is embedding):
            if not keep_head and not (tied and module is head):
                plan[name] = Bits(8)
        elif type(module) is Linear and "layers." in name and name not in kept:
            plan[name] = Bits(config.bits, config.group_size or 0)
    _check_sizes(model, plan)
    return plan


class Quantizer:
    """Quantizes a model while it is loaded, weight by weight; see `workbench.checkpoints.build.Quantization`.

    Args:
        config: what is asked for.
        stored: whether the checkpoint holds quantized weights, which are taken as they are.
    """

    def __init__(self, config: TorchAoConfig, stored: bool) -> None:
        self.config, self.stored = config, stored
        self._plan: dict[str, Bits] = {}
        self._checkpoint: Checkpoint

    def prepare(self, model: LlamaPreTrainedModel, checkpoint: Checkpoint) -> None:
        """Decides about each module; for a checkpoint that is quantized, makes them so, still without memory."""
        self._checkpoint = checkpoint
        if not self.stored:
            self._plan = planned(model, self.config)
            return
        self._plan = _stored_plan(model, self.config, checkpoint)
        for name, bits in self._plan.items():
            dtype = getattr(torch, model.config.dtype or "float32")
            model.set_submodule(name, _empty(model.get_submodule(name), bits, dtype))

    def place(
        self, model: LlamaPreTrainedModel, name: str, stored: Tensor, device: torch.device, dtype: torch.dtype
    ) -> bool:
        """Puts one stored tensor into the model in fewer bits; False leaves it to the caller.

        Raises:
            CheckpointError: for a device where that cannot be.
        """
        owner, _, leaf = name.rpartition(".")
        if owner not in self._plan or leaf not in ("weight", "codes", "scales"):
            return False
        if device.type == "cuda" and not self.stored:
            return False  # torchao quantizes all of it in the end
        if device.type != "cpu":
            raise CheckpointError(
                f"{name} would go to {str(device)!r}, but weights of 4 and 8 bits are packed for the CPU. Use "
                "device 'cpu'; or 'cuda' with a checkpoint in floats, which torchao quantizes."
            )
        module: Any = model.get_submodule(owner)
        if self.stored:
            try:
                module.set_stored(leaf, stored)
            except ValueError as error:
                raise CheckpointError(f"{self._checkpoint.where}: {owner}: {error}") from error
            return True
        bits = self._plan[owner]
        found = self._checkpoint.four_bits(self._stored_name(name)) if bits == Bits(4, FILE_GROUP) else None
        new = _empty(module, bits, dtype)
        model.set_submodule(owner, new.set_weight(stored) if found is None else new.set_codes(*found))
        return True

    def finish(self, model: LlamaPreTrainedModel) -> None:
        """Writes into the config what was done, and freezes the base; on CUDA it is done here."""
        _finished(model, self.config, self._plan)

    def _stored_name(self, name: str) -> str:
        return next(stored for stored in self._checkpoint.shapes if _base_name(stored) == _base_name(name))


def quantization(given: Any, config: LlamaConfig) -> Quantizer:
    """The way to quantize a model that is loaded.

    Args:
        given: what was asked for: see `requested`; or the checkpoint's own `quantization_config`.
        config: of the checkpoint.

    Raises:
        CheckpointError: if the checkpoint is quantized by something else, or in another way than is asked for.
    """
    if config.quantization_config is None:
        return Quantizer(requested(given), stored=False)
    found = stored_config(config.quantization_config, "the checkpoint")
    if requested(given) != found:
        raise CheckpointError(
            f"the checkpoint is quantized as {found}, which cannot become {requested(given)}. Leave "
            "quantization_config out, or take the model in floats."
        )
    return Quantizer(found, stored=True)


def _stored_plan(model: LlamaPreTrainedModel, config: TorchAoConfig, checkpoint: Checkpoint) -> dict[str, Bits]:
    """What the checkpoint has codes of."""
    there = {_base_name(name) for name in checkpoint.shapes}
    plan = {
        name: Bits(config.bits, config.group_size or 0) if "layers." in name else Bits(8)
        for name, module in model.named_modules()
        if type(module) in (Linear, nn.Embedding) and _base_name(f"{name}.codes") in there
    }
    _check_sizes(model, plan)
    return plan


def _empty(module: nn.Module, bits: Bits, dtype: torch.dtype) -> QuantizedLinear | QuantizedEmbedding:
    """What takes a module's place, without memory."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(module.num_embeddings, module.embedding_dim, dtype, module.padding_idx)
    assert isinstance(module, Linear)
    return QuantizedLinear(module.in_features, module.out_features, *bits, bias=module.bias)


def _finished(model: Model, config: TorchAoConfig, plan: dict[str, Bits]) -> Model:
    if next(model.parameters()).is_cuda:
        _with_torchao(model, config, plan)
    # Where gradients are needed the kernels cannot be used; without them every forward is fast, not only under no_grad.
    model.base_model.requires_grad_(False)
    model.config.quantization_config = config.to_dict()
    return model


def _with_torchao(model: nn.Module, config: TorchAoConfig, plan: dict[str, Bits]) -> None:
    try:
        from torchao.quantization import (  # type: ignore[import-not-found]
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError as error:
        raise CheckpointError(
            "to quantize on CUDA, the package torchao is needed and not installed. Install it with "
            "`pip install torchao`, or load the model onto the CPU."
        ) from error
    names = {name for name in plan if "layers." in name}
    wanted = Int4WeightOnlyConfig(group_size=config.group_size) if config.bits == 4 else Int8WeightOnlyConfig()
    quantize_(model, wanted, filter_fn=lambda module, name: name in names)


def _kept(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the modules that a pattern names, whole or in part, and of all inside them."""
    kept: set[str] = set()
    for pattern in patterns:
        found = {name for name, _ in model.named_modules() if f".{pattern}." in f".{name}."}
        if not found or not pattern:
            raise CheckpointError(
                f"modules_to_not_convert names {pattern!r}, but no module of the model is called so. Names are such as "
                "'lm_head', 'down_proj', 'layers.0' or 'model.layers.0.mlp.down_proj'."
            )
        kept |= found
    return kept


def _check_sizes(model: nn.Module, plan: dict[str, Bits]) -> None:
    wrong: dict[int, list[str]] = {}
    for name, bits in plan.items():
        module: Any = model.get_submodule(name)
        if bits.bits == 4 and module.out_features % INT4_ROWS:
            raise CheckpointError(
                f"{name} has {module.out_features} outputs; in 4 bits they have to be a multiple of {INT4_ROWS}. Name "
                "it in modules_to_not_convert, or take int8_weight_only."
            )
        if bits.bits == 4 and module.in_features % bits.group_size:
            wrong.setdefault(module.in_features, []).append(name)
    if not wrong:
        return
    size = next(bits.group_size for bits in plan.values() if bits.bits == 4)
    widths = {model.get_submodule(name).in_features for name, bits in plan.items() if bits.bits == 4}
    fitting = [str(s) for s in GROUP_SIZES if not any(width % s for width in widths)]  # type: ignore[operator]
    layers = "; ".join(f"width {width}: {first_few(names)}" for width, names in wrong.items())
    raise CheckpointError(
        f"group_size is {size}, which does not divide the input width of {sum(map(len, wrong.values()))} layers "
        f"({layers}). Group sizes that divide every width of this model: {', '.join(fitting) or 'none'}. Take one of "
        "them, or name these layers in modules_to_not_convert."
    )


def _base_name(name: str) -> str:
    """The name without what a model with another head calls its base."""
    return _BASE.sub("", name, count=1)

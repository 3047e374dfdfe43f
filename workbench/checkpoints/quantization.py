"""What is asked for when a model is to have weights of 4 or 8 bits: `TorchAoConfig`, also as `config.json` keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.checkpoints.errors import CheckpointError
from workbench.model.packing import GROUP_SIZES

METHOD = "workbench"  # of files written here: neither torchao's tensors nor its layout
FORMAT = 1
BITS = {"int4_weight_only": 4, "int8_weight_only": 8}
GROUP_SIZE = 128  # the documented default
SHORT = {"int4": ("int4_weight_only", 32), "int8": ("int8_weight_only", None)}
# torchao's own configurations, which today's transformers asks for.
TORCHAO = {"Int4WeightOnlyConfig": "int4_weight_only", "Int8WeightOnlyConfig": "int8_weight_only"}


@dataclasses.dataclass(frozen=True)
class TorchAoConfig:
    """Weights of 4 or 8 bits; activations stay floats.

    Args:
        quant_type: `"int4_weight_only"` or `"int8_weight_only"`; or torchao's `Int4WeightOnlyConfig(...)` or
            `Int8WeightOnlyConfig()`.
        modules_to_not_convert: names of modules that keep their floats, whole (`"model.layers.0.mlp.down_proj"`) or in
            part (`"down_proj"`, `"layers.0"`, `"lm_head"`).
        group_size: neighbouring inputs of an output that share a scale: 32, 64, 128 (the default) or 256. Of 4 bits
            only. Smaller groups are more exact and take more memory: 32 need 5 bits a weight, 128 need 4.25.

    On the CPU the linear layers are computed by torch's own kernels. There an output layer (and an embedding that it is
    tied to) has 8 bits under either type, because it is read whole for every token;
    `modules_to_not_convert=["lm_head"]` leaves it. On CUDA torchao does it, which has to be installed, and the output
    keeps its floats.

    Raises:
        CheckpointError: (a `ValueError`) naming the argument that cannot be used.
        TypeError: for one of another type, or that does not exist.
    """

    quant_type: Any
    modules_to_not_convert: Sequence[str] | None = None
    group_size: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        kind, size = self._kind()
        names = self.modules_to_not_convert
        if names is not None and (
            isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names)
        ):
            raise TypeError(f"modules_to_not_convert is {names!r:.80}; it must be a list of names of modules, or None.")
        if kind == "int8_weight_only" and size is not None:
            raise CheckpointError(
                f"group_size is {size!r}, but int8_weight_only has one scale an output and no groups. Leave it out."
            )
        if kind == "int4_weight_only":
            size = GROUP_SIZE if size is None else size
            if isinstance(size, bool) or size not in GROUP_SIZES:
                raise CheckpointError(f"group_size is {size!r}; it can be {', '.join(map(str, GROUP_SIZES))}.")
        object.__setattr__(self, "quant_type", kind)
        object.__setattr__(self, "group_size", size)
        object.__setattr__(self, "modules_to_not_convert", None if names is None else tuple(names))

    @property
    def bits(self) -> int:
        """Of a weight: 4 or 8."""
        return BITS[self.quant_type]

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` keeps as `quantization_config`."""
        names = self.modules_to_not_convert
        return {
            "quant_method": METHOD,
            "format": FORMAT,
            "quant_type": self.quant_type,
            "group_size": self.group_size,
            "modules_to_not_convert": None if names is None else list(names),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TorchAoConfig:
        """The inverse of `to_dict`; `quant_method` and `format` may be missing.

        Raises:
            CheckpointError, TypeError: as for the class, and for another method, format or key.
        """
        own = dict(values)
        method, number = own.pop("quant_method", METHOD), own.pop("format", FORMAT)
        if method != METHOD or number != FORMAT:
            raise CheckpointError(
                f"quantization_config is of the method {method!r:.40}, format {number!r:.40}; only what this package "
                f"writes, {METHOD!r} format {FORMAT}, can be read."
            )
        unknown = [name for name in own if name not in ("quant_type", "group_size", "modules_to_not_convert")]
        if unknown or "quant_type" not in own:
            raise CheckpointError(
                f"quantization_config has the keys {', '.join(map(str, own)) or 'none'}; quant_type is needed, "
                "group_size and modules_to_not_convert are possible."
            )
        return cls(own["quant_type"], own.get("modules_to_not_convert"), group_size=own.get("group_size"))

    def _kind(self) -> tuple[str, Any]:
        kind, size = self.quant_type, self.group_size
        name = type(kind).__name__
        if name in TORCHAO:
            return TORCHAO[name], getattr(kind, "group_size", None) if size is None else size
        if not isinstance(kind, str):
            raise TypeError(f"quant_type is a {name}; it must be {' or '.join(map(repr, BITS))}.")
        if kind not in BITS:
            raise CheckpointError(f"quant_type is {kind!r:.80}; it can be {' or '.join(map(repr, BITS))}.")
        return kind, size


def requested(given: Any) -> TorchAoConfig:
    """The config that was asked for: itself, a dictionary of its values, or `"int4"` (groups of 32) or `"int8"`.

    Raises:
        TypeError, CheckpointError: for anything else.
    """
    if isinstance(given, TorchAoConfig):
        return given
    if isinstance(given, Mapping):
        return TorchAoConfig.from_dict(given)
    if not isinstance(given, str):
        raise TypeError(f"quantization is a {type(given).__name__}; give a TorchAoConfig, 'int4' or 'int8'.")
    if given not in SHORT:
        raise CheckpointError(f"quantization is {given!r:.80}; it can be 'int4', 'int8' or a TorchAoConfig.")
    kind, size = SHORT[given]
    return TorchAoConfig(kind, group_size=size)


def stored_config(values: Any, where: str) -> TorchAoConfig:
    """The config of a checkpoint that is stored in 4 or 8 bits.

    Args:
        values: `quantization_config` of its config.json.
        where: the file or folder, for messages.

    Raises:
        CheckpointError: if something else wrote it.
    """
    method = values.get("quant_method") if isinstance(values, Mapping) else values
    if method != METHOD:
        raise CheckpointError(
            f"{where} was quantized by {method!r:.40} (quantization_config in config.json), which cannot be read; what "
            "this package quantized and saved can. Take the model in floats and give quantization_config="
            "TorchAoConfig('int4_weight_only', group_size=32). If its weights are floats, delete the entry."
        )
    try:
        return TorchAoConfig.from_dict(values)
    except (CheckpointError, TypeError) as error:
        raise CheckpointError(f"{where}, config.json: {error}") from error

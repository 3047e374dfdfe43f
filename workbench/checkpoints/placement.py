"""Which weight goes to which device, or onto the disk; `device_map` of `from_pretrained`.

Several devices and the disk are the work of the package `accelerate`, which is asked for only then.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from workbench.checkpoints.arguments import parse_size
from workbench.checkpoints.errors import CheckpointError

DISK = "disk"
COMPUTED = ("auto", "balanced", "balanced_low_0", "sequential")
WHOLE = ["LlamaDecoderLayer"]  # a layer is never divided: its parts add to one residual stream
_ALLOWED = (
    f"{', '.join(map(repr, COMPUTED))}, a device such as 'cpu', 'cuda:0' or 0, or a dictionary of module names and "
    f"devices such as {{'model.embed_tokens': 0, 'model.layers': 'cpu', 'model.norm': 0, 'lm_head': '{DISK}'}}"
)


class Placement:
    """Where each weight of a model goes.

    Args:
        devices: module name → device, or "disk"; the longest name that fits a weight decides, `""` fits all.
        folder: where weights go that belong on the disk; `None` for a temporary folder that lasts as long as the model.
    """

    def __init__(self, devices: Mapping[str, torch.device | str], folder: Path | None = None) -> None:
        self.devices = dict(devices)
        self.folder = folder
        self._temporary = folder is None
        self._index: dict[str, dict[str, Any]] = {}

    def device(self, name: str) -> torch.device:
        """The device of a weight; the CPU for those on the disk."""
        place = self.place(name)
        return torch.device("cpu") if place == DISK else torch.device(place)

    def is_on_disk(self, name: str) -> bool:
        """Whether a weight is kept in a file and read whenever it is needed."""
        return self.place(name) == DISK

    def write(self, name: str, value: Tensor) -> None:
        """Puts a weight onto the disk."""
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="workbench-offload-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index = accelerate("disk").utils.offload_weight(value, name, str(self.folder), self._index)

    def read(self, model: nn.Module, name: str) -> Tensor:
        """A weight that has been placed."""
        if name not in self._index:
            found: Tensor = model.get_parameter(name)
            return found
        loaded = accelerate("disk").utils.load_offloaded_weight(self.folder / f"{name}.dat", self._index[name])  # type: ignore[operator]
        assert isinstance(loaded, Tensor)
        return loaded

    def finish(self, model: nn.Module) -> None:
        """Makes a model whose weights are in several places work, and says in `hf_device_map` where they are."""
        model.hf_device_map = {name: _plain(place) for name, place in self.devices.items()}  # type: ignore[assignment]
        if len(set(self.devices.values())) == 1 and DISK not in self.devices.values():
            return
        library = accelerate("several devices")
        if self._index and self.folder is not None:
            library.utils.save_offload_index(self._index, str(self.folder))
        library.dispatch_model(
            model,
            device_map=model.hf_device_map,
            offload_dir=None if self.folder is None else str(self.folder),
            skip_keys="past_key_values",
            force_hooks=True,
        )
        if self._temporary and self.folder is not None:
            weakref.finalize(model, shutil.rmtree, self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Removes a temporary folder; for a model that is not made after all."""
        if self._temporary and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def place(self, name: str) -> torch.device | str:
        """The device of a weight or module, or "disk"."""
        while name not in self.devices and name:
            name = name.rpartition(".")[0]
        return self.devices[name]


def placement(
    model: nn.Module,
    device_map: Any,
    dtype: torch.dtype,
    *,
    tied: bool = False,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: Any = None,
) -> Placement:
    """The placement that a `device_map` asks for.

    Args:
        model: on the meta device.
        device_map: `None` for torch's default device; or as `from_pretrained` describes it.
        dtype: of the weights, for their sizes.
        tied: whether the head shares the embedding's weight: it is then put beside it.
        max_memory: device → bytes, for a computed map.
        offload_folder: for weights on the disk.

    Raises:
        TypeError, CheckpointError: naming the argument that cannot be used.
    """
    if offload_folder is not None and not isinstance(offload_folder, str | Path):
        raise TypeError(f"offload_folder is {offload_folder!r:.80}; it must be a folder, or None for a temporary one.")
    folder = None if offload_folder is None else Path(offload_folder)
    if max_memory is not None and device_map not in COMPUTED:
        raise CheckpointError(
            f"max_memory is given, but device_map is {device_map!r:.80}; it is used with device_map='auto' only."
        )
    if max_memory is not None and not isinstance(max_memory, Mapping):
        raise TypeError(
            f"max_memory is {max_memory!r:.80}; it must be a dictionary such as {{0: '10GB', 'cpu': '30GB'}}."
        )
    if device_map is None:
        return Placement({"": torch.get_default_device()}, folder)
    if isinstance(device_map, Mapping):
        devices = _checked_map(model, device_map)
    elif isinstance(device_map, str) and device_map in COMPUTED:
        devices = _computed(model, device_map, dtype, max_memory)
    else:
        devices = {"": usable_device(device_map, "device_map", _ALLOWED)}
    if tied:
        whole = Placement(devices)
        devices["lm_head"] = whole.place("model.embed_tokens")
    return Placement(_disjoint(model, devices), folder)


def usable_device(device: Any, name: str = "device", allowed: str = "'auto' or 'cpu'") -> torch.device:
    """A device that is there.

    Raises:
        CheckpointError: naming the argument, with torch's reason.
    """
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise TypeError(f"{name} is {device!r:.80}; use {allowed}.")
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        torch.empty(1, device=found)  # the device may be known and yet not be there
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{name} is {device!r}, which torch cannot use here ({reason}). Use {allowed}."
        ) from error
    if found.type == "meta":
        raise CheckpointError(f"{name} is 'meta', which holds no weights. Use {allowed}.")
    return found


def accelerate(what: str) -> ModuleType:
    """The package accelerate.

    Raises:
        CheckpointError: with the command that installs it.
    """
    try:
        library = import_module("accelerate")
    except ImportError as error:
        raise CheckpointError(
            f"Weights on {what} need the package accelerate, which is not installed. Install it with "
            "`pip install accelerate`, or give device_map one device."
        ) from error
    return library


def _checked_map(model: nn.Module, device_map: Mapping[Any, Any]) -> dict[str, torch.device | str]:
    modules = {name for name, _ in model.named_modules()}
    for name in device_map:
        if name not in modules:
            raise CheckpointError(
                f"device_map names {name!r}, but the model has no such module. The largest ones are "
                f"{', '.join(name for name, _ in model.named_children())}; '' is all of it."
            )
    devices = {
        name: DISK if place == DISK else usable_device(place, f"device_map[{name!r}]", f"'{DISK}', 'cpu' or a GPU")
        for name, place in device_map.items()
    }
    result = Placement(devices)
    for name in model.state_dict():
        try:
            result.place(name)
        except KeyError:
            raise CheckpointError(
                f"device_map says nothing of {name}. Name it or a module around it; '' stands for all the rest."
            ) from None
    return devices


def _disjoint(model: nn.Module, devices: dict[str, torch.device | str]) -> dict[str, torch.device | str]:
    """The same map without modules inside others, which accelerate does not understand."""
    result: dict[str, torch.device | str] = {}
    places = Placement(devices)

    def visit(name: str, module: nn.Module) -> None:
        if not module.state_dict():
            return
        inside = f"{name}." if name else ""
        if any(other != name and other.startswith(inside) for other in devices):
            for child, part in module.named_children():
                visit(inside + child, part)
        else:
            result[name] = places.place(name)

    visit("", model)
    return result


def _computed(
    model: nn.Module, kind: str, dtype: torch.dtype, max_memory: Mapping[int | str, int | str] | None
) -> dict[str, torch.device | str]:
    """A map that fits the memory there is, GPUs first, then the CPU, then the disk."""
    if max_memory is None and not torch.accelerator.is_available():
        return {"": torch.device("cpu")}
    library = accelerate("several devices")
    sizes = None if max_memory is None else {device: _bytes(device, size) for device, size in max_memory.items()}
    options = {"no_split_module_classes": WHOLE, "dtype": dtype}
    if kind != "sequential":
        low = kind == "balanced_low_0"
        sizes = library.utils.get_balanced_memory(model, max_memory=sizes, low_zero=low, **options)
    devices = library.infer_auto_device_map(model, max_memory=sizes, **options)
    return {name: DISK if place == DISK else usable_device(place, "max_memory") for name, place in devices.items()}


def _bytes(device: Any, size: Any) -> int:
    if isinstance(device, bool) or not isinstance(device, int | str):
        raise TypeError(f"max_memory names the device {device!r}; use the number of a GPU, 'cpu' or '{DISK}'.")
    return parse_size(f"max_memory[{device!r}]", size, least=0)


def _plain(place: torch.device | str) -> int | str:
    """A place as accelerate spells it: a number for a GPU."""
    if isinstance(place, torch.device):
        return place.index or 0 if place.type == "cuda" else str(place)
    return place

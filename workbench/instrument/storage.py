"""How a captured tensor becomes the capture's own: never aliasing the model's memory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_numbers = itertools.count()


def own(x: Tensor, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
    """The same numbers in a tensor that no later edit of `x` or of the model changes.

    On a CPU it is a lazy copy: memory is shared until either side is written to, and copied then (PyTorch's
    copy-on-write storages). Of a slice of something larger it is a real copy, so that the rest is not kept alive.
    """
    if x.requires_grad:
        x = x.detach()
    other = (dtype is not None and dtype != x.dtype) or (device is not None and torch.device(device) != x.device)
    if other:
        return x.to(device, dtype, copy=True).contiguous()
    large = x.numel() > SMALL and x.is_cpu and type(x) is Tensor and _LAZY is not None
    if large and x.untyped_storage().nbytes() == x.nbytes:
        with contextlib.suppress(RuntimeError):  # a file mapped into memory cannot be shared so
            lazy: Tensor = _LAZY(x)
            return lazy
    return x.clone(memory_format=torch.contiguous_format)


SMALL = 1 << 14  # numbers that are copied sooner than shared
_LAZY: Any = getattr(torch, "_lazy_clone", None)


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """A captured tensor in a file of its own, mapped into memory when it is read."""

    path: Path
    shape: torch.Size
    dtype: torch.dtype
    axis: int

    @classmethod
    def write(cls, tensor: Tensor, folder: Path, axis: int) -> OnDisk:
        """Moves a tensor to a new file in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        while (path := folder / f"{next(_numbers):08d}.bin").exists():
            pass
        data = tensor.cpu().contiguous()
        mapped = torch.from_file(str(path), shared=True, size=data.numel(), dtype=data.dtype)
        mapped.copy_(data.view(-1))
        return cls(path, data.shape, data.dtype, axis)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.shape.numel() * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Tensor:
        """Rows of it, copied out of the file."""
        whole = torch.from_file(str(self.path), shared=False, size=self.shape.numel(), dtype=self.dtype)
        return whole.view(self.shape).narrow(self.axis, start, stop - start).clone()

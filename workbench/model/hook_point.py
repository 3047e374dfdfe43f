"""The identity module that makes an inner tensor reachable by PyTorch's forward hooks, and who listens in a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class HookPoint(nn.Module):
    """Returns its input: a tensor, or the mask. Costs one attribute look-up as long as nobody hooks it."""

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's hooks, if it has any."""
        return super().__call__(x) if self.hooked else x

    def forward(self, x: Any) -> Any:
        """The identity."""
        return x

    @property
    def hooked(self) -> bool:
        """Whether anything listens here."""
        return bool(self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks)


class Watchers:
    """The points of a layer that are hooked: `see("q", q)` shows it there and gives back what goes on."""

    def __init__(self, points: Mapping[str, nn.Module]) -> None:
        self.points = points

    def __call__(self, name: str, x: Any) -> Any:
        """What goes on: `x`, or what a hook returned instead."""
        point = self.points.get(name)
        return x if point is None else point(x)

    def __contains__(self, name: str) -> bool:
        return name in self.points

    @classmethod
    def of(cls, module: nn.Module) -> Watchers:
        """The hooked ones among a module's own `hook_…` children, by their names without that."""
        children = module._modules.items()
        return cls({n[5:]: p for n, p in children if isinstance(p, HookPoint) and p.hooked})

"""A result → what a widget draws: pure functions, testable without a browser."""

from workbench.views.payload import Payload

__all__ = ["Payload"]

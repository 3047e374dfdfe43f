"""The errors of reading a checkpoint. Each message says what is wrong, what was found, what is allowed, what to do."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded, or a request that it cannot meet."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """Something that is not there: a path, a file of a folder, a model on the Hub. Also a `FileNotFoundError`."""

"""Reading models: GGUF files, folders in Hugging Face format, the Hub. `load.load` is the way in."""

from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError

__all__ = ["CheckpointError", "CheckpointNotFoundError"]

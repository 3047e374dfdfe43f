"""Brings a model's folder from the Hugging Face Hub, or from its cache on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError

# What a model and its tokenizer need, in the top folder only: others often hold the same weights in other formats.
ALLOWED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
IGNORED = ["*/*", "consolidated*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` of a model on the Hub."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def fetch(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The local folder of a model on the Hub; files that the cache lacks are downloaded.

    `HF_HUB_OFFLINE=1` and the other variables of `huggingface_hub` are honoured; offline, the cache is used.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; `None` is the main branch.
        token: access token, `True` for the stored one.

    Raises:
        CheckpointNotFoundError: if the model is neither on the Hub nor in the cache, or the Hub cannot be reached.
        CheckpointError: if access is refused.
    """
    from huggingface_hub import constants, errors, snapshot_download  # importing it is not needed for local files

    at = f"{repo_id} (revision {revision})" if revision else repo_id
    try:
        return Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=ALLOWED, ignore_patterns=IGNORED)
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"Access to {at} has to be granted: accept its conditions on https://huggingface.co/{repo_id}, then pass "
            "token=... or run `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise CheckpointNotFoundError(
            f"The Hub has no model {at}, or it is private. Check the name; for a private one pass token=..."
        ) from error
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise CheckpointNotFoundError(
            f"{at} is not in the local cache ({constants.HF_HUB_CACHE}), and {why}. Connect (and unset HF_HUB_OFFLINE) "
            "to download it, or give the path of a local folder or .gguf file. load() without an argument needs no "
            f"network. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})"
        ) from error

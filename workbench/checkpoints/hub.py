"""Brings a model's folder from the Hugging Face Hub, or from its cache on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError

# What a model and its tokenizer need, in the top folder only: others often hold the same weights in other formats.
CONFIG = ["config.json"]
ALLOWED = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
IGNORED = ["*/*", "consolidated*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name` of a model on the Hub."""
    return _HUB_ID.fullmatch(text) is not None and ".." not in text


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    files: Sequence[str] = ALLOWED,
) -> Path:
    """The local folder of a model on the Hub; files that the cache lacks are downloaded.

    `HF_HUB_OFFLINE=1` and the other variables of `huggingface_hub` are honoured; offline, the cache is used.

    Args:
        repo_id: `owner/name`.
        revision: branch, tag or commit; `None` is the main branch.
        token: access token, `True` for the stored one.
        cache_dir: where downloads are kept; `None` for the place that the variables say.
        local_files_only: download nothing.
        subfolder: the only folder of the model to look at; `""` is its top.
        files: patterns of the names of the files that are needed.

    Raises:
        CheckpointNotFoundError: if the model is neither on the Hub nor in the cache, or the Hub cannot be reached.
        CheckpointError: if access is refused.
    """
    from huggingface_hub import constants, errors, snapshot_download  # importing it is not needed for local files

    at = f"{repo_id} (revision {revision})" if revision else repo_id
    inside = f"{subfolder}/" if subfolder else ""
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                allow_patterns=[inside + name for name in files],
                ignore_patterns=[inside + name for name in IGNORED],
            )
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
        why = "local_files_only is set" if local_files_only else why
        details = str(error).splitlines()[0] if str(error) else "no details"
        raise CheckpointNotFoundError(
            f"{at} is not in the local cache ({cache_dir or constants.HF_HUB_CACHE}), and {why}. Connect (and unset "
            "HF_HUB_OFFLINE) to download it, or give the path of a local folder or .gguf file. load() without an "
            f"argument needs no network. ({type(error).__name__}: {details})"
        ) from error

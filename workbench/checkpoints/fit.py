"""Which stored tensor belongs to which parameter of a model, and what is left over on either side."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from workbench.checkpoints.checkpoint import Checkpoint, first_few
from workbench.checkpoints.errors import CheckpointError

HEAD = "lm_head.weight"
HEADS = ("lm_head.", "score.", "qa_outputs.")  # the parameters that a task adds to the base
BASE = ("embed_tokens.", "layers.", "norm.")
PREFIXES = ("model.", "transformer.", "")  # what models with a head, or none, call their base
_LAYER = re.compile(r"(?:model\.|transformer\.)?layers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a checkpoint fills a model.

    Attributes:
        targets: name in the checkpoint → name in the model, of each tensor that is used.
        missing: parameters that the checkpoint lacks; they get fresh values.
        mismatched: (name in the model, stored shape, the model's shape) of tensors that are not used for their shape;
            these parameters get fresh values too.
        unexpected: names in the checkpoint that the model has no place for.
    """

    targets: Mapping[str, str]
    missing: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def fresh(self) -> tuple[str, ...]:
        """Parameters that get fresh values."""
        return self.missing + tuple(name for name, _, _ in self.mismatched)


def fit(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    prefix: str = "model.",
    tied: bool = False,
    other_task: bool = False,
    layers: int | None = None,
    ignore_mismatched_sizes: bool = False,
) -> Fit:
    """Compares a checkpoint with a model, before the first weight is read.

    The base is found under whatever name the checkpoint has for it, so any Llama checkpoint fills any Llama model.

    Args:
        checkpoint: an opened one.
        shapes: parameter name → shape, of the model.
        prefix: how the model's base begins: `"model."`, `"transformer."` or `""`.
        tied: whether the head shares the embedding's weight, so that it need not be stored.
        other_task: whether the checkpoint may be of another task: heads may be missing or left over.
        layers: how many layers the caller asked for; later ones in the checkpoint are left over. `None`: none may be.
        ignore_mismatched_sizes: whether tensors of another shape are left over instead of being an error.

    Raises:
        CheckpointError: naming missing, unexpected and wrongly shaped tensors, the first few of each.
    """
    targets = _targets(checkpoint, prefix)
    found = set(targets.values())
    missing = [name for name in shapes if name not in found and not (tied and name == HEAD)]
    unexpected = [stored for stored, name in targets.items() if name not in shapes]
    wrong = {
        stored: (name, tuple(checkpoint.shapes[stored]), tuple(shapes[name]))
        for stored, name in targets.items()
        if name in shapes and tuple(checkpoint.shapes[stored]) != tuple(shapes[name])
    }
    excused = HEADS if other_task else ()
    faults = {
        "missing": [name for name in missing if not name.startswith(excused)],
        "unexpected": [s for s in unexpected if not targets[s].startswith(excused) and not _is_cut(s, layers)],
        "of another shape": []
        if ignore_mismatched_sizes
        else [f"{name} is {list(has)} instead of {list(needs)}" for name, has, needs in wrong.values()],
    }
    if any(faults.values()):
        raise _misfit(checkpoint, faults, other_task)
    used = {stored: name for stored, name in targets.items() if stored not in wrong and name in shapes}
    return Fit(used, tuple(missing), tuple(wrong.values()), tuple(unexpected))


def _targets(checkpoint: Checkpoint, prefix: str) -> dict[str, str]:
    """Stored name → the model's name for it, whether the model has it or not."""
    targets: dict[str, str] = {}
    taken: dict[str, str] = {}
    for stored in checkpoint.shapes:
        name = _renamed(stored, prefix)
        if name in taken:
            raise CheckpointError(
                f"{checkpoint.where} has {taken[name]} and {stored}, which are the same parameter under two names. "
                "Which one is meant is unknown; download the model again."
            )
        targets[stored], taken[name] = name, stored
    return targets


def _renamed(stored: str, prefix: str) -> str:
    for known in PREFIXES:
        if stored.startswith(known) and stored[len(known) :].startswith(BASE):
            return prefix + stored[len(known) :]
    return stored


def _is_cut(name: str, layers: int | None) -> bool:
    match = _LAYER.match(name)
    return layers is not None and match is not None and int(match[1]) >= layers


def _misfit(checkpoint: Checkpoint, faults: Mapping[str, list[str]], other_task: bool) -> CheckpointError:
    found = [f"{len(names)} {what}: {first_few(names)}" for what, names in faults.items() if names]
    hint = ""
    if other_task and faults["of another shape"] and not faults["missing"] and not faults["unexpected"]:
        hint = " ignore_mismatched_sizes=True gives those fresh values instead."
    return CheckpointError(
        f"{checkpoint.where}: the tensors do not fit the config. {'; '.join(found)}. "
        f"Weights and config must be of one model, and every file of it must be there.{hint}"
    )

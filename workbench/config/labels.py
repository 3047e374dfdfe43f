"""The labels of a classifier: `num_labels`, `id2label` and `label2id` say the same thing three times."""

from __future__ import annotations

from typing import Any

from workbench.config.checks import ConfigError, check_size, is_whole, refuse, shown

MOST_LABELS = 100_000  # a label is an entry of a dictionary: a damaged file is not to fill the memory


def numbered(num_labels: Any) -> dict[int, str]:
    """`{0: "LABEL_0", …}`, the names of labels that nobody has named."""
    check_size("num_labels", num_labels)
    if num_labels > MOST_LABELS:
        refuse("num_labels", num_labels, f"it must be at most {MOST_LABELS}.")
    return {i: f"LABEL_{i}" for i in range(num_labels)}


def checked_labels(id2label: Any) -> dict[int, str]:
    """`id2label` with whole numbers as keys, in order; in a JSON file they are texts.

    Raises:
        ConfigError: unless it names 0, 1, … without a gap.
    """
    if not isinstance(id2label, dict) or not id2label:
        refuse(
            "id2label", id2label, 'it must be None or a dictionary of labels, {0: "negative", 1: "positive"} for one.'
        )
    labels = {_whole("id2label", key): label for key, label in id2label.items()}
    if sorted(labels) != list(range(len(id2label))):
        refuse("id2label", id2label, f"its {len(id2label)} keys must be 0 to {len(id2label) - 1}, each once.")
    for label in labels.values():
        if not isinstance(label, str):
            refuse("id2label", id2label, f"each label must be text, and {shown(label)} is not.")
    return dict(sorted(labels.items()))


def inverse_labels(id2label: dict[int, str], label2id: Any = None) -> dict[str, int]:
    """`label2id`, checked against `id2label`; made from it if it is not given."""
    if label2id is None:
        return {label: i for i, label in id2label.items()}
    if not isinstance(label2id, dict) or not all(isinstance(label, str) for label in label2id):
        refuse("label2id", label2id, 'it must be None or a dictionary, {"negative": 0, "positive": 1} for one.')
    ids = {label: _whole("label2id", value) for label, value in label2id.items()}
    for label, i in ids.items():
        if id2label.get(i) != label:
            raise ConfigError(
                f"label2id gives {shown(label)} the id {i}, but id2label calls {i} {shown(id2label.get(i))}. "
                "Leave label2id out, and it is made from id2label."
            )
    missing = set(id2label.values()) - ids.keys()
    if missing:
        raise ConfigError(f"label2id lacks the label {shown(min(missing))} of id2label. Leave label2id out, or add it.")
    return ids


def _whole(name: str, value: Any) -> int:
    """A label's id, which may be written as text, as the keys of a JSON object are."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    if not is_whole(value) or value < 0:
        raise ConfigError(f"{name} has the id {shown(value)}; ids of labels are whole numbers of at least 0.")
    return int(value)

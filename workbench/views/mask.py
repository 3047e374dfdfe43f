"""A mask as text (■ may attend, ⬚ masked) and as a picture for the mask widget."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from workbench.analysis.mask import AppliedMask
from workbench.views.payload import Payload

MAY, MASKED = "■", "⬚"
WORDS = {
    "causal": "the key is after the query",
    "padding": "the key is padding",
    "empty_slot": "the cache slot is empty",
    "custom": "the caller's own mask",
    "window": "the key is before the sliding window",
    "document": "the key is of another document",
    "knocked_out": "an edit knocked the edge out",
}
LABEL_WIDTH = 24  # columns of a terminal; longer tokens end in …
SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
RESET, GREEN = "\x1b[0m", "\x1b[92m"
GREY, YELLOW, MAGENTA, RED, CYAN = "\x1b[90m", "\x1b[93m", "\x1b[95m", "\x1b[91m", "\x1b[96m"
COLORS = {"causal": GREY, "padding": YELLOW, "empty_slot": MAGENTA, "custom": RED, "knocked_out": RED}


def mask_payload(
    mask: AppliedMask, tokens: Sequence[Sequence[str]], names: Sequence[str], title: str, subtitle: str
) -> Payload:
    """The mask widget's picture.

    Args:
        tokens: of each text of the batch, the text of the token at each position.
        names: what to call each text.
    """
    texts = []
    for i, (name, row) in enumerate(zip(names, tokens, strict=True)):
        idle = idle_words(mask, reasons_of(mask, i))
        labels = {"queries": at_positions(row, mask.q_pos), "keys": at_positions(row, mask.k_pos)}
        texts.append({"name": name, **labels, "notes": [idle] if idle else []})
    content = {
        "title": title,
        "subtitle": subtitle,
        "rules": [{"name": name, "letter": letter, "label": WORDS.get(name, "")} for name, letter in mask.rules],
        "texts": texts,
        "query_index": mask.q_pos.tolist(),
        "key_index": [None if position < 0 else position for position in mask.k_pos.tolist()],
        "notes": [note for note in (_shown_part(mask), *_head_notes(mask)) if note],
        "state": "ok",
        "state_text": "",
    }
    return Payload(content, {"reasons": mask.reasons})


def mask_text(mask: AppliedMask, tokens: Sequence[str], row: int = 0, color: bool = False) -> str:
    """One text's mask, a line a query: position, token, and ■ or ⬚ for each key.

    Args:
        tokens: the text of the token at each position.
        row: which text of the batch.
        color: with ANSI colours: the diagonal green, masked cells by the rule that forbids them.
    """
    reasons = reasons_of(mask, row)
    labels = [_fitted(visible(token)) for token in at_positions(tokens, mask.q_pos)]
    digits = len(str(int(mask.q_pos[-1])))
    wide = max(map(width, labels))
    lines = [_legend(mask, reasons, color), "", *_header(mask.k_pos, digits + wide + 2)]
    for position, label, cells in zip(mask.q_pos.tolist(), labels, reasons.tolist(), strict=True):
        keys = zip(cells, mask.k_pos.tolist(), strict=True)
        signs = [_sign(mask, bits, position == key, color) for bits, key in keys]
        lines.append(f"{position:>{digits}} {label}{' ' * (wide - width(label))} {' '.join(signs)}")
    notes = [note for note in (_shown_part(mask), *_head_notes(mask), idle_words(mask, reasons)) if note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def reasons_of(mask: AppliedMask, row: int) -> np.ndarray:
    """Reasons of one text, (q, k)."""
    reasons: np.ndarray = mask.reasons[row if len(mask.reasons) > 1 else 0]
    return reasons


def at_positions(tokens: Sequence[str], positions: np.ndarray) -> list[str]:
    """The token at each position; "" in a cache slot without one."""
    return [tokens[position] if position >= 0 else "" for position in positions.tolist()]


def visible(text: str) -> str:
    """The text with spaces and line ends as signs and everything else that is not printed as `<U+200B>`."""
    shown = "".join(SIGNS.get(c) or (c if c.isprintable() else f"<U+{ord(c):04X}>") for c in text)
    if shown and unicodedata.combining(shown[0]):
        shown = f"◌{shown}"
    return shown or "∅"


def width(text: str) -> int:
    """Columns that a text takes in a terminal: East Asian wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def idle_words(mask: AppliedMask, reasons: np.ndarray) -> str:
    """Names the queries that may attend to nothing; "" if there is none, or if not all keys are shown."""
    idle = mask.q_pos[(reasons != 0).all(1)].tolist()
    if not idle or len(mask.k_pos) < mask.keys:
        return ""
    runs: list[list[int]] = []
    for position in idle:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    names = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    one = len(idle) == 1
    return (
        f"{'Query' if one else 'Queries'} {names} may attend to nothing: {'its' if one else 'their'} weights are zero."
    )


def pattern_name(mask: AppliedMask, bits: int) -> str:
    """The rules of some reason bits: "causal + padding"."""
    return " + ".join(name for i, (name, _) in enumerate(mask.rules) if bits >> i & 1)


def _fitted(label: str) -> str:
    if width(label) <= LABEL_WIDTH:
        return label
    while width(label) > LABEL_WIDTH - 1:
        label = label[:-1]
    return f"{label}…"


def _legend(mask: AppliedMask, reasons: np.ndarray, color: bool) -> str:
    may = f"{MAY} may attend ({_colored(MAY, GREEN)} itself)" if color else f"{MAY} may attend"
    patterns, counts = np.unique(reasons, return_counts=True)
    masked = []
    for bits, count in zip(patterns.tolist(), counts.tolist(), strict=True):
        if bits:
            name = pattern_name(mask, bits)
            masked.append(f"{_colored(name, _color(mask, bits)) if color else name} {count:,}")
    return f"{may}   {MASKED} masked: {', '.join(masked)}" if masked else may


def _header(k_pos: np.ndarray, left: int) -> list[str]:
    """The keys' positions over their columns, one line a digit."""
    names = ["-" if position < 0 else str(position) for position in k_pos.tolist()]
    tall = max(map(len, names))
    rows = [" ".join(name.rjust(tall)[i] for name in names).rstrip() for i in range(tall)]
    return [f"{'key' if i == tall - 1 else '':>{left - 1}} {row}" for i, row in enumerate(rows)]


def _sign(mask: AppliedMask, bits: int, diagonal: bool, color: bool) -> str:
    if bits:
        return _colored(MASKED, _color(mask, bits)) if color else MASKED
    return _colored(MAY, GREEN) if color and diagonal else MAY


def _color(mask: AppliedMask, bits: int) -> str:
    """Of the last rule that forbids the cell: it is the most specific one."""
    return COLORS.get(mask.rules[bits.bit_length() - 1][0], CYAN)


def _colored(text: str, color: str) -> str:
    return f"{color}{text}{RESET}"


def _shown_part(mask: AppliedMask) -> str:
    if not mask.cut:
        return ""
    q, k = len(mask.q_pos), len(mask.k_pos)
    return f"Shown: the first {q:,} of {mask.queries:,} queries and the first {k:,} of {mask.keys:,} keys."


def _head_notes(mask: AppliedMask) -> list[str]:
    notes = []
    if mask.differs_by_head:
        notes.append(
            "The heads have different masks: shown is what at least one of them may attend to; head= picks one."
        )
    if mask.biased:
        notes.append("The mask also adds numbers to the scores of cells that may attend; they are not shown.")
    return notes

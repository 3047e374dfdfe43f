"""What a comparison of caches comes to: one row a cache, and a text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.analysis.text_table import aligned, in_bytes

SUMMARY_COLUMNS = [
    *("cache", "exact", "window", "sinks", "bytes", "bytes_ratio", "held", "prefill_ms", "decode_ms"),
    *("max_k", "max_v", "max_hidden", "max_logit", "mean_kl", "max_kl", "agreement", "first_divergence"),
]


def summary(steps: pd.DataFrame, layers: pd.DataFrame, caches: list[tuple[str, Any]]) -> pd.DataFrame:
    """One row a cache, of (label, cache or `None`); see `CacheComparison`."""
    rows = [_row(steps[steps["cache"] == label], layers[layers["cache"] == label], label, c) for label, c in caches]
    table = pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
    table["bytes_ratio"] = table["bytes"].iloc[0] / table["bytes"].where(table["bytes"] > 0)
    for column in ("window", "first_divergence"):
        table[column] = table[column].astype("Int64")
    return table


def _row(steps: pd.DataFrame, layers: pd.DataFrame, label: str, cache: Any) -> dict[str, Any]:
    last = steps.iloc[-1] if len(steps) else None
    other = steps.loc[~steps["same_choice"].astype(bool), "step"]
    largest: Any = layers[["max_k", "max_v", "max_hidden"]].max() if len(layers) else {}
    return {
        "cache": label,
        "exact": cache is None or bool(getattr(cache, "exact", True)),
        "window": getattr(cache, "window", None),
        "sinks": getattr(cache, "sinks", 0),
        "bytes": 0 if last is None else int(last["bytes"]),
        "held": 0 if last is None else int(last["held"]),
        "prefill_ms": steps.loc[steps["phase"] == "prefill", "ms"].mean(),
        "decode_ms": steps.loc[steps["phase"] == "decode", "ms"].median(),
        **{name: float(largest.get(name, 0.0)) for name in ("max_k", "max_v", "max_hidden")},
        "max_logit": steps["max_logit"].max(),
        "mean_kl": steps["kl"].mean(),
        "max_kl": steps["kl"].max(),
        "agreement": steps["same_choice"].astype(bool).mean(),
        "first_divergence": int(other.iloc[0]) if len(other) else None,
    }


def report(
    table: pd.DataFrame, steps: pd.DataFrame, prompt_length: int, stopped: bool, angles_change: int | None
) -> str:
    """The summary as an aligned text, and what has to be known to read it."""
    finished = steps["step"].nunique()
    lines = [
        f"{len(table)} caches, {prompt_length} prompt tokens and {finished} steps; the reference is "
        f"{table['cache'].iloc[0]}{', stopped early' if stopped else ''}."
    ]
    if finished:
        lines += ["", _costs(table), "", _differences(table), "", *_notes(table, steps)]
    if finished and angles_change is not None:
        lines.append(
            f"The RoPE of this model turns by other angles once a text is longer than {angles_change} positions: keys "
            'that were cached before differ from those of reading it again ("none"), whatever the cache.'
        )
    return "\n".join(lines)


def _costs(table: pd.DataFrame) -> str:
    rows = [
        [
            str(row["cache"]),
            in_bytes(row["bytes"]),
            "–" if pd.isna(row["bytes_ratio"]) else f"{row['bytes_ratio']:.2f}×",
            str(row["held"]),
            _ms(row["prefill_ms"]),
            _ms(row["decode_ms"]),
        ]
        for row in table.to_dict("records")
    ]
    return aligned(["cache", "bytes", "smaller", "positions held", "prefill", "a token"], rows)


def _differences(table: pd.DataFrame) -> str:
    header = ["cache", "max|Δk|", "max|Δv|", "max|Δhidden|", "max|Δlogit|", "mean KL", "max KL", "same choice"]
    rows = [
        [
            str(row["cache"]),
            *(f"{row[name]:.2g}" for name in ("max_k", "max_v", "max_hidden", "max_logit", "mean_kl", "max_kl")),
            f"{row['agreement']:.1%}",
            "never" if pd.isna(row["first_divergence"]) else f"step {row['first_divergence']}",
        ]
        for row in table.iloc[1:].to_dict("records")
    ]
    return aligned([*header, "diverges"], rows)


def _ms(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1f} ms"


def _notes(table: pd.DataFrame, steps: pd.DataFrame) -> list[str]:
    notes = []
    for row in table.to_dict("records"):
        if pd.notna(row["window"]):
            sinks = f" and the first {row['sinks']}" if row["sinks"] else ""
            notes.append(
                f"{row['cache']}: a query sees the last {row['window']} positions{sinks}. Beyond them its numbers are "
                "those of another mask, not of a lossy store."
            )
        elif not row["exact"]:
            notes.append(f"{row['cache']}: keeps keys and values rounded.")
        if pd.notna(row["first_divergence"]):
            notes.append(_divergence(steps, row))
    notes.append("KL in nats, of the next token; a token: median of a plain decode step, without captures.")
    return notes


def _divergence(steps: pd.DataFrame, row: dict[Any, Any]) -> str:
    at = steps[(steps["cache"] == row["cache"]) & (steps["step"] == row["first_divergence"])].iloc[0]
    own, other = _token(at["choice"], at["choice_text"]), _token(at["token"], at["text"])
    return f"{row['cache']}: at step {at['step']} it would have chosen {own} where the reference chose {other}."


def _token(token: int, text: str | None) -> str:
    return f"token {token}" if text is None else f"{text!r} ({token})"

"""Timing two or more things in turn, in one process: medians, and the ratio to the first.

A machine's speed drifts by tens of percent within minutes, so only what ran interleaved can be compared.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable


def interleave(subjects: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each subject over `rounds` rounds A B C A B C …, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(rounds + 1):
        for name, subject in subjects.items():
            began = time.perf_counter()
            subject()
            if turn:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, medians: dict[str, float]) -> None:
    """Prints medians and speed relative to the first row."""
    first = next(iter(medians.values()))
    print(f"\n{title}")
    for name, ms in medians.items():
        print(f"  {name:<38} {ms:>10.1f} ms   x{first / ms:.2f}")


def finish(results: dict[str, dict[str, float]]) -> None:
    """The last line of every benchmark: all medians as JSON."""
    print(json.dumps({title: {k: round(v, 2) for k, v in medians.items()} for title, medians in results.items()}))

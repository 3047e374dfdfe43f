"""Writes docs/parity.md: every comparison with `transformers` that the tests make, by file and test, with its cases.

    python scripts/parity_table.py

A test (`tests/parity/test_table.py`) fails if the committed table is not what this writes.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "parity.md"
FOLDER = ROOT / "tests" / "parity"
HEAD = """# What is compared with transformers

Every row is a test in `tests/parity`, run on each change against transformers 5.23 on the CPU; a case is one named set
of parameters of it. Unless a file says otherwise, floats are compared in float32 on tiny random models with the same
weights: the largest difference is at most 1e-5 of the largest magnitude; ids, texts, offsets and flags are equal.
Written by `scripts/parity_table.py`.
"""


def table(counts: Counter[tuple[str, str]]) -> str:
    """The page for so many cases of each (file name, test name)."""
    lines = [HEAD, f"**{sum(counts.values()):,} cases in {len(counts)} tests.**"]
    for file in sorted({file for file, _ in counts}):
        tests = {test: count for (name, test), count in counts.items() if name == file}
        about = ast.get_docstring(ast.parse((FOLDER / file).read_text(encoding="utf-8"))) or ""
        lines += ["", f"## {file} · {sum(tests.values()):,}", "", *([about, ""] if about else [])]
        lines += ["| comparison | cases |", "|---|--:|"]
        lines += [f"| {words(test)} | {count:,} |" for test, count in tests.items()]
    return "\n".join(lines) + "\n"


def words(test: str) -> str:
    """The name of a test as a phrase."""
    return test.removeprefix("test_").replace("_", " ")


def count(items: Iterable[object]) -> Counter[tuple[str, str]]:
    """How many cases each test of the folder has, of pytest's collected items."""
    found: Counter[tuple[str, str]] = Counter()
    for item in items:
        if item.path.parent == FOLDER:  # type: ignore[attr-defined]
            found[item.path.name, item.originalname] += 1  # type: ignore[attr-defined]
    return found


def main() -> int:
    """Collects the tests and writes the page."""
    import pytest

    class Collected:
        items: list[object] = []

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.items = list(session.items)

    collected = Collected()
    status = pytest.main([str(FOLDER), "--collect-only", "-qq"], plugins=[collected])
    if status == 0:
        TABLE.write_text(table(count(collected.items)), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

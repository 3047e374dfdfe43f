"""Does it matter how a text is read? In one pass, in chunks, token by token, padded in a batch, with hooks, with any
lossless cache or none, a model has to compute the same numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from workbench.analysis.cache_choice import CacheSpec, ChosenCache, choose_caches, one_text, with_tokenizer
from workbench.analysis.consistency_points import Comparison, Finding, Reference, points_of
from workbench.analysis.consistency_ways import WRONG, Run, Way, cache_ways, made, one_pass, plain_ways
from workbench.analysis.text_table import aligned
from workbench.cache import CACHES
from workbench.instrument import Cancelled
from workbench.instrument.points import base_of
from workbench.model.quantized import quantized_count
from workbench.model.rope import angles_change_after

Verdict = Literal["ok", "rounding", "bug"]
# The largest share of a position's magnitude that rounding is expected to explain; what exceeds it is computed again in
# float64. Measured on the default model's 30 layers and 64 tokens: 1e-5 in float32, 6e-2 in bfloat16.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
DOUBLE_TOLERANCE = 1e-9  # 1e-13 is found after 30 layers
FEWEST = 4  # tokens
COLUMNS = [
    *("way", "verdict", "point", "layer", "position", "first", "last"),
    *("difference", "largest", "difference64", "error"),
]


class ConsistencyError(AssertionError):
    """Ways of reading a text that give other numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class ConsistencyReport:
    """What `check_consistency` found; printed, it is a table.

    Attributes:
        table: one row a way of reading: `verdict`, "ok" (no relative difference beyond the tolerance), "rounding"
            (there is one, and it vanishes in float64) or "bug" (it stays); `largest`, the largest relative difference
            of all points and positions, and `difference64`, that in float64; `point`, `layer`, `position` of the first
            difference in the order of execution; `first`, `last`, the positions that the forward it was seen in had
            read (below 0: padding); `difference` there: largest |Δ| at the position over the largest magnitude there,
            for a mask 1, for a missing key infinite, of a bug in float64; `error`, the exception of a forward that
            failed.
        length: tokens of the text.
        dtype: of the model.
        tolerance: of relative differences in that type.
        skipped: ways that were not tried, because `should_stop` ended the check.
    """

    table: pd.DataFrame
    length: int
    dtype: torch.dtype
    tolerance: float
    skipped: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every way was tried and none has a bug; rounding is allowed."""
        return not self.skipped and not (self.table["verdict"] == "bug").any()

    def raise_if_failed(self) -> None:
        """Raises `ConsistencyError`, with this text, unless `ok`."""
        if not self.ok:
            raise ConsistencyError(str(self))

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"{self.length} tokens in {kind}, each way against one pass without a cache", ""]
        if len(self.table):
            rows = [[row["way"], row["verdict"], _number(row["largest"])] for row in self.table.to_dict("records")]
            lines += [aligned(["way of reading", "verdict", "largest difference"], rows), ""]
            lines += [
                f"{row['way']}: {_explained(row)}" for row in self.table.to_dict("records") if pd.notna(row["point"])
            ]
            lines += [
                f"{row['way']}: {row['error']}" for row in self.table.to_dict("records") if pd.notna(row["error"])
            ]
        verdicts = self.table["verdict"].value_counts()
        counts = ", ".join(f"{verdicts.get(name, 0)} {name}" for name in ("ok", "rounding", "bug"))
        lines.append(f"{counts}. Differences are relative; up to {self.tolerance:g} is ok.")
        if self.skipped:
            lines.append(f"Stopped before {', '.join(self.skipped)}.")
        return "\n".join(lines)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.1e}" if value else "0"


def _explained(row: dict[Any, Any]) -> str:
    where = row["point"] if pd.isna(row["layer"]) else f"{row['point']} of layer {row['layer']}"
    read = f"reading {row['first']}" if row["first"] == row["last"] else f"reading {row['first']} … {row['last']}"
    text = f"first at {where}, position {row['position']} ({read}): {_number(row['difference'])}"
    if pd.isna(row["difference64"]):
        return f"{text}."
    stays = "stays, so it is a bug" if row["verdict"] == "bug" else "vanishes, so it is rounding"
    return f"{text}; in float64 {_number(row['difference64'])}: it {stays}."


@torch.no_grad()
def check_consistency(
    model: Any,
    ids: str | Sequence[int] | Int[Tensor, "1 pos"],
    *,
    tolerance: float | None = None,
    caches: Iterable[CacheSpec] | None = None,
    chunks: Iterable[int | Sequence[int]] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConsistencyReport:
    """Reads a text in every way that has to give the same numbers, and says where one first does not.

        print(check_consistency(model, ids[:, :64]))

    The ways: hooks on every point, chunks, token by token, a left-padded row of a batch, no cache, and each lossless
    cache: half the text, a chunk, single tokens; and once more after wrong tokens were read and cropped. A cache whose
    window is shorter than the text is compared with one pass under that mask, all others with one plain pass: keys and
    values as attention used them, the residual stream after each layer, and the logits. Where one of these differs by
    more than the tolerance, a copy of the model in float64 is read in the same way. If the difference vanishes there it
    was rounding. Otherwise it is a bug, and the way is read again with all points (but `scores` and `pattern`, which
    could not be looked at without computing attention otherwise), to find the first that differs.

    It costs one forward for each token and some 50 more of parts of the text, and more where something differs. A few
    dozen tokens show what there is to see.

    Args:
        model: a `LlamaForCausalLM` or `LlamaModel` in floats, or what `load()` returned. It is the same afterwards.
        ids: of one text, at least 4 tokens.
        tolerance: largest relative difference that passes; default 1e-9 in float64, 1e-5 in float32, 2e-2 in float16,
            0.1 in bfloat16. A bug smaller than that is not seen; 0 leaves every difference to float64.
        caches: lossless ones to try, as for `compare_caches`; default all that there are, windowed ones with a window
            that covers the text and a short one.
        chunks: splits of the text: sizes that add up to it, or one size; default halves, 1 + the rest, and fifths.
        should_stop: asked between forwards and between layers; the ways finished until then are reported.
        on_progress: told (finished ways, all ways).

    Raises:
        TypeError: for another model, or what are no ids.
        ValueError: for quantized weights, fewer than 4 tokens, more than the model was made for, a lossy or unknown
            cache, chunks that do not add up, a negative tolerance. Nothing has run then.
    """
    model, tokenizer = with_tokenizer(model)
    base_of(model)
    if (count := quantized_count(model)) > 0:
        raise ValueError(
            f"{count:,} weights of this model are quantized: there is no float64 copy to tell rounding from a bug. "
            "Check the model in floats (load it without quantization); workbench.compare_caches takes quantized ones."
        )
    text = one_text(model, tokenizer, ids, "ids")
    limit = _limit(model, text.shape[1])
    allowed = TOLERANCE.get(model.dtype, 1e-1) if tolerance is None else tolerance
    if not isinstance(allowed, int | float) or not allowed >= 0:
        raise ValueError(f"tolerance is {tolerance!r}; a relative difference of 0 or more is needed.")
    splits = _splits(chunks, text.shape[1])
    chosen = _lossless(caches, model, text.shape[1])
    oracle = _Oracle(model, text, float(allowed), should_stop, splits, chosen, limit)
    was_training = model.training
    model.eval()
    try:
        return oracle.report(on_progress)
    finally:
        model.train(was_training)


class _WayFailed(Exception):
    """A forward of a way raised something."""


class _Oracle:
    """The model, the text, and what one pass over it computed."""

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        tolerance: float,
        stop: Callable[[], bool] | None,
        splits: list[tuple[int, ...]],
        chosen: list[ChosenCache],
        limit: int,
    ) -> None:
        self.model, self.ids, self.tolerance, self.stop = model, ids, tolerance, stop
        self.splits, self.chosen, self.limit = splits, chosen, limit
        self._double: Any = None
        self._references: dict[tuple[int | None, int, bool], Reference] = {}  # of few points; by window, sinks, dtype

    def ways(self, double: bool = False) -> list[Way]:
        """All ways; `double` for a model in float64."""
        length = self.ids.shape[1]
        ways = plain_ways(length, self.splits, self.limit)
        return ways + [way for chosen in self.chosen for way in cache_ways(chosen, length, double)]

    def report(self, on_progress: Callable[[int, int], None] | None) -> ConsistencyReport:
        """Tries them all, unless stopped."""
        ways, rows = self.ways(), []
        for number, way in enumerate(ways):
            try:
                rows.append(self.row(number, way))
            except Cancelled:
                break
            if on_progress is not None:
                on_progress(number + 1, len(ways))
        table = pd.DataFrame(rows, columns=COLUMNS)
        for column in ("layer", "position", "first", "last"):
            table[column] = table[column].astype("Int64")
        skipped = tuple(way.name for way in ways[len(rows) :])
        return ConsistencyReport(table, self.ids.shape[1], self.model.dtype, self.tolerance, skipped)

    def row(self, number: int, way: Way) -> dict[str, Any]:
        """The verdict on one way."""
        try:
            found = self.compare(way, self.model, False, self.tolerance)
            if found.first is None:
                return self._row(way, "ok", found)
            if self.model.dtype == torch.float64:
                sharp = self.compare(way, self.model, True, self.tolerance)
                return self._row(way, "bug", found, at=sharp.first)
        except _WayFailed as error:
            return self._row(way, "bug", error=str(error))
        try:
            wide = self.ways(double=True)[number]
            exact = self.compare(wide, self.double(), False, DOUBLE_TOLERANCE)
            if exact.first is None:
                return self._row(way, "rounding", found, exact.largest)
            # Float64 shows the place sharply: rounding before it is too small to be taken for it.
            sharp = self.compare(wide, self.double(), True, DOUBLE_TOLERANCE)
        except _WayFailed as error:
            return self._row(way, "bug", found, error=f"could not be repeated in float64: {error}")
        return self._row(way, "bug", found, exact.largest, sharp.first or exact.first)

    def compare(self, way: Way, model: Any, every: bool, tolerance: float) -> Comparison:
        """One way, read and compared with one pass by the same model."""
        points = points_of(model, every)
        key = (way.window, way.sinks, model is self.model)
        reference = None if every else self._references.get(key)
        if reference is None:
            reference = one_pass(model, self.ids, points, way.rules(), self.stop)
        if not every:  # every point takes some 20 times as much memory
            self._references[key] = reference
        comparison = Comparison(reference, tolerance)
        try:
            way.run(Run(model, self.ids, points, comparison, self.stop))
        except (Cancelled, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a cache or a hook raises is what is wrong with this way
            raise _WayFailed(f"{type(error).__name__}: {error}") from error
        return comparison

    def double(self) -> Any:
        """The model in float64, with its hooks and replaced parts; made when it is first needed."""
        if self._double is None:
            wide: dict[int, Any] = {
                id(p): nn.Parameter(p.detach().double(), p.requires_grad) for p in self.model.parameters()
            }
            self._double = copy.deepcopy(self.model, wide).double()  # buffers too
        return self._double

    def _row(
        self,
        way: Way,
        verdict: Verdict,
        found: Comparison | None = None,
        double: float | None = None,
        at: Finding | None = None,
        error: str | None = None,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"way": way.name, "verdict": verdict, "point": None, "error": error}
        row |= {"difference64": double}
        if found is not None:
            row["largest"] = found.largest
            at = at or found.first
        if at is not None:
            row |= {"point": at.point, "layer": at.layer, "position": at.position, "first": at.first, "last": at.last}
            row["difference"] = at.difference
        return row


# ---------------------------------------------------------------------------------------------------- what is asked


def _limit(model: Any, length: int) -> int:
    """How many positions the model may read.

    Raises:
        ValueError: if the text has more, or too few.
    """
    if length < FEWEST:
        raise ValueError(f"ids has {length} tokens; at least {FEWEST} are needed, to be read in pieces.")
    change = angles_change_after(model.config)
    limit: int = model.config.max_position_embeddings if change is None else change
    if length > limit and change is not None:
        raise ValueError(
            f"ids has {length} tokens; the {model.config.rope['rope_type']} RoPE of this model turns by other angles "
            f"once a text is longer than {limit}, so keys that are cached earlier differ from those of one pass. Give "
            f"{limit} or fewer."
        )
    if length > limit:
        raise ValueError(
            f"ids has {length} tokens; the model was made for {limit} positions (max_position_embeddings). Give fewer."
        )
    return limit


def _splits(chunks: Any, length: int) -> list[tuple[int, ...]]:
    half, fifth = length // 2, max(length // 5, 1)
    given: list[Any] = [(half, length - half), (1, length - 1), fifth] if chunks is None else list(chunks)
    splits = []
    for item in given:
        if isinstance(item, int) and not isinstance(item, bool) and item > 0:
            item = [item] * (length // item) + [length % item] * (length % item > 0)
        if isinstance(item, int) or any(not isinstance(n, int) or n < 1 for n in item) or sum(item) != length:
            raise ValueError(
                f"chunks holds {item!r}; each split is a list of sizes of at least 1 that add up to the {length} "
                "tokens of ids, or one size."
            )
        splits.append(tuple(item))
    if not splits:
        raise ValueError("chunks is empty; give a size, such as chunks=[16], or leave it out.")
    return splits


def _lossless(caches: Any, model: Any, length: int) -> list[ChosenCache]:
    room = length + WRONG
    if caches is None:
        short = max(2, length // 4)
        windows: dict[str, list[dict[str, Any]]] = {
            "sliding": [{"window": room}, {"window": short}],
            "sink": [{"window": room, "sinks": 2}, {"window": short, "sinks": 2}],
        }
        names = [name for name in ("dynamic", "static", "offloaded", "sliding", "sink") if name in CACHES]
        caches = [(name, options) for name in names for options in windows.get(name, [{}])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `made`
        chosen = choose_caches(caches, model.config, room)
    for one in chosen:
        cache = made(one)
        stored: torch.dtype | None = getattr(cache, "dtype", None)
        smaller = stored is not None and torch.promote_types(stored, model.dtype) != stored
        if cache is not None and (smaller or not cache.exact):
            raise ValueError(
                f"the {one.label} cache is lossy by design: it differs from one pass, and that is no bug. "
                "workbench.compare_caches measures by how much."
            )
    return chosen

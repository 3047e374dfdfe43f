"""Activation patching: which activations carry the difference between two texts.

A corrupted text runs while one activation after another is replaced by what a clean text had there; how far the metric
goes back to its clean value says how much of the difference went through that place (Meng et al. 2022, arXiv
2202.05262; for choices of corruption and metric Zhang & Nanda 2023, arXiv 2309.16042).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analysis.arguments import at_least_one, whole_numbers
from workbench.analysis.lens import check_tokens
from workbench.instrument import Activations, Cancelled, cancellable, capture
from workbench.instrument.edit import edit
from workbench.model import LlamaForCausalLM

Metric = Callable[[Float[Tensor, "batch pos vocab"]], Float[Tensor, " batch"]]
Ids = Sequence[int] | Int[Tensor, "pos"] | Int[Tensor, "1 pos"]
MEMORY = 1 << 26  # bytes that one forward's rows may take, roughly: 64 MB
MOST_ROWS = 64


@dataclasses.dataclass(frozen=True)
class LogitDifference:
    """The logit of the right token minus that of the wrong one, at one position; in nats."""

    right: int
    wrong: int
    position: int = -1

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        """One number a row."""
        at = logits[:, self.position].float()
        return at[:, self.right] - at[:, self.wrong]


@dataclasses.dataclass(frozen=True)
class LogProbability:
    """The log-probability of a token at one position; in nats."""

    token: int
    position: int = -1

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        """One number a row."""
        return logits[:, self.position].float().log_softmax(-1)[:, self.token]


def logit_difference(right: int, wrong: int, position: int = -1) -> LogitDifference:
    """A metric: the logit of one token minus that of another, in nats, at a position of the text.

    Linear in the last residual stream up to its scale, which makes it the usual choice (Zhang & Nanda 2023).
    """
    return LogitDifference(right, wrong, position)


def log_probability(token: int, position: int = -1) -> LogProbability:
    """A metric: the log-probability of a token, in nats, at a position of the text."""
    return LogProbability(token, position)


@dataclasses.dataclass(frozen=True)
class _Place:
    """What one patch replaces: of a layer, one position or all, and one head or all."""

    layer: int
    position: int | None = None
    head: int | None = None


def patch_residual(
    model: LlamaForCausalLM,
    clean_ids: Ids,
    corrupted_ids: Ids,
    metric: Metric,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:
    """Replaces the residual stream before a layer at one position, for every layer and position.

        patch_residual(model, clean, corrupted, logit_difference(paris, rome)).pivot(
            index="layer", columns="position", values="effect"
        )

    Each patched run is a forward through all layers, also through those below the patch, several patches at once.

    Args:
        clean_ids, corrupted_ids: two texts of as many tokens; activations are carried over position by position.
        metric: from logits (batch, pos, vocab) of patched runs to one number a row: `logit_difference(right, wrong)`,
            `log_probability(token)` or a function of yours.
        layers, positions: which to patch, negative ones from the end; default all.
        batch_size: patches in one forward, as rows of a batch; by default as many as take about 64 MB.
        progress: told (done, total) in patches.
        should_stop: asked between layers. Stopped, what is not done is NaN and what is done is kept.

    Returns:
        One row a patch: `layer`, `position`, `value` (the metric of the patched run) and `effect` = (value − corrupted)
        / (clean − corrupted): 0 where nothing came back, 1 where all of it did; NaN where both texts have the same
        metric. `attrs` has the metric of both under `"clean"` and `"corrupted"`. A patch that would replace an
        activation by an equal one (texts that begin alike) is known without a forward.

    Raises:
        TypeError: for token ids, layers or positions that are no whole numbers.
        ValueError: for texts of different lengths or batches, layers, positions or tokens that do not exist, a metric
            that does not give one number a row.
    """
    chosen = _numbers(layers, model.config.num_hidden_layers, "layer")
    sweep = _Sweep.of(model, "resid_pre", chosen, clean_ids, corrupted_ids, metric, batch_size)
    places = [_Place(layer, position) for layer in chosen for position in _numbers(positions, sweep.length, "position")]
    return sweep.run(places, ["layer", "position"], progress, should_stop)


def patch_heads(
    model: LlamaForCausalLM,
    clean_ids: Ids,
    corrupted_ids: Ids,
    metric: Metric,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    per_position: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:
    """Replaces what one attention head mixed (`z`, before the output projection), for every layer and head.

    Args:
        heads: which query heads to patch; default all.
        per_position: patch each position by itself; otherwise all positions of a head at once.
        positions: which ones then; default all.

    The other arguments, the errors and the result are those of `patch_residual`, with a column `head`, and `position`
    only if each is patched by itself.

    Raises:
        ValueError: besides, for positions without `per_position`.
    """
    _check_positions(positions, per_position)
    chosen = _numbers(layers, model.config.num_hidden_layers, "layer")
    sweep = _Sweep.of(model, "z", chosen, clean_ids, corrupted_ids, metric, batch_size)
    places = [
        _Place(layer, position, head)
        for layer in chosen
        for head in _numbers(heads, model.config.num_attention_heads, "head")
        for position in (_numbers(positions, sweep.length, "position") if per_position else [None])
    ]
    columns = ["layer", "head", "position"] if per_position else ["layer", "head"]
    return sweep.run(places, columns, progress, should_stop)


def patch_mlp(
    model: LlamaForCausalLM,
    clean_ids: Ids,
    corrupted_ids: Ids,
    metric: Metric,
    layers: Iterable[int] | None = None,
    positions: Iterable[int] | None = None,
    per_position: bool = True,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> pd.DataFrame:
    """Replaces what the MLP adds to the residual stream, for every layer and position.

    Args:
        per_position: patch each position by itself; otherwise all positions of a layer at once.

    The other arguments, the errors and the result are those of `patch_residual`, without the column `position` if all
    are patched at once.

    Raises:
        ValueError: besides, for positions without `per_position`.
    """
    _check_positions(positions, per_position)
    chosen = _numbers(layers, model.config.num_hidden_layers, "layer")
    sweep = _Sweep.of(model, "mlp_out", chosen, clean_ids, corrupted_ids, metric, batch_size)
    places = [
        _Place(layer, position)
        for layer in chosen
        for position in (_numbers(positions, sweep.length, "position") if per_position else [None])
    ]
    return sweep.run(places, ["layer", "position"] if per_position else ["layer"], progress, should_stop)


@dataclasses.dataclass(frozen=True)
class _Sweep:
    """One point, two texts and what was captured of them."""

    model: LlamaForCausalLM
    point: str
    metric: Metric
    corrupted_ids: Int[Tensor, "1 pos"]
    clean: Activations
    corrupted: Activations
    clean_value: float
    corrupted_value: float
    batch_size: int

    @classmethod
    def of(
        cls,
        model: LlamaForCausalLM,
        point: str,
        layers: list[int],
        clean_ids: Ids,
        corrupted_ids: Ids,
        metric: Metric,
        batch_size: int | None,
    ) -> _Sweep:
        """Runs both texts once, and captures the point in some layers."""
        clean, corrupted = _ids(model, clean_ids, "clean_ids"), _ids(model, corrupted_ids, "corrupted_ids")
        if clean.shape != corrupted.shape:
            raise ValueError(
                f"clean_ids has {clean.shape[1]} tokens and corrupted_ids {corrupted.shape[1]}. Activations are "
                "carried over position by position, so both texts need the same number: choose words of as many tokens."
            )
        if batch_size is not None:
            batch_size = at_least_one(batch_size, "batch_size", "patches in a forward")
        _check_metric(metric, clean.shape[1], model.config.vocab_size)
        with capture(model, point, layers=layers or None) as of_clean:
            clean_value = _measure(model, clean, metric)
        with capture(model, point, layers=layers or None) as of_corrupted:
            corrupted_value = _measure(model, corrupted, metric)
        rows = batch_size or _rows(model, clean.shape[1], metric)
        values = float(clean_value[0]), float(corrupted_value[0])
        return cls(model, point, metric, corrupted, of_clean, of_corrupted, *values, rows)

    @property
    def length(self) -> int:
        """Tokens of each text."""
        return self.corrupted_ids.shape[1]

    def run(
        self,
        places: list[_Place],
        columns: list[str],
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool],
    ) -> pd.DataFrame:
        """Makes all patches; those of one layer as rows of batches."""
        values = np.full(len(places), np.nan)
        waiting: dict[int, list[int]] = {}  # by layer
        done = 0
        for i, place in enumerate(places):
            if self._changes_nothing(place):
                values[i], done = self.corrupted_value, done + 1
            else:
                waiting.setdefault(place.layer, []).append(i)
        if progress is not None:
            progress(done, len(places))
        batches = [
            (layer, indices[start : start + self.batch_size])
            for layer, indices in waiting.items()
            for start in range(0, len(indices), self.batch_size)
        ]
        for layer, batch in batches:
            found = self._forward(layer, [places[i] for i in batch], should_stop)
            if found is None:
                break
            values[batch], done = found, done + len(batch)
            if progress is not None:
                progress(done, len(places))
        frame = pd.DataFrame({name: [getattr(place, name) for place in places] for name in columns})
        span = self.clean_value - self.corrupted_value
        frame["value"] = values
        frame["effect"] = (values - self.corrupted_value) / span if span else np.nan
        frame.attrs.update(clean=self.clean_value, corrupted=self.corrupted_value)
        return frame

    def _changes_nothing(self, place: _Place) -> bool:
        part = _part(place)
        return torch.equal(self.clean[self.point, place.layer][part], self.corrupted[self.point, place.layer][part])

    def _forward(
        self, layer: int, places: list[_Place], should_stop: Callable[[], bool]
    ) -> Float[np.ndarray, " place"] | None:
        """The metric of patches of one layer; `None` if stopped."""
        clean = self.clean[self.point, layer]

        def patch(x: Tensor) -> Tensor:
            for row, place in enumerate(places):
                part = _part(place)
                x[(row, *part[1:])] = clean[part][0]
            return x

        ids = self.corrupted_ids.expand(len(places), -1)
        try:
            with edit(self.model, {f"layers.{layer}.{self.point}": patch}), cancellable(self.model, should_stop):
                return _measure(self.model, ids, self.metric).double().cpu().numpy()
        except Cancelled:
            return None


def _part(place: _Place) -> tuple[slice | int, ...]:
    """Where a patch is in (batch of 1, pos, …) or (batch of 1, pos, head, …)."""
    position = slice(None) if place.position is None else place.position
    return (slice(None), position) if place.head is None else (slice(None), position, place.head)


@torch.no_grad()
def _measure(model: LlamaForCausalLM, ids: Int[Tensor, "batch pos"], metric: Metric) -> Float[Tensor, " batch"]:
    value = metric(model(ids, use_cache=False, logits_to_keep=_kept(metric)).logits)
    if not isinstance(value, Tensor) or value.shape != (len(ids),):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(
            f"the metric returned {got}; one number for each row of the batch is needed, here a tensor of shape "
            f"({len(ids)},)."
        )
    return value


def _check_metric(metric: Metric, length: int, vocabulary: int) -> None:
    """Raises `ValueError` for a token or position that does not exist, in a ready-made metric."""
    if isinstance(metric, (LogitDifference, LogProbability)):
        check_tokens([metric.token] if isinstance(metric, LogProbability) else [metric.right, metric.wrong], vocabulary)
        _numbers([metric.position], length, "position")


def _kept(metric: Metric) -> int:
    """How many last positions need logits; 0 means all, as in the model's forward."""
    return 1 if isinstance(metric, (LogitDifference, LogProbability)) and metric.position == -1 else 0


def _rows(model: LlamaForCausalLM, length: int, metric: Metric) -> int:
    """How many texts of a length to run at once."""
    config = model.config
    logits = config.vocab_size * (_kept(metric) or length)
    inside = length * (8 * config.hidden_size + 3 * config.intermediate_size)
    return max(1, min(MOST_ROWS, MEMORY // (4 * (logits + inside))))


def _ids(model: LlamaForCausalLM, given: Ids, name: str) -> Int[Tensor, "1 pos"]:
    ids = torch.as_tensor(given)
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise TypeError(f"{name} holds {ids.dtype}; token ids, whole numbers, are needed.")
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or len(ids) != 1 or not ids.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)}; one text is needed, (positions,) or (1, positions). For several "
            "pairs of texts, sweep each and average the results."
        )
    check_tokens(ids[0].tolist(), model.config.vocab_size)
    return ids.to(model.device)


def _numbers(given: Iterable[int] | None, count: int, what: str) -> list[int]:
    """The chosen ones of `count`."""
    chosen = whole_numbers(range(count) if given is None else given, what)
    for number in chosen:
        if not -count <= number < count:
            raise ValueError(f"{what} {number} does not exist; there are {what}s 0 … {count - 1}.")
    return [number % count for number in chosen]


def _check_positions(positions: Iterable[int] | None, per_position: bool) -> None:
    if positions is not None and not per_position:
        raise ValueError("positions is given, but all are patched at once. Set per_position=True, or leave it out.")

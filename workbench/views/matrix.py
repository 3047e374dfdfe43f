"""Pictures for the matrix widget: the logit lens and one head's attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.analysis.attention import Tile
from workbench.analysis.lens import Lens
from workbench.views.payload import Payload

LENS_METRICS = [
    {"name": "p", "label": "p(top token)", "unit": "", "scale": "linear", "low": 0.0, "high": 1.0},
    {"name": "next_p", "label": "p(next token)", "unit": "", "scale": "sqrt", "low": 0.0, "high": 1.0},
    {"name": "next_rank", "label": "rank of next token", "unit": "", "scale": "log", "low": 1.0, "high": None,
     "direction": "down"},
    {"name": "entropy", "label": "entropy", "unit": "nats", "scale": "linear", "low": 0.0, "high": None,
     "direction": "down"},
]  # fmt: skip
ATTENTION_METRICS = [
    {"name": "weight", "label": "attention weight", "unit": "", "scale": "sqrt", "low": 0.0, "high": None}
]


def empty(kind: str, title: str, words: str, state: str = "empty") -> Payload:
    """A matrix without numbers: says in words why."""
    return Payload({"kind": kind, "title": title, "rows": [], "cols": [], "state": state, "state_text": words}, {})


def lens_matrix(lens: Lens, pieces: Sequence[str], piece_of: Callable[[int], str], stopped: bool = False) -> Payload:
    """Layers × tokens, the last layer on top; each cell shows the token that state would predict next.

    Args:
        pieces: the text of each token, along the columns.
        piece_of: token id → text, for the predictions.
        stopped: whether nobody is computing the columns that are missing.
    """
    states, length, _ = lens.top_ids.shape
    ids, where = np.unique(lens.top_ids, return_inverse=True)
    vocab = [piece_of(int(i)) for i in ids if i >= 0]
    index = (where.reshape(lens.top_ids.shape) - int(ids[0] < 0))[::-1].astype(np.int32)  # −1: not computed
    done = int(lens.computed.sum())
    content: dict[str, Any] = {
        "kind": "lens",
        "title": "Logit lens",
        "subtitle": "what each layer's residual stream would predict next",
        "rows": [*(f"{i}" for i in range(states - 2, -1, -1)), "embed"],
        "cols": list(pieces),
        "row_title": "after layer",
        "col_title": "token",
        "row_index": [*range(states - 2, -1, -1), None],
        "col_index": list(range(length)),
        "row_axis_cursor": "layer",
        "col_axis_cursor": "query",
        "state": "ok" if done == length else "stale" if stopped else "computing",
        "state_text": "" if done == length else f"{'stopped at ' * stopped}{done:,} of {length:,} tokens",
        "metric": "p",
        "metrics": LENS_METRICS,
        "controls": [],
        "texts": {"vocab": vocab},
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "p": lens.top_p[::-1, :, 0],
        "next_p": lens.next_p[::-1],
        "next_rank": lens.next_rank[::-1],
        "entropy": lens.entropy[::-1],
        "text": index[:, :, 0],
        "top_ids": index,
        "top_p": lens.top_p[::-1],
    }
    return Payload(content, arrays)


REASONS = [  # a mask's cell is the number of its reason, from 1
    {"letter": "C", "label": "causal: the key is after the query"},
    {"letter": "W", "label": "window: the key is further back than the cache keeps"},
]


def attention_matrix(
    tile: Tile, pieces: Sequence[str], layer: int, head: int, layers: int, heads: int, n_rep: int, note: str = ""
) -> Payload:
    """One head's weights, queries down and keys across.

    Args:
        pieces: the text of each token.
        layers, heads: how many there are to choose from.
        n_rep: query heads that share a key/value head.
        note: what has to be known of the numbers.
    """
    count_q, count_k = tile.weights.shape
    q_index = [tile.q0 + i * tile.factor for i in range(count_q)]
    k_index = [tile.k0 + i * tile.factor for i in range(count_k)]
    later = np.array(k_index)[None] > np.array(q_index)[:, None]
    mask = np.where(tile.masked, np.where(later, 1, 2), 0).astype(np.uint8)
    pooled = None if tile.factor == 1 else {"factor": tile.factor, "how": "max"}
    content: dict[str, Any] = {
        "kind": "attention",
        "title": "Attention",
        "subtitle": f"layer {layer}, head {head} (key/value head {head // n_rep})" + (f" · {note}" if note else ""),
        "rows": [pieces[i] for i in q_index],
        "cols": [pieces[i] for i in k_index],
        "row_title": "query",
        "col_title": "key",
        "row_index": q_index,
        "col_index": k_index,
        "row_axis_cursor": "query",
        "col_axis_cursor": "key",
        "state": "ok",
        "state_text": "",
        "metric": "weight",
        "metrics": ATTENTION_METRICS,
        "controls": [_choice("layer", "Layer", layer, layers), _choice("head", "Head", head, heads)],
        "mask_reasons": REASONS[: 1 + bool((mask == 2).any())],
        "sink_apart": tile.k0 == 0 and count_k > 1,
        "pooled": pooled,
    }
    return Payload(content, {"weight": tile.weights, "mask": mask})


def _choice(name: str, label: str, value: int, count: int) -> dict[str, Any]:
    options = [{"value": i, "label": str(i)} for i in range(count)]
    return {"name": name, "label": label, "kind": "select", "value": value, "options": options}

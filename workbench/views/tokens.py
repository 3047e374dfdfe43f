"""The token strip's picture: one chip a token, coloured by how the model took it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.generation.timeline import Node
from workbench.views.payload import Payload

METRICS = (
    ("surprisal", "surprisal", "nats", 0.0, 10.0, "−log p of this token, given the tokens before it"),
    ("entropy", "entropy", "nats", 0.0, 8.0, "how undecided the model was before this token"),
    ("rank", "rank", "", 1.0, 1000.0, "place of this token among the model's predictions; 1 is the most likely"),
)


def token_strip(nodes: Sequence[Node], pieces: Sequence[str], raw: Sequence[bytes]) -> Payload:
    """Tokens with surprisal, entropy and rank; NaN where nothing predicted the token.

    Args:
        nodes: the tokens, in order.
        pieces: the text of each as shown.
        raw: the bytes of each.
    """
    tokens = [
        {"text": piece, "id": node.token, "source": node.source, "bytes": data.hex(" ")}
        for node, piece, data in zip(nodes, pieces, raw, strict=True)
    ]
    surprisal = [np.nan if node.logprob is None else -node.logprob for node in nodes]
    arrays = {
        "surprisal": np.array(surprisal, np.float32),
        "entropy": np.array([np.nan if node.entropy is None else node.entropy for node in nodes], np.float32),
        "rank": np.array([np.nan if node.rank is None else node.rank for node in nodes], np.float32),
    }
    names = ("name", "label", "unit", "low", "high", "description")
    content = {
        "tokens": tokens,
        "metrics": [dict(zip(names, metric, strict=True)) for metric in METRICS],
        "metric": "surprisal",
        "empty": "Run a prompt to see its tokens here, coloured by how much they surprised the model.",
        "note": "",
    }
    return Payload(content, arrays)

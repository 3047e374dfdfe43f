"""The generation panel's picture: what may come after a token, what that step cost, and the branches there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Candidate, Node
from workbench.views.payload import Payload

EMPTY = "Run a prompt to see which tokens may come next, and to take another one."
FAILED = "The candidates could not be shown."
RUNNING = "running · as it was before"
STALE = "stale · computed before the cache or the edits were changed; the next step reads this token again"


class Branch(NamedTuple):
    """A token that was taken, the last node of the text that goes on from it, and whether it is in the current text."""

    node: Node
    tip: Node
    on_path: bool
    text: str


def without_numbers(state: str, words: str, sampler: Sampler, in_use: bool) -> Payload:
    """No candidates: says in words why."""
    content: dict[str, Any] = {
        "state": state, "state_text": words, "after": None, "tokens": [], "rest": None, "cost": [], "branches": [],
        "sampler": sampler_fields(sampler), "in_use": in_use,
    }  # fmt: skip
    empty = np.zeros(0, np.float32)
    return Payload(content, dict.fromkeys(("p", "share", "logit", "logprob"), empty))


def generation(
    nodes: Sequence[Node],
    at: int,
    candidates: Sequence[Candidate],
    pieces: Sequence[str],
    raw: Sequence[bytes],
    after: str,
    entropy: float,
    others: int,
    branches: Sequence[Branch],
    sampler: Sampler,
    in_use: bool,
    run: int,
    fresh: bool = True,
) -> Payload:
    """The candidates after one token of the text, most likely first.

    Args:
        nodes: the current text.
        at: which of them the candidates come after.
        pieces, raw: text and bytes of each candidate.
        after: the text of the token before.
        entropy: of the whole prediction, in nats.
        others: how many tokens there are besides the candidates.
        branches: the tokens that were taken there.
        sampler: the one the candidates' probabilities are of; `in_use`: whether it is the session's.
        run: the number of the text, which actions carry back.
        fresh: whether the present cache and edits would give the same.
    """
    node = nodes[at]
    taken = {branch.node.token: branch.on_path for branch in sorted(branches, key=lambda branch: branch.on_path)}
    tokens = [
        {
            "text": piece,
            "id": candidate.token,
            "bytes": data.hex(" "),
            "taken": None if candidate.token not in taken else "path" if taken[candidate.token] else "branch",
        }
        for candidate, piece, data in zip(candidates, pieces, raw, strict=True)
    ]
    arrays = {
        "p": np.exp(np.array([candidate.logprob for candidate in candidates], np.float64)).astype(np.float32),
        "share": np.array([candidate.probability for candidate in candidates], np.float32),
        "logit": np.array([candidate.logit for candidate in candidates], np.float32),
        "logprob": np.array([candidate.logprob for candidate in candidates], np.float32),
    }
    content = {
        "state": "ok" if fresh else "stale",
        "state_text": "" if fresh else STALE,
        "run": run,
        "node": node.index,
        "after": {"text": after, "id": node.token, "position": node.position},
        "tokens": tokens,
        "rest": {"count": others, "p": left(arrays["p"]), "share": left(arrays["share"])} if others else None,
        "cost": [*cost(nodes, at), {"label": "entropy", "value": entropy_words(entropy)}],
        "branches": [
            {
                "node": branch.node.index,
                "text": branch.text,
                "id": branch.node.token,
                "source": branch.node.source,
                "on_path": branch.on_path,
                "more": branch.tip.position - branch.node.position,
                "logprob": branch.node.logprob,
            }
            for branch in branches
        ],
        "sampler": sampler_fields(sampler),
        "in_use": in_use,
    }
    return Payload(content, arrays)


def sampler_fields(sampler: Sampler) -> dict[str, Any]:
    """What of a sampler can be chosen in the panel."""
    return {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}


def left(shares: np.ndarray) -> float:
    """What all other tokens have together. Rounding of the candidates' own numbers gives no negative rest."""
    return max(0.0, 1.0 - float(shares.sum(dtype=np.float64)))


def cost(nodes: Sequence[Node], at: int) -> list[dict[str, str]]:
    """What reading a token cost. Where one forward read several, the last of them says what all cost together."""
    charged = next((node for node in nodes[at:] if node.positions_computed), None)
    if charged is None:
        return [{"label": "cost", "value": "not known"}]
    count = charged.positions_computed
    positions = f"{count:,} position{'s' * (count != 1)} computed"
    if charged is not nodes[at]:
        positions += f", up to position {charged.position}"
    held = "keeps nothing" if charged.cache == "none" else bytes_words(charged.cache_bytes)
    return [
        {"label": charged.phase, "value": positions},
        {"label": "time", "value": time_words(charged.ms)},
        {"label": "cache", "value": f"{charged.cache}, {held}"},
    ]


def time_words(ms: float) -> str:
    """Milliseconds, or seconds where there are many."""
    return f"{ms / 1000:,.1f} s" if ms >= 10_000 else f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def bytes_words(count: int) -> str:
    """Bytes in the unit that suits: 1 kB is 1,000 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count} bytes"


def entropy_words(entropy: float) -> str:
    """Nats, and as how many equally likely tokens that is."""
    return f"{entropy:.2f} nats, as {math.exp(entropy):,.1f} equally likely tokens"

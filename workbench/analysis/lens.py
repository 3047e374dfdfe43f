"""Logit lens (nostalgebraist 2020): what each layer's residual stream would predict if it were the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analysis.arguments import at_least_one, whole, whole_numbers
from workbench.analysis.predictions import Scratch, head_blocks, predictions
from workbench.analysis.stream import EMBED, Layer, Positions, followers, residual_stream
from workbench.instrument import Activations
from workbench.model import LlamaForCausalLM

Array = npt.NDArray[np.float32]


class Pieces(Protocol):
    """What names tokens: a `LlamaTokenizer`."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        ...


TOP = "of the most likely tokens"
CHUNK = 248  # rows of logits held at once: 248 × 49,152 × 4 bytes = 49 MB
WINDOW = 2048  # residual states gathered at once: 5 MB for the default model
LOGITS = 1 << 24  # and no more than so many numbers, whatever the vocabulary: 64 MB


@dataclasses.dataclass(frozen=True)
class Lens:
    """One row a residual state (the embedding, then each layer), one column a position.

    `top_ids` (state, pos, k) are −1 and the floats NaN where nothing was computed yet. `entropy` is in nats.
    `next_rank` (from 1) and `next_p` are of the token that really followed; NaN where none is known, as at the last
    position, and where the token's logit is NaN, as that of a state that is not finite.

    `kl` is KL(final ‖ state) in nats, Σ p_final · ln(p_final / p_state), where final is the model's own prediction at
    that position: what it costs, in nats a token, to encode what the model predicts with what the state predicts. So
    far states count by what they miss of the final prediction, and it is 0 in the last row; the same direction as in
    the tuned lens (Belrose et al. 2023, arXiv 2303.08112). NaN if the final state was not there.

    `token_logprob` (nats) and `token_rank` (state, pos, token) are of `token_ids`, the tokens that were asked about.
    `layers` and `positions` say what the rows and columns are; −1 is the embedding.
    """

    top_ids: npt.NDArray[np.int32]
    top_p: Array
    entropy: Array
    next_p: Array
    next_rank: Array
    kl: Array
    token_logprob: Array
    token_rank: Array
    token_ids: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    @classmethod
    def empty(
        cls,
        states: int | Sequence[int],
        positions: int | Sequence[int],
        k: int = 5,
        token_ids: Sequence[int] = (),
    ) -> Lens:
        """All cells not computed yet.

        Args:
            states, positions: which rows and columns; a number means the first ones.
            k: how many of the most likely tokens are kept.
            token_ids: tokens asked about besides the following one.
        """
        layers = np.arange(states) + EMBED if isinstance(states, int) else np.array(states, np.int64)
        columns = np.arange(positions) if isinstance(positions, int) else np.array(positions, np.int64)
        shape = (len(layers), len(columns))

        def blank(*more: int) -> Array:
            return np.full((*shape, *more), np.nan, np.float32)

        return cls(
            top_ids=np.full((*shape, k), -1, np.int32),
            top_p=blank(k),
            entropy=blank(),
            next_p=blank(),
            next_rank=blank(),
            kl=blank(),
            token_logprob=blank(len(token_ids)),
            token_rank=blank(len(token_ids)),
            token_ids=np.array(token_ids, np.int64),
            layers=layers,
            positions=columns,
        )

    @property
    def length(self) -> int:
        """Number of positions, computed or not."""
        return int(self.top_ids.shape[1])

    @property
    def token_p(self) -> Array:
        """Probability of the tokens asked about, (state, pos, token)."""
        return np.exp(self.token_logprob)

    @property
    def computed(self) -> npt.NDArray[np.bool_]:
        """Whether a position's column is there."""
        return self.top_ids[0, :, 0] >= 0

    @property
    def progress(self) -> int:
        """Counts the columns that are there and those whose next token is known: grows with every `write`."""
        return int(self.computed.sum() + np.isfinite(self.next_rank[0]).sum())

    def to_pandas(self, tokenizer: Pieces) -> pd.DataFrame:
        """One row a computed cell; `layer` is −1 for the embedding, entropy and KL(final ‖ state) in nats."""
        states, columns = np.nonzero(self.top_ids[:, :, 0] >= 0)
        top = self.top_ids[states, columns]
        frame = pd.DataFrame(
            {
                "layer": self.layers[states],
                "position": self.positions[columns],
                "top": tokenizer.pieces(top[:, 0].tolist()),
                "p": self.top_p[states, columns, 0],
            }
        )
        for name in ("entropy", "next_p", "next_rank", "kl"):
            frame[name] = getattr(self, name)[states, columns]
        for i, token in enumerate(self.token_ids):
            frame[f"p of {token}"] = self.token_p[states, columns, i]
            frame[f"rank of {token}"] = self.token_rank[states, columns, i]
        return frame

    def missing(self) -> range:
        """The columns to compute: not there yet, or computed before the token that follows was known."""
        incomplete = ~self.computed
        waiting = np.isnan(self.next_rank[0]) & np.isfinite(self.entropy[0])  # not for the rank of what is no number
        incomplete[:-1] |= waiting[:-1]
        where = incomplete.nonzero()[0]
        return range(int(where[0]), int(where[-1]) + 1) if len(where) else range(0)

    def write(self, base: int, start: int, columns: Lens) -> None:
        """Puts columns at `base + start`. `top_ids` last: they say that a column is complete."""
        first = base + start
        for name in reversed(PER_CELL):
            part = getattr(columns, name)
            getattr(self, name)[:, first : first + part.shape[1]] = part

    def resized(self, positions: int) -> Lens:
        """The same lens with columns cut off or not-computed ones added at the end."""
        old, k = self.top_ids.shape[1:]
        more = np.arange(positions - old) + (self.positions[-1] + 1 if old else 0)
        columns = np.concatenate((self.positions, more))[:positions]
        grown = Lens.empty(self.layers.tolist(), columns.tolist(), k, self.token_ids.tolist())
        for name in PER_CELL:
            getattr(grown, name)[:, : min(old, positions)] = getattr(self, name)[:, :positions]
        return grown


PER_CELL = ("top_ids", "top_p", "entropy", "next_p", "next_rank", "kl", "token_logprob", "token_rank")


def logit_lens(
    model: LlamaForCausalLM,
    acts: Activations,
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    tokens: int | Sequence[int] | None = None,
    k: int = 10,
    row: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> Lens:
    """What each captured residual state would predict if it were the last (nostalgebraist 2020).

        with capture(model, "embed", "resid_post") as acts:
            model(ids)
        logit_lens(model, acts).to_pandas(tokenizer)

    Computed in chunks of positions and of the vocabulary: less than 100 MB besides the result. `kl` compares with the
    state after the last layer; where that was not captured it is NaN.

    Args:
        acts: a capture of `embed` and `resid_post`, or of `resid_pre`.
        layers: numbers of layers, for the states after them, and `"embed"`; default all that were captured.
        positions: a slice or numbers of positions in the text, negative ones from the end; default all captured.
        tokens: ids of tokens whose log-probability and rank are wanted in every cell, besides the following token's.
        k: how many of the most likely tokens to keep.
        row: of the batch.
        should_stop: asked every few ten milliseconds; the rest stays not computed.

    Raises:
        KeyError: for states that were not captured.
        ValueError: for positions that were not captured, tokens outside the vocabulary, a `k` below 1.
        TypeError: for positions, tokens, a row or a `k` that are no whole numbers.
    """
    stream = residual_stream(acts, layers, positions, row)
    last, vocabulary = model.config.num_hidden_layers - 1, model.config.vocab_size
    final_there = ("resid_post", last) in acts
    if final_there and stream.layers[-1] != last:  # to compare with
        stream = dataclasses.replace(stream, names=(*stream.names, f"layers.{last}.resid_post"))
    asked = [] if tokens is None else whole_numbers(tokens, "token")
    check_tokens(asked, vocabulary)
    k = at_least_one(k, "k", TOP)
    lens = Lens.empty(stream.layers, stream.positions.tolist(), min(k, vocabulary), asked)
    following = followers(acts, stream.positions, row)

    def keep(base: int, start: int, columns: Lens) -> None:
        columns = dataclasses.replace(columns, **{n: getattr(columns, n)[: len(stream.layers)] for n in PER_CELL})
        if not final_there:
            columns.kl[:] = np.nan
        lens.write(base, start, columns)

    step = max(1, WINDOW // len(stream.names))
    for base in range(0, lens.length, step):
        part = slice(base, base + step)
        lens_columns(model, stream.states(part), following[part], k, should_stop, partial(keep, base), asked)
        if not lens.computed[part].all():
            break
    return lens


@torch.no_grad()
def lens_columns(
    model: LlamaForCausalLM,
    states: Float[Tensor, "state pos d_model"],
    followers: Int[Tensor, " pos"],
    k: int = 5,
    should_stop: Callable[[], bool] = lambda: False,
    on_columns: Callable[[int, Lens], None] | None = None,
    tokens: Sequence[int] = (),
) -> Lens:
    """The lens of some positions: final norm and head applied to every residual state, in chunks.

    Args:
        states: the embedding and each layer's `resid_post`; the last row gives the model's own prediction.
        followers: the token after each position; −1 where there is none.
        should_stop: asked between chunks of the vocabulary; the rest stays not computed.
        on_columns: told (first column, lens of these columns) as they are done.
        tokens: ids whose log-probability and rank are wanted besides.
    """
    k = at_least_one(k, "k", TOP)
    count, length, _ = states.shape
    vocabulary = model.config.vocab_size
    done = Lens.empty(count, length, min(k, vocabulary), tokens)
    step = max(1, min(CHUNK, LOGITS // vocabulary) // count)
    scratch = Scratch()
    for start in range(0, length, step):
        if should_stop():
            break
        part = slice(start, start + step)
        found = _columns(model, states[:, part], followers[part], k, tokens, should_stop, scratch)
        if found is None:
            break
        done.write(0, start, found[0])
        if on_columns is not None:
            on_columns(start, found[0])
    return done


@torch.no_grad()
def lens_step(
    model: LlamaForCausalLM,
    states: Float[Tensor, "state d_model"],
    k: int = 10,
    tokens: Sequence[int] = (),
    position: int = 0,
) -> tuple[Float[Tensor, "1 vocab"], Lens]:
    """The lens of one position, and the model's logits there, by one product with the head for both.

    A decode step that is looked at need not compute its head twice: run the model without its head,

        with capture(model, "embed", "resid_post") as acts:
            model.model(ids, past_key_values=cache)
        logits, lens = lens_step(model, newest_states(acts))

    and take the next token from `logits`.

    Args:
        states: the embedding and each layer's `resid_post` of the newest token; the last row is the final one.
        k: how many of the most likely tokens to keep.
        tokens: ids whose log-probability and rank are wanted.
        position: of the token in the text.

    Returns:
        The logits, which equal the model's up to rounding, and a lens of one column.
    """
    k = at_least_one(k, "k", TOP)
    found = _columns(model, states[:, None], torch.tensor([-1]), k, tokens, lambda: False, Scratch())
    assert found is not None
    return found[1], dataclasses.replace(found[0], positions=np.array([position], np.int64))


def newest_states(acts: Activations, row: int = 0) -> Float[Tensor, "state d_model"]:
    """The residual states of the last captured position, as `lens_step` takes them.

    Raises:
        KeyError, ValueError: as `residual_stream`.
    """
    return residual_stream(acts, positions=-1, row=row).states()[:, 0]


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises `ValueError` for a token outside the vocabulary, `TypeError` for one that is no whole number."""
    for token in tokens:
        if not 0 <= whole(token, "token") < vocabulary:
            raise ValueError(f"token {token} does not exist; ids lie in 0 … {vocabulary - 1}.")


def _columns(
    model: LlamaForCausalLM,
    states: Float[Tensor, "state pos d_model"],
    followers: Int[Tensor, " pos"],
    k: int,
    tokens: Sequence[int],
    should_stop: Callable[[], bool],
    scratch: Scratch,
) -> tuple[Lens, Float[Tensor, "pos vocab"]] | None:
    """The lens of a few positions and the logits of their last states; `None` if stopped."""
    count, width, _ = states.shape
    asked = (
        torch.cat((followers[:, None], torch.tensor([tokens]).expand(width, -1)), 1) if tokens else followers[:, None]
    )
    asked = asked.to(model.device).repeat_interleave(count, 0)
    blocks = head_blocks(model, states.transpose(0, 1).flatten(0, 1))
    found = predictions(blocks, count, asked.clamp(min=0), k, should_stop, scratch)
    if found is None:
        return None

    def by_state(x: Tensor) -> npt.NDArray[np.float32]:
        return x.view(width, count, *x.shape[1:]).transpose(0, 1).float().cpu().numpy()

    logprob, rank = by_state(found.logprob), by_state(found.rank)
    rank[rank == 0] = np.nan
    known = (followers >= 0).numpy()
    lens = Lens.empty(count, width, found.top_ids.shape[1], tokens)
    lens = dataclasses.replace(
        lens,
        top_ids=found.top_ids.view(width, count, -1).transpose(0, 1).cpu().numpy().astype(np.int32),
        top_p=np.exp(by_state(found.top_logprobs)),
        entropy=by_state(found.entropy),
        next_p=np.where(known, np.exp(logprob[:, :, 0]), np.nan).astype(np.float32),
        next_rank=np.where(known, rank[:, :, 0], np.nan).astype(np.float32),
        kl=by_state(found.kl),
        token_logprob=logprob[:, :, 1:],
        token_rank=rank[:, :, 1:],
    )
    return lens, found.final_logits

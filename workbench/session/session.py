"""Session: a model, its tokenizer, the current text and the cursor."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import traitlets

from workbench.analysis.attention import AttentionMap
from workbench.analysis.lens import Lens
from workbench.checkpoints.load import Loaded
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node
from workbench.instrument import Cancelled
from workbench.model import LlamaForCausalLM
from workbench.session.cursor import Cursor
from workbench.session.run import Run
from workbench.tokenizer import LlamaTokenizer

CHUNK = 512  # positions of a prompt read by one forward: bounds the logits held and the wait for Stop


def _never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Progress:
    """How many tokens of a job are done, and what it is doing."""

    done: int
    total: int
    doing: str


class BusyError(RuntimeError):
    """Another job runs on this model."""


class Session(traitlets.HasTraits):
    """What all panels of one page share.

    Methods that compute may be called from any thread, one at a time; each takes `should_stop`, asked between layers
    and between tokens. A failed or stopped call leaves finished tokens in place and everything else as it was. They end
    with `follow()`, which sets traits; on a worker thread pass `follow=False` and call it where traits may be set.

    Args:
        model: a `LlamaForCausalLM`, or what `workbench.load()` returned.
        tokenizer: needed with a bare model.
        name: shown on the page; by default the loaded one's.
    """

    revision = traitlets.Int(0, help="counts the changes of the text that were followed")

    def __init__(
        self, model: LlamaForCausalLM | Loaded, tokenizer: LlamaTokenizer | None = None, name: str | None = None
    ) -> None:
        if isinstance(model, Loaded):
            tokenizer, name, model = tokenizer or model.tokenizer, name or model.name, model.model
        if not isinstance(model, LlamaForCausalLM):
            raise TypeError(
                f"Session needs a LlamaForCausalLM or what workbench.load() returned; got {type(model).__name__}."
            )
        if tokenizer is None:
            raise TypeError("Session(model) needs the tokenizer too: Session(model, tokenizer), or Session(load()).")
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name or "Llama"
        self.sampler = Sampler()
        self.current: Run | None = None
        self.progress: Progress | None = None
        self.cursor = Cursor(model.config.num_hidden_layers, model.config.num_attention_heads)
        self._lock = threading.Lock()
        self._followed: tuple[Run | None, int] = (None, 0)

    # --- computing -----------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 0,
        chat: bool = False,
        sampler: Sampler | None = None,
        should_stop: Callable[[], bool] = _never,
        follow: bool = True,
    ) -> Run:
        """Reads a prompt and generates up to `max_new_tokens` tokens after it.

        The new text replaces the current one as soon as its prompt has been read; until then a failure or a stop leaves
        the current one.

        Args:
            chat: put the prompt into the model's chat template, as a user's message.
            sampler: kept for later steps too.

        Raises:
            ValueError: for an empty prompt, one past the model's length, or a negative `max_new_tokens`.
            TypeError: for a prompt that is no text, or a count that is no whole number.
            Cancelled: if stopped before the prompt was read.
            BusyError: if another job runs.
        """
        _check_count(max_new_tokens)
        ids = self._tokenize(prompt, chat)
        with self._job():
            run = Run(self.model, prompt, chat, sampler or self.sampler)
            for start in range(0, len(ids), CHUNK):
                run.read_prompt(ids[start : start + CHUNK], should_stop, partial(self._show_reading, start, len(ids)))
            self.sampler, self.current = run.sampler, run
            self._continue(run, max_new_tokens, should_stop)
        if follow:
            self.follow()
        return run

    def generate(
        self,
        max_new_tokens: int,
        *,
        sampler: Sampler | None = None,
        should_stop: Callable[[], bool] = _never,
        follow: bool = True,
    ) -> list[Node]:
        """Up to `max_new_tokens` more tokens; fewer after an end token, at the model's length, or when stopped.

        Raises:
            ValueError: if there is no text yet, no room for another token, or the count is negative.
            TypeError: for a count that is no whole number.
            BusyError: if another job runs.
        """
        _check_count(max_new_tokens)
        with self._job():
            run = self._need_run()
            if run.length >= self.model.config.max_position_embeddings:
                raise ValueError(
                    f"The text fills all {run.length} positions of the model (max_position_embeddings). "
                    "Run a shorter prompt to generate more."
                )
            if sampler is not None:
                self.sampler = sampler
                run.use(sampler)
            nodes = self._continue(run, max_new_tokens, should_stop)
        if follow:
            self.follow()
        return nodes

    def step(
        self, *, sampler: Sampler | None = None, should_stop: Callable[[], bool] = _never, follow: bool = True
    ) -> Node:
        """One more token, after an end token too.

        Raises:
            ValueError: if there is no text yet, or no room for another token.
            Cancelled: if stopped before the token was there.
            BusyError: if another job runs.
        """
        nodes = self.generate(1, sampler=sampler, should_stop=should_stop, follow=follow)
        if not nodes:
            raise Cancelled
        return nodes[0]

    def follow(self) -> None:
        """Tells the cursor and the panels of new tokens. Sets traits, so call it where the page's other traits are set.

        A new text puts the cursor on its last token; afterwards a cursor on the last token stays on the last one, and
        one that was moved elsewhere stays where it is.
        """
        run = self.current
        if run is None:
            return
        length, (last_run, before) = run.length, self._followed
        if run is last_run and length == before:
            return
        self._followed = (run, length)
        at_end = run is not last_run or self.cursor.query == before - 1
        number = self.cursor.run + (run is not last_run)
        self.cursor.follow(number, run.prompt_length, length, length - 1 if at_end else None)
        self.revision += 1

    # --- looking -------------------------------------------------------------------------------------------------

    @property
    def attention(self) -> AttentionMap:
        """Exact attention of the current text, computed on demand."""
        run = self._need_run()
        return AttentionMap(run.acts, run.length)

    def lens(self, *, should_stop: Callable[[], bool] = _never) -> Lens:
        """The logit lens of the current text; columns are computed once and kept. Stopped, the rest is NaN.

        Not a job: it may run beside a generation, and stops when another text takes this one's place.
        """
        run = self._need_run()
        return run.compute_lens(lambda: should_stop() or self.current is not run)

    def to_pandas(self) -> pd.DataFrame:
        """The current text, one row a token; log-probabilities, surprisal and entropy in nats."""
        nodes = self._need_run().nodes
        frame = pd.DataFrame([dataclasses.asdict(node) for node in nodes]).drop(columns=["index", "parent"])
        frame.insert(0, "text", self.tokenizer.pieces([node.token for node in nodes]))
        frame.insert(3, "surprisal", [None if node.logprob is None else -node.logprob for node in nodes])
        frame.index.name = "position"
        return frame

    # --- inside --------------------------------------------------------------------------------------------------

    def _tokenize(self, prompt: str, chat: bool) -> list[int]:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt is a {type(prompt).__name__}; give the text itself, as a str.")
        if not prompt.strip():
            raise ValueError("The prompt is empty. Type some text, then run.")
        if chat:
            message = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        else:
            ids = self.tokenizer.encode(prompt)
        limit = self.model.config.max_position_embeddings
        if len(ids) > limit:
            raise ValueError(
                f"The prompt has {len(ids):,} tokens, but the model was trained for at most {limit:,} positions "
                f"(max_position_embeddings). Shorten it by {len(ids) - limit:,} tokens."
            )
        return list(ids)

    def _show_reading(self, start: int, total: int, layer: int) -> None:
        share = layer / self.model.config.num_hidden_layers
        self.progress = Progress(start + int(min(CHUNK, total - start) * share), total, "reading the prompt")

    def _need_run(self) -> Run:
        if self.current is None:
            raise ValueError("There is no text yet. Run a prompt first: session.run('…').")
        return self.current

    @contextmanager
    def _job(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise BusyError("The model is busy with another job. Stop it or wait until it is done.")
        try:
            yield
        finally:
            self.progress = None
            self._lock.release()

    def _continue(self, run: Run, count: int, should_stop: Callable[[], bool]) -> list[Node]:
        nodes: list[Node] = []
        room = self.model.config.max_position_embeddings - run.length
        for _ in range(min(count, room)):
            self.progress = Progress(len(nodes), count, "generating tokens")
            if should_stop():
                break
            try:
                nodes.append(run.sample(should_stop))
            except Cancelled:
                break
            if nodes[-1].token in self.model.config.eos_token_ids:
                break
        return nodes


def _check_count(count: Any) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"max_new_tokens is {count!r}; it must be a whole number, 0 or more.")
    if count < 0:
        raise ValueError(f"max_new_tokens is {count}; it must be 0 or more.")

"""What runs on a session's model, one at a time, and how the page learns of it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import traitlets

from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Stop
from workbench.model import LlamaForCausalLM
from workbench.session.cursor import Cursor
from workbench.session.run import Run
from workbench.tokenizer import LlamaTokenizer


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclasses.dataclass(frozen=True)
class Progress:
    """How many tokens of a job are done, and what it is doing."""

    done: int
    total: int
    doing: str


class BusyError(RuntimeError):
    """Another job runs on this model."""


class Jobs(traitlets.HasTraits):
    """The state of a session, and what its methods share."""

    revision = traitlets.Int(0, help="counts the changes of the text that were followed")
    choices = traitlets.Int(0, help="counts the changes of sampler, cache and edits by `use`")

    def __init__(self, model: LlamaForCausalLM, tokenizer: LlamaTokenizer, name: str) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.sampler = Sampler()
        self.cache = "dynamic"
        self.cache_config: dict[str, Any] = {}
        self.edits: Any = ()
        self.current: Run | None = None
        self.progress: Progress | None = None
        self.cursor = Cursor(model.config.num_hidden_layers, model.config.num_attention_heads)
        self._lock = threading.Lock()
        self._followed: tuple[Run | None, Node | None] = (None, None)

    @property
    def busy(self) -> bool:
        """Whether a job runs on the model."""
        return self._lock.locked()

    def follow(self) -> None:
        """Tells the cursor and the panels of new tokens. Sets traits, so call it where the page's other traits are set.

        A new text puts the cursor on its last token; afterwards a cursor on the last token stays on the last one, and
        one that was moved elsewhere stays where it is, as long as the text reaches there.
        """
        run = self.current
        if run is None:
            return
        leaf, (last_run, before) = run.leaf, self._followed
        if run is last_run and leaf is before:
            return
        self._followed = (run, leaf)
        length = 0 if leaf is None else leaf.position + 1
        at_end = run is not last_run or before is None or self.cursor.query == before.position
        number = self.cursor.run + (run is not last_run)
        query = length - 1 if at_end else min(self.cursor.query, length - 1)
        self.cursor.follow(number, min(run.prompt_length, length), length, query)
        self.revision += 1

    def _show_reading(self, done: int, total: int) -> None:
        self.progress = Progress(done, total, "reading the prompt")

    def _cache_for(self, cache: str | None, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
        """The cache and its options: what is given, else what there was."""
        if cache is None:
            return self.cache, self.cache_config if options is None else dict(options)
        return cache, dict(options or {})

    def _choose(self, run: Run, sampler: Sampler | None) -> None:
        if sampler is not None:
            run.use(sampler)
            self.sampler = run.sampler

    def _check_room(self, run: Run) -> None:
        if run.length >= self.model.config.max_position_embeddings:
            raise ValueError(
                f"The text fills all {run.length} positions of the model (max_position_embeddings). "
                "Run a shorter prompt to generate more."
            )

    def _need_run(self) -> Run:
        if self.current is None:
            raise ValueError("There is no text yet. Run a prompt first: session.run('…').")
        return self.current

    @contextmanager
    def _job(self, follow: bool = False) -> Iterator[None]:
        """What others wait for. The cursor follows what there is then, also after an exception."""
        if not self._lock.acquire(blocking=False):
            raise BusyError("The model is busy with another job. Stop it or wait until it is done.")
        try:
            yield
        finally:
            self.progress = None
            self._lock.release()
            if follow:
                self.follow()

    @contextmanager
    def _changing(self, follow: bool) -> Iterator[Run]:
        """A job on the current run."""
        with self._job(follow):
            yield self._need_run()

    def _continue(self, run: Run, count: int, should_stop: Callable[[], bool]) -> list[Node]:
        return self._run_until(run, (None, True, None, None, count), should_stop).nodes

    def _run_until(self, run: Run, breakpoints: tuple[Any, ...], should_stop: Callable[[], bool]) -> Stop:
        room, wanted = run.timeline.room, breakpoints[-1]
        most = min(wanted, room) if isinstance(wanted, int) else room
        done = 0

        def show(node: Node) -> None:
            nonlocal done
            done += 1
            self.progress = Progress(done, most, "generating tokens")

        self.progress = Progress(0, most, "generating tokens")
        return run.timeline.run_until(*breakpoints, should_stop=should_stop, on_node=show)

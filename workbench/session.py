"""Session: a model, its tokenizer, one text being generated, and the cursor. All mutable state; no widgets."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
import traitlets
from torch import Tensor

from workbench.analysis.attention import AttentionMap
from workbench.analysis.lens import Lens, lens_columns
from workbench.cache import DynamicCache
from workbench.checkpoints.load import Loaded
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Source, Timeline, score_tokens
from workbench.instrument import Activations, Cancelled, cancellable, capture
from workbench.model import LlamaForCausalLM
from workbench.tokenizer import LlamaTokenizer

CAPTURED = ("embed", "resid_post", "q_rot", "k_rot")
LENS_BLOCK = 256  # positions whose residual states are gathered at once: 18 MB for the default model
CHUNK = 512  # positions of a prompt read by one forward: bounds the logits held and the wait for Stop


def _never() -> bool:
    return False


class Cursor(traitlets.HasTraits):
    """The place everybody looks at. Setting a trait moves every linked panel; a click sets it.

    `query` and `key` are token positions, `layer` and `head` count from 0, `run` counts prompts from 1, `step` counts
    generated tokens: it is 0 while `query` is in the prompt, and setting it moves `query` to that token. Values outside
    the text or the model raise `TraitError`.
    """

    run = traitlets.Int(0)
    step = traitlets.Int(0)
    query = traitlets.Int(0)
    key = traitlets.Int(0)
    layer = traitlets.Int(0)
    head = traitlets.Int(0)

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self._limits = {"layer": layers, "head": heads, "query": 1, "key": 1}

    @traitlets.validate("query", "key", "layer", "head")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, int(proposal["value"])
        count = self._limits[name]
        if not 0 <= value < count:
            things = {"layer": "layers", "head": "query heads"}.get(name, "positions")
            raise traitlets.TraitError(f"cursor.{name} is {value}; there are {things} 0 … {count - 1}.")
        return value

    def move(self, **values: int) -> None:
        """Sets several at once: observers are told when all are set, and none is if one is refused."""
        unknown = sorted(set(values) - set(self.trait_names()))
        if unknown:
            raise ValueError(f"the cursor has no {', '.join(unknown)}; it has {', '.join(sorted(self.trait_names()))}.")
        with self.hold_trait_notifications():
            for name, value in values.items():
                setattr(self, name, value)

    def set_length(self, positions: int) -> None:
        """Says how many positions there are; the cursor is pulled back where it would be past the end."""
        self._limits["query"] = self._limits["key"] = max(positions, 1)
        with self.hold_trait_notifications():
            self.query, self.key = min(self.query, max(positions - 1, 0)), min(self.key, max(positions - 1, 0))


@dataclasses.dataclass
class Run:
    """One text: its prompt, what was generated after it, and everything that was kept of computing it."""

    prompt: str
    chat: bool
    prompt_length: int
    timeline: Timeline
    cache: DynamicCache
    acts: Activations
    logits: Tensor  # of the next token, (vocab,)
    generator: torch.Generator
    leaf: int = -1
    lens: Lens | None = None
    length: int = 0  # tokens that are complete everywhere: timeline, cache and captures

    @property
    def nodes(self) -> list[Node]:
        """The tokens of the text, in order."""
        return self.timeline.path(self.leaf)

    @property
    def token_ids(self) -> list[int]:
        """Their ids."""
        return [node.token for node in self.nodes]


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
    """

    revision = traitlets.Int(0, help="counts the changes of the text that were followed")

    def __init__(
        self, model: LlamaForCausalLM | Loaded, tokenizer: LlamaTokenizer | None = None, name: str | None = None
    ) -> None:
        if not isinstance(model, LlamaForCausalLM):
            tokenizer, name, model = tokenizer or model.tokenizer, name or model.name, model.model
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
        self.cursor.observe(self._query_moved, "query")
        self.cursor.observe(self._step_moved, "step")

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
            BusyError: if another job runs.
        """
        ids = self._tokenize(prompt, chat, max_new_tokens)
        with self._job():
            chosen = sampler or self.sampler
            run = Run(
                prompt=prompt,
                chat=chat,
                prompt_length=len(ids),
                timeline=Timeline(),
                cache=DynamicCache(),
                acts=Activations(),
                logits=torch.empty(0),
                generator=chosen.generator(self.model.device),
            )
            self.progress = Progress(0, len(ids), "reading the prompt")
            for start in range(0, len(ids), CHUNK):
                self._read(run, ids[start : start + CHUNK], "prompt", should_stop)
                self.progress = Progress(run.length, len(ids), "reading the prompt")
            self.sampler, self.current = chosen, run
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
            ValueError: if there is no text yet, or no room for another token.
        """
        run = self._need_run()
        if run.length >= self.model.config.max_position_embeddings:
            raise ValueError(
                f"The text fills all {run.length} positions of the model (max_position_embeddings). "
                "Run a shorter prompt to generate more."
            )
        with self._job():
            if sampler is not None and sampler != self.sampler:
                self.sampler, run.generator = sampler, sampler.generator(self.model.device)
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
        new_run, length, before = run is not self._followed[0], run.length, self._followed[1]
        if not new_run and length == before:
            return
        self._followed = (run, length)
        at_end = new_run or self.cursor.query == before - 1
        self.cursor.set_length(length)
        with self.cursor.hold_trait_notifications():
            if new_run:
                self.cursor.run += 1
                self.cursor.key = 0
            if at_end:
                self.cursor.query = length - 1
        self._query_moved(None)  # the same position may be another step of another text
        self.revision += 1

    # --- looking -------------------------------------------------------------------------------------------------

    @property
    def attention(self) -> AttentionMap:
        """Exact attention of the current text, computed on demand."""
        run = self._need_run()
        return AttentionMap(run.acts, run.length)

    def lens(self, *, should_stop: Callable[[], bool] = _never) -> Lens:
        """The logit lens of the current text. Columns are computed once and kept; stopped, the rest is NaN.

        About 20 ms a token of a 30-layer model with 49,152 tokens. Not a job: it may run beside a generation.
        """
        run = self._need_run()
        tokens = [*run.token_ids[: run.length], -1]
        if run.lens is None:
            run.lens = Lens.empty(self.model.config.num_hidden_layers + 1, run.length)
        elif run.lens.computed.shape[0] != run.length:
            run.lens = run.lens.resized(run.length)
        lens = run.lens
        missing = lens.missing()
        for start in range(missing.start, missing.stop, LENS_BLOCK):
            if should_stop():
                break
            stop = min(start + LENS_BLOCK, missing.stop)
            followers = torch.tensor(tokens[start + 1 : stop + 1])
            lens_columns(
                self.model,
                self.residual_states(start, stop),
                followers,
                should_stop=should_stop,
                on_columns=functools.partial(lens.write, start),
            )
        return lens

    def residual_states(self, start: int, stop: int) -> Tensor:
        """The embedding and each layer's `resid_post` of some positions, (layers + 1, pos, d_model)."""
        acts = self._need_run().acts
        names = ["embed", *(f"layers.{i}.resid_post" for i in range(self.model.config.num_hidden_layers))]
        return torch.stack([acts.window(name, start, stop)[0] for name in names])

    def to_pandas(self) -> pd.DataFrame:
        """The current text, one row a token; log-probabilities, surprisal and entropy in nats."""
        nodes = self._need_run().nodes
        frame = pd.DataFrame([dataclasses.asdict(node) for node in nodes]).drop(columns=["index", "parent"])
        frame.insert(0, "text", self.tokenizer.pieces([node.token for node in nodes]))
        frame.insert(3, "surprisal", [None if node.logprob is None else -node.logprob for node in nodes])
        frame.index.name = "position"
        return frame

    # --- inside --------------------------------------------------------------------------------------------------

    def _query_moved(self, change: Any) -> None:
        if self.current is not None:
            self.cursor.step = max(0, self.cursor.query - self.current.prompt_length + 1)

    def _step_moved(self, change: Any) -> None:
        if self.current is not None and self.cursor.step:
            self.cursor.query = self.cursor.step + self.current.prompt_length - 1

    def _tokenize(self, prompt: str, chat: bool, new: int) -> list[int]:
        if not prompt or not prompt.strip():
            raise ValueError("The prompt is empty. Type some text, then run.")
        if new < 0:
            raise ValueError(f"max_new_tokens is {new}; it must be 0 or more.")
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
            token = int(self.sampler.pick(run.logits[None], run.generator)[0])
            try:
                self._read(run, [token], "sampled", should_stop)
            except Cancelled:
                break
            nodes.append(run.timeline.nodes[run.leaf])
            if token in self.model.config.eos_token_ids:
                break
        return nodes

    @torch.no_grad()
    def _read(self, run: Run, ids: list[int], source: Source, should_stop: Callable[[], bool]) -> None:
        """One forward over new tokens: extends cache, captures and timeline by all of them, or by none."""
        start, began = run.length, time.perf_counter()
        try:
            with cancellable(self.model, should_stop), capture(self.model, *CAPTURED) as acts:
                out = self.model(torch.tensor([ids], device=self.model.device), past_key_values=run.cache)
        except BaseException:
            run.cache.crop(start)
            raise
        ms = (time.perf_counter() - began) * 1e3
        logits = out.logits[0]
        # Each token was predicted by the logits before it: the first of this chunk by the previous forward's.
        before = torch.cat([run.logits[None], logits[:-1]]) if start else logits[:-1]
        targets = torch.tensor(ids if start else ids[1:], device=logits.device)
        scores = score_tokens(before, targets) if len(targets) else None
        run.acts.extend(acts)
        for i, token in enumerate(ids):
            row = i if start else i - 1
            parent = run.leaf if run.leaf >= 0 else None
            run.leaf = run.timeline.add(token, source, parent, scores if row >= 0 else None, max(row, 0)).index
        run.timeline.record_cost(run.leaf, ms, len(ids), run.cache.nbytes)
        run.logits = logits[-1].clone()
        run.length = start + len(ids)

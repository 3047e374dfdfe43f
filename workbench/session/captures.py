"""What is captured along the current path: residual states, queries and keys, and the lens made of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.lens import Lens, lens_columns
from workbench.generation.timeline import Node
from workbench.instrument import Activations, capture
from workbench.model import LlamaForCausalLM

CAPTURED = ("embed", "resid_post", "q_rot", "k_rot")
LENS_BLOCK = 256  # positions whose residual states are gathered at once: 18 MB for the default model


class View(NamedTuple):
    """What others may look at, all of it at once: a text and what was captured of it, at least up to its end."""

    leaf: Node | None
    acts: Activations

    @property
    def length(self) -> int:
        """Number of tokens."""
        return 0 if self.leaf is None else self.leaf.position + 1


class Captures:
    """Observes the forwards of a timeline.

    Activations that are shown only grow: where a branch or another cache replaces some, others take their place, so
    that whoever looks at the old ones on another thread sees one text.

    Attributes:
        view: the text and its activations.
        lens: as far as it was computed; never of another text than the view's.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.view = View(None, Activations())
        self.lens: Lens | None = None
        self._line: list[int] = []  # the node at each captured position
        self._fresh: list[Activations] = []
        self._lock = threading.RLock()  # of view and lens together
        self._lens_lock = threading.Lock()

    # --- what the timeline tells -------------------------------------------------------------------------------------

    @contextmanager
    def watch(self, start: int) -> Iterator[None]:
        """Captures one forward."""
        with capture(self.model, *CAPTURED) as acts:
            yield
        self._fresh.append(acts)

    def keep(self, start: int, nodes: Sequence[Node]) -> None:
        """Makes what was watched the captures of these positions: all of it or, on any exception, nothing."""
        acts, grows = self.view.acts, start == len(self._line)
        if not grows:
            acts = Activations()
            acts.extend(self.view.acts)
            if acts.length > start:
                acts.crop(start)
        before = acts.length
        try:
            for part in self._fresh:
                acts.extend(part)
            line = [*self._line[:start], *(node.index for node in nodes)]
            with self._lock:
                if not grows:
                    self._cut_lens(start)
                self.view, self._line = View(nodes[-1], acts), line
        except BaseException:
            if acts.length > before:
                acts.crop(before)
            raise
        self._fresh = []

    def discard(self) -> None:
        """Forgets what was watched and did not count."""
        self._fresh = []

    # --- moving ------------------------------------------------------------------------------------------------------

    def missing(self, path: Sequence[Node]) -> int | None:
        """The first position of a path that was not captured; `None` if all were."""
        known = _common(self._line, [node.index for node in path])
        return known if known < len(path) else None

    def move(self, path: Sequence[Node]) -> None:
        """Shows a path of which everything was captured."""
        with self._lock:
            if self.view.length != len(path):  # its last token is followed by nothing, or by something, now
                self._cut_lens(min(self.view.length, len(path)))
            self.view = View(path[-1], self.view.acts)

    def _cut_lens(self, same: int) -> None:
        """Forgets what the lens has of all but the first `same` tokens, and which one followed the last of them."""
        if self.lens is not None and self.lens.length >= same:
            self.lens = self.lens.resized(same - 1) if same > 1 else None

    # --- the lens ----------------------------------------------------------------------------------------------------

    def residual_states(self, acts: Activations, start: int, stop: int) -> Float[Tensor, "state pos d_model"]:
        """The embedding and each layer's `resid_post` of some positions."""
        names = ["embed", *(f"layers.{i}.resid_post" for i in range(self.model.config.num_hidden_layers))]
        return torch.stack([acts.window(name, start, stop)[0] for name in names])

    def compute_lens(self, tokens_of: Callable[[], list[int]], should_stop: Callable[[], bool]) -> Lens:
        """The lens of all tokens there are now: computes the columns that are missing; stopped, the rest is NaN."""
        with self._lens_lock:
            with self._lock:
                view = self.view
                tokens = [*tokens_of()[: view.length], -1]
                if self.lens is None:
                    self.lens = Lens.empty(self.model.config.num_hidden_layers + 1, view.length)
                elif self.lens.length != view.length:
                    self.lens = self.lens.resized(view.length)
                lens, missing = self.lens, self.lens.missing()
            for start in range(missing.start, missing.stop, LENS_BLOCK):
                if should_stop():
                    break
                stop = min(start + LENS_BLOCK, missing.stop)
                lens_columns(
                    self.model,
                    self.residual_states(view.acts, start, stop),
                    torch.tensor(tokens[start + 1 : stop + 1]),
                    should_stop=should_stop,
                    on_columns=partial(lens.write, start),
                )
            return lens


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first entries are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

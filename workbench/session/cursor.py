"""The cursor: the one place that all panels and Python look at."""

from __future__ import annotations

from typing import Any

import traitlets


class Cursor(traitlets.HasTraits):
    """Setting a trait moves every linked panel; a click sets it. A value outside raises `TraitError`, changing nothing.

    `query` and `key` are token positions, `layer` and `head` count from 0. `run` counts prompts from 1; it says which
    text this is and cannot be set. `step` counts generated tokens: it is 0 while `query` is in the prompt, and setting
    it moves `query` to that token.
    """

    run = traitlets.Int(0)
    step = traitlets.Int(0)
    query = traitlets.Int(0)
    key = traitlets.Int(0)
    layer = traitlets.Int(0)
    head = traitlets.Int(0)

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self._counts = {"layer": layers, "head": heads, "query": 1, "key": 1, "step": 1}
        self._run = 0
        self._prompt_length = 1
        self.observe(self._query_moved, "query")
        self.observe(self._step_moved, "step")

    @traitlets.validate("step", "query", "key", "layer", "head")
    def _inside(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, int(proposal["value"])
        count = self._counts[name]
        if not 0 <= value < count:
            things = {"layer": "layers", "head": "query heads", "step": "steps"}.get(name, "positions")
            raise traitlets.TraitError(f"cursor.{name} is {value}; there are {things} 0 … {count - 1}.")
        return value

    @traitlets.validate("run")
    def _the_run(self, proposal: Any) -> int:
        if proposal["value"] != self._run:
            raise traitlets.TraitError(
                f"cursor.run is {proposal['value']}; it is {self._run}, the number of the current text; it "
                "cannot be set."
            )
        return self._run

    def _query_moved(self, change: Any) -> None:
        self.step = max(0, self.query - self._prompt_length + 1)

    def _step_moved(self, change: Any) -> None:
        if self.step:
            self.query = self.step + self._prompt_length - 1

    def move(self, **values: int) -> None:
        """Sets several at once: observers are told when all are set, and none is if one is refused.

        Raises:
            ValueError: for a name the cursor does not have.
            TraitError: for a value outside.
        """
        unknown = sorted(set(values) - set(self.trait_names()))
        if unknown:
            raise ValueError(f"the cursor has no {', '.join(unknown)}; it has {', '.join(sorted(self.trait_names()))}.")
        with self.hold_trait_notifications():
            for name, value in values.items():
                setattr(self, name, value)

    def follow(self, run: int, prompt_length: int, length: int, query: int | None) -> None:
        """Says which text there is now; a `query` of None leaves it where it is."""
        new_run, self._run = run != self._run, run
        self._prompt_length = prompt_length
        self._counts.update(query=length, key=length, step=length - prompt_length + 1)
        with self.hold_trait_notifications():
            self.run = run
            self.key = 0 if new_run else min(self.key, length - 1)
            if query is not None:
                self.query = query
            self.step = max(0, self.query - prompt_length + 1)

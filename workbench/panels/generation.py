"""Generation panel: what may come after the cursor's token, and the branches there."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench import widgets
from workbench.generation import Sampler
from workbench.generation.timeline import Node
from workbench.instrument import Cancelled
from workbench.panels.link import Job
from workbench.panels.panel import Panel
from workbench.session import Run, Session
from workbench.views import Payload
from workbench.views import generation as view


class Generation(Panel):
    """The 20 most likely tokens behind the cursor's. A click takes one: the text branches there.

    Its own sampler only says with which probability each would be taken; "use" makes it the session's.
    """

    def __init__(self, session: Session) -> None:
        self._shown: object = ()
        self._last: Payload | None = None
        self._chosen: Sampler | None = None  # by the user, and not in use yet
        self._mine: tuple[Job, str, dict[str, Any], int] | None = None  # a job of this panel, and where it leads
        super().__init__(session, widgets.Generation())

    @property
    def sampler(self) -> Sampler:
        """The sampler whose probabilities are shown: the session's, until another one is chosen."""
        return self._chosen or self.session.sampler

    @sampler.setter
    def sampler(self, sampler: Sampler | None) -> None:
        self._chosen = None if sampler == self.session.sampler else sampler
        self._refresh()

    @property
    def node(self) -> Node:
        """The token that the candidates come after.

        Raises:
            ValueError: if there is no text yet.
        """
        run = self.session.current
        if run is None or run.leaf is None:
            raise ValueError("There is no text yet. Run a prompt first: session.run('…').")
        return run.nodes[min(self.session.cursor.query, run.length - 1)]

    def refresh(self) -> None:
        """Draws what comes after the cursor's token; while a job runs, what was there before."""
        self._end_mine()
        run = self.session.current
        busy = self.link.job is not None or self.session.busy
        sampler, used = self.sampler, self.session.sampler
        if run is None or run.leaf is None or busy:
            version: tuple[Any, ...] = (run, busy, sampler, used)
        else:
            node, count = self.node, len(run.timeline.nodes)
            version = (run, run.leaf, count, node.index, sampler, used, run.timeline.is_fresh(node))
        if version == self._shown:
            return
        self._shown = version
        if busy:
            last = self._last or view.without_numbers("running", "running …", sampler, sampler == used)
            words = "running …" if not last.content["tokens"] else view.RUNNING
            self._draw(Payload({**last.content, "state": "running", "state_text": words}, last.arrays))
        elif run is None or run.leaf is None:
            self._draw(view.without_numbers("empty", view.EMPTY, sampler, sampler == used))
        else:
            try:
                self._last = self._picture(run, sampler)
            except Exception:  # which the line below the panel names
                self._draw(view.without_numbers("error", view.FAILED, sampler, sampler == used))
                raise
            self._draw(self._last)

    def act(self, name: str, params: dict[str, Any]) -> None:
        """`take`, `go`, `sampler`, `use` and `stop`."""
        if name == "take":
            self.take(self._here(params), int(params["token"]))
        elif name == "go":
            self.go(self._here(params))
        elif name == "sampler":
            self.sampler = self._sampler_of(params)
        elif name == "use":
            sampler = self._sampler_of(params)
            self.session.use(sampler)
            self.sampler = sampler
            self.link.notify()
        elif name == "stop":
            self.link.stop()
        else:
            super().act(name, params)

    def take(self, node: Node, token: int) -> None:
        """Puts a token behind a node, and the cursor on it. A branch that is there already is not read again."""
        run = self._run()
        known = [child for child in run.timeline.children(node) if child.token == token]
        path = {other.index for other in run.nodes}
        here = next((child for child in known if child.index in path), None)
        there = next((child for child in reversed(known) if run.timeline.is_fresh(child)), None)
        if here is not None and run.timeline.is_fresh(here):
            self.session.cursor.move(query=here.position)
        elif there is not None:
            self._follow("take", self.link.rewind(_tip(run, there)), node.position + 1, token=token)
        else:
            self._follow("take", self.link.branch(node.index, token), node.position + 1, token=token)

    def go(self, branch: Node) -> None:
        """Shows the text that goes on from a branch; the cursor stays before it."""
        run = self._run()
        tip = _tip(run, branch)
        if tip != run.leaf:
            self._follow("go", self.link.rewind(tip), branch.position - 1, node=branch.index)

    def state(self) -> dict[str, Any]:
        """What is shown, as plain values."""
        run = self.session.current
        node = None if run is None or run.leaf is None else self.node.index
        return {**super().state(), "node": node, "sampler": view.sampler_fields(self.sampler)}

    def code(self) -> str:
        """Python that gives the table; `pd` is pandas, `wb` workbench."""
        run = self.session.current
        if run is None or run.leaf is None:
            return "session.run('…')"
        candidates = f"session.current.timeline.candidates({self.node.index}, wb.{self.sampler!r})"
        return f"pd.DataFrame({candidates}).assign(text=lambda table: session.tokenizer.pieces(table.token.tolist()))"

    @property
    def data(self) -> pd.DataFrame:
        """One row a candidate: its id, logit, log-probability in nats, the sampler's probability, and text."""
        candidates = self._run().timeline.candidates(self.node, self.sampler)
        return pd.DataFrame(candidates).assign(text=self.session.tokenizer.pieces([c.token for c in candidates]))

    def _picture(self, run: Run, sampler: Sampler) -> Payload:
        timeline, tokenizer, node = run.timeline, self.session.tokenizer, self.node
        candidates = timeline.candidates(node, sampler)
        ids = [candidate.token for candidate in candidates]
        nodes, known = run.nodes, len(tokenizer)  # a model may have more outputs than its tokenizer has tokens
        path = {other.index for other in nodes}
        children = timeline.children(node)
        branches = [
            view.Branch(child, nodes[-1] if child.index in path else _tip(run, child), child.index in path, piece)
            for child, piece in zip(children, tokenizer.pieces([child.token for child in children]), strict=True)
        ]
        return view.generation(
            nodes,
            node.position,
            candidates,
            tokenizer.pieces(ids),
            [tokenizer.token_bytes(i) if i < known else b"" for i in ids],
            tokenizer.pieces([node.token])[0],
            timeline.entropy(node),
            self.session.model.config.vocab_size - len(candidates),
            branches,
            sampler,
            sampler == self.session.sampler,
            self.session.cursor.run,
            timeline.is_fresh(node),
        )

    def _run(self) -> Run:
        run = self.session.current
        if run is None:
            raise ValueError("There is no text yet. Run a prompt first: session.run('…').")
        return run

    def _here(self, params: dict[str, Any]) -> Node:
        """The node an action is about: of this text, not of one that stood there when the page was drawn."""
        run = self._run()
        if params["run"] != self.session.cursor.run:
            raise ValueError("Another text has taken the place of the one that was clicked. Nothing was done.")
        nodes = run.timeline.nodes
        index = int(params["node"])
        if not 0 <= index < len(nodes):
            raise ValueError(f"node {index} does not exist; there are nodes 0 … {len(nodes) - 1}.")
        return nodes[index]

    def _sampler_of(self, params: dict[str, Any]) -> Sampler:
        seed = self.session.sampler.seed
        top_k = float(params["top_k"])
        if not top_k.is_integer():
            raise ValueError(f"top_k is {top_k:g}; it must be 0 (all tokens) or a positive whole number.")
        return Sampler(float(params["temperature"]), int(top_k), float(params["top_p"]), seed)

    def _follow(self, name: str, job: Job, position: int, **params: Any) -> None:
        self._mine = (job, name, params, position)

    def _end_mine(self) -> None:
        """After a job of this panel: moves the cursor to where it led, or says what went wrong."""
        if self._mine is None or self.link.job is self._mine[0]:
            return
        job, name, params, position = self._mine
        self._mine = None
        if isinstance(job.error, Cancelled):
            return  # the run bar says so
        if isinstance(job.error, Exception):
            self.widget.report(name, params, job.error)
        elif job.error is None:
            self.session.cursor.move(query=position)

    def _cursor_moved(self, change: Any) -> None:
        super()._cursor_moved(change)
        if change["name"] == "query":
            self._refresh()


def _tip(run: Run, node: Node) -> Node:
    """The last node of the newest text that goes on from a node."""
    newest = {other.parent: other for other in run.timeline.nodes[node.index + 1 :]}
    while node.index in newest:
        node = newest[node.index]
    return node

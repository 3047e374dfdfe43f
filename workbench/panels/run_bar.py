"""Run bar: the model, the prompt, and Run / Step / Stop."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pandas as pd

from workbench import widgets
from workbench.generation import Sampler
from workbench.panels.panel import Panel
from workbench.session import Run, Session


class RunBar(Panel):
    """Runs prompts and steps through the generation.

    Args:
        prompt: what the editor holds at first.
        max_new_tokens: how many tokens a run generates at first.
    """

    def __init__(self, session: Session, prompt: str = "", max_new_tokens: int = 8) -> None:
        run = session.current
        self._shown = run
        widget = widgets.RunBar(
            model_line=model_line(session),
            prompt=prompt or (run.prompt if run else ""),
            settings={"max_new_tokens": max_new_tokens, **_sampling(session.sampler)},
        )
        self._sampler = session.sampler
        super().__init__(session, widget)

    def refresh(self) -> None:
        """Shows the job's status, and the prompt of a new text."""
        self.widget.status = self.link.status
        run = self.session.current
        if run is not None and run is not self._shown:
            self._shown = run
            self.widget.prompt = run.prompt
        if self.session.sampler != self._sampler:
            self._sampler = self.session.sampler
            self.widget.settings = {**self.widget.settings, **_sampling(self._sampler)}

    def act(self, name: str, params: dict[str, Any]) -> None:
        """`run`, `step` and `stop`."""
        if name == "run":
            self.link.run(params["prompt"], params["settings"])
            self.widget.settings = params["settings"]
        elif name == "step":
            self.link.step(params["prompt"], params["settings"])
            self.widget.settings = params["settings"]
        elif name == "stop":
            self.link.stop()
        else:
            super().act(name, params)

    def code(self) -> str:
        """Python that makes the current text."""
        run = self.session.current
        if run is None:
            return "session.run('…')"
        name, options = run.timeline.cache_choice
        cache = "" if name == "dynamic" else f", cache={name!r}" + (f", cache_config={options!r}" if options else "")
        lines = [f"session.run({run.prompt!r}, chat={run.chat}, sampler=wb.{run.sampler!r}{cache})", *_way(run)]
        if not run.one_sampler:
            lines.insert(0, "# Its first tokens were chosen by another sampler, so this may make another text.")
        if run.timeline.edits:
            lines.insert(0, "# It was made under edits, which are not in this code: session.use(edits=…).")
        return "\n".join(lines)

    @property
    def data(self) -> pd.DataFrame:
        """The current text, one row a token."""
        return self.session.to_pandas()


def _sampling(sampler: Sampler) -> dict[str, Any]:
    return {name: getattr(sampler, name) for name in ("temperature", "top_k", "top_p", "seed")}


def _way(run: Run) -> list[str]:
    """Python that goes on from the prompt to the current text."""
    nodes, lines = run.nodes, []
    kept = next((i for i, node in enumerate(nodes) if node.source != "prompt"), len(nodes))
    if not kept:  # another first token: the second root of the tree, behind the nodes of the prompt
        lines += [f"session.edit_token(0, {nodes[0].token})", f"session.rewind({run.read_length})"]
        kept = 1
    elif kept < run.read_length:
        lines.append(f"session.rewind({kept - 1})")
    for sampled, group in groupby(nodes[kept:], lambda node: node.source == "sampled"):
        ids = [node.token for node in group]
        lines += [f"for _ in range({len(ids)}):", "    session.step()"] if sampled else [f"session.force({ids})"]
    return lines


def model_line(session: Session) -> str:
    """The model in one line."""
    c = session.model.config
    heads = f"{c.num_attention_heads} query heads on {c.kv_heads} key/value heads"
    parts = [
        session.name,
        f"{session.model.num_parameters() / 1e6:,.1f} M parameters",
        f"{c.num_hidden_layers} layers",
        f"{c.attention_kind}: {heads}" if c.attention_kind != "MHA" else f"MHA: {c.num_attention_heads} heads",
        f"hidden {c.hidden_size:,}",
        f"vocabulary {c.vocab_size:,}",
        str(session.model.dtype).removeprefix("torch."),
        str(session.model.device),
    ]
    return " · ".join(parts)

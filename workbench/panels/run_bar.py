"""Run bar: the model, the prompt, and Run / Step / Stop."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench import widgets
from workbench.panels.panel import Panel
from workbench.session import Session


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
            settings={"max_new_tokens": max_new_tokens},
        )
        super().__init__(session, widget)

    def refresh(self) -> None:
        """Shows the job's status, and the prompt of a new text."""
        self.widget.status = self.link.status
        run = self.session.current
        if run is not None and run is not self._shown:
            self._shown = run
            self.widget.prompt = run.prompt

    def act(self, name: str, params: dict[str, Any]) -> None:
        """`run`, `step` and `stop`."""
        if name == "run":
            self.link.run(params["prompt"], params["settings"])
        elif name == "step":
            self.link.step(params["prompt"], params["settings"])
        elif name == "stop":
            self.link.stop()
        else:
            super().act(name, params)

    def code(self) -> str:
        """Python that makes the current text."""
        run = self.session.current
        if run is None:
            return "session.run('…')"
        new = run.length - run.prompt_length
        lines = [f"session.run({run.prompt!r}, chat={run.chat}, sampler=wb.{run.sampler!r})"]
        if new:
            lines += [f"for _ in range({new}):", "    session.step()"]
        if not run.one_sampler:
            lines.insert(0, "# Its first tokens were chosen by another sampler, so this may make another text.")
        return "\n".join(lines)

    @property
    def data(self) -> pd.DataFrame:
        """The current text, one row a token."""
        return self.session.to_pandas()


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

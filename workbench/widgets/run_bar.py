"""The run bar: the model, the prompt, the sampling settings, Run / Step / Stop, and how far the run has come."""

from __future__ import annotations

from typing import Any

import traitlets

from workbench.widgets.base import STATIC, WorkbenchWidget

STATES = ("idle", "running", "done", "stopped", "error")
DEFAULT_SETTINGS: dict[str, Any] = {
    "max_new_tokens": 32, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0,
    "chat": False,
}  # fmt: skip
DEFAULT_STATUS: dict[str, Any] = {"state": "idle", "text": ""}


class RunBar(WorkbenchWidget):
    """Prompt and run controls.

    Actions: ``run`` and ``step`` with ``{"prompt": str, "settings": dict}``; ``stop`` with ``{}``.
    `prompt` and `settings` are what Python sets; what the user typed comes with the action. `status` is
    ``{"state", "text"}``, and may have `done` of `total`, which draw the progress bar, and `elapsed`, in seconds.
    """

    _esm = STATIC / "run_bar.js"

    model_line = traitlets.Unicode().tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict(default_value=DEFAULT_SETTINGS).tag(sync=True)
    status = traitlets.Dict(default_value=DEFAULT_STATUS).tag(sync=True)
    examples = traitlets.List(traitlets.Unicode()).tag(sync=True)

    @traitlets.validate("status")
    def _check_status(self, proposal: Any) -> Any:
        state = proposal["value"].get("state")
        if state not in STATES:
            raise traitlets.TraitError(f"status state is {state!r}; allowed are {', '.join(STATES)}.")
        return proposal["value"]

    @traitlets.validate("settings")
    def _check_settings(self, proposal: Any) -> Any:
        unknown = sorted(set(proposal["value"]) - set(DEFAULT_SETTINGS))
        if unknown:
            raise traitlets.TraitError(
                f"unknown settings {', '.join(unknown)}; allowed are {', '.join(DEFAULT_SETTINGS)}."
            )
        return {**DEFAULT_SETTINGS, **proposal["value"]}

"""Link: what the panels of one session share besides it — the jobs, the status, and who wants to know."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from workbench.generation import Sampler
from workbench.generation.timeline import Node
from workbench.instrument import Cancelled
from workbench.session import BusyError, Run, Session
from workbench.widgets.base import error_text, running_loop

TICK = 0.05  # seconds between two looks at a running job: at most 20 messages a second for each widget

STOPPED = {"run": "while reading the prompt", "move": "while reading the branch again"}

Work = Callable[[Callable[[], bool]], Any]
Status = dict[str, Any]


class Job:
    """Work on a daemon thread that can be asked to stop. `error` is what it raised, if anything."""

    def __init__(self, label: str, work: Work, after: Job | None = None) -> None:
        self.label = label
        self.stopped = threading.Event()
        self.ended = False
        self.error: BaseException | None = None
        self.began = time.monotonic()
        self.on_end: Callable[[], Any] = lambda: None  # called on the job's own thread
        self._work, self._after = work, after
        self.thread = threading.Thread(target=self._run, name=f"workbench-{label}", daemon=True)

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after.thread.join()
            self._work(self.stopped.is_set)
        except BaseException as error:
            self.error = error
        self.ended = True
        self.on_end()

    @property
    def elapsed(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.began


class Link:
    """One per session; `Link.of(session)` finds it.

    A foreground job (a run, a step) and a background one (the lens) share one model, so a foreground job first makes
    the background one stop. Listeners are called on the event loop the link was made on: at every tick of a job, and
    when it has ended.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.job: Job | None = None
        self.background: Job | None = None
        self.status: Status = _status("idle", "Ready. Type a prompt and press Run.")
        self.lens_wanted = False
        self._lens_held = False  # the user stopped it: not taken up again before the next run or step
        self._listeners: list[Callable[[], None]] = []
        self._ticking = False
        self._following = False
        self._loop = running_loop()
        session.observe(self._text_changed, "revision")
        session.observe(lambda change: self.notify(), "choices")

    @classmethod
    def of(cls, session: Session) -> Link:
        """The link of a session, made on first use."""
        # Kept on the session: a table of links would keep every session and its model alive.
        link = vars(session).get("_link")
        if link is None:
            link = vars(session)["_link"] = cls(session)
        return link

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Has `listener` called whenever something may have changed; it should be cheap when nothing has."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Takes a listener back."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    @property
    def lens_stopped(self) -> bool:
        """Whether the lens waits for the next run or step, because the user stopped it or it failed."""
        return self._lens_held

    def notify(self) -> None:
        """Calls the listeners."""
        for listener in list(self._listeners):
            listener()

    # --- what the page asks for ----------------------------------------------------------------------------------

    def run(self, prompt: str, settings: dict[str, Any]) -> None:
        """Starts a run of a prompt with the run bar's settings."""
        session, sampler = self.session, sampler_of(settings)
        new, chat = int(settings["max_new_tokens"]), bool(settings["chat"])
        run = partial(session.run, prompt, max_new_tokens=new, chat=chat, sampler=sampler, follow=False)
        self._start("run", lambda stop: run(should_stop=stop))

    def step(self, prompt: str, settings: dict[str, Any]) -> None:
        """Starts one more token; where there is no text yet, reads the prompt first."""
        session, sampler = self.session, sampler_of(settings)
        if session.current is None:
            self.run(prompt, {**settings, "max_new_tokens": 1})
        else:
            self._start("step", lambda stop: session.step(sampler=sampler, should_stop=stop, follow=False))

    def branch(self, node: int, token: int) -> Job:
        """Starts taking another token behind a node."""
        session = self.session
        return self._start("branch", lambda stop: session.branch(node, token, should_stop=stop, follow=False))

    def rewind(self, node: Node) -> Job:
        """Starts moving to a node, on whatever branch."""
        session = self.session
        return self._start("move", lambda stop: session.rewind(node, should_stop=stop, follow=False))

    def stop(self) -> None:
        """Asks whatever runs to stop."""
        self._lens_held = True
        for job in (self.job, self.background):
            if job is not None:
                job.stopped.set()

    def want_lens(self) -> None:
        """Says that a panel shows the lens: from now on it is computed whenever the model is free."""
        self.lens_wanted = True
        self._start_lens()

    def wait(self, timeout: float = 60.0) -> None:
        """Blocks until nothing runs any more and tells the listeners: for scripts and tests without an event loop."""
        end = time.monotonic() + timeout
        while (job := self.job or self.background) is not None:
            job.thread.join(max(0.0, end - time.monotonic()))
            if job.thread.is_alive():
                raise TimeoutError(f"the {job.label} still goes on after {timeout} s.")
            self._tick()

    # --- jobs ----------------------------------------------------------------------------------------------------

    def _start(self, label: str, work: Work) -> Job:
        if self.job is not None:
            raise BusyError(f"A {self.job.label} is still going on. Press Stop first, or wait until it is done.")
        if self.background is not None:
            self.background.stopped.set()
        self._lens_held = False
        self.job = Job(label, work, after=self.background)
        self.status = _status("running", "Starting …", elapsed=0.0)
        self._launch(job := self.job)
        self.notify()
        return job

    def _start_lens(self) -> None:
        run = self.session.current
        if run is None or not self.lens_wanted or self._lens_held or self.job or self.background:
            return
        if run.lens is not None and run.lens.length == run.length and not run.lens.missing():
            return
        session = self.session
        self.background = Job("lens", lambda stop: session.lens(should_stop=stop))
        self._launch(self.background)

    def _launch(self, job: Job) -> None:
        """Starts a job and looks at it every `TICK`, and when it ends, on the event loop the link was made on.

        Without a loop (a script) `wait` looks instead.
        """
        if (loop := self._loop) is not None:
            job.on_end = lambda: None if loop.is_closed() else loop.call_soon_threadsafe(self._tick)
            self._watch(loop)
        job.thread.start()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._ticking:
            self._ticking = True
            loop.call_later(TICK, self._tick_again, loop)

    def _tick_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticking = False
        self._tick()
        if self.job or self.background:
            self._watch(loop)

    def _tick(self) -> None:
        job = self.job
        if job is not None and job.ended:
            self.job = None
            self._finish(job)
        elif job is not None:
            self._show_progress(job)
        if self.background is not None and self.background.ended:
            if self.background.error is not None:
                self.status = _failure(self.background.error, self.background.elapsed)
                self._lens_held = True
            self.background = None
        self._following = True
        self.session.follow()
        self._following = False
        self._start_lens()
        self.notify()

    def _finish(self, job: Job) -> None:
        run = self.session.current
        if isinstance(job.error, Cancelled):
            kept = "The text before it is kept." if run is not None else "Nothing was read."
            where = STOPPED.get(job.label, "before the token was complete")
            self.status = _status("stopped", f"Stopped {where}. {kept}", elapsed=job.elapsed)
        elif job.error is not None:
            self.status = _failure(job.error, job.elapsed)
        else:
            self.status = _summary(run, job)

    def _show_progress(self, job: Job) -> None:
        progress = self.session.progress
        if progress is None:
            return
        text = "Stopping …" if job.stopped.is_set() else progress.doing
        self.status = _status("running", text, progress.done, progress.total, job.elapsed)

    def _text_changed(self, change: Any) -> None:
        """After a run or step from a cell the panels follow at once, and the lens is brought up to date."""
        if self.job is None and not self._following:
            self._lens_held = False
            self.status = _status("done", _counts(self.session.current))
            self._start_lens()
            self.notify()


def sampler_of(settings: dict[str, Any]) -> Sampler:
    """The run bar's settings as a sampler."""
    top_k = int(settings.get("top_k", 0))
    return Sampler(float(settings["temperature"]), top_k, float(settings["top_p"]), int(settings["seed"]))


def _status(
    state: str, text: str, done: int | None = None, total: int | None = None, elapsed: float | None = None
) -> Status:
    return {"state": state, "text": text, "done": done, "total": total, "elapsed": elapsed}


def _failure(error: BaseException, elapsed: float) -> Status:
    return _status("error", error_text(error), elapsed=elapsed)


def _summary(run: Run | None, job: Job) -> Status:
    if job.stopped.is_set():
        return _status("stopped", f"Stopped. {_counts(run)} Everything so far is kept.", elapsed=job.elapsed)
    return _status("done", _counts(run), elapsed=job.elapsed)


def _counts(run: Run | None) -> str:
    assert run is not None
    return f"{run.prompt_length:,} prompt tokens, {run.length - run.prompt_length:,} generated."

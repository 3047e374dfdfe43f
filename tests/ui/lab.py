"""Drives a real JupyterLab in a headless Chromium: a server, a notebook open in a page, and the kernel behind it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat

BROWSER_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


def find_browser() -> str:
    """Path of a Chromium or Chrome."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    raise RuntimeError("no Chromium found: run scripts/browser.sh, or set CHROMIUM to its path.")


class Server:
    """A JupyterLab server on a free loopback port, with its own settings, started by `command` + options."""

    def __init__(self, root: Path, home: Path, command: list[str] | None = None):
        self.token = secrets.token_hex(16)
        (home / "config" / "labconfig").mkdir(parents=True)
        (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        places = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run",
            "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }  # fmt: skip
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **{name: str(home / place) for name, place in places.items()}}
        self.log = home / "server.log"
        command = command or [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
            "--allow-root", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={root}",
            "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.url = self._wait_until_up(home / "run" / f"jpserver-{self.process.pid}.json")

    def _wait_until_up(self, info: Path, seconds: float = 90) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                url = f"http://127.0.0.1:{json.loads(info.read_text())['port']}/"
                request = urllib.request.Request(f"{url}api/status", headers={"Authorization": f"token {self.token}"})
                urllib.request.urlopen(request, timeout=5).read()
                return url
            except (OSError, ValueError):
                time.sleep(0.05)
        raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Ends the server and its kernels."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


IDLE = """() => {
  const widget = window.jupyterapp?.shell.currentWidget, session = widget?.context?.sessionContext;
  const kernel = session?.session?.kernel;
  return session?.isReady && kernel?.connectionStatus === 'connected' && kernel.status === 'idle'
    && [...widget.content.model.cells].every(cell => cell.type !== 'code' || cell.executionState !== 'running');
}"""
CELL_ERRORS = """() => {
  const found = [];
  for (const cell of window.jupyterapp.shell.currentWidget.content.model.cells)
    if (cell.type === 'code')
      for (let i = 0; i < cell.outputs.length; i++) {
        const output = cell.outputs.get(i).toJSON();
        if (output.output_type === 'error') found.push(output.ename + ': ' + output.evalue);
      }
  return found;
}"""
EVALUATE = """async (expression) => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const future = kernel.requestExecute(
    {code: '', silent: true, store_history: false, user_expressions: {r: expression}});
  const result = (await future.done).content.user_expressions.r;
  if (result.status !== 'ok') throw new Error(result.ename + ': ' + result.evalue);
  return result.data['text/plain'];
}"""


class Notebook:
    """One notebook open in one page."""

    def __init__(self, page, server: Server):
        self.page, self.server = page, server
        self.console: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: message.type == "error" and self.console.append(message.text))
        page.on("pageerror", lambda error: self.console.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str, mode: str = "doc") -> Notebook:
        """`mode` "doc" is JupyterLab's single-document page, "lab" the full one. Waits for the kernel."""
        self.page.goto(f"{self.server.url}{mode}/tree/{path}?token={self.server.token}{'&reset' * (mode == 'lab')}")
        self.page.wait_for_function("window.jupyterapp && window.jupyterapp.restored", timeout=60_000)
        self.page.evaluate("() => window.jupyterapp.restored.then(() => true)")
        self.page.locator(".jp-Notebook").wait_for(timeout=60_000)
        self.theme("JupyterLab Light")  # the server remembers the theme of the test before
        self.wait_idle()
        return self

    def wait_idle(self) -> None:
        """Until no cell runs and the kernel rests."""
        self.page.wait_for_function(IDLE, timeout=120_000)

    def run_all(self) -> Notebook:
        """Runs every cell; an error in one is an error here."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_idle()
        errors = self.page.evaluate(CELL_ERRORS)
        assert not errors, errors
        return self

    def kernel(self, expression: str) -> str:
        """The text of a Python expression, evaluated in the kernel over the page's own connection."""
        return self.page.evaluate(EVALUATE, expression)

    def execute(self, code: str) -> None:
        """Runs Python in the kernel."""
        assert self.kernel(f"exec({code!r})") == "None"

    def wait_kernel(self, expression: str, expected: str, seconds: float = 20) -> None:
        """Until a Python expression has this text."""
        end = time.monotonic() + seconds
        while (found := self.kernel(expression)) != expected:
            assert time.monotonic() < end, f"{expression} is {found}, not {expected}"
            time.sleep(0.05)

    def theme(self, name: str) -> None:
        """`"JupyterLab Light"` or `"JupyterLab Dark"`."""
        self.page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
        light = "false" if "Dark" in name else "true"
        self.page.wait_for_function("light => document.body.dataset.jpThemeLight === light", arg=light)

    def close(self) -> None:
        """Shuts the kernel down and closes the page."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget?.context.sessionContext.shutdown()")
        self.page.close(run_before_unload=False)


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)

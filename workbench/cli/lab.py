"""`workbench lab` opens JupyterLab on the quickstart."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import quote

QUICKSTART = "notebooks/00_quickstart.ipynb"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `lab` to the commands."""
    lab = commands.add_parser("lab", help="open JupyterLab on the quickstart notebook, on this machine only")
    lab.add_argument("notebook", nargs="?", help=f"a notebook to open instead (default: {QUICKSTART}, if there is one)")
    lab.add_argument("--port", type=int, default=8888, help="the first port to try (default: 8888)")
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    lab.set_defaults(run=lambda options: _lab(options.notebook, options.port, options.no_browser))


def lab_command(notebook: Path | None, port: int, no_browser: bool, as_root: bool) -> list[str]:
    """The command that starts JupyterLab: loopback only, with a token, asking no other host for news or updates."""
    command = [sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    if notebook is not None:  # as the default address, so that the printed one leads to the notebook too
        here, notebook = Path.cwd(), notebook.resolve()
        folder = here if notebook.is_relative_to(here) else notebook.parent
        address = quote(notebook.relative_to(folder).as_posix())
        command += [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{address}"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command.append("--LabApp.extension_manager=readonly")  # its other mode asks a package index
    if no_browser:
        command.append("--no-browser")
    if as_root:  # in a container; Jupyter refuses to start as root unless told
        command.append("--allow-root")
    return command


def _lab(notebook: str | None, port: int, no_browser: bool) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        print("workbench lab: JupyterLab is not installed. Run: pip install 'llama-workbench[lab]'", file=sys.stderr)
        return 1
    if notebook is not None and not Path(notebook).is_file():
        print(f"workbench lab: there is no notebook {notebook}.", file=sys.stderr)
        return 1
    path = Path(notebook or QUICKSTART)
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    command = lab_command(path if path.is_file() else None, port, no_browser, as_root)
    return os.execv(command[0], command)

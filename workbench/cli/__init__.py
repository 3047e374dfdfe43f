"""The `workbench` command: open the lab, generate, chat, run a pipeline, convert a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from workbench.cli import chat, convert, generate, lab
from workbench.cli.lab import lab_command
from workbench.cli.options import UsageError

__all__ = ["lab_command", "main"]

INTERRUPTED = 130  # what shells use for a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `workbench` command; returns the exit status.

    0 is success, 1 something that cannot be done, 2 a wrong use of the command; both are said in one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="workbench", description="Look inside Llama models while they run.")
    commands = parser.add_subparsers(dest="command", required=True)
    for part in (lab, generate, chat, convert):
        part.add_commands(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(options.command, message)
            status = run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        _say(options.command, str(error) or type(error).__name__)
        return 2 if isinstance(error, UsageError) else 1
    return status


def _say(command: str, message: object) -> None:
    print(f"workbench {command}: {' '.join(str(message).split())}", file=sys.stderr)

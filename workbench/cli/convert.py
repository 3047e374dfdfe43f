"""`workbench convert` writes a checkpoint anew: another number of key/value heads, another data type, safetensors."""

from __future__ import annotations

import argparse
import sys

from workbench.cli.options import DTYPES


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `convert` to the commands."""
    parser = commands.add_parser(
        "convert", help="write a checkpoint as a folder, with other heads or another data type"
    )
    parser.add_argument("source", help="a folder, a .gguf file or a Hub id")
    parser.add_argument("target", help="the folder to write")
    parser.add_argument("--kv-heads", type=int, metavar="N", help="key/value heads of the result: fewer are means of "
                        "groups, more are repetitions")  # fmt: skip
    parser.add_argument("--dtype", choices=[name for name in DTYPES if name != "auto"], help="data type of the weights")
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> int:
    from workbench.checkpoints.convert import convert_folder  # with torch

    convert_folder(options.source, options.target, kv_heads=options.kv_heads, dtype=options.dtype)
    print(f"wrote {options.target}", file=sys.stderr)
    return 0

"""`workbench generate` continues a text; `workbench run` puts lines of standard input through a pipeline."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from workbench.cli.options import (
    UsageError,
    add_generation_options,
    add_model_options,
    generation_arguments,
    lines_of,
    open_pipeline,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TASKS = (
    "text-generation", "text-classification", "sentiment-analysis", "token-classification", "ner", "question-answering",
    "feature-extraction",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `generate` and `run` to the commands."""
    parser = commands.add_parser("generate", help="continue a text, from the argument or standard input")
    parser.add_argument("prompt", nargs="?", help="the text (default: standard input)")
    add_model_options(parser)
    add_generation_options(parser, max_new_tokens=256)
    parser.add_argument("--no-stream", dest="stream", action="store_false", help="print the text when it is complete")
    parser.add_argument("--stream", action="store_true", default=True, help="print each word as it comes (the default)")
    parser.set_defaults(run=_generate)

    parser = commands.add_parser(
        "run", help="put each line of standard input through a pipeline; a line of JSON comes out"
    )
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--input", help="a text file instead of standard input; for question-answering each line is "
                        "question, tab, context")  # fmt: skip
    add_model_options(parser)
    parser.set_defaults(run=_run)


def _generate(options: argparse.Namespace) -> int:
    prompt = options.prompt
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError(
                'there is no text. Use: workbench generate "some text", or echo "some text" | workbench generate'
            )
        prompt = read_text()
    arguments = generation_arguments(options)
    pipe = open_pipeline(options)
    if not options.stream:
        print(pipe(prompt, **arguments)[0]["generated_text"])
        return 0
    from workbench.generation.streamers import TextStreamer

    pipe(prompt, streamer=TextStreamer(pipe.tokenizer, skip_special_tokens=True), **arguments)
    return 0


def _run(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as opened:
        file = sys.stdin.buffer if options.input is None else opened.enter_context(open(options.input, "rb"))
        pipe = open_pipeline(options, options.task)
        lines: Iterator[Any] = lines_of(file)
        if options.task == "question-answering":
            lines = (_question(line) for line in lines)
        for result in pipe(lines):
            print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0


def _question(line: str) -> dict[str, str]:
    question, tab, context = line.partition("\t")
    if not tab:
        raise ValueError(f"the line {line!r:.60} has no tab; each line is a question, a tab and its context.")
    return {"question": question, "context": context}

"""`workbench chat`: a conversation with a model, by its chat template."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from workbench.cli.options import add_generation_options, add_model_options, generation_arguments, open_pipeline

HELP = "/reset forgets the conversation, /system TEXT sets the instructions, /save FILE writes it, /exit ends."
COMMANDS = "/reset, /system, /save, /help, /exit"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `chat` to the commands."""
    parser = commands.add_parser("chat", help="talk with a model; " + HELP)
    add_model_options(parser)
    add_generation_options(parser, max_new_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="instructions that stand before the conversation")
    parser.set_defaults(run=_chat)


class Conversation:
    """The messages so far, and how the next answer is made.

    Args:
        pipe: a text-generation pipeline.
        arguments: options of `generate`.
        system: instructions that stand before the conversation, or `None`.
    """

    def __init__(self, pipe: Any, arguments: dict[str, Any], system: str | None = None) -> None:
        self.pipe = pipe
        self.arguments = arguments
        self.system = system
        self.messages: list[dict[str, str]] = []

    def all_messages(self) -> list[dict[str, str]]:
        """The conversation with its instructions."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + self.messages

    def answer(self, text: str) -> None:
        """Prints the model's answer as it comes and keeps both; Ctrl-C ends the answer, and what there is is kept."""
        from workbench.generation.streamers import TextStreamer

        parts: list[str] = []

        class Kept(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                parts.append(text)
                super().on_finalized_text(text, stream_end)

        streamer = Kept(self.pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
        asked = [*self.all_messages(), {"role": "user", "content": text}]
        try:
            self.pipe(asked, streamer=streamer, return_tensors=True, **self.arguments)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(parts)}]

    def save(self, file: str) -> None:
        """Writes the messages as JSON."""
        Path(file).write_text(json.dumps(self.all_messages(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _chat(options: argparse.Namespace) -> int:
    arguments = generation_arguments(options)
    pipe = open_pipeline(options)
    if pipe.tokenizer.chat_template is None:
        raise ValueError("this model has no chat template, so it cannot chat. Use workbench generate.")
    talk = Conversation(pipe, arguments, options.system)
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # editing and history at the prompt, where there is such a thing
        print(f"{HELP} Ctrl-C stops an answer.", file=sys.stderr)
    while True:
        try:
            line = input("> ") if terminal else _next_line()
        except EOFError:
            return 0
        except KeyboardInterrupt:  # at the prompt it clears the line
            print("\n(/exit or Ctrl-D ends)", file=sys.stderr)
            continue
        if not _obey(talk, line.strip()):
            return 0


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _obey(talk: Conversation, line: str) -> bool:
    """Does what a line says; False ends the conversation. What goes wrong is said, and the conversation goes on."""
    command, _, rest = line.partition(" ")
    try:
        if command == "/exit":
            return False
        if command == "/reset":
            talk.messages.clear()
        elif command == "/system":
            talk.system = rest.strip() or None
        elif command == "/save":
            talk.save(_file(rest.strip()))
        elif command == "/help":
            print(HELP, file=sys.stderr)
        elif command.startswith("/"):
            raise ValueError(f"there is no command {command}; there are {COMMANDS}.")
        elif line:
            talk.answer(line)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"workbench chat: {' '.join(str(error).split())}", file=sys.stderr)
    return True


def _file(text: str) -> str:
    if not text:
        raise ValueError("/save needs a file: /save FILE.")
    return text

"""What the commands that run a model have in common: its options, how it is opened, how text is read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Those of `workbench.cache`, which loads torch.
CACHES = (
    "dynamic",
    "static",
    "sliding",
    "sink",
    "quantized",
    "offloaded",
    "sliding_window",
    "offloaded_static",
    "none",
)
QUANTIZATIONS = ("int4", "int8")


class UsageError(ValueError):
    """The command was used wrongly: exit status 2."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is held."""
    parser.add_argument("--model", help="a folder, a .gguf file or a Hub id (default: the default model)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, or a number as CUDA counts")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="data type of the weights")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="hold the linear layers' weights in so many bits")
    parser.add_argument(
        "--group-size", type=_count, help="weights that share a scale with --quantize int4 (default: 32)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")


def add_generation_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """How the text goes on."""
    parser.add_argument("--max-new-tokens", type=_count, default=max_new_tokens, metavar="N",
                        help=f"tokens at most (default: {max_new_tokens})")  # fmt: skip
    parser.add_argument("--temperature", type=float, metavar="T",
                        help="draw tokens with this temperature; 0, the default, takes the likeliest")  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 for all")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest tokens of this total probability"
    )
    parser.add_argument("--seed", type=int, help="of the draw; the same seed gives the same text")
    parser.add_argument("--cache-implementation", choices=CACHES, help="where keys and values are kept")


def open_pipeline(options: argparse.Namespace, task: str = "text-generation") -> Any:
    """The pipeline of the chosen model.

    Raises:
        UsageError: for options that do not fit together.
        ValueError, OSError: if the model cannot be loaded.
    """
    if options.group_size is not None and options.quantize != "int4":
        raise UsageError("--group-size belongs to --quantize int4.")
    from workbench.compat.pipelines import pipeline  # torch comes with it, which `workbench --help` need not wait for

    arguments: dict[str, Any] = {"progress": sys.stderr.isatty()}
    if options.quantize:
        arguments["quantization_config"] = options.quantize
    if options.group_size is not None:
        from workbench.checkpoints.quantization import TorchAoConfig

        arguments["quantization_config"] = TorchAoConfig("int4_weight_only", group_size=options.group_size)
    return pipeline(
        task,
        options.model,
        device=_device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        model_kwargs=arguments,
    )


def generation_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `generate`: greedy unless something about drawing was said."""
    given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    drawing = {name: value for name, value in given.items() if value is not None}
    arguments: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": False}
    if drawing and options.temperature != 0:
        arguments |= {"temperature": 1.0, **drawing, "do_sample": True}
    for name in ("seed", "cache_implementation"):
        if (value := getattr(options, name)) is not None:
            arguments[name] = value
    return arguments


def read_text() -> str:
    """Standard input as text, without the end of its last line.

    Raises:
        ValueError: if it is no UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Standard input is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
        ) from error


def lines_of(file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends, as they come.

    Raises:
        ValueError: if it is no UTF-8.
    """
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8. Convert the input, for example with iconv.") from error


def _device(text: str) -> int | str | None:
    if text == "auto":
        return None
    return int(text) if text.lstrip("-").isdecimal() else text


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value

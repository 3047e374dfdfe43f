"""What all pipelines share: inputs of every form, rows, batches, the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass
class Row:
    """One sequence for the model.

    Attributes:
        input_ids, attention_mask: of one length; 0 in the mask is padding.
        about: what the pipeline needs later to read the model's output.
        is_last: whether it is the last row of its input; a long text may take several.
    """

    input_ids: list[int]
    attention_mask: list[int]
    about: Any = None
    is_last: bool = True


class Pipeline:
    """Text in, Python values out: tokenizer, model and the reading of its output in one call.

    Args:
        model: a live model of this package; it is put into evaluation mode, and moved to `device`.
        tokenizer: the one the model was trained with.
        task: name of the task, for errors.
        device: a torch device, its name, or a number: CUDA device of that number where there is CUDA, else the CPU;
            −1 is the CPU. `None` is CUDA device 0 where there is one. A model that `device_map` has spread out stays.
        batch_size: rows that go through the model together.
        **options: defaults of the call's options.

    Raises:
        ValueError, TypeError: for a model, tokenizer, device or option that cannot be used, naming it.
    """

    needs: tuple[str, ...] = ()  # the model classes that give what the task reads
    _takes_chats = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        task: str = "",
        device: int | str | torch.device | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> None:
        self._check_model(model, task)
        if tokenizer is None or not callable(tokenizer):
            raise TypeError(
                f"tokenizer is {tokenizer!r:.60}; a model that is given as an object needs its tokenizer too: "
                f"pipeline({task!r}, model=model, tokenizer=tokenizer)."
            )
        self.task = task
        self.tokenizer = tokenizer
        self._batch_size = _checked_batch_size(batch_size)
        self._options = options
        self.model = model
        self._settings(options)  # wrong options are named before the model moves
        self.device = _place(model, device)
        model.eval()

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({type(self.model).__name__}, {kind}, {self.device})"

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the model's weights."""
        found: torch.dtype = self.model.dtype  # type: ignore[assignment]
        return found

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes model and tokenizer to a folder; `options` are those of the model's `save_pretrained`."""
        model: Any = self.model
        model.save_pretrained(folder, **options)
        self.tokenizer.save_pretrained(folder)

    def _call(self, inputs: Any, options: dict[str, Any]) -> Any:
        """One result for one input, a list for a list, an iterator for everything else that can be iterated.

        Args:
            inputs: what the task takes, or several of them. A generator or dataset is read while its results are
                taken, `batch_size` rows ahead.
            options: of the task; `batch_size`, the rows that go through the model together, by default that of the
                pipeline, else 1; and `num_workers`, taken for compatibility: texts are cheap to prepare, so no worker
                is started.

        Raises:
            ValueError, TypeError: for inputs and options that cannot be used, naming them.
        """
        options = dict(options)
        batch_size, num_workers = options.pop("batch_size", None), options.pop("num_workers", None)
        settings = self._settings(self._merged(options))
        check_count("num_workers", num_workers or 0, least=0)
        size = self._batch_size if batch_size is None else _checked_batch_size(batch_size)
        inputs = self._grouped(inputs, settings)
        if self._is_one(inputs):
            return next(self._stream([inputs], settings, size))
        if isinstance(inputs, list | tuple):
            return list(self._stream(inputs, settings, size))
        first, items = _peeked(inputs)
        if self._takes_chats and is_message(first):  # a generator of one chat's messages
            return next(self._stream([list(items)], settings, size))
        return self._stream(items, settings, size)

    # What a task defines --------------------------------------------------------------------------------------------

    def _merged(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**self._options, **options}

    def _settings(self, options: dict[str, Any]) -> Any:
        """The options, checked."""
        raise NotImplementedError

    def _grouped(self, inputs: Any, settings: Any) -> Any:
        """The inputs as one of the forms that `__call__` knows."""
        return inputs

    def _is_one(self, inputs: Any) -> bool:
        """Whether this is one input and not several."""
        return isinstance(inputs, str)

    def _rows(self, item: Any, settings: Any) -> list[Row]:
        raise NotImplementedError

    def _run(self, rows: list[Row], settings: Any) -> list[Any]:
        """The model's output for each row, on the CPU."""
        raise NotImplementedError

    def _result(self, rows: list[Row], outputs: list[Any], settings: Any) -> Any:
        """What the caller gets for one input."""
        raise NotImplementedError

    # Rows and batches -----------------------------------------------------------------------------------------------

    def _stream(self, items: Iterable[Any], settings: Any, batch_size: int) -> Iterator[Any]:
        """The results in the order of the inputs; rows of different inputs share a batch."""
        waiting = iter(self._marked(items, settings))
        rows: list[Row] = []
        outputs: list[Any] = []
        while batch := list(islice(waiting, batch_size)):
            with torch.no_grad():
                found = self._run(batch, settings)
            for row, output in zip(batch, found, strict=True):
                rows.append(row)
                outputs.append(output)
                if row.is_last:
                    yield self._result(rows, outputs, settings)
                    rows, outputs = [], []

    def _marked(self, items: Iterable[Any], settings: Any) -> Iterator[Row]:
        for item in items:
            rows = self._rows(item, settings)
            for index, row in enumerate(rows):
                row.is_last = index == len(rows) - 1
                yield row

    def _tensors(self, rows: list[Row]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (rows, longest), filled up on the tokenizer's padding side."""
        width = max(len(row.input_ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        if pad is None and any(len(row.input_ids) < width for row in rows):
            raise ValueError(
                f"batch_size puts {len(rows)} rows of unequal length together, but the tokenizer has no padding token. "
                "Set one, for example pipe.tokenizer.pad_token = pipe.tokenizer.eos_token, or leave batch_size at 1."
            )
        left = self.tokenizer.padding_side == "left"
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            gap = width - len(row.input_ids)
            for name, values, filling in (
                ("input_ids", row.input_ids, pad or 0),
                ("attention_mask", row.attention_mask, 0),
            ):
                columns[name].append([filling] * gap + values if left else values + [filling] * gap)
        return {name: torch.tensor(values, dtype=torch.long, device=self.device) for name, values in columns.items()}

    def _unpadded(self, values: Tensor, row: Row) -> Tensor:
        """One row of (width, …) values without the positions that `_tensors` added."""
        gap = len(values) - len(row.input_ids)
        return values[gap:] if self.tokenizer.padding_side == "left" else values[: len(row.input_ids)]

    def _check_model(self, model: Any, task: str) -> None:
        names = {kind.__name__ for kind in type(model).__mro__}
        if not isinstance(model, nn.Module) or not names.intersection(self.needs):
            raise TypeError(
                f"model is a {type(model).__name__}, which the task {task or type(self).__name__!r} cannot read. It "
                f"needs a {' or a '.join(self.needs)}."
            )


def is_message(value: Any) -> bool:
    """Whether this is one message of a chat: a dictionary with a role and a content."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def check_text(name: str, value: Any) -> None:
    """Raises `TypeError` for what is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__} ({value!r:.60}); a str is needed.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises for what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; a whole number of at least {least} is needed.")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")


def check_flag(name: str, value: Any) -> None:
    """Raises `TypeError` for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; True or False is needed.")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises `ValueError` for what is not one of the texts allowed."""
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, choices))}.")


def no_further(options: Mapping[str, Any], task: str, known: Iterable[str]) -> None:
    """Raises `TypeError` for options that a task does not have."""
    if options:
        raise TypeError(f"{task} has no option {', '.join(map(repr, options))}; it has {', '.join(known)}.")


def _peeked(inputs: Any) -> tuple[Any, Iterator[Any]]:
    """The first of some inputs, and all of them."""
    if not hasattr(inputs, "__iter__") and not hasattr(inputs, "__getitem__"):
        raise TypeError(f"inputs is a {type(inputs).__name__} ({inputs!r:.60}); give a text, several, or an iterator.")
    by_index = not hasattr(inputs, "__iter__") and hasattr(inputs, "__len__")
    items = (inputs[index] for index in range(len(inputs))) if by_index else iter(inputs)
    start = list(islice(items, 1))
    return (start[0] if start else None), chain(start, items)


def _checked_batch_size(value: int | None) -> int:
    if value is None:
        return 1
    check_count("batch_size", value)
    return value


def _place(model: Any, device: int | str | torch.device | None) -> torch.device:
    """Moves the model and says where it is."""
    spread = getattr(model, "hf_device_map", None)
    if spread is not None and device is not None:
        raise ValueError(
            "device was given, but device_map has already placed the model's layers. Leave device out, or load the "
            "model without device_map."
        )
    here: torch.device = model.device
    target = here if spread is not None else resolved_device(device)
    if spread is None and here != target:
        model.to(target)
    return target


def resolved_device(device: Any) -> torch.device:
    """The torch device that a pipeline's `device` means.

    Raises:
        TypeError: for what names no device.
        ValueError: for a device that is not there.
    """
    if isinstance(device, bool) or not isinstance(device, int | str | torch.device | None):
        raise TypeError(
            f"device is {device!r}; a number, a name such as 'cpu' or 'cuda:0', or a torch.device is needed."
        )
    if device is None or isinstance(device, int):
        number = device or 0
        if number < 0 or not torch.cuda.is_available():
            return torch.device("cpu")
        device = f"cuda:{number}"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)  # known to torch, and yet perhaps not on this machine
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device is {device!r}, which torch cannot use here ({reason}). Use 'cpu'.") from error
    if found == torch.device("cuda"):
        return torch.device("cuda", torch.cuda.current_device())
    return found

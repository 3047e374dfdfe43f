"""Text while it is generated: `put(ids)` is called with the prompt and then with each token, `end()` at the end."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Queue
from typing import Any, Protocol

from torch import Tensor

# Blocks of ideographs, which are written without spaces: (first, last) code point.
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)


class Streamer(Protocol):
    """What `generate` takes in `streamer`."""

    def put(self, value: Tensor) -> None:
        """The prompts (batch, pos), once; then the newest token of each row (batch,), on the CPU."""
        ...

    def end(self) -> None:
        """No more tokens come: the texts are complete, or an error ended them."""
        ...


class TextStreamer:
    """Prints the text as soon as words are complete.

    Args:
        tokenizer: has `decode(ids, …) → text`.
        skip_prompt: leave out the prompt.
        decode_kwargs: given to `decode`, for example `skip_special_tokens=True`.

    Raises:
        TypeError: if the tokenizer has no `decode`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__} without decode(); give the model's tokenizer.")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._ids: list[int] = []  # of the line that is not complete
        self._shown = 0  # characters of it
        self._prompt_comes = True

    def put(self, value: Tensor) -> None:
        """Takes tokens, decodes them, and hands on the words that are complete.

        Raises:
            ValueError: for more than one row.
        """
        if value.dim() > 1 and value.shape[0] > 1:
            raise ValueError(f"{type(self).__name__} shows one text, but {value.shape[0]} rows are generated.")
        if self.skip_prompt and self._prompt_comes:
            self._prompt_comes = False
            return
        self._prompt_comes = False
        self._ids.extend(value.flatten().tolist())
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs)
        if text.endswith("\n"):  # a line never changes again
            new = text[self._shown :]
            self._ids, self._shown = [], 0
        else:
            complete = len(text) if text and _is_ideograph(text[-1]) else text.rfind(" ") + 1
            new = text[self._shown : complete]
            self._shown += len(new)
        self.on_finalized_text(new)

    def end(self) -> None:
        """Hands on the rest."""
        rest = self.tokenizer.decode(self._ids, **self.decode_kwargs)[self._shown :] if self._ids else ""
        self._ids, self._shown, self._prompt_comes = [], 0, True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """What to do with text that will not change: here it is printed, with a new line at the end."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """Hands the text to another thread, which iterates over it.

    Generate in a thread of its own and loop over the streamer; the loop ends with the text, also when an error ends it.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as in `TextStreamer`.
        timeout: seconds to wait for the next piece, after which `queue.Empty` is raised; `None` waits for ever.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout < 0):
            raise ValueError(f"timeout is {timeout!r}; it must be a number of seconds of at least 0, or None.")
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Puts the text into the queue, and `None` behind the last."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            text = self.text_queue.get(timeout=self.timeout)
        except Empty:
            raise Empty(f"no text came within {self.timeout} seconds; did generate fail in its thread?") from None
        if text is None:
            raise StopIteration
        return text


def _is_ideograph(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in IDEOGRAPHS)

"""The bytes behind a token's spelling.

A vocabulary does not list bytes but a spelling of them, and there are two: GPT-2's byte alphabet, where every byte is
one printable character (https://github.com/openai/gpt-2/blob/master/src/encoder.py), and SentencePiece's text with
`▁` for a space and `<0xE2>` for a byte that it has no piece for.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

SHOW_BYTES = "workbench.show_bytes"
"""Error handler for `bytes.decode`: bytes that are not UTF-8 become text like `<0xE2>`."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Character → byte of GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


class ByteTable:
    """Bytes of the tokens of one `tokenizers.Tokenizer`, told from the steps of its decoder."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
        steps = list(_decoder_steps(backend))
        kinds = {step["type"] for step in steps}
        self._alphabet = byte_alphabet() if "ByteLevel" in kinds else None
        self._byte_fallback = "ByteFallback" in kinds
        self._replacements = [pair for step in steps for pair in _replacements(step)]

    def of(self, index: int) -> bytes | None:
        """The bytes of one token; `None` for an id that the vocabulary does not have."""
        if index in self._added:  # added tokens are matched and written as they are, in either spelling
            return self._added[index].encode()
        token = self._backend.id_to_token(index)
        if token is None:
            return None
        if self._alphabet is not None and all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return str(token).encode()


def _decoder_steps(backend: Tokenizer) -> Iterator[dict[str, Any]]:
    if backend.decoder is None:
        return
    # Its pickled state is the decoder's part of tokenizer.json; writing the whole tokenizer out takes 0.1 s.
    state = json.loads(backend.decoder.__getstate__())
    yield from state["decoders"] if state["type"] == "Sequence" else [state]


def _replacements(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if step["type"] == "Metaspace":
        yield step["replacement"], " "
    elif step["type"] == "Replace" and "String" in step["pattern"]:
        yield step["pattern"]["String"], step["content"]


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(SHOW_BYTES, _show_bytes)

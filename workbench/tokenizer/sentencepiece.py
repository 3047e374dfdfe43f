"""Reads a SentencePiece `tokenizer.model` and makes a `tokenizers` backend that gives the same ids.

The file is a protocol buffer, described in
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; the few fields that matter are read
here directly. The algorithm is that of `src/bpe_model.cc`: of all neighbours whose union is a piece, those with the
best score are joined first, the leftmost of equals.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models

from workbench.tokenizer.backend import set_spaces
from workbench.tokenizer.errors import TokenizerError, guarded

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2  # trainer_spec.model_type
LONGEST_PIECE = 512  # characters; trained pieces have at most 16 or so, and the merges of one grow with its square


@dataclasses.dataclass
class SentencePieceModel:
    """What a `tokenizer.model` says.

    Attributes:
        pieces: (text, score, kind) in the order of the ids.
        model_type: 1 unigram, 2 BPE.
        byte_fallback: whether a character without a piece is spelled in bytes.
        dummy_prefix: whether a space is put before the text.
        charsmap, extra_spaces_removed, spaces_escaped, suffix: how the text is normalised before.
    """

    pieces: list[tuple[str, float, int]] = dataclasses.field(default_factory=list)
    model_type: int = 1
    byte_fallback: bool = False
    dummy_prefix: bool = True
    charsmap: bool = False
    extra_spaces_removed: bool = True
    spaces_escaped: bool = True
    suffix: bool = False

    def named(self) -> dict[str, str | None]:
        """The texts of the special tokens, by the names and places that SentencePiece gives them."""
        control = [piece for piece, _, kind in self.pieces if kind == CONTROL]
        unknown = [piece for piece, _, kind in self.pieces if kind == UNKNOWN]
        begin, end, pad = (name if name in control else None for name in ("<s>", "</s>", "<pad>"))
        return {"unk_token": unknown[0], "bos_token": begin, "eos_token": end, "pad_token": pad}


def read_model(path: Path) -> SentencePieceModel:
    """The contents of a `tokenizer.model`.

    Raises:
        TokenizerError: if the file is damaged, or of a kind whose ids could not be reproduced here.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error}).") from error
    try:
        model = _parse(data)
        _check(model)
    except (_DamagedError, _UnsupportedError) as error:
        raise TokenizerError(f"{path} is not a SentencePiece model that can be read here: {error}") from error
    return model


def backend_of(model: SentencePieceModel, *, prefix: bool | None = None, legacy: bool = False) -> Tokenizer:
    """A `tokenizers.Tokenizer` that splits texts as SentencePiece does.

    Control and user-defined pieces are matched whole in a text, as `transformers` does; SentencePiece itself spells a
    control piece that it meets in a text (`split_special_tokens=True` does so here), and puts its space also before a
    user-defined piece that begins a text.

    Args:
        prefix: whether a space is put before the text, `None` for what the model says.
        legacy: put one also after every special token inside the text.
    """
    pieces = [(piece, score) for piece, score, kind in model.pieces if kind in (NORMAL, USER_DEFINED)]
    vocab = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    frozen = {piece for piece, _, kind in model.pieces if kind == USER_DEFINED}
    merges = merges_from_scores(((p, s) for p, s in pieces if p not in frozen), vocab, {p for p, _ in pieces} - frozen)
    rules = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=model.named()["unk_token"],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )
    backend = Tokenizer(rules)
    set_spaces(backend, model.dummy_prefix if prefix is None else prefix, legacy=legacy, exact=True)
    special = [AddedToken(piece, normalized=False) for piece, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)]
    whole = [AddedToken(piece, normalized=False) for piece, _, kind in model.pieces if kind == USER_DEFINED]
    guarded("The model's special pieces cannot be added", backend.add_special_tokens, special)
    guarded("The model's user-defined pieces cannot be added", backend.add_tokens, whole)
    return backend


def merges_from_scores(
    pieces: Iterable[tuple[str, float]], ids: Mapping[str, int], parts: Iterable[str]
) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores stand for: every way to make a piece of two others, best score first.

    SentencePiece merges the neighbours whose union scores best; a list of merges in that order does the same. It takes
    the leftmost of equals, which a list cannot say: here the longest left part comes first, which is the leftmost for
    runs of one character, such as the spaces that Llama 2 gives one and the same score. It is also the order of
    `transformers`.

    Args:
        pieces: (text, score) of what merges make.
        ids: id of every piece, which orders what is left of ties.
        parts: texts that a merge may be made of.
    """
    known = {part: part for part in parts}  # one object a text, however many merges it is part of
    lengths = sorted({len(part) for part in known})
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces:
        pairs = []
        for cut in lengths:
            if cut >= len(piece):
                break
            left, right = known.get(piece[:cut]), known.get(piece[cut:])
            if left is not None and right is not None:
                pairs.append((left, right))
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda entry: entry[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


# The file -------------------------------------------------------------------------------------------------------------


class _DamagedError(Exception):
    pass


class _UnsupportedError(Exception):
    pass


def _parse(data: bytes) -> SentencePieceModel:
    model = SentencePieceModel()
    for number, value in _fields(data):
        if number == 1:
            model.pieces.append(_piece(_message(value)))
        elif number == 2:
            for field, setting in _fields(_message(value)):
                if field == 3:
                    model.model_type = _number(setting)
                elif field == 24:
                    model.suffix = bool(_number(setting))
                elif field == 35:
                    model.byte_fallback = bool(_number(setting))
        elif number == 3:
            for field, setting in _fields(_message(value)):
                if field == 2:
                    model.charsmap = bool(_message(setting))
                elif field == 3:
                    model.dummy_prefix = bool(_number(setting))
                elif field == 4:
                    model.extra_spaces_removed = bool(_number(setting))
                elif field == 5:
                    model.spaces_escaped = bool(_number(setting))
    return model


def _piece(data: memoryview) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = bytes(_message(value))
        elif number == 2:
            if not isinstance(value, memoryview) or len(value) != 4:
                raise _DamagedError("a piece's score is not a 32-bit float")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _number(value)
    try:
        return text.decode(), score, kind
    except UnicodeDecodeError:
        raise _DamagedError(f"the piece {text!r:.80} is not UTF-8") from None


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of one message: a number for a varint, else its bytes. Nothing is copied."""
    view, place = memoryview(data), 0
    while place < len(view):
        key, place = _varint(view, place)
        kind, size = key & 7, 0
        if kind == 0:
            number, place = _varint(view, place)
            yield key >> 3, number
            continue
        if kind == 2:
            size, place = _varint(view, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _DamagedError(f"byte {place} begins a field of the unknown kind {kind}")
        if size > len(view) - place:
            raise _DamagedError(f"a field of {size} bytes begins where {len(view) - place} are left")
        yield key >> 3, view[place : place + size]
        place += size


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(view):
            raise _DamagedError("it ends inside a number")
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _DamagedError("a number takes more than ten bytes")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError("a number stands where a text or a message is expected")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _DamagedError("a text stands where a number is expected")
    return value


def _check(model: SentencePieceModel) -> None:
    if not model.pieces:
        raise _DamagedError("it holds no pieces")
    seen: set[str] = set()
    for piece, score, kind in model.pieces:
        if not piece or piece in seen:
            raise _DamagedError(f"the piece {piece!r:.80} is there twice" if piece else "a piece has no text")
        if not NORMAL <= kind <= BYTE or not math.isfinite(score):
            raise _DamagedError(f"the piece {piece!r:.80} has the kind {kind} and the score {score}")
        if len(piece) > LONGEST_PIECE:
            raise _UnsupportedError(f"a piece has {len(piece)} characters; at most {LONGEST_PIECE} are allowed.")
        seen.add(piece)
    kinds = [kind for _, _, kind in model.pieces]
    if kinds.count(UNKNOWN) != 1:
        raise _DamagedError(f"it has {kinds.count(UNKNOWN)} unknown pieces where there must be one")
    if model.model_type != BPE or UNUSED in kinds:
        what = "has unused pieces" if model.model_type == BPE else f"is of model type {model.model_type}"
        raise _UnsupportedError(f"it {what}; only BPE models (type 2) without unused pieces are supported.")
    if model.charsmap or model.extra_spaces_removed or not model.spaces_escaped or model.suffix:
        raise _UnsupportedError("it normalises the text; Llama's models do not, and only such are supported.")
    missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in seen]
    if model.byte_fallback and missing:
        raise _DamagedError(f"it falls back to bytes but has no piece {missing[0]}")
    _check_characters(model)


def _check_characters(model: SentencePieceModel) -> None:
    """SentencePiece joins any two characters to a piece, `tokenizers` only such as are pieces themselves."""
    normal = {piece for piece, _, kind in model.pieces if kind == NORMAL}
    for piece in normal:
        if len(piece) > 1 and not normal.issuperset(piece):
            missing = next(character for character in piece if character not in normal)
            raise _UnsupportedError(f"the piece {piece!r:.80} has the character {missing!r}, which is no piece itself.")

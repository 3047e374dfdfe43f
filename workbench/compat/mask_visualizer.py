"""AttentionMaskVisualizer: the documented call that prints which token may attend to which."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn

from workbench.analysis.mask import AppliedMask, applied_mask
from workbench.checkpoints import CheckpointNotFoundError, hub
from workbench.checkpoints.gguf_model import open_gguf
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.load import Loaded
from workbench.checkpoints.locate import locate, open_gguf_file
from workbench.config import LlamaConfig
from workbench.instrument.masks import base_model, mask_of_forward
from workbench.model.mask import Mask, build_mask
from workbench.tokenizer import LlamaTokenizer
from workbench.views.mask import MASKED, MAY, mask_payload, mask_text

if TYPE_CHECKING:
    from workbench.session import Session
    from workbench.widgets.mask_matrix import MaskMatrix

PRINTED = 64  # tokens a side that are printed at most: a line of 150 columns
DRAWN = 4_000_000  # cells that are sent to the page at most: 2,000 × 2,000 of one text
NEEDED = [name for name in hub.ALLOWED if "safetensors" not in name]  # of a model on the Hub: no weights
NAME = 28  # characters of a text that the list of texts shows


class _Source(NamedTuple):
    config: LlamaConfig
    tokenizer: LlamaTokenizer
    model: nn.Module | None
    name: str


class _Texts(NamedTuple):
    texts: list[str]
    mask: Mask
    pieces: list[list[str]]


class AttentionMaskVisualizer:
    """Shows the attention mask of a text: ■ where a query may attend to a key, ⬚ where it may not.

        AttentionMaskVisualizer("models/tiny-llama")("Plants create energy through a process known as")

    Labels are the tokens of the very ids that the model reads, the beginning-of-text token included.

    Args:
        model_name: a folder in Hugging Face format, a .gguf file, a Hub id, a live Llama model, what `workbench.load()`
            returned, or a `Session`. Of a path or id only the config and the tokenizer are read, no weights. `None` is
            the default model.
        tokenizer: needed with a bare live model; otherwise the model's own one.
        revision, token: for the Hub: branch, tag or commit; access token.

    Attributes: `config`, `tokenizer`, `model` (`None` where no weights were read) and `repo_id`, the name shown.

    Raises:
        TypeError: for another kind of model or tokenizer, and for a live model without a tokenizer.
        CheckpointNotFoundError, CheckpointError, ConfigError, TokenizerError: as `workbench.load`.
    """

    def __init__(
        self,
        model_name: str | Path | nn.Module | Loaded | Session | None = None,
        tokenizer: LlamaTokenizer | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        if tokenizer is not None and not isinstance(tokenizer, LlamaTokenizer):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; a workbench LlamaTokenizer is needed.")
        if isinstance(model_name, str | Path | None):
            source = _open(model_name, revision, token)
        else:
            source = _live(model_name, tokenizer)
        self.config, self.tokenizer, self.model, self.repo_id = source
        self.tokenizer = tokenizer or self.tokenizer

    def __call__(
        self,
        input_sentence: str | Sequence[str],
        suffix: str = "",
        *,
        attention_mask: Any = None,
        head: int | None = None,
        max_tokens: int = PRINTED,
    ) -> MaskMatrix | None:
        """Prints the matrix; in a notebook it also returns the interactive view, which the cell then shows.

        In colour where the output is a terminal (`NO_COLOR` is heeded): the diagonal green, masked cells by the rule
        that forbids them. A longer text is cut to its first tokens, and a line says so.

        Args:
            input_sentence: one text, or several, which are padded to one length as the tokenizer does it.
            suffix: only models that read pictures have one; must be empty.
            attention_mask: instead of the tokenizer's: (texts, tokens) with 0 at padding, or a 4-D mask (texts or 1,
                1, tokens, tokens), boolean (True = may attend) or additive, as the model's forward takes it.
            head: which query head's mask to show, where an additive mask has one for each.
            max_tokens: how many tokens a side are printed at most; the view has room for more.

        Raises:
            ValueError: for a text without tokens, a suffix, a mask that does not fit, a head there is none of, or a
                `max_tokens` below 1.
            TypeError: for arguments of another type.
            TokenizerError: if several texts need padding and the tokenizer has no padding token.
        """
        if suffix:
            raise ValueError(
                f"suffix is {suffix!r}, but a Llama reads text only: suffixes belong to models that read pictures. "
                "Write it at the end of the text."
            )
        _check_count("max_tokens", max_tokens)
        texts, shown = self._read(input_sentence, attention_mask, head, max_tokens)
        stream = sys.stdout
        _print(self._text(texts, shown, _has_color(stream)), stream)
        return self._view(texts, head) if _in_notebook() else None

    def visualize_attention_mask(self, input_sentence: str | Sequence[str], suffix: str = "") -> MaskMatrix | None:
        """The same as a call, under the name that `transformers` has for it."""
        return self(input_sentence, suffix)

    def mask(self, input_sentence: str | Sequence[str], *, attention_mask: Any = None) -> Mask:
        """The mask object of these texts: `allowed()` has its cells, `reasons()` why the others are masked.

        Of a live model it is the one that the model's own forward made; otherwise the same rules for the config.
        """
        return self._tokenize(input_sentence, attention_mask).mask

    def view(
        self, input_sentence: str | Sequence[str], *, attention_mask: Any = None, head: int | None = None
    ) -> MaskMatrix:
        """The interactive view, without printing. Its `repr` is the printed matrix."""
        texts, _ = self._read(input_sentence, attention_mask, head, PRINTED)
        return self._view(texts, head)

    # --- inside --------------------------------------------------------------------------------------------------

    def _read(self, text: Any, attention_mask: Any, head: Any, most: int) -> tuple[_Texts, AppliedMask]:
        heads = self.config.num_attention_heads
        if head is not None and (isinstance(head, bool) or not isinstance(head, int) or not 0 <= head < heads):
            raise ValueError(f"head is {head!r}; this model has query heads 0 … {heads - 1}, None is all of them.")
        texts = self._tokenize(text, attention_mask)
        return texts, applied_mask(texts.mask, most, head)

    def _tokenize(self, text: Any, attention_mask: Any) -> _Texts:
        rows = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else None
        if not rows or not all(isinstance(row, str) for row in rows):
            raise TypeError(f"input_sentence is {text!r:.80}; a text or a list of texts is needed.")
        encoding = self.tokenizer(rows, padding=len(rows) > 1, return_tensors="pt")
        ids, given = encoding["input_ids"], encoding["attention_mask"]
        if ids.numel() == 0:
            raise ValueError("input_sentence has no tokens. Give some text.")
        if attention_mask is not None:
            given = _as_tensor(attention_mask)
        if self.model is not None:
            mask = mask_of_forward(self.model, _to_model(self.model, ids), given)
        else:
            positions = torch.arange(ids.shape[1])
            mask = build_mask(given, positions, positions, len(ids), self.config.num_attention_heads)
        return _Texts(rows, mask, [self.tokenizer.pieces(row) for row in ids.tolist()])

    def _text(self, texts: _Texts, shown: AppliedMask, color: bool) -> str:
        blocks = []
        for i, pieces in enumerate(texts.pieces):
            which = f", text {i} of {len(texts.pieces)}" if len(texts.pieces) > 1 else ""
            title = f"Attention mask of {self.repo_id}{which}: {shown.queries:,} queries × {shown.keys:,} keys"
            blocks.append(f"{title}\n{mask_text(shown, pieces, i, color)}")
        if shown.cut:
            blocks.append("max_tokens= prints more.")
        return "\n\n".join(blocks)

    def _view(self, texts: _Texts, head: int | None) -> MaskMatrix:
        from workbench.widgets.mask_matrix import MaskMatrix  # a script that prints needs no widgets

        side = max(1, int((DRAWN / len(texts.mask.reasons(slice(1), slice(1)))) ** 0.5))
        drawn = applied_mask(texts.mask, side, head)
        shown = applied_mask(texts.mask, PRINTED, head)
        kind = f"{self.repo_id} · {drawn.queries:,} queries × {drawn.keys:,} keys"
        subtitle = kind if head is None else f"{kind} · head {head}"
        names = [f"{i}: {text if len(text) <= NAME else f'{text[: NAME - 1]}…'}" for i, text in enumerate(texts.texts)]
        view = MaskMatrix(text=self._text(texts, shown, False))
        view.show(*mask_payload(drawn, texts.pieces, names, "Attention mask", subtitle))
        return view


def _open(path: str | Path | None, revision: str | None, token: str | bool | None) -> _Source:
    """Config and tokenizer of a checkpoint, without its weights."""
    at = locate(path, revision=revision, token=token, files=NEEDED)
    if at.path.is_file():
        file = open_gguf_file(at.path)
        return _Source(open_gguf(file).config, tokenizer_from_gguf(file.metadata), None, at.name)
    if not (at.path / "config.json").is_file():
        raise CheckpointNotFoundError(f"{at.path} has no config.json, so it is no model in Hugging Face format.")
    return _Source(
        LlamaConfig.from_json_file(at.path / "config.json"), LlamaTokenizer.from_folder(at.path), None, at.name
    )


def _live(model: Any, tokenizer: LlamaTokenizer | None) -> _Source:
    from workbench.session import Session  # brings pandas and the widgets' traits; a path needs neither

    if isinstance(model, Loaded | Session):
        return _Source(model.model.config, model.tokenizer, model.model, model.name)
    try:
        config = base_model(model).config
    except TypeError:
        raise TypeError(
            f"model_name is a {type(model).__name__}; give a folder, a .gguf file, a Hub id, a Llama model of the "
            "workbench with tokenizer=, what workbench.load() returned, or a Session. A model of transformers is "
            "wrapped by workbench.from_transformers."
        ) from None
    if tokenizer is None:
        raise TypeError(
            "a live model needs its tokenizer too: AttentionMaskVisualizer(model, tokenizer), or give "
            "what workbench.load() returned."
        )
    return _Source(config, tokenizer, model, type(model).__name__)


def _to_model(model: nn.Module, ids: Tensor) -> Tensor:
    """Onto the embedding's device; weights that are elsewhere (offloaded) are brought by who put them there."""
    device = base_model(model).embed_tokens.weight.device
    return ids if device.type == "meta" else ids.to(device)


def _as_tensor(attention_mask: Any) -> Tensor:
    try:
        return torch.as_tensor(attention_mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"attention_mask is a {type(attention_mask).__name__} that is no array of numbers ({error}); give a tensor "
            "(texts, tokens) with 0 at padding, or a 4-D mask."
        ) from None


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be 1 or more.")


def _in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel, whose cells show what they return."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython() if ipython else None, "kernel", None) is not None


def _has_color(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _print(text: str, stream: TextIO) -> None:
    """With # and . where the stream cannot carry the squares, and escapes for tokens that it cannot."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace(MAY, "#").replace(MASKED, ".").encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=stream)

"""Text to token ids and back, on the `tokenizers` package."""

from tokenizers import AddedToken

from workbench.tokenizer.batch_encoding import BatchEncoding, CharSpan, TokenSpan
from workbench.tokenizer.errors import TokenizerError
from workbench.tokenizer.llama import LlamaTokenizer, LlamaTokenizerFast

__all__ = [
    "AddedToken",
    "BatchEncoding",
    "CharSpan",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "TokenSpan",
    "TokenizerError",
]

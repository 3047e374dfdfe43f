"""Text to token ids and back, on the `tokenizers` package."""

from workbench.tokenizer.files import TokenizerError
from workbench.tokenizer.llama import BatchEncoding, LlamaTokenizer

__all__ = ["BatchEncoding", "LlamaTokenizer", "TokenizerError"]

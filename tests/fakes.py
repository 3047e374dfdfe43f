"""A tokenizer for tiny models: one token a printable ASCII character, ids 1 … 95."""

import torch

from tests.conftest import tiny_model
from workbench.session import Session


class CharTokenizer:
    def encode(self, text, add_special_tokens=True):
        return [ord(character) - 31 for character in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(i + 31) for i in ids)

    def __len__(self):
        return 97

    def pieces(self, ids):
        return [chr(i + 31) for i in ids]

    def token_bytes(self, i):
        return chr(i + 31).encode()

    def apply_chat_template(self, messages, add_generation_prompt, return_dict):
        assert add_generation_prompt
        assert not return_dict
        return self.encode(f"<{messages[0]['role']}>{messages[0]['content']}")


def tiny_session(kind="gqa", **changes) -> Session:
    """A session on a tiny random model that never ends a text by itself."""
    torch.manual_seed(0)  # two of them are the same
    return Session(tiny_model(kind, eos_token_id=None, **changes), CharTokenizer(), name="tiny")

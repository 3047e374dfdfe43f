"""Vocabularies of GGUF files."""

import pytest

from tests.checkpoints.conftest import byte_level_metadata, sentencepiece_metadata
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.gguf_vocab import PRE_TOKENIZERS, tokenizer_from_gguf


def pieces(text, **changes):
    tokenizer = tokenizer_from_gguf(byte_level_metadata(**changes))
    return tokenizer.pieces(tokenizer.encode(text, add_special_tokens=False))


def test_pre_tokenizers_split_differently():
    assert pieces("12") == ["12"]
    assert pieces("12", **{"tokenizer.ggml.pre": "smollm-digits"}) == ["1", "2"]
    assert pieces("  1") == [" ", " ", "1"]
    assert pieces("  1", **{"tokenizer.ggml.pre": "smollm-digits"}) == ["  ", "1"]
    assert pieces("a's") == ["a", "'s"]
    assert pieces("12", **{"tokenizer.ggml.pre": "tekken"}) == ["1", "2"]
    assert pieces("12", **{"tokenizer.ggml.pre": "llama-bpe"}) == ["12"]


def test_the_rule_can_be_chosen():
    tokenizer = tokenizer_from_gguf(byte_level_metadata(), pre_tokenizer="smollm-digits")
    assert tokenizer.pieces(tokenizer.encode("  1")) == ["  ", "1"]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_rule_gives_the_text_back(name):
    text = " It's 1234 x\n\n  y\t☃ é 漢字 <|im_end|>\r\n"
    assert "".join(pieces("It's 12\n\n  y", **{"tokenizer.ggml.pre": name})) == "It's 12\n\n  y"
    tokenizer = tokenizer_from_gguf(byte_level_metadata(**{"tokenizer.ggml.pre": name}))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_whole_words_need_no_merges():
    without = {"tokenizer.ggml.merges": ["h e"]}
    assert pieces("hello", **without) == ["he", "l", "l", "o"]
    assert pieces("hello", **without, **{"tokenizer.ggml.pre": "llama-bpe"}) == ["hello"]


def test_beginning_of_text():
    def first(**changes):
        return tokenizer_from_gguf(byte_level_metadata(**changes)).encode("h")[0]

    unsaid = {"tokenizer.ggml.add_bos_token": None}
    assert first(**{"tokenizer.ggml.add_bos_token": True}) == 1
    assert first(**unsaid) != 1
    assert first(**unsaid, **{"tokenizer.ggml.pre": "llama-bpe"}) == 1  # llama.cpp's default for it
    assert tokenizer_from_gguf(sentencepiece_metadata()).encode("hello")[0] == 1
    ends = tokenizer_from_gguf(byte_level_metadata(**{"tokenizer.ggml.add_eos_token": True}))
    assert ends.encode("h")[-1] == 2


def test_sentencepiece():
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata())
    ids = tokenizer.encode("hello world", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁hello", "▁world"]
    assert tokenizer.decode(ids) == "hello world"
    assert tokenizer.decode(tokenizer.encode("hello  é🙂\n", add_special_tokens=False)) == "hello  é🙂\n"


def test_sentencepiece_without_prefix_space():
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["hello"]
    assert tokenizer.decode(tokenizer.encode(" hello", add_special_tokens=False)) == " hello"


def test_plain_text_tokens_are_spelled_and_control_tokens_are_not():
    metadata = byte_level_metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "字", "<｜é｜>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 3]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.token_bytes(size) == "字".encode()
    assert tokenizer.encode("<｜é｜>") == [size + 1]
    assert len(tokenizer) == size + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, r"\(tokenizer.ggml.model\) is 't5'; known are 'gpt2'"),
        ({"tokenizer.ggml.model": None}, "is None; known are"),
        ({"tokenizer.ggml.pre": "qwen2"}, "by the rule 'qwen2'.*known are gpt-2, default, smollm"),
        ({"tokenizer.ggml.pre": ["qwen2"]}, "by the rule .'qwen2'."),
        ({"tokenizer.ggml.tokens": None}, "has no vocabulary"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokens is not a list of str"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type has 1 entries for 273 tokens"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merges holds 'ab'; each entry must be two tokens"),
        ({"tokenizer.ggml.merges": ["q x"]}, "does not fit together"),
        ({"tokenizer.ggml.bos_token_id": 99999}, "bos_token_id is 99999, but the vocabulary has 273 tokens"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_gguf(byte_level_metadata(**changes))


def test_sentencepiece_errors():
    with pytest.raises(CheckpointError, match="neither scores nor merges"):
        tokenizer_from_gguf(sentencepiece_metadata(**{"tokenizer.ggml.scores": None}))

"""Token ids equal those of transformers, for the default model's GGUF file and for folders."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import itertools
import pydoc_data.topics
import time

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import (
    byte_level_metadata,
    sentencepiece_metadata,
    small_model,
    vocabulary_size,
    write_gguf,
)
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.checkpoints.load import default_model
from workbench.tokenizer import LlamaTokenizer

FILE = default_model()
THEIRS = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
METADATA = GGUFFile(FILE).metadata
OURS = tokenizer_from_gguf(METADATA)
TRAINED = tokenizer_from_gguf(METADATA, pre_tokenizer="smollm-digits")
PROSE = "\n".join(pydoc_data.topics.topics.values())[:200_000]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SPECIAL_TEXT = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<reponame>", "<", "|", " ", "a"])
)
SPACES = st.text(st.sampled_from(" \t\n\r\u00a0\u2003a1.'"))
TEXTS = {
    "empty": "",
    "code": "def f(x, *, y=10):\n    '''doc'''\n\treturn x[1:-1] ** 2  # 100%\n\n\nclass A:\n    pass\n",
    "emoji": "👩‍👩‍👧‍👦 🙂 🏳️‍🌈 ☃️",
    "cjk": "你好，世界。こんにちは 안녕하세요 𠮷",
    "leading spaces": "   leading and trailing   ",
    "tabs": "\t\ta\tb \t c\n\t\n",
    "digits": "1 12 123 1234  5 \n6 3.14159e-10 १२ ²",
    "newlines": "\n\n\na\r\n\r\nb\n \n",
    "special": "<|im_start|>user\nhi<|im_end|><|endoftext|> <|im_start|> <|im_ start|>",
    "contractions": "It's I'll we've THEY'RE 'tis can't",
    "accents": "naïve café e\u0301 Ελληνικά עברית العربية हिन्दी ไทย",
    "controls": "\0\x01\x7f\ufeff\u200b\ufffd\U0010ffff",
    "long word": "a" * 3000 + "é" * 300,
}
MESSAGES = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|>"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": " b\n"}, {"role": "user", "content": "é"}],
]


def same(ours, theirs, text):
    for special in (True, False):
        expected = theirs(text, add_special_tokens=special, return_offsets_mapping=True)
        actual = ours(text, add_special_tokens=special, return_offsets_mapping=True)
        assert actual["input_ids"] == expected["input_ids"]
        assert actual["attention_mask"] == expected["attention_mask"]
        assert actual["offset_mapping"] == [tuple(span) for span in expected["offset_mapping"]]
        assert ours.encode(text, add_special_tokens=special) == expected["input_ids"]
        for skip in (True, False):
            ids = expected["input_ids"]
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name):
    same(OURS, THEIRS, TEXTS[name])


def test_200_000_characters_of_prose():
    assert len(PROSE) == 200_000
    same(OURS, THEIRS, PROSE)


def test_prose_is_encoded_fast():
    OURS.encode("warm")
    start = time.perf_counter()
    OURS.encode(PROSE)
    assert time.perf_counter() - start < 1.0


@given(TEXT | SPECIAL_TEXT.map("".join) | SPACES)
@example("  1")
@settings(max_examples=300, deadline=None)
def test_any_text(text):
    same(OURS, THEIRS, text)


def test_vocabulary():
    assert len(OURS) == len(THEIRS) == 49152
    assert OURS.vocab_size == THEIRS.vocab_size
    ids = list(range(len(OURS)))
    assert OURS.convert_ids_to_tokens(ids) == THEIRS.convert_ids_to_tokens(ids)
    tokens = OURS.convert_ids_to_tokens(ids[::97])
    assert OURS.convert_tokens_to_ids(tokens) == THEIRS.convert_tokens_to_ids(tokens)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(OURS, name) == getattr(THEIRS, name)
        assert getattr(OURS, f"{name}_id") == getattr(THEIRS, f"{name}_id")
    # Theirs lists the named tokens only, though decoding skips every control token. Ours are those that are skipped.
    assert set(THEIRS.all_special_ids) == {0, 1, 2} <= set(OURS.all_special_ids)
    skipped = [
        index for index in ids if not THEIRS.decode([index], skip_special_tokens=True) and THEIRS.decode([index])
    ]
    assert sorted(OURS.all_special_ids) == skipped == list(range(17))


@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("prompt", [True, False])
def test_chat_template(messages, prompt):
    expected = THEIRS.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert OURS.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) == expected
    ids = THEIRS.apply_chat_template(messages, add_generation_prompt=prompt)
    assert OURS.apply_chat_template(messages, add_generation_prompt=prompt) == dict(ids)


REASONING = (
    "{% for m in messages %}{% for k in ['reasoning_content', 'thinking', 'reasoning'] %}[{{ m[k] }}]{% endfor %}"
)
REASONING += "{% for k in m %}<{{ k }}>{% endfor %}{% endfor %}"
NAMES = ["reasoning_content", "thinking", "reasoning"]


@pytest.mark.parametrize("given", [some for n in range(4) for some in itertools.permutations(NAMES, n)], ids=str)
@pytest.mark.parametrize("value", ["short", "", ["a", "b"]], ids=repr)
def test_reasoning_is_found_under_the_names_a_template_may_read(given, value):
    message = {"role": "assistant", "content": "x", **{key: value and [*value, key] for key in given}}
    for messages in ([message], [{"role": "user", "content": "y"}, {**message, "tool_calls": []}]):
        options = {"chat_template": REASONING, "tokenize": False}
        assert OURS.apply_chat_template(messages, **options) == THEIRS.apply_chat_template(messages, **options)


@pytest.mark.parametrize("given", NAMES)
def test_reasoning_that_is_none_is_not_there(given):
    # Theirs keeps a None, which a template reads as text.
    messages = [{"role": "assistant", "content": "x", given: None}]
    assert "<thinking>" not in OURS.apply_chat_template(messages, chat_template=REASONING, tokenize=False)


@pytest.mark.parametrize("name", ["tools", "documents", "other"])
@pytest.mark.parametrize("options", [{}, {"tools": None, "documents": None}, {"documents": [{"text": "d"}]}], ids=str)
def test_names_that_are_always_defined(name, options):
    template = f"{{{{ {name} is defined }}}} {{{{ {name} is none }}}} {{{{ {name} }}}}"
    options = {"chat_template": template, "tokenize": False, **options}
    expected = THEIRS.apply_chat_template(MESSAGES[0], **options)
    assert OURS.apply_chat_template(MESSAGES[0], **options) == expected


def test_padding():
    texts = ["one", "one two three", ""]
    THEIRS.padding_side = "left"
    expected = THEIRS(texts, padding=True, return_tensors="pt")
    actual = OURS(texts, padding=True, return_tensors="pt")
    for key in ("input_ids", "attention_mask"):
        assert actual[key].tolist() == expected[key].tolist()
    expected = THEIRS(texts, truncation=True, max_length=2)
    assert OURS(texts, truncation=True, max_length=2).input_ids == expected["input_ids"]


def test_the_difference_from_the_rule_the_model_was_trained_with():
    """Reading a GGUF file, transformers leaves out the split of digits: whitespace runs before a digit show it."""
    assert OURS.pieces(OURS.encode("x  1\n\n2")) == ["x", " ", " ", "1", "\n", "\n", "2"]
    assert TRAINED.pieces(TRAINED.encode("x  1\n\n2")) == ["x", "  ", "1", "\n\n", "2"]


NO_NUMERALS = st.characters(exclude_categories=["Cs", "Nd", "Nl", "No"])


@given(st.text(NO_NUMERALS | st.sampled_from("0123456789 '")))
@settings(max_examples=300, deadline=None)
def test_the_two_rules_agree_otherwise(text):
    """Without whitespace runs, and without numerals beyond ASCII, which may merge with a neighbour ("0¼")."""
    kept = [character for character in text if not character.isspace()]
    for without_runs in ("".join(kept), " ".join(kept)):
        assert OURS.encode(without_runs) == TRAINED.encode(without_runs)


# Other vocabularies ---------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=["smollm", "gpt-2", "llama-bpe", "smaug-bpe", "tekken", "sentencepiece", "with bos"]
)
def other(request, tmp_path_factory):
    """The same small vocabulary in ours and in theirs; the latter reads the GGUF file."""
    folder = tmp_path_factory.mktemp("vocabulary")
    if request.param == "sentencepiece":
        vocabulary = sentencepiece_metadata()
    elif request.param == "with bos":
        vocabulary = byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True})
    else:
        vocabulary = byte_level_metadata(**{"tokenizer.ggml.pre": request.param})
    path = write_gguf(folder / "tiny.gguf", small_model(vocab_size=vocabulary_size(vocabulary)), vocabulary=vocabulary)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
    return tokenizer_from_gguf(GGUFFile(path).metadata), theirs, folder


@pytest.mark.parametrize("name", TEXTS)
def test_other_vocabularies(other, name):
    ours, theirs, _ = other
    same(ours, theirs, TEXTS[name] + " hello world  hello")


def test_folder_that_transformers_saved(other):
    _, theirs, folder = other
    theirs.save_pretrained(folder / "saved")
    ours = LlamaTokenizer.from_folder(folder / "saved")
    reread = transformers.AutoTokenizer.from_pretrained(folder / "saved")
    for text in TEXTS.values():
        same(ours, reread, text + " hello world  hello")
    assert ours.special_tokens_map == {
        key: value for key, value in reread.special_tokens_map.items() if isinstance(value, str)
    }
    assert ours.chat_template == reread.chat_template

"""A tokenizer's call, with all its options, gives what transformers gives on the same folder."""

# ruff: noqa: F401, F811  pair is a fixture

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import itertools

import numpy as np
import pytest
import transformers

from tests.parity.tokenizer_pairs import ASKED, MERGES, VOCAB, made_by_ours, made_by_theirs, pair, plain, same
from tests.tokenizer.mixed_text import LINES
from workbench.tokenizer import AddedToken, LlamaTokenizer

TEXTS = ["one", "one two three four five", "", " leading, and ünïcode 🙂 你好\n\n  x"]
SECONDS = ["second", "b", "another second text", "x"]
WORDS = [["Hello", "wörld", "again"], ["a"], ["two words", "🙂"]]


@pytest.mark.parametrize("text", [*TEXTS, *LINES])
@pytest.mark.parametrize("special", [True, False])
def test_one_text(pair, text, special):
    ours, theirs = pair
    same(pair, text, add_special_tokens=special, **ASKED)
    same(pair, text, text[:5] or "x", add_special_tokens=special, **ASKED)
    assert ours.tokenize(text, add_special_tokens=special) == theirs.tokenize(text, add_special_tokens=special)
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        tokens = ours.convert_ids_to_tokens(ids, skip_special_tokens=skip)
        assert tokens == theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert [ours.decode(index) for index in ids] == [theirs.decode(index) for index in ids]


PADDINGS = [
    {},
    {"padding": True},
    {"padding": "max_length", "max_length": 9},
    {"padding": "longest", "pad_to_multiple_of": 4},
]
TRUNCATIONS = [
    {},
    {"truncation": True, "max_length": 4},
    {"truncation": "longest_first", "max_length": 7},
    {"truncation": "only_first", "max_length": 6},
    {"truncation": "only_second", "max_length": 6},
    {"max_length": 5},
    {"truncation": False, "max_length": 5},
    {"truncation": True, "max_length": 6, "stride": 1, "return_overflowing_tokens": True},
    {"truncation": "only_first", "max_length": 6, "stride": 2, "return_overflowing_tokens": True},
    {"truncation": "only_second", "max_length": 6, "stride": 1, "return_overflowing_tokens": True},
    {"truncation": True, "max_length": 4, "return_overflowing_tokens": True},
]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_padding_and_truncation(pair, padding, truncation):
    options = {**truncation, **padding}
    for cut_side, pad_side in itertools.product(["right", "left"], [None, "right"]):
        for tokenizer in pair:
            tokenizer.truncation_side = cut_side
        for tensors, special in itertools.product([None, "np"], [True, False]):
            shape = {**options, "padding_side": pad_side, "add_special_tokens": special, "return_tensors": tensors}
            if tensors and not padding:
                continue  # of rows of unequal length theirs makes an array of objects
            same(pair, TEXTS, **shape, **ASKED)
            same(pair, TEXTS, SECONDS, **shape, **ASKED)
            same(pair, TEXTS[1], SECONDS[2], **shape, **ASKED)
            same(pair, TEXTS[1], **shape, **ASKED)
    for tokenizer in pair:
        tokenizer.truncation_side = "right"


@pytest.mark.parametrize("side", ["left", "right"])
def test_tensors(pair, side):
    for kind in ("pt", "np"):
        batch = same(pair, TEXTS, padding=True, padding_side=side, return_tensors=kind)
        assert batch.input_ids.shape == batch.attention_mask.shape
        assert same(pair, "one", return_tensors=kind).input_ids.shape[0] == 1
    assert batch.input_ids.dtype == np.int64


def test_words(pair):
    same(pair, WORDS, is_split_into_words=True, padding=True, **ASKED)
    same(pair, WORDS[0], is_split_into_words=True, **ASKED)
    same(pair, WORDS, [["x"], ["y", "z"], []], is_split_into_words=True, **ASKED)
    same(pair, WORDS, is_split_into_words=True, truncation=True, max_length=3, **ASKED)


def test_pairs_in_one_list(pair):
    same(pair, list(zip(TEXTS, SECONDS, strict=True)), **ASKED)
    same(pair, [*zip(TEXTS, SECONDS, strict=True), "single"], truncation=True, max_length=5, **ASKED)


def test_what_is_returned(pair):
    for mask, types in itertools.product([None, True, False], repeat=2):
        same(pair, TEXTS, return_attention_mask=mask, return_token_type_ids=types)
    same(pair, TEXTS, text_target=SECONDS)
    same(pair, text_target=SECONDS[0])


def test_places(pair):
    ours, theirs = (tokenizer(TEXTS, SECONDS, padding=True) for tokenizer in pair)
    for row, text in enumerate(TEXTS):
        for character in range(len(text) + 2):
            assert ours.char_to_token(row, character) == theirs.char_to_token(row, character)
            assert ours.char_to_word(row, character) == theirs.char_to_word(row, character)
            assert ours.char_to_token(row, character, 1) == theirs.char_to_token(row, character, 1)
        for token in range(len(ours.tokens(row))):
            assert ours.token_to_sequence(row, token) == theirs.token_to_sequence(row, token)
            assert ours.token_to_word(row, token) == theirs.token_to_word(row, token)
            assert ours.token_to_chars(row, token) == theirs.token_to_chars(row, token)
        last = len(ours.tokens(row)) - 1
        assert ours.token_to_chars(row, -1) == ours.token_to_chars(row, last)  # theirs fails on negative ones
        for word in range(3):
            assert ours.word_to_tokens(row, word) == theirs.word_to_tokens(row, word)
    assert ours[0].ids == theirs[0].ids
    assert ours.n_sequences == theirs.n_sequences == 2
    single = [tokenizer("one two") for tokenizer in pair]
    assert single[0].char_to_token(1) == single[1].char_to_token(1)
    assert single[0].token_to_chars(1) == single[1].token_to_chars(1)
    assert single[0].word_to_chars(0) == single[1].word_to_chars(0)


@pytest.mark.parametrize(
    "options", [{}, {"padding": "max_length", "max_length": 64}, {"pad_to_multiple_of": 8}], ids=str
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pad(pair, options, side):
    rows = pair[1](TEXTS, return_special_tokens_mask=True, return_token_type_ids=True)
    listed = [{key: value[index] for key, value in rows.items()} for index in range(len(TEXTS))]
    for value in (dict(rows), listed, {"input_ids": rows["input_ids"]}, listed[1]):
        for tensors in (None, "pt"):
            ours, theirs = (
                tokenizer.pad(
                    dict(value) if isinstance(value, dict) else [dict(row) for row in value],
                    padding_side=side,
                    return_tensors=tensors if value is not listed[1] else None,
                    **options,
                )
                for tokenizer in pair
            )
            assert plain(ours) == plain(theirs)


def test_decoding_batches(pair):
    ours, theirs = pair
    ids = theirs(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    for skip in (True, False):
        assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids[1], skip) == theirs.decode(ids[1], skip) == ours.decode(ids[1].numpy(), skip)
    assert ours.batch_decode([1, 2]) == theirs.batch_decode([1, 2])
    assert ours.decode(ids[1], clean_up_tokenization_spaces=False) == theirs.decode(ids[1])
    with pytest.warns(UserWarning, match="has no effect on a BPE vocabulary"):
        cleaned = ours.decode(ours.encode("a . b"), clean_up_tokenization_spaces=True)
    assert cleaned == theirs.decode(theirs.encode("a . b"), clean_up_tokenization_spaces=True)
    for text in ["a . b ? c ! d , e ' f", "do n't I 'm he 's we 've you 're"]:
        assert ours.clean_up_tokenization(text) == theirs.clean_up_tokenization(text)


def test_vocabulary(pair):
    ours, theirs = pair
    assert ours.get_vocab() == theirs.get_vocab() == ours.vocab
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert set(theirs.all_special_tokens) <= set(ours.all_special_tokens)
    assert ours.get_added_vocab() == theirs.get_added_vocab() == ours.added_tokens_encoder
    assert {i: str(token) for i, token in ours.added_tokens_decoder.items()} == {
        i: str(token) for i, token in theirs.added_tokens_decoder.items()
    }
    assert ours.model_max_length == theirs.model_max_length
    for both in (True, False):
        assert ours.num_special_tokens_to_add(both) == theirs.num_special_tokens_to_add(both)
    assert ours.max_len_single_sentence == theirs.max_len_single_sentence
    assert ours.is_fast
    assert theirs.is_fast


def test_masks_of_special_tokens(pair):
    ours, theirs = pair
    for texts in [("one two",), ("one two", "three")]:
        encoded = theirs(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
        parts = [theirs.encode(text, add_special_tokens=False) for text in texts]
        if len(parts) == 2:  # a space is put before a second text too
            parts[1] = [i for i, kind in zip(encoded.input_ids, encoded.token_type_ids, strict=True) if kind == 1]
            parts[1] = [i for i in parts[1] if i not in ours.all_special_ids]
        assert ours.build_inputs_with_special_tokens(*parts) == encoded.input_ids
        assert ours.get_special_tokens_mask(*parts) == encoded.special_tokens_mask
        assert ours.create_token_type_ids_from_sequences(*parts) == encoded.token_type_ids
        whole = ours.get_special_tokens_mask(encoded.input_ids, already_has_special_tokens=True)
        assert whole == theirs.get_special_tokens_mask(encoded.input_ids, already_has_special_tokens=True)


# What changes a tokenizer ---------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path):
    made_by_theirs(tmp_path)
    return LlamaTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)


ADDED = ["a<x>b <x>", "one<new>two", " <y> one <sp>  two", "<s>one</s> two", "wordin words"]


def test_added_tokens(fresh):
    for tokenizer in fresh:
        # By its documentation the count is of new ids; theirs counts "one" too, which is not new.
        assert tokenizer.add_tokens(["<x>", "<x>", "one"]) == (1 if tokenizer is fresh[0] else 2)
        assert tokenizer.add_tokens("<new>", special_tokens=True) == 1
        assert tokenizer.add_tokens(AddedToken("<sp>", lstrip=True, rstrip=True)) == 1
        assert tokenizer.add_tokens([AddedToken("word", single_word=True)]) == 1
        assert tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<y>"]}) == 2
        assert tokenizer.add_special_tokens({"eos_token": "<x>"}) == (0 if tokenizer is fresh[0] else 1)
    for text in ADDED:
        same(fresh, text, **ASKED)
        for skip in (True, False):
            ids = fresh[1].encode(text)
            assert fresh[0].decode(ids, skip_special_tokens=skip) == fresh[1].decode(ids, skip_special_tokens=skip)
    same(fresh, ADDED, padding=True)
    ours, theirs = fresh
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ["<y>"]
    assert (len(ours), ours.get_vocab()) == (len(theirs), theirs.get_vocab())


def test_extra_special_tokens_are_replaced_or_joined(fresh):
    for tokenizer in fresh:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<a>", "<b>"]})
        tokenizer.add_special_tokens({"extra_special_tokens": ["<b>", "<c>"]}, replace_extra_special_tokens=False)
        assert tokenizer.extra_special_tokens == ["<a>", "<b>", "<c>"]
        tokenizer.add_special_tokens({"extra_special_tokens": ["<d>"]})
        assert tokenizer.extra_special_tokens == ["<d>"]


def test_named_tokens_can_be_set(fresh):
    for tokenizer in fresh:
        tokenizer.pad_token = tokenizer.unk_token
        assert tokenizer.pad_token_id == 0
        tokenizer.pad_token_id = 2
        assert tokenizer.pad_token == "</s>"
        tokenizer.bos_token = "a"
    same(fresh, "one two")  # the post-processor is the old one
    for tokenizer in fresh:
        tokenizer.add_bos_token = True
        tokenizer.add_eos_token = True
    assert same(fresh, "one two", "b", **ASKED).input_ids[0] == fresh[0].convert_tokens_to_ids("a")
    for tokenizer in fresh:
        tokenizer.bos_token = "<s>"
        tokenizer.update_post_processor()
        tokenizer.add_eos_token = False
    assert same(fresh, "one two", **ASKED).input_ids[0] == 1


def test_tokens_with_names_of_their_own(tmp_path):
    made_by_ours(tmp_path)
    options = {"extra_special_tokens": {"image_token": "<image>"}, "video_token": "<video>"}
    ours = LlamaTokenizer.from_pretrained(tmp_path, **options)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, **options)
    assert (ours.image_token, ours.video_token) == (theirs.image_token, theirs.video_token) == ("<image>", "<video>")
    same((ours, theirs), "one <image> two <video>")
    assert ours.image_token_id == theirs.image_token_id
    ours.save_pretrained(tmp_path / "again")
    again = LlamaTokenizer.from_pretrained(tmp_path / "again")
    assert again.image_token_id == ours.image_token_id
    assert again.encode("one <image>") == ours.encode("one <image>")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_prefix_space": False},
        {"add_prefix_space": True, "legacy": True},
        {"legacy": False},
        {"add_eos_token": True},
        {"unk_token": "a", "bos_token": "b", "eos_token": AddedToken("one", lstrip=True)},
        {"padding_side": "right", "truncation_side": "left", "model_max_length": 3},
        {"split_special_tokens": True},
        {"use_default_system_prompt": True, "clean_up_tokenization_spaces": True},
        {"extra_special_tokens": ["two"]},
    ],
    ids=str,
)
def test_the_class_itself(options, tmp_path):
    ids = {token: index for index, token in enumerate(VOCAB)}
    theirs = transformers.LlamaTokenizer(vocab=ids, merges=MERGES, add_bos_token=True, pad_token="</s>", **options)
    ours = LlamaTokenizer(vocab=ids, merges=MERGES, pad_token="</s>", **options)
    for text in ["one two", " one", "  a<s> two</s>one", "", "▁one", "xyz é"]:
        same((ours, theirs), text, **ASKED)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    same((ours, theirs), TEXTS, padding="max_length", truncation=True)
    for name in ("unk_token", "bos_token", "eos_token", "pad_token", "padding_side", "truncation_side"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.use_default_system_prompt == theirs.use_default_system_prompt
    ours.save_pretrained(tmp_path)
    for text in ["one two", " one", "  a<s> two</s>one", ""]:
        again, reread = LlamaTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert again.encode(text) == reread.encode(text) == ours.encode(text)

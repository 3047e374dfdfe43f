"""Every argument given a wrong type, range or combination is named by the error, and nothing has changed."""

import pytest
import torch

import workbench
from tests.checkpoints.conftest import byte_level_metadata, sentencepiece_metadata
from workbench.checkpoints.errors import CheckpointNotFoundError
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.tokenizer import AddedToken, BatchEncoding, LlamaTokenizer, LlamaTokenizerFast, TokenizerError


def tokenizer():
    return tokenizer_from_gguf(byte_level_metadata())


BYTES = tokenizer()
SPACES = tokenizer_from_gguf(sentencepiece_metadata())
IDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5}


def refused(match, call, *arguments, **options):
    with pytest.raises(TokenizerError, match=match):
        call(*arguments, **options)


def test_public_names():
    assert workbench.LlamaTokenizer is workbench.LlamaTokenizerFast is LlamaTokenizerFast is LlamaTokenizer
    assert workbench.BatchEncoding is BatchEncoding
    assert workbench.AddedToken is AddedToken


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 3}, "vocab is a int; a dictionary token → id, a list of tokens or a file's path is needed"),
        ({"vocab": b"x"}, "vocab is a bytes"),
        ({"vocab": ["a", "a"]}, "vocab lists a token twice"),
        ({"vocab": ["a", 1]}, "vocab lists a token twice, or something that is no text"),
        ({"vocab": {"a": "b"}}, "vocab maps 'a' to 'b'; a text and a whole number are needed"),
        ({"vocab": {"a": True}}, "vocab maps 'a' to True"),
        ({"vocab": {1: 1}}, "vocab maps 1 to 1"),
        ({"vocab": {"a": -1}}, "vocab gives 'a' the id -1; ids go from 0 to"),
        ({"vocab": {"a": 1 << 40}}, "vocab gives 'a' the id 1099511627776"),
        ({"vocab": {"a": 0, "b": 0}}, "vocab gives one id to two tokens"),
        ({"vocab": "/no/where.json"}, "vocab is '/no/where.json', a file that cannot be read"),
        ({"vocab": IDS, "merges": 3}, "merges is a int; a list of pairs or a file's path is needed"),
        ({"vocab": IDS, "merges": ["▁"]}, "merges holds '▁'; each entry must be two tokens, or 'left right'"),
        ({"vocab": IDS, "merges": [("a", "")]}, r"merges holds \('a', ''\)"),
        ({"vocab": IDS, "merges": [3]}, "merges holds 3"),
        ({"vocab": IDS, "merges": ["a a"]}, r"merges holds 'a' \+ 'a', but 'aa' is not in vocab"),
        ({"vocab": IDS, "merges": ["x a"]}, r"merges holds 'x' \+ 'a', but 'x' is not in vocab"),
        ({"vocab": IDS, "merges": "/no/merges.txt"}, "merges is '/no/merges.txt', a file that cannot be read"),
        ({"vocab_file": "/no/tokenizer.model"}, "vocab_file is '/no/tokenizer.model', but there is no such file"),
        ({"tokenizer_file": "/no/tokenizer.json"}, "tokenizer_file is '/no/tokenizer.json', but there is no such file"),
        ({"tokenizer_file": 3}, "tokenizer_file is '3', but there is no such file"),
        ({"tokenizer_object": "x"}, "tokenizer_object is a str; a tokenizers.Tokenizer is needed"),
        ({"bos_token": 3}, "bos_token is 3; a text or an AddedToken is needed"),
        ({"pad_token": ""}, "pad_token is an empty text"),
        ({"unk_token": "\ud800"}, r"unk_token has the lone surrogate U\+D800 at character 0"),
        ({"image_token": 3}, "image_token is 3; a text or an AddedToken is needed"),
        ({"image": "<image>"}, "LlamaTokenizer has no argument 'image'. Special tokens may be named, NAME_token"),
        ({"legacy": 1}, "legacy is 1; allowed are True and False"),
        ({"add_prefix_space": "yes"}, "add_prefix_space is 'yes'; allowed are True and False"),
        ({"use_default_system_prompt": 0}, "use_default_system_prompt is 0"),
        ({"clean_up_tokenization_spaces": None}, "clean_up_tokenization_spaces is None"),
        ({"split_special_tokens": 1}, "split_special_tokens is 1"),
        ({"add_bos_token": "yes"}, "add_bos_token is 'yes'"),
        ({"add_eos_token": 1}, "add_eos_token is 1"),
        ({"padding_side": "top"}, "padding_side is 'top'; allowed are left, right"),
        ({"truncation_side": None}, "truncation_side is None; allowed are left, right"),
        ({"model_max_length": 0}, "model_max_length is 0; it must be a whole number of at least 1"),
        ({"model_max_length": 1.5}, "model_max_length is 1.5"),
        ({"model_max_length": True}, "model_max_length is True"),
        ({"model_input_names": "input_ids"}, "model_input_names is 'input_ids'; a list of names is needed"),
        ({"extra_special_tokens": "x"}, "extra_special_tokens is 'x'; a list, or name → token, is needed"),
        ({"extra_special_tokens": [3]}, "extra_special_tokens is 3; a text or an AddedToken is needed"),
        ({"extra_special_tokens": {"image": "x"}}, "LlamaTokenizer has no argument 'image'"),
        ({"additional_special_tokens": 3}, "extra_special_tokens is 3; a list"),
        ({"added_tokens_decoder": {"a": AddedToken("x")}}, "added_tokens_decoder maps 'a' to"),
        ({"added_tokens_decoder": {1: "x"}}, "added_tokens_decoder maps 1 to 'x'; id → AddedToken is needed"),
        ({"chat_template": 3}, "chat_template is 3; a Jinja text, or name → text, is needed"),
        ({"chat_template": {"a": 3}}, "chat_template is {'a': 3}"),
    ],
    ids=str,
)
def test_the_class(options, message):
    refused(message, LlamaTokenizer, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add_special_tokens": 1}, "add_special_tokens is 1; allowed are True and False"),
        ({"padding": "left"}, "padding is 'left'; allowed are False, True, longest, max_length, do_not_pad"),
        ({"padding": 1}, "padding is 1; allowed are"),
        ({"padding": None}, "padding is None; allowed are"),
        ({"truncation": "right"}, "truncation is 'right'; allowed are None, False, True, longest_first"),
        ({"truncation": True, "max_length": 0}, "max_length is 0; it must be a whole number from 1 to 16777216"),
        ({"max_length": -1}, "max_length is -1"),
        ({"max_length": 2.0}, "max_length is 2.0"),
        ({"max_length": 1 << 60, "padding": "max_length"}, "max_length is 1152921504606846976"),
        ({"stride": -1}, "stride is -1; it must be a whole number from 0"),
        ({"stride": "a"}, "stride is 'a'"),
        ({"truncation": True, "max_length": 3, "stride": 3}, "stride is 3; with max_length=3, .* must be below 3"),
        ({"pad_to_multiple_of": 0, "padding": True}, "pad_to_multiple_of is 0; it must be a whole number from 1"),
        ({"pad_to_multiple_of": 1 << 40, "padding": True}, "pad_to_multiple_of is 1099511627776"),
        (
            {"padding": True, "truncation": True, "max_length": 5, "pad_to_multiple_of": 4},
            "max_length is 5, which is no multiple of pad_to_multiple_of=4",
        ),
        ({"padding_side": "up"}, "padding_side is 'up'; allowed are left, right"),
        ({"return_tensors": "jax"}, "return_tensors is 'jax'; allowed are pt, np, None"),
        ({"return_token_type_ids": 1}, "return_token_type_ids is 1"),
        ({"return_attention_mask": "no"}, "return_attention_mask is 'no'"),
        ({"return_overflowing_tokens": 1}, "return_overflowing_tokens is 1"),
        ({"return_special_tokens_mask": 1}, "return_special_tokens_mask is 1"),
        ({"return_offsets_mapping": 1}, "return_offsets_mapping is 1"),
        ({"return_length": 1}, "return_length is 1"),
        ({"is_split_into_words": 1}, "is_split_into_words is 1"),
        ({"split_special_tokens": 1}, "split_special_tokens is 1"),
        ({"verbose": 1}, "verbose is 1"),
        ({"truncation": "only_second", "max_length": 1}, "truncation='only_second'.*Second sequence not provided"),
    ],
    ids=str,
)
def test_a_call(options, message):
    own = tokenizer()
    refused(message, own, "hello world", **options)
    refused(message, own.encode, "hello world", **options)
    assert own("hello world") == BYTES("hello world")
    assert own.backend_tokenizer.to_str() == BYTES.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "text is None; give text, or text_target for labels"),
        ((3,), {}, "text is a int; a str or a list of str is needed"),
        ((b"x",), {}, "text is a bytes"),
        (({"a": 1},), {}, "text is a dict"),
        (([3],), {}, "text is a int; a str or a list of str is needed"),
        (([["a", "b", "c"]],), {}, "text is a list; a str"),
        (("a", 3), {}, "text_pair is 3 .int.; a text is needed"),
        (("a", ["b"]), {}, r"text_pair is \['b'\] .list.; a text is needed"),
        ((["a"], "b"), {}, "text_pair is one text, but text has 1; both lists must be of one length"),
        ((["a"], ["b", "c"]), {}, "text_pair is 2 texts, but text has 1"),
        ((["a"], [3]), {}, "text_pair is 3 .int."),
        (("a",), {"is_split_into_words": True}, "text is a str; with is_split_into_words a list of words is needed"),
        ((3,), {"is_split_into_words": True}, "text is a int; a list of words, or a list of such lists is needed"),
        ((["a", 3],), {"is_split_into_words": True}, "A word of text is 3"),
        (([["a"], "b"],), {"is_split_into_words": True}, "text is a str; with is_split_into_words a list of words"),
        ((["a"], [["b"]]), {"is_split_into_words": True}, r"A word of text_pair is \['b'\]"),
        (("a\ud800",), {}, r"text has the lone surrogate U\+D800 at character 1"),
        (("a", "\udfff"), {}, r"text_pair has the lone surrogate U\+DFFF at character 0"),
    ],
    ids=str,
)
def test_texts(arguments, options, message):
    refused(message, BYTES, *arguments, **options)


def test_special_tokens_that_leave_no_room():
    refused("max_length is 1, but the special tokens alone take 2", SPACES, "a", "b", truncation=True, max_length=1)


def test_padding_with_a_token_that_is_not_there():
    own = tokenizer()
    own.pad_token = "[PAD]"
    refused(r"The padding token '\[PAD\]' is not in the vocabulary. Add it", own, ["a", "b c"], padding=True)
    own.add_special_tokens({"pad_token": "[PAD]"})
    assert own(["h", "hello world"], padding=True).input_ids[0][0] == len(BYTES)


def test_lengths_without_a_limit():
    for name in ("padding", "truncation"):
        value = "max_length" if name == "padding" else True
        with pytest.warns(UserWarning, match=f"{name}={value!r} has no effect: max_length is None") as found:
            assert BYTES("hello world", **{name: value}) == BYTES("hello world")
        assert found[0].filename == __file__
    with pytest.warns(UserWarning, match="max_length has no effect with padding=True and no truncation"):
        assert len(BYTES("hello world", padding=True, max_length=9).input_ids) == 2


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("decode", ([1],), {"skip_special_tokens": 1}, "skip_special_tokens is 1"),
        ("decode", ([1],), {"clean_up_tokenization_spaces": 1}, "clean_up_tokenization_spaces is 1"),
        ("decode", ("abc",), {}, "A token id is 'abc'"),
        ("decode", (None,), {}, "A token id is None"),
        ("decode", ([True],), {}, "A token id is True"),
        ("decode", (torch.tensor([1.5]),), {}, "A token id is 1.5"),
        ("batch_decode", (3,), {}, "sequences is 3; a list of lists of ids is needed"),
        ("batch_decode", ([["a"]],), {}, "A token id is 'a'"),
        ("convert_ids_to_tokens", ([1],), {"skip_special_tokens": "x"}, "skip_special_tokens is 'x'"),
        ("convert_ids_to_tokens", (-1,), {}, "A token id is -1"),
        ("convert_tokens_to_ids", (3,), {}, "tokens is 3; a token's text or a list of them is needed"),
        ("convert_tokens_to_ids", ([3],), {}, "tokens is 3"),
        ("convert_tokens_to_string", ("abc",), {}, "tokens is 'abc'; a list of tokens is needed"),
        ("convert_tokens_to_string", ([3],), {}, "tokens holds something that is no text"),
        ("token_bytes", ("a",), {}, "A token id is 'a'"),
        ("num_special_tokens_to_add", (1,), {}, "pair is 1"),
        ("get_special_tokens_mask", ([1], [2], True), {}, "token_ids_1 must be None with already_has_special_tokens"),
        ("get_special_tokens_mask", ([1], None, 1), {}, "already_has_special_tokens is 1"),
        ("build_inputs_with_special_tokens", (["a"],), {}, "A token id is 'a'"),
        ("create_token_type_ids_from_sequences", ([1], [-2]), {}, "A token id is -2"),
        ("add_tokens", (3,), {}, "new_tokens is 3; a list of texts or AddedTokens is needed"),
        ("add_tokens", (["a", 3],), {}, "An entry of new_tokens is 3"),
        ("add_tokens", ([""],), {}, "An entry of new_tokens is an empty text"),
        ("add_tokens", ("x",), {"special_tokens": 1}, "special_tokens is 1"),
        ("add_special_tokens", (3,), {}, "special_tokens_dict is 3; name → token is needed"),
        (
            "add_special_tokens",
            ({"foo_token": "x"},),
            {},
            "A name in special_tokens_dict is 'foo_token'; allowed are bos_",
        ),
        ("add_special_tokens", ({"pad_token": "x", "bos_token": 3},), {}, "bos_token is 3"),
        ("add_special_tokens", ({"extra_special_tokens": "x"},), {}, "extra_special_tokens is 'x'; a list"),
        ("add_special_tokens", ({"pad_token": "x"}, 1), {}, "replace_extra_special_tokens is 1"),
        ("pad", (3,), {}, "encoded_inputs must hold input_ids"),
        ("pad", ({"a": [1]},), {}, r"encoded_inputs must hold input_ids.*\['a'\]"),
        ("pad", ([{"input_ids": [1]}, {"x": [1]}],), {}, "encoded_inputs holds rows with different entries"),
        (
            "pad",
            ({"input_ids": [[1]], "attention_mask": [[1], [1]]},),
            {},
            "encoded_inputs holds different numbers of rows",
        ),
        ("pad", ({"input_ids": [[1]]},), {"padding": "x"}, "padding is 'x'"),
        ("pad", ({"input_ids": [[1]]},), {"padding_side": "x"}, "padding_side is 'x'"),
        ("pad", ({"input_ids": [[1]]},), {"return_tensors": "x"}, "return_tensors is 'x'"),
        ("pad", ({"input_ids": [[1]]},), {"return_attention_mask": 1}, "return_attention_mask is 1"),
        ("pad", ({"input_ids": [[1], [1, 2]]},), {"padding": False, "return_tensors": "pt"}, "have 1 to 2 tokens"),
        (
            "pad",
            ({"input_ids": [["a"]]},),
            {"return_tensors": "pt"},
            "input_ids holds values that make no int64 tensor",
        ),
        ("apply_chat_template", ([],), {}, r"messages is \[\]"),
        ("apply_chat_template", ([{"role": "user"}],), {"tokenize": 1}, "tokenize is 1"),
        ("apply_chat_template", ([{"role": "user"}],), {"return_dict": 1}, "return_dict is 1"),
        ("apply_chat_template", ([{"role": "user"}],), {"add_generation_prompt": 1}, "add_generation_prompt is 1"),
        ("apply_chat_template", ([{"role": "user"}],), {"chat_template": 1}, "chat_template is 1; a Jinja text"),
        (
            "apply_chat_template",
            ([{"role": "user"}],),
            {"tools": 1},
            "tools is 1; a list of functions or of JSON schemas",
        ),
        ("apply_chat_template", ([{"role": "user"}],), {"tools": [1]}, "tools holds 1; each must be a function"),
        (
            "apply_chat_template",
            ([{"role": "user"}],),
            {"documents": ["x"]},
            "documents is .'x'.; a list of dictionaries",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": "x"}],),
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message and add_generation_prompt cannot both be asked for",
        ),
        (
            "apply_chat_template",
            ([{"role": "user"}],),
            {"continue_final_message": True},
            "continue_final_message asks to go on with 'content', which the last message lacks",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": "x", "thing": "y"}],),
            {"continue_final_message": "thing"},
            "continue_final_message asks for 'thing', which the chat template does not use",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": []}],),
            {"continue_final_message": True},
            "continue_final_message found no text in 'content'",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": "x"}],),
            {"continue_final_message": True, "chat_template": "{# content #}y"},
            "continue_final_message: the chat template leaves the last message out",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": "x"}],),
            {"return_assistant_tokens_mask": True, "tokenize": False},
            "return_assistant_tokens_mask=True needs tokenize=True and return_dict=True",
        ),
        (
            "apply_chat_template",
            ([{"role": "user", "content": "x"}],),
            {"sanitize_control_tokens": True},
            "sanitize_control_tokens is not supported",
        ),
        ("save_pretrained", ("/dev/null/x",), {}, "save_directory is '/dev/null/x', which cannot be written"),
        ("save_pretrained", ("x",), {"push_to_hub": True}, "push_to_hub is not supported"),
        ("save_vocabulary", ("/no/such",), {}, "save_directory is '/no/such'; there is no such folder"),
        ("save_vocabulary", ("/tmp", "../x"), {}, "filename_prefix is '../x'; a text without '/' is needed"),
    ],
    ids=str,
)
def test_methods(name, arguments, options, message):
    own = tokenizer()
    refused(message, getattr(own, name), *arguments, **options)
    assert own.special_tokens_map == BYTES.special_tokens_map
    assert own.backend_tokenizer.to_str() == BYTES.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pad_token", 3, "pad_token is 3; a text or an AddedToken is needed"),
        ("pad_token_id", len(BYTES), f"pad_token_id is {len(BYTES)}, but the vocabulary has {len(BYTES)} tokens"),
        ("pad_token_id", -1, "pad_token_id is -1"),
        ("pad_token_id", "x", "pad_token_id is 'x'"),
        ("add_bos_token", 1, "add_bos_token is 1"),
        ("add_eos_token", "x", "add_eos_token is 'x'"),
        ("extra_special_tokens", "x", "extra_special_tokens is 'x'; a list of texts"),
    ],
)
def test_attributes(name, value, message):
    own = tokenizer()
    refused(message, setattr, own, name, value)
    assert getattr(own, name) == getattr(BYTES, name)


def test_special_tokens_that_are_missing():
    own = tokenizer()
    own.bos_token = own.eos_token = None
    refused("add_bos_token is True, but there is no bos_token. Set it first", setattr, own, "add_bos_token", True)
    refused("add_eos_token is True, but there is no eos_token. Set it first", setattr, own, "add_eos_token", True)
    assert own.bos_token_id is None
    with pytest.raises(AttributeError, match="LlamaTokenizer has no attribute 'foo'"):
        _ = own.foo


def test_places_that_are_not_there():
    batch = BYTES(["hello world", "h"])
    refused("batch_index is 2; there are 2 rows, from 0 on", batch.tokens, 2)
    refused("batch_index is '0'", batch.word_ids, "0")
    refused("The index is 'a'; a whole number is needed", batch.token_to_chars, 0, "a")
    refused("The index is -9, but the row has 2 tokens", batch.token_to_word, 0, -9)
    assert batch.token_to_chars(0, 9) is None
    assert batch.char_to_token(0, 99) is None
    bare = BatchEncoding({"input_ids": [[1, 2], [3, 4]]})
    refused("This BatchEncoding does not know its tokens", bare.tokens)
    assert bare[0:1] == {"input_ids": [[1, 2]]}
    refused("does not know a row's encoding", bare.__getitem__, 0)
    assert bare.n_sequences is None
    assert not bare.is_fast
    assert BatchEncoding({"input_ids": [1]}, tensor_type="np", prepend_batch_axis=True).input_ids.shape == (1, 1)


def test_sources(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="There is nothing at"):
        LlamaTokenizer.from_pretrained(tmp_path / "none")
    refused("has no tokenizer.json", LlamaTokenizer.from_pretrained, tmp_path)
    (tmp_path / "vocab.json").write_text("[")
    refused("vocab.json is not valid JSON", LlamaTokenizer.from_pretrained, tmp_path)

"""The tokenizer's own promises: bytes, pieces, padding, offsets, chat, and the errors."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.conftest import (
    TEMPLATE,
    byte_level_metadata,
    sentencepiece_metadata,
    write_tokenizer,
)
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.tokenizer import BatchEncoding, LlamaTokenizer, TokenizerError

BYTE_LEVEL = tokenizer_from_gguf(byte_level_metadata())
SENTENCEPIECE = tokenizer_from_gguf(sentencepiece_metadata())
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MESSAGES = [{"role": "user", "content": "hello"}]


@given(TEXT)
def test_bytes_of_the_tokens_are_the_text(text):
    ids = BYTE_LEVEL.encode(text)
    assert b"".join(BYTE_LEVEL.token_bytes(index) for index in ids) == text.encode()
    assert BYTE_LEVEL.decode(ids) == text


@given(TEXT)
def test_sentencepiece_bytes_are_the_text_with_its_prefix_space(text):
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False)
    # U+2581 is this vocabulary's own sign for a space, and the space before the text is added unless there is one.
    spaced = text.replace("▁", " ")
    prefix = "" if not text or spaced.startswith(" ") else " "
    assert b"".join(SENTENCEPIECE.token_bytes(index) for index in ids).decode() == prefix + spaced


def test_decode_agrees_with_token_bytes_for_any_ids():
    torch.manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, len(BYTE_LEVEL), (20,))
        expected = b"".join(BYTE_LEVEL.token_bytes(index) for index in ids).decode("utf-8", "replace")
        assert BYTE_LEVEL.decode(ids) == expected


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("hello world", ["hello", " world"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("🙂!", ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "!"]),
        ("<|im_end|>a", ["<|im_end|>", "a"]),
        ("  \n\n", ["  ", "\n\n"]),
        ("", []),
    ],
)
def test_pieces(text, pieces):
    assert BYTE_LEVEL.pieces(BYTE_LEVEL.encode(text)) == pieces


def test_piece_with_a_whole_and_a_broken_character():
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "ĠÃ", "©s"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1, 1]
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "Ġ Ã", "© s"]
    tokenizer = tokenizer_from_gguf(metadata)
    ids = tokenizer.encode(" és")
    assert tokenizer.pieces(ids) == [" <0xC3>", "<0xA9>s"]
    assert tokenizer.token_bytes(ids[0]) == b" \xc3"


def test_sentencepiece_pieces_undo_both_spellings():
    assert SENTENCEPIECE.pieces(SENTENCEPIECE.encode("hello é")) == ["<s>", " hello", " ", "<0xC3>", "<0xA9>"]
    assert SENTENCEPIECE.token_bytes(3 + 0xE2) == b"\xe2"


def test_ids_past_the_vocabulary_as_a_padded_output_layer_gives():
    past = len(BYTE_LEVEL) + 5
    assert BYTE_LEVEL.pieces([past]) == [f"<id {past}>"]
    assert BYTE_LEVEL.decode([past]) == ""
    assert BYTE_LEVEL.convert_ids_to_tokens(past) is None
    with pytest.raises(TokenizerError, match=f"no token with the id {past}; the vocabulary has {len(BYTE_LEVEL)}"):
        BYTE_LEVEL.token_bytes(past)


@pytest.mark.parametrize("ids", [[-1], [1 << 32], ["a"], [1.5]])
def test_values_that_are_no_ids(ids):
    with pytest.raises(TokenizerError, match="must be a whole number of at least 0"):
        BYTE_LEVEL.decode(ids)


def test_a_batch_given_to_decode():
    batch = torch.tensor([BYTE_LEVEL.encode("ab"), BYTE_LEVEL.encode("cd")])
    assert BYTE_LEVEL.batch_decode(batch) == BYTE_LEVEL.decode(batch) == ["ab", "cd"]
    assert BYTE_LEVEL.batch_decode([]) == []
    with pytest.raises(TokenizerError, match="For several sequences use batch_decode"):
        BYTE_LEVEL.convert_ids_to_tokens(batch)


def test_lone_surrogate():
    for call in (BYTE_LEVEL.encode, BYTE_LEVEL, lambda text: BYTE_LEVEL(["fine", text])):
        with pytest.raises(TokenizerError, match=r"lone surrogate U\+D83D at character 3"):
            call("abc\ud83d")


def test_text_that_is_no_text():
    with pytest.raises(TokenizerError, match="text is a int; a str or a list of str is needed"):
        BYTE_LEVEL([3])


def test_tokens_and_ids():
    ids = BYTE_LEVEL.encode("hello world")
    tokens = BYTE_LEVEL.convert_ids_to_tokens(ids)
    assert tokens == ["hello", "Ġworld"]
    assert BYTE_LEVEL.convert_tokens_to_ids(tokens) == ids
    assert BYTE_LEVEL.convert_ids_to_tokens(ids[0]) == "hello"
    assert BYTE_LEVEL.convert_tokens_to_ids("nonsense") == BYTE_LEVEL.unk_token_id == 0


def test_special_tokens():
    assert (BYTE_LEVEL.bos_token_id, BYTE_LEVEL.eos_token_id, BYTE_LEVEL.pad_token_id) == (1, 2, 2)
    assert BYTE_LEVEL.all_special_ids == [1, 2, 0]  # <tool> is user-defined: matched whole, but no special token
    assert BYTE_LEVEL.encode("<tool><|im_end|>") == [3, 2]
    assert BYTE_LEVEL.decode([3, 2], skip_special_tokens=True) == "<tool>"
    assert BYTE_LEVEL.special_tokens_map["bos_token"] == "<|im_start|>"
    assert len(BYTE_LEVEL) == BYTE_LEVEL.vocab_size == len(byte_level_metadata()["tokenizer.ggml.tokens"])


def test_padding_goes_left_and_is_masked():
    batch = BYTE_LEVEL(["hello world", "h"], padding=True, return_tensors="pt", return_offsets_mapping=True)
    assert batch.input_ids.tolist()[1] == [2, BYTE_LEVEL.encode("h")[0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch.offset_mapping[1].tolist() == [[0, 0], [0, 1]]
    assert batch.to("cpu").input_ids.dtype == torch.long
    right = LlamaTokenizer.from_backend(BYTE_LEVEL.backend_tokenizer, pad_token="<|im_end|>", padding_side="right")
    assert right(["hello world", "h"], padding=True).attention_mask == [[1, 1], [1, 0]]


def test_padding_without_a_padding_token():
    with pytest.raises(TokenizerError, match=r"no padding token. Set one.*pad_token = tokenizer.eos_token"):
        SENTENCEPIECE(["a", "b c"], padding=True)


def test_uneven_rows_make_no_tensor():
    with pytest.raises(TokenizerError, match=r"1 to 2 tokens.*Add padding=True"):
        BYTE_LEVEL(["hello world", "h"], return_tensors="pt")
    with pytest.raises(TokenizerError, match="return_tensors is 'tf'; allowed are pt, np, None"):
        BYTE_LEVEL("h", return_tensors="tf")


def test_truncation_counts_the_special_tokens():
    full = SENTENCEPIECE.encode("hello world")
    assert SENTENCEPIECE("hello world", truncation=True, max_length=2).input_ids == full[:2]
    assert SENTENCEPIECE.encode("hello world") == full  # the limit ends with the call
    with pytest.warns(UserWarning, match="truncation=True has no effect: max_length is None"):
        assert SENTENCEPIECE("hello world", truncation=True).input_ids == full
    assert SENTENCEPIECE("hello", truncation=True, max_length=1).input_ids == [1]


def test_offsets_are_characters_of_the_text():
    text = "hello é world"
    batch = BYTE_LEVEL(text, return_offsets_mapping=True)
    assert [text[start:end] for start, end in batch.offset_mapping] == ["hello", " ", "é", "é", " world"]


def test_single_text_is_not_nested():
    assert BYTE_LEVEL("hello").input_ids == BYTE_LEVEL(["hello"]).input_ids[0]
    with pytest.raises(AttributeError, match="no 'labels' here, only input_ids, attention_mask"):
        _ = BYTE_LEVEL("hello").labels
    assert isinstance(BYTE_LEVEL("hello"), BatchEncoding)


# Chat -----------------------------------------------------------------------------------------------------------------


def test_chat_template():
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert BYTE_LEVEL.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False) == text
    ids = BYTE_LEVEL.encode(text)
    assert BYTE_LEVEL.apply_chat_template(MESSAGES, add_generation_prompt=True).input_ids == ids
    assert BYTE_LEVEL.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False) == ids
    assert BYTE_LEVEL.apply_chat_template(MESSAGES, return_tensors="pt").input_ids.shape[0] == 1


def test_chat_template_helpers():
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% generation %}{{ m | tojson }}"
        "{% endgeneration %}{% endfor %}{{ bos_token }}{{ strftime_now('%Y') | length }}{{ name }}"
    )
    rendered = BYTE_LEVEL.apply_chat_template(
        [{"role": "user", "content": "<é>", "tool_calls": None}, *MESSAGES],
        chat_template=template,
        tokenize=False,
        name="x",
    )
    assert rendered == '{"role": "user", "content": "<é>"}<|im_start|>4x'


def test_chat_template_blocks_leave_no_lines():
    template = "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\nend"
    assert BYTE_LEVEL.apply_chat_template(MESSAGES, chat_template=template, tokenize=False) == "hello\nend"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused these messages: roles must alternate"),
        ("{% for %}", "not valid Jinja .line 1"),
        ("{{ messages.append(1) }}", "refused these messages"),
        ("{{ ''.__class__.__mro__ }}", "refused these messages"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big|range"),
        ("{{ messages[0]['content'] + 1 }}", "failed on these messages .TypeError"),
    ],
)
def test_chat_template_errors_and_sandbox(template, message):
    with pytest.raises(TokenizerError, match=message):
        BYTE_LEVEL.apply_chat_template(MESSAGES, chat_template=template, tokenize=False)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], r"messages is \[\]"),
        ("hello", "messages is 'hello'"),
        (["hello"], "Message 0 is 'hello'"),
        ([{"content": "x"}], "with a 'role'"),
    ],
)
def test_chat_messages_of_the_wrong_form(messages, text):
    with pytest.raises(TokenizerError, match=text):
        BYTE_LEVEL.apply_chat_template(messages, tokenize=False)


def test_no_chat_template():
    with pytest.raises(TokenizerError, match=r"no chat template. Give one"):
        SENTENCEPIECE.apply_chat_template(MESSAGES)


# Folders --------------------------------------------------------------------------------------------------------------


def test_from_folder(tmp_path):
    write_tokenizer(tmp_path, chat_template=TEMPLATE, add_bos_token=True, clean_up_tokenization_spaces=True)
    # What tokenizer.json itself says about special tokens stands, as in transformers 5.
    assert LlamaTokenizer.from_folder(tmp_path).encode("hello") == BYTE_LEVEL.encode("hello")
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**values, "post_processor": None}))
    tokenizer = LlamaTokenizer.from_folder(tmp_path)
    assert tokenizer.encode("hello") == [1, *BYTE_LEVEL.encode("hello")]
    assert tokenizer.encode("hello", add_special_tokens=False) == BYTE_LEVEL.encode("hello")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.decode(BYTE_LEVEL.encode("hello ' s .")) == "hello ' s ."


def test_chat_template_file_wins_and_named_templates_have_a_default(tmp_path):
    write_tokenizer(
        tmp_path, chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    )
    tokenizer = LlamaTokenizer.from_folder(tmp_path)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "d"
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, tools=[]) == "t"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert LlamaTokenizer.from_folder(tmp_path).chat_template == "from the file"


def test_special_tokens_map_and_token_objects(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "pad_token": "Ġw"})
    )
    tokenizer = LlamaTokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", None)
    assert tokenizer.pad_token_id in tokenizer.all_special_ids  # it was an ordinary token before


def test_added_tokens_that_only_the_config_lists(tmp_path):
    added = {str(len(BYTE_LEVEL)): {"content": "<extra>", "special": True}, "2": {"content": "<|im_end|>"}}
    write_tokenizer(tmp_path, added_tokens_decoder=added)
    tokenizer = LlamaTokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a<extra>")[1:] == [len(BYTE_LEVEL)]
    assert tokenizer.token_bytes(len(BYTE_LEVEL)) == b"<extra>"


def test_folder_errors(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer.json. Save it with transformers"):
        LlamaTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="is not a tokenizer of the `tokenizers` package"):
        LlamaTokenizer.from_folder(tmp_path)
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(TokenizerError, match=r"not valid JSON.*Download the file again"):
        LlamaTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="holds a list, but a JSON object is expected"):
        LlamaTokenizer.from_folder(tmp_path)


def test_padding_side_is_checked():
    with pytest.raises(TokenizerError, match="padding_side is 'top'; allowed are left, right"):
        LlamaTokenizer.from_backend(BYTE_LEVEL.backend_tokenizer, padding_side="top")

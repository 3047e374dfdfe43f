"""Where a tokenizer comes from and goes to, and what it keeps to itself."""

import copy
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from tests.checkpoints.conftest import TEMPLATE
from tests.checkpoints.test_hub import _offline, cache, cached_model  # noqa: F401  fixtures
from tests.tokenizer.llama2 import FOLDER, MODEL, needs_llama2
from tests.tokenizer.test_arguments import BYTES, IDS, tokenizer
from workbench.checkpoints.load import default_model
from workbench.tokenizer import AddedToken, LlamaTokenizer, TokenizerError


def test_vocabulary_files(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(IDS), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n▁ a\n\n", encoding="utf-8")
    from_files = LlamaTokenizer(vocab=str(tmp_path / "vocab.json"), merges=tmp_path / "merges.txt")
    for own in (
        from_files,
        LlamaTokenizer(IDS, [("▁", "a")]),
        LlamaTokenizer(list(IDS), ["▁ a"]),
        LlamaTokenizer(vocab_file=tmp_path / "vocab.json", merges_file=tmp_path / "merges.txt"),
        LlamaTokenizer.from_pretrained(tmp_path),
    ):
        assert own.encode("a a") == [1, 5, 5]
    saved = tmp_path / "again"
    saved.mkdir()
    written = from_files.save_vocabulary(saved)
    assert [path.rsplit("/", 1)[1] for path in written] == ["vocab.json", "merges.txt"]
    assert LlamaTokenizer.from_pretrained(saved).encode("a a") == [1, 5, 5]
    assert from_files.save_vocabulary(saved, "my")[0].endswith("/my-vocab.json")
    assert LlamaTokenizer().get_vocab() == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_sources_in_a_file(tmp_path):
    BYTES.save_pretrained(tmp_path)
    for own in (
        LlamaTokenizer(tokenizer_file=tmp_path / "tokenizer.json"),
        LlamaTokenizer.from_pretrained(tmp_path / "tokenizer.json"),
        LlamaTokenizer.from_backend(Tokenizer.from_file(str(tmp_path / "tokenizer.json"))),
        LlamaTokenizer.from_pretrained(tmp_path, use_fast=True, trust_remote_code=False),
    ):
        assert own.encode("hello world") == BYTES.encode("hello world")
    own = LlamaTokenizer.from_pretrained(tmp_path, pad_token="<tool>", padding_side="right", model_max_length=1)
    assert own(["h", "hello world"], padding=True).input_ids[0][1] == 3
    assert own("hello world", truncation=True).input_ids == BYTES.encode("hello")
    assert own.name_or_path == str(tmp_path)
    assert "padding_side='right'" in repr(own)


def test_saved_and_read_again(tmp_path):
    own = tokenizer()
    own.add_special_tokens({"pad_token": AddedToken("[PAD]", lstrip=True), "extra_special_tokens": ["<x>"]})
    own.add_tokens(["new"])
    own.model_max_length, own.truncation_side, own.add_eos_token = 99, "left", True
    files = own.save_pretrained(tmp_path)
    names = {path.rsplit("/", 1)[1] for path in files}
    assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    again = LlamaTokenizer.from_pretrained(tmp_path)
    for name in ("special_tokens_map", "extra_special_tokens", "model_max_length", "truncation_side", "chat_template"):
        assert getattr(again, name) == getattr(own, name)
    assert again.add_eos_token
    assert not again.add_bos_token
    for text in ("hello  [PAD]<x>new world", ""):
        assert again.encode(text) == own.encode(text)
    assert again.chat_template == TEMPLATE


def test_copies_work_on_their_own():
    own = tokenizer()
    for copied in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert copied.encode("hello world") == own.encode("hello world")
        copied.add_tokens(["éé"])  # not the bytes that é stands for in this vocabulary
        assert copied.pieces([len(own)]) == ["éé"]
        assert len(copied) == len(own) + 1
    batch = pickle.loads(pickle.dumps(own("hello world", return_tensors="pt")))
    assert batch.tokens() == ["hello", "Ġworld"]


def test_threads_do_not_see_each_others_limits():
    own = tokenizer()
    text, failures = "hello world " * 50, []
    full, cut = own.encode(text), own(text, truncation=True, max_length=7).input_ids

    def work(**options):
        expected = cut if options else full
        for _ in range(100):
            if own(text, **options).input_ids != expected or own.decode(full) != text:
                failures.append(options)

    threads = [threading.Thread(target=work, kwargs=k) for k in ({}, {"truncation": True, "max_length": 7}) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_batches_move_in_place():
    batch = BYTES("hello", return_tensors="pt")
    assert batch.to("cpu", non_blocking=True) is batch
    assert batch.to(device=torch.device("meta")).input_ids.device.type == "meta"
    assert BYTES("hello", return_tensors="np").to("cpu").input_ids.dtype == np.int64


def test_empty_batches():
    assert BYTES([]) == {"input_ids": [], "attention_mask": []}
    assert BYTES.pad({"input_ids": []}) == {"input_ids": [], "attention_mask": []}
    assert BYTES.batch_decode([]) == []
    assert BYTES.decode([]) == ""


def test_a_token_that_a_template_would_misread():
    own = LlamaTokenizer(["<unk>", "$A", "x:y", "▁", "a"], bos_token="$A", eos_token="x:y", add_eos_token=True)
    assert own.encode("a") == [1, 3, 4, 2]
    assert own.tokenize("a", add_special_tokens=True) == ["$A", "▁", "a", "x:y"]


def test_a_backend_of_another_kind():
    own = LlamaTokenizer.from_backend(
        Tokenizer(models.WordLevel({"a": 0, ".": 1, "?": 2}, unk_token="?")), unk_token="?"
    )
    assert own.encode("a") == [0]
    assert own.decode([0, 1]) == "a ."
    assert own.decode([0, 1], clean_up_tokenization_spaces=True) == "a."
    assert own.convert_tokens_to_string(["a", "."]) == "a ."


@pytest.mark.usefixtures("_offline")
def test_a_model_on_the_hub(cache):  # noqa: F811
    cached_model(cache, revision="v2")
    own = LlamaTokenizer.from_pretrained("owner/tiny", revision="v2", padding_side="right")
    assert own.encode("hello world") == BYTES.encode("hello world")
    assert own.name_or_path == "owner/tiny"
    own = LlamaTokenizer.from_pretrained("owner/tiny", revision="v2", cache_dir=cache, local_files_only=True)
    assert own.encode("hello world") == BYTES.encode("hello world")


def test_a_gguf_file():
    own = LlamaTokenizer.from_pretrained(default_model(), padding_side="right", pad_token="<|endoftext|>")
    assert own.pieces(own.encode("Hello world")) == ["Hello", " world"]
    assert (own.padding_side, own.pad_token) == ("right", "<|endoftext|>")


@needs_llama2
def test_a_tokenizer_model(tmp_path):
    own = LlamaTokenizer.from_pretrained(MODEL, add_eos_token=True)
    assert own.encode("Hello") == [1, 15043, 2]
    own.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == MODEL.read_bytes()
    assert LlamaTokenizer.from_pretrained(tmp_path).encode("  Hello") == own.encode("  Hello")
    own.save_pretrained(tmp_path)
    (copied,) = LlamaTokenizer.from_pretrained(tmp_path).save_vocabulary(tmp_path, "my")
    assert copied == str(tmp_path / "my-tokenizer.model")
    (tmp_path / "tokenizer.json").unlink()  # the configuration alone beside the model
    assert LlamaTokenizer.from_pretrained(tmp_path).encode("  Hello") == own.encode("  Hello")


@needs_llama2
@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, ["▁a", "<s>", "Hello", "▁b", "</s>", "▁", "▁x"]),
        ({"legacy": True}, ["▁a", "<s>", "▁Hello", "▁b", "</s>", "▁▁", "▁x"]),
        ({"add_prefix_space": False}, ["a", "<s>", "Hello", "▁b", "</s>", "▁", "▁x"]),
    ],
    ids=str,
)
def test_where_a_space_is_put(options, tokens, tmp_path):
    text = "a<s>Hello b</s>  x"
    own = LlamaTokenizer.from_pretrained(FOLDER, **options)
    assert own.tokenize(text) == tokens
    assert own.decode(own.encode("Banana"), skip_special_tokens=True) == "Banana"
    LlamaTokenizer.from_pretrained(FOLDER).save_pretrained(tmp_path)
    assert LlamaTokenizer.from_pretrained(tmp_path, **options).tokenize(text) == tokens


@needs_llama2
def test_files_that_transformers_4_wrote(tmp_path):
    (tmp_path / "tokenizer.model").symlink_to(MODEL)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<more>": 32001, "<pad>": 32000}))
    own = LlamaTokenizer.from_pretrained(tmp_path)
    assert own.encode("<more>a<pad>") == [1, 32001, 29874, 32000]
    assert own.decode([32001, 32000], skip_special_tokens=True) == "<more>"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 32005}))
    with pytest.raises(
        TokenizerError, match="added_tokens_decoder gives '<pad>' the id 32005, but it can only get 32000"
    ):
        LlamaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": "x"}))
    with pytest.raises(TokenizerError, match="added_tokens.json maps '<pad>' to 'x'; a text and an id are needed"):
        LlamaTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "tokenizer_config.json has bos_token = 3; a text or an object"),
        ("tokenizer_config.json", {"bos_token": {"content": 3}}, "has bos_token = {'content': 3}"),
        ("tokenizer_config.json", {"chat_template": 3}, "tokenizer_config.json has chat_template = 3"),
        ("tokenizer_config.json", {"padding_side": "x"}, "padding_side is 'x'"),
        ("tokenizer_config.json", {"model_max_length": float("inf")}, "model_max_length = inf"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, r"added_tokens_decoder = \[\]; id → token is needed"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": "<y>"}},
            "the id 'x' in added_tokens_decoder; a number",
        ),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, "has extra_special_tokens = 3"),
        ("special_tokens_map.json", [1], "holds a list, but a JSON object is expected"),
    ],
    ids=str,
)
def test_malformed_files(file, content, message, tmp_path):
    BYTES.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message):
        LlamaTokenizer.from_pretrained(tmp_path)


def test_a_template_without_the_ids_of_its_tokens(tmp_path):
    LlamaTokenizer(IDS, ["▁ a"]).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["post_processor"]["single"][0]["SpecialToken"]["id"] = "<t>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="The post-processor puts '<t>' around texts, but does not say what ids"):
        LlamaTokenizer.from_pretrained(tmp_path)


def test_a_limit_written_as_a_float(tmp_path):
    BYTES.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert LlamaTokenizer.from_pretrained(tmp_path).model_max_length == int(1e30)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="chat_template.jinja is not a readable text"):
        LlamaTokenizer.from_pretrained(tmp_path)

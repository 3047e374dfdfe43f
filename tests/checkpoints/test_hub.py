"""Models on the Hub, with a cache laid out as `huggingface_hub` does, and no network."""

import socket
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from workbench import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from workbench.checkpoints import CheckpointNotFoundError
from workbench.checkpoints.hub import ALLOWED, IGNORED, looks_like_hub_id
from workbench.checkpoints.load import load

COMMIT = "0" * 39 + "1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def _offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def connect(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)


def cached_model(cache, repo="owner/tiny", revision="main", commit=COMMIT):
    """snapshots/<commit>/… as links into blobs/, and refs/<revision>."""
    root = cache / ("models--" + repo.replace("/", "--"))
    snapshot = root / "snapshots" / commit
    write_folder(root / "source", small_model())
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for number, file in enumerate(sorted((root / "source").iterdir())):
        blob = file.rename(root / "blobs" / f"{number}{commit}")
        (snapshot / file.name).symlink_to(blob)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    return snapshot


@pytest.mark.usefixtures("_offline")
def test_cached_model_loads_offline(cache):
    snapshot = cached_model(cache)
    loaded = load("owner/tiny")
    assert (loaded.name, loaded.source) == ("tiny", str(snapshot))
    assert loaded.tokenizer.encode("hello")


@pytest.mark.usefixtures("_offline")
def test_revision_is_passed_on(cache):
    cached_model(cache, revision="v2")
    assert load("owner/tiny", revision="v2").name == "tiny"
    with pytest.raises(CheckpointNotFoundError, match=r"owner/tiny \(revision v3\) is not in the local cache"):
        load("owner/tiny", revision="v3")


@pytest.mark.usefixtures("_offline")
def test_absent_model_fails_at_once_and_says_what_to_do(cache):
    start = time.monotonic()
    with pytest.raises(
        CheckpointNotFoundError, match=r"owner/absent is not in the local cache.*HF_HUB_OFFLINE"
    ) as error:
        load("owner/absent")
    assert time.monotonic() - start < 2
    assert "give the path of a local folder or .gguf file" in str(error.value)


@pytest.mark.usefixtures("_offline")
def test_incomplete_cache(cache):
    (cached_model(cache) / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"has neither model.safetensors .*cached copy of a model on the Hub"
    ):
        load("owner/tiny")


def test_unreachable_hub(cache, monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        CheckpointNotFoundError, match=r"the Hub cannot be reached.*OSError: Name or service not known\)"
    ):
        load("owner/tiny")


def test_arguments(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options))
        return str(write_folder(tmp_path / "snapshot", small_model()))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load("owner/tiny", revision="main", token="secret")
    expected = {"revision": "main", "token": "secret", "cache_dir": None, "local_files_only": False}
    assert asked == [("owner/tiny", {**expected, "allow_patterns": ALLOWED, "ignore_patterns": IGNORED})]


@pytest.mark.usefixtures("_offline")
def test_another_cache(cache, tmp_path, monkeypatch):
    cached_model(tmp_path / "elsewhere")
    with pytest.raises(CheckpointNotFoundError, match="owner/tiny is not in the local cache"):
        LlamaForCausalLM.from_pretrained("owner/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the argument says it now
    options = {"cache_dir": tmp_path / "elsewhere", "local_files_only": True}
    assert LlamaForCausalLM.from_pretrained("owner/tiny", **options).config.hidden_size == 32
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"owner/absent is not in the local cache \(.*elsewhere\), and local_files_only is",
    ):
        LlamaForCausalLM.from_pretrained("owner/absent", **options)


@pytest.mark.parametrize(
    ("options", "allowed", "ignored"),
    [
        ({"subfolder": "base"}, [f"base/{name}" for name in ALLOWED], [f"base/{name}" for name in IGNORED]),
        ({"gguf_file": "tiny.gguf"}, ["tiny.gguf"], IGNORED),
        ({"gguf_file": "q8/tiny.gguf"}, ["q8/tiny.gguf"], [f"q8/{name}" for name in IGNORED]),
        (
            {"gguf_file": "tiny.gguf", "subfolder": "q8"},
            ["q8/tiny.gguf"],
            [f"q8/{name}" for name in IGNORED],
        ),
    ],
)
def test_only_what_is_needed_is_asked_for(tmp_path, monkeypatch, options, allowed, ignored):
    asked = {}

    def snapshot_download(repo_id, **given):
        asked.update(given)
        for folder in ("", "q8", "base"):
            write_folder(tmp_path / "snapshot" / folder, small_model(), tokenizer=False)
            write_gguf(tmp_path / "snapshot" / folder / "tiny.gguf", small_model())
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    LlamaForCausalLM.from_pretrained("owner/tiny", token=True, **options)
    assert (asked["allow_patterns"], asked["ignore_patterns"], asked["token"]) == (allowed, ignored, True)


@pytest.mark.parametrize("read", [AutoConfig.from_pretrained, LlamaConfig.from_pretrained])
def test_a_config_brings_no_weights(tmp_path, monkeypatch, read):
    asked = {}

    def snapshot_download(repo_id, **given):
        asked.update(given)
        return str(write_folder(tmp_path / "snapshot", small_model()))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert read("owner/tiny").hidden_size == 32
    assert asked["allow_patterns"] == ["config.json"]
    AutoTokenizer.from_pretrained("owner/tiny")
    assert not any("safetensors" in pattern for pattern in asked["allow_patterns"])


def test_what_is_fetched():
    from huggingface_hub.utils import filter_repo_objects

    names = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    names += ["chat_template.jinja", "tokenizer.model", "generation_config.json", "merges.txt"]
    others = [
        "pytorch_model.bin",
        "original/x.pth",
        "onnx/config.json",
        "consolidated.safetensors",
        "m.gguf",
        "README.md",
    ]
    assert list(filter_repo_objects(names + others, allow_patterns=ALLOWED, ignore_patterns=IGNORED)) == names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("a/b.c", True),
        ("gpt2", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("~/a", False),
        ("a/..", False),
        ("a\\b/c", False),
        ("", False),
    ],
)
def test_form_of_a_hub_id(text, expected):
    assert looks_like_hub_id(text) == expected

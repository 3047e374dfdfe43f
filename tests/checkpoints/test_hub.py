"""Models on the Hub, with a cache laid out as `huggingface_hub` does, and no network."""

import socket
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.checkpoints.conftest import small_model, write_folder
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
    expected = {"revision": "main", "token": "secret", "allow_patterns": ALLOWED, "ignore_patterns": IGNORED}
    assert asked == [("owner/tiny", expected)]


def test_what_is_fetched():
    from huggingface_hub.utils import filter_repo_objects

    names = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    names += ["chat_template.jinja", "tokenizer.model"]
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

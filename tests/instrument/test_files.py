"""A capture in a file: what is read back is what was written, and damaged files are refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.conftest import tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, Activations, capture
from workbench.instrument.files import model_hash

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
PADDED = (torch.arange(12) >= torch.tensor([[3], [0]])).long()
CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
BIASED = torch.zeros(1, 4, 12, 12).masked_fill(~CAUSAL, -torch.inf) - torch.arange(4.0)[None, :, None, None] * 0.1


def captured(model, *points, split=(), mask=None, **options):
    cache = DynamicCache() if split else None
    with torch.no_grad(), capture(model, *points, **options) as acts:
        start = 0
        for end in (*split, 12):
            seen = mask[:, :end] if mask is not None and mask.dim() == 2 else mask
            model(IDS[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=bool(split))
            start = end
    return acts


CASES = {
    "everything": {"points": ["*"]},
    "chunks": {"points": ["*"], "split": (5, 6)},
    "padded": {"points": ["*"], "mask": PADDED},
    "a custom mask": {"points": ["*"], "mask": CAUSAL},
    "a bias of each head": {"points": ["pattern", "mask"], "mask": BIASED},
    "patterns alone": {"points": ["pattern"], "heads": [1, 2], "positions": slice(-3, None)},
    "bfloat16": {"points": ["resid_post", "q_rot"], "dtype": torch.bfloat16},
    "stored": {"points": ["*"], "derive": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_read_is_what_was_written(case, tmp_path):
    case = dict(case)
    acts = captured(tiny_model(), *case.pop("points"), **case)
    acts.save(tmp_path / "a.safetensors")
    read = Activations.load(tmp_path / "a.safetensors")
    assert list(read) == list(acts)
    assert (read.heads, read.kv_heads, read.length) == (acts.heads, acts.kv_heads, acts.length)
    for name in acts:
        torch.testing.assert_close(read[name], acts[name], rtol=0, atol=0)
        assert torch.equal(read.positions(name), acts.positions(name))
        for step in range(len(acts.spans)):
            assert torch.equal(read.step(name, step), acts.step(name, step)), (name, step)
    for a, b in zip(acts.spans, read.spans, strict=True):
        assert (a.start, a.count, a.masked) == (b.start, b.count, b.masked)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.mask.allowed(), b.mask.allowed())
        assert torch.equal(a.mask.reasons(), b.mask.reasons())
        assert (a.mask.extra is None) == (b.mask.extra is None)
    assert not acts.diff(read)


def test_patterns_stay_what_they_are_computed_from(tmp_path):
    acts = captured(tiny_model(), "pattern")
    acts.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        keys = set(file.keys())
    assert not any("pattern" in key and key.endswith("#0") for key in keys)
    assert {"layers.1.q_rot#0", "layers.1.k_rot#0"} <= keys
    read = Activations.load(tmp_path / "a.safetensors")
    assert list(read) == [f"layers.{i}.pattern" for i in range(3)]


def test_the_manifest_says_what_it_is_of(tmp_path):
    model = tiny_model()
    captured(model, "q", "mask", mask=PADDED).save(tmp_path / "a.safetensors")
    manifest = Activations.load(tmp_path / "a.safetensors").manifest
    assert manifest["model"] == model_hash(model)
    assert manifest["torch"] == torch.__version__
    assert manifest["workbench"]
    assert manifest["config"]["hidden_size"] == 32
    assert "float32" in manifest["dtype"]
    assert [rule["rule"] for rule in manifest["spans"][0]["mask"]["rules"]] == ["causal", "padding"]


def test_the_hash_is_of_every_weight_and_of_the_configuration():
    model, same = tiny_model(), tiny_model()
    same.load_state_dict(model.state_dict())
    assert model_hash(model) == model_hash(same)
    with torch.no_grad():
        same.model.layers[2].mlp.up_proj.weight[-1, -1] += 1e-3
    assert model_hash(model) != model_hash(same)
    same.load_state_dict(model.state_dict())
    same.config.rms_norm_eps = 1e-3
    assert model_hash(model) != model_hash(same)


def test_of_a_window_only_its_part_is_read(tmp_path, monkeypatch):
    acts = captured(tiny_model(), "resid_post", "q_rot")
    acts.save(tmp_path / "a.safetensors")
    read = Activations.load(tmp_path / "a.safetensors")
    assert read.nbytes == acts.nbytes
    seen = []
    from workbench.instrument.files import InFile

    real = InFile.read
    monkeypatch.setattr(InFile, "read", lambda self, a, b: seen.append((self.key, a, b)) or real(self, a, b))
    assert torch.equal(read.window("layers.1.q_rot", 3, 5), acts["q_rot", 1][:, 3:5])
    assert seen == [("layers.1.q_rot#0", 3, 5)]


def test_a_capture_that_was_extended_is_written_too(tmp_path):
    model, cache = tiny_model(), DynamicCache()
    whole = captured(model, "pattern", "resid_mid")
    everything = Activations()
    with torch.no_grad():
        for start, end in ((0, 7), (7, 12)):
            with capture(model, "pattern", "resid_mid") as acts:
                model(IDS[:, start:end], past_key_values=cache)
            everything.extend(acts)
    everything.save(tmp_path / "a.safetensors")
    read = Activations.load(tmp_path / "a.safetensors")
    for name in whole:
        torch.testing.assert_close(read[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_file_that_is_there_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    captured(tiny_model(), "q").save(path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr("workbench.instrument.files.save_file", fail)
    with pytest.raises(OSError, match="the disk is full"):
        captured(tiny_model(), "k").save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_capture_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="this capture is empty: no forward ran in its block"):
        Activations().save(tmp_path / "a")


def test_rules_of_ones_own_cannot_be_written(tmp_path):
    from workbench.model.mask import Mask, Rule

    acts = captured(tiny_model(), "q")
    rule = Rule("mine", "M", lambda q, k: k <= q)
    object.__setattr__(acts.spans[0], "mask", Mask([rule], torch.arange(12), torch.arange(12)))
    with pytest.raises(ValueError, match=r"the rule mine\(\) is a function of its own and cannot be written"):
        acts.save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def damaged(kind, path):
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "other":
        save_file({"a": torch.zeros(2)}, path)
    else:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            manifest = json.loads(file.metadata()["manifest"])
        if kind == "version":
            manifest["version"] = 99
        elif kind == "missing tensor":
            tensors.pop("layers.0.q#0")
        elif kind == "missing entry":
            manifest.pop("spans")
        save_file(tensors, path, metadata={"manifest": json.dumps(manifest)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "is damaged or no safetensors file"),
        ("text", "is damaged or no safetensors file"),
        ("other", "is a safetensors file, but no capture: it has no manifest"),
        (
            "version",
            r"has format 'workbench-activations', version 99; this is read: 'workbench-activations', version 1",
        ),
        ("missing tensor", "is damaged or no safetensors file"),
        ("missing entry", "its manifest does not fit its tensors"),
    ],
)
def test_other_files_are_refused(kind, message, tmp_path):
    path = tmp_path / "a.safetensors"
    captured(tiny_model(), "q").save(path)
    damaged(kind, path)
    with pytest.raises(ValueError, match=message):
        Activations.load(path)


def test_a_missing_file_is_said_to_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\. Give one that acts\.save\(path\) wrote"):
        Activations.load(tmp_path / "nowhere")


def test_every_kind_of_point_is_in_these_cases():
    assert set(POINTS) == {name.rpartition(".")[2] for name in captured(tiny_model(), "*")}


def test_a_file_that_another_one_takes_the_place_of_is_read_on(tmp_path):
    path, model = tmp_path / "a.safetensors", tiny_model()
    acts, other = captured(model, "resid_post", split=(5,)), captured(model, "resid_post", split=(7,), positions=[2])
    acts.save(path)
    read = Activations.load(path)
    other.save(path)
    assert torch.equal(read["resid_post", 1], acts["resid_post", 1])
    assert torch.equal(Activations.load(path)["resid_post", 1], other["resid_post", 1])
    read.save(path)  # in its own place
    again = Activations.load(path)
    path.unlink()
    for found in (read, again):
        assert torch.equal(found["resid_post", 2], acts["resid_post", 2])


def test_a_file_that_is_written_over_is_refused(tmp_path):
    path, model = tmp_path / "a.safetensors", tiny_model()
    captured(model, "q").save(path)
    captured(model, "k").save(tmp_path / "b.safetensors")
    read = Activations.load(path)
    with path.open("r+b") as file:
        file.write((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match=r"a\.safetensors was written over since this capture was loaded from it\. Load"
    ):
        read["q", 1]


def test_a_capture_that_was_read_is_written_with_what_is_known_of_its_model(tmp_path):
    model = tiny_model()
    captured(model, "q", split=(4,)).save(tmp_path / "a.safetensors")
    read = Activations.load(tmp_path / "a.safetensors")
    read.save(tmp_path / "b.safetensors")
    more = Activations()
    more.extend(read)
    more.save(tmp_path / "c.safetensors")
    for name in "bc":
        manifest = Activations.load(tmp_path / f"{name}.safetensors").manifest
        assert manifest["model"] == read.manifest["model"] == model_hash(model)
        assert manifest["config"]["num_hidden_layers"] == 3


def test_masks_of_single_layers_are_read_back(tmp_path):
    acts = captured(tiny_model(), "mask", split=(5,), mask=PADDED)
    acts.crop(8)
    acts.save(tmp_path / "a.safetensors")
    read = Activations.load(tmp_path / "a.safetensors")
    for step in (0, 1):
        assert torch.equal(read.mask(1, step).reasons(), acts.mask(1, step).reasons())

"""`device_map`: one device, several, and the disk; the numbers are those of the model in one piece."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints.conftest import small_model
from tests.checkpoints.test_gguf_model import same_weights
from workbench import LlamaForCausalLM, LlamaForTokenClassification, LlamaModel
from workbench.cache import DynamicCache
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.placement import Placement

CPU = torch.device("cpu")
MAPS = {
    "one layer on the disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "disk",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "lm_head": "cpu",
    },
    "all layers on the disk": {"": "cpu", "model.layers": "disk"},
    "all on the disk": {"": "disk"},
    "a projection on the disk": {"": "cpu", "model.layers.1.self_attn.k_proj": "disk", "lm_head": "disk"},
    "embedding on the disk": {"": "cpu", "model.embed_tokens": "disk"},
}
OPTIONS = {"plain": {}, "tied": {"tie_word_embeddings": True}, "bias": {"attention_bias": True, "mlp_bias": True}}


@pytest.fixture
def folder(tmp_path):
    small_model().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("device_map", ["cpu", CPU, {"": "cpu"}, {"": CPU}, "auto", "balanced", "sequential"], ids=str)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="expects the CPU to be the only device")
def test_one_device(folder, device_map):
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map)
    same_weights(model, LlamaForCausalLM.from_pretrained(folder))
    assert model.hf_device_map == {"": "cpu"}
    assert "forward" not in model.__dict__  # accelerate is not needed, and has not been there


def test_one_device_needs_no_accelerate(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    LlamaForCausalLM.from_pretrained(folder, device_map="cpu")
    for options in ({"device_map": MAPS["all on the disk"]}, {"device_map": "auto", "max_memory": {"cpu": "1kB"}}):
        with pytest.raises(CheckpointError, match=r"need the package accelerate.*`pip install accelerate`"):
            LlamaForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("option", OPTIONS)
@torch.no_grad()
def test_offloaded_model_gives_the_same_numbers(tmp_path, name, option):
    small_model(**OPTIONS[option]).save_pretrained(tmp_path / "tiny")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "tiny")
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "tiny", device_map=MAPS[name], offload_folder=tmp_path / "offload"
    )
    ids = torch.randint(1, 90, (2, 7))
    expected = plain(ids, output_hidden_states=True, output_attentions=True)
    actual = model(ids, output_hidden_states=True, output_attentions=True)
    assert torch.equal(actual.logits, expected.logits)
    for a, b in zip(
        actual.hidden_states + actual.attentions, expected.hidden_states + expected.attentions, strict=True
    ):
        assert torch.equal(a, b)
    cache = DynamicCache()
    chunks = [model(part, past_key_values=cache).logits for part in ids.split(3, 1)]
    torch.testing.assert_close(torch.cat(chunks, 1), expected.logits, rtol=1e-5, atol=1e-5)
    assert any(value.is_meta for value in model.parameters())
    assert list((tmp_path / "offload").glob("*.dat"))
    places = model.hf_device_map
    assert not any(a != b and b.startswith(f"{a}.") for a in places for b in places)
    asked = Placement(MAPS[name])
    for key, value in model.named_parameters():
        key = "model.embed_tokens.weight" if option == "tied" and key == "lm_head.weight" else key
        assert value.is_meta == asked.is_on_disk(key), key


@torch.no_grad()
def test_generation_and_saving_of_an_offloaded_model(tmp_path, folder):
    plain = LlamaForCausalLM.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, device_map=MAPS["all layers on the disk"])
    ids = torch.randint(1, 90, (1, 4))
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    model.save_pretrained(tmp_path / "again", max_shard_size="20kB")
    same_weights(LlamaForCausalLM.from_pretrained(tmp_path / "again"), plain)


@torch.no_grad()
def test_too_little_memory_sends_the_rest_to_the_disk(tmp_path, folder):
    plain = LlamaForCausalLM.from_pretrained(folder)
    size = sum(v.nbytes for v in plain.parameters())
    ids = torch.randint(1, 90, (1, 7))
    for kind in ("auto", "sequential"):
        model = LlamaForCausalLM.from_pretrained(folder, device_map=kind, max_memory={"cpu": int(size * 0.7)})
        places = model.hf_device_map
        assert set(places.values()) == {"cpu", "disk"}
        assert not any(name.startswith("model.layers.0.") for name in places)  # a layer is never divided
        held = sum(v.nbytes for v in model.parameters() if not v.is_meta)
        assert 0 < held <= size * 0.7
        assert torch.equal(model(ids).logits, plain(ids).logits)
    model = LlamaForCausalLM.from_pretrained(folder, device_map="auto", max_memory={"cpu": "1GiB"})
    assert model.hf_device_map == {"": "cpu"}


@torch.no_grad()
def test_types_and_new_heads_on_the_disk(tmp_path, folder):
    options = {"device_map": {"": "cpu", "model.layers.0": "disk", "score": "disk"}, "dtype": "bfloat16"}
    with pytest.warns(UserWarning, match=r"score.weight, score.bias"):
        model = LlamaForTokenClassification.from_pretrained(folder, offload_folder=tmp_path / "o", **options)
    ids = torch.randint(1, 90, (1, 7))
    out = model(ids).logits
    assert (out.dtype, out.shape) == (torch.bfloat16, (1, 7, 2))
    base = LlamaModel.from_pretrained(folder, dtype="bfloat16")
    hidden = base(ids).last_hidden_state
    model.save_pretrained(tmp_path / "again")
    again = LlamaForTokenClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids).logits, out)
    assert torch.equal(torch.nn.functional.linear(hidden, again.score.weight, again.score.bias), out)


def offload_folders():
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("workbench-offload-*"))


def test_a_temporary_folder_goes_with_the_model(folder):
    gc.collect()
    before = offload_folders()
    model = LlamaForCausalLM.from_pretrained(folder, device_map=MAPS["all on the disk"])
    (made,) = offload_folders() - before
    del model
    gc.collect()
    assert not made.exists()


def test_an_error_leaves_no_temporary_folder(folder, monkeypatch):
    before = offload_folders()
    write = Placement.write

    def failing(self, name, value):
        if "layers.1" in name:
            raise OSError("no space left on device")
        write(self, name, value)

    monkeypatch.setattr(Placement, "write", failing)
    with pytest.raises(OSError, match="no space left"):
        LlamaForCausalLM.from_pretrained(folder, device_map=MAPS["all on the disk"])
    assert offload_folders() <= before


def test_a_tied_head_stays_beside_the_embedding(tmp_path):
    small_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu", "lm_head": "disk"})
    assert model.hf_device_map["lm_head"] == "cpu"
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device_map": True}, TypeError, "device_map is True; use 'auto', 'balanced'.*'cpu'.*or a dictionary"),
        ({"device_map": 1.5}, TypeError, "device_map is 1.5; use 'auto'"),
        ({"device_map": "everywhere"}, CheckpointError, "device_map is 'everywhere', which torch cannot use here"),
        ({"device_map": "meta"}, CheckpointError, "device_map is 'meta', which holds no weights"),
        ({"device_map": "disk"}, CheckpointError, "device_map is 'disk', which torch cannot use here"),
        ({"device_map": 99}, CheckpointError, "device_map is 99, which torch cannot use here"),
        ({"device_map": {}}, CheckpointError, "device_map says nothing of model.embed_tokens.weight. Name it or"),
        ({"device_map": {"model": "cpu"}}, CheckpointError, "device_map says nothing of lm_head.weight"),
        (
            {"device_map": {"": "cpu", "model.layers.7": "cpu"}},
            CheckpointError,
            "device_map names 'model.layers.7', but",
        ),
        (
            {"device_map": {"": "cpu", 3: "cpu"}},
            CheckpointError,
            "device_map names 3, but the model has no such module",
        ),
        ({"device_map": {"": "there"}}, CheckpointError, r"device_map\[''\] is 'there', which torch cannot use here"),
        ({"device_map": {"": None}}, TypeError, r"device_map\[''\] is None; use 'disk', 'cpu' or a GPU"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, CheckpointError, r"max_memory\['cpu'\] is 'much'"),
        ({"device_map": "auto", "max_memory": {"cpu": None}}, TypeError, r"max_memory\['cpu'\] is None"),
        ({"device_map": "auto", "max_memory": {1.5: 1}}, TypeError, "max_memory names the device 1.5"),
        ({"device_map": "auto", "max_memory": 5}, TypeError, "max_memory is 5; it must be a dictionary"),
        (
            {"device_map": "cpu", "max_memory": {"cpu": 5}},
            CheckpointError,
            "max_memory is given, but device_map is 'cpu'",
        ),
    ],
)
def test_arguments(folder, options, error, message):
    with pytest.raises(error, match=message):
        LlamaForCausalLM.from_pretrained(folder, **options)

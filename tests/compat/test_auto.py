"""The Auto classes, under the names that code for transformers imports."""

import json

import pytest
import torch

import workbench
from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from tests.checkpoints.test_gguf_model import same_weights
from tests.checkpoints.test_hub import _offline, cache, cached_model  # noqa: F401
from workbench import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.compat.auto import model_of
from workbench.config import ConfigError
from workbench.tokenizer import TokenizerError

MODELS = {
    "AutoModel": "LlamaModel",
    "AutoModelForCausalLM": "LlamaForCausalLM",
    "AutoModelForSequenceClassification": "LlamaForSequenceClassification",
    "AutoModelForTokenClassification": "LlamaForTokenClassification",
    "AutoModelForQuestionAnswering": "LlamaForQuestionAnswering",
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiny", small_model())


@pytest.mark.parametrize("name", MODELS)
def test_models(tmp_path, name):
    auto, kind = getattr(workbench, name), getattr(workbench, MODELS[name])
    saved = kind(small_model(num_labels=3).config)
    saved.save_pretrained(tmp_path)
    model = auto.from_pretrained(tmp_path, dtype="bfloat16", attn_implementation="eager")
    assert type(model) is kind
    assert model.dtype == torch.bfloat16
    assert model.config.attn_implementation == "eager"
    assert not model.training
    for key, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[key], value.bfloat16()), key
    assert type(model_of(tmp_path)) is kind
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("name", MODELS)
def test_fresh_models(name):
    auto = getattr(workbench, name)
    config = small_model().config
    model = auto.from_config(config, dtype="float16", attn_implementation="eager", num_hidden_layers=1)
    assert type(model) is getattr(workbench, MODELS[name])
    assert model.dtype == torch.float16
    assert (model.config.num_hidden_layers, config.num_hidden_layers) == (1, 2)
    assert model.config.attn_implementation == "eager"
    with pytest.raises(TypeError, match="config is a dict; a LlamaConfig is needed: only Llama models are here"):
        auto.from_config({"model_type": "llama"})
    with pytest.raises(TypeError, match=f"{name}.from_config has no argument 'layers'"):
        auto.from_config(config, layers=3)
    with pytest.raises(CheckpointError, match="dtype is 'int8'"):
        auto.from_config(config, dtype="int8")
    with pytest.raises(TypeError, match=f"{name} is not made directly; use {name}.from_pretrained"):
        auto()


def test_config(tmp_path, folder):
    config = AutoConfig.from_pretrained(folder)
    assert config == LlamaConfig.from_pretrained(folder)
    assert AutoConfig.from_pretrained(folder, num_labels=7, use_cache=False).num_labels == 7
    assert AutoConfig.from_pretrained(tmp_path, subfolder="tiny") == config
    file = write_gguf(tmp_path / "tiny.gguf", small_model())
    for source, options in ((file, {}), (tmp_path, {"gguf_file": "tiny.gguf"})):
        found = AutoConfig.from_pretrained(source, num_labels=4, **options)
        assert (found.hidden_size, found.num_labels) == (32, 4)
    assert AutoConfig.from_pretrained(None).hidden_size == 576
    assert AutoConfig.for_model("llama", hidden_size=64).hidden_size == 64


def test_tokenizer(tmp_path, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, workbench.LlamaTokenizer)
    ids = tokenizer.encode("hello world")
    assert ids
    assert AutoTokenizer.from_pretrained(str(folder), padding_side="right", use_fast=True).padding_side == "right"
    file = write_gguf(tmp_path / "tiny.gguf", small_model())
    assert AutoTokenizer.from_pretrained(file).encode("hello world") == ids
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf").encode("hello world") == ids
    assert AutoTokenizer.from_pretrained(None).decode([1]) == "<|im_start|>"


@pytest.mark.usefixtures("_offline")
def test_hub(cache):  # noqa: F811
    cached_model(cache, revision="v2")
    options = {"revision": "v2"}
    model = AutoModelForCausalLM.from_pretrained("owner/tiny", **options)
    tokenizer = AutoTokenizer.from_pretrained("owner/tiny", **options)
    assert AutoConfig.from_pretrained("owner/tiny", **options).hidden_size == model.config.hidden_size
    assert model.generate(tokenizer("hello", return_tensors="pt").input_ids, max_new_tokens=2).shape[1] > 2
    for auto in (AutoConfig, AutoTokenizer, AutoModel):
        with pytest.raises(CheckpointNotFoundError, match="owner/tiny is not in the local cache"):
            auto.from_pretrained("owner/tiny")


@pytest.mark.parametrize("name", [*MODELS, "AutoConfig"])
def test_another_architecture(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="model_type is 'gpt2', but only 'llama' checkpoints can be loaded"):
        getattr(workbench, name).from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type is 'gpt2'; only 'llama' is here"):
        AutoConfig.for_model("gpt2")


def test_wrong_arguments(tmp_path, folder):
    with pytest.raises(TypeError, match="AutoConfig.from_pretrained has no argument 'n_labels'"):
        AutoConfig.from_pretrained(folder, n_labels=3)
    with pytest.raises(ConfigError, match="num_labels"):
        AutoConfig.from_pretrained(folder, num_labels="many")
    with pytest.raises(TypeError, match="source is 3"):
        AutoConfig.from_pretrained(3)
    with pytest.raises(TypeError, match="source is 3"):
        AutoModel.from_pretrained(3)
    with pytest.raises(TypeError, match="source is 3"):
        AutoTokenizer.from_pretrained(3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match="has no tokenizer.json"):
        AutoTokenizer.from_pretrained(tmp_path / "empty")
    with pytest.raises(CheckpointNotFoundError, match="has no config.json"):
        AutoModel.from_pretrained(tmp_path / "empty")
    for auto in (AutoConfig, AutoTokenizer):
        with pytest.raises(TypeError, match=f"{auto.__name__} is not made directly"):
            auto()


def test_saved_together_and_loaded_together(tmp_path, folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), model)
    assert AutoTokenizer.from_pretrained(tmp_path / "again").encode("hello") == tokenizer.encode("hello")

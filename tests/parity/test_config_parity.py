"""A config.json is read as transformers reads it, in every spelling that its rotary settings have had."""

import copy
import json

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as TheirRotary

from tests.conftest import tiny_config
from workbench.config import ConfigError, LlamaConfig
from workbench.model.rope import LlamaRotaryEmbedding, apply_rope, signed

THETAS = {"no theta": {}, "a theta": {"rope_theta": 5e5}, "a whole theta": {"rope_theta": 500}}
SETTINGS = {
    "None": None,
    "empty": {},
    "rope_type": {"rope_type": "default"},
    "type": {"type": "default"},
    "own theta": {"rope_theta": 700.0},
    "rope_type and theta": {"rope_type": "default", "rope_theta": 700.0},
    "type and theta": {"type": "default", "rope_theta": 900.0},
    "both types": {"rope_type": "default", "type": "linear", "factor": 4.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear by type": {"type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "linear by rope_type": {"rope_type": "linear", "type": "default", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 2.0},
}
ABSENT = "absent"


def spelling(theta, parameters=ABSENT, scaling=ABSENT):
    given = {"rope_parameters": parameters, "rope_scaling": scaling}
    return {**THETAS[theta], **{key: SETTINGS[name] for key, name in given.items() if name != ABSENT}}


SPELLINGS = [
    pytest.param(spelling(theta, parameters, scaling), id=f"{theta}, parameters {parameters}, scaling {scaling}")
    for theta in THETAS
    for parameters in (ABSENT, *SETTINGS)
    for scaling in (ABSENT, *SETTINGS)
]


@pytest.mark.filterwarnings("ignore:rope_type .* has no parameter 'factor'")
@pytest.mark.parametrize("values", SPELLINGS)
def test_every_spelling_of_the_rotary_settings_is_read_as_theirs(values):
    theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(values)).rope_parameters
    read = {"rope_type", "rope_theta"} | ({"factor"} if theirs["rope_type"] != "default" else set())
    assert LlamaConfig.from_dict(values).rope_parameters == {key: theirs[key] for key in read}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 700.0}, "rope_scaling": {}},
    ],
    ids=str,
)
def test_the_rotation_is_theirs_too(values):
    sizes = {k: v for k, v in tiny_config().to_dict().items() if k not in ("rope_parameters", "dtype")}
    theirs = TheirRotary(transformers.LlamaConfig.from_dict(copy.deepcopy({**sizes, **values})))
    x, positions = torch.randn(1, 20, 1, 8), torch.arange(20)[None]
    cos, sin = theirs(x, positions)
    expected = x * cos[:, :, None] + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin[:, :, None]
    ours = LlamaRotaryEmbedding(LlamaConfig.from_dict({**sizes, **values}))
    torch.testing.assert_close(apply_rope(x, *signed(*ours(x, positions))), expected)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": "linear"},
        {"rope_parameters": [1]},
        {"eos_token_id": "2"},
        {"eos_token_id": [2, "3"]},
        {"eos_token_id": True},
        {"bos_token_id": [1]},
        {"bos_token_id": 2.0},
        {"pad_token_id": "0"},
        {"attention_bias": "false"},
        {"attention_bias": None},
        {"mlp_bias": 0},
        {"tie_word_embeddings": 1},
        {"tie_word_embeddings": None},
        {"use_cache": "true"},
        {"use_cache": None},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_both(values):
    with pytest.raises(Exception, match=next(iter(values)).replace("rope_scaling", "rope_parameters")):
        transformers.LlamaConfig.from_dict(copy.deepcopy(values))
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} is "):
        LlamaConfig.from_dict(values)


def test_a_negative_id_is_read_by_both():
    """Theirs keeps it, and would write it into a text; a negative id is no token, so here it is none."""
    values = {"pad_token_id": -1, "bos_token_id": -1, "eos_token_id": -1}
    theirs = transformers.LlamaConfig.from_dict(dict(values))
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (-1, -1, -1)
    ours = LlamaConfig.from_dict(values)
    assert (ours.pad_token_id, ours.bos_token_id, ours.eos_token_id) == (None, None, None)


WRITTEN = {
    "plain": {},
    "labels": {"id2label": {0: "bad", 1: "good", 2: "ugly"}, "label2id": {"bad": 0, "good": 1, "ugly": 2}},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "many labels": {"num_labels": 12},
    "outputs": {"output_hidden_states": True, "return_dict": False},
    "rope": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}},
    "dtype": {"dtype": "bfloat16", "architectures": ["LlamaModel"]},
    "quantized": {"quantization_config": {"quant_method": "torchao", "group_size": 128}},
    "sizes": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "eos_token_id": [2, 3]},
}
SIZES = {"hidden_size": 32, "num_attention_heads": 4}


@pytest.mark.parametrize("use_diff", [True, False], ids=["what differs", "everything"])
@pytest.mark.parametrize("changes", WRITTEN.values(), ids=WRITTEN.keys())
def test_each_reads_what_the_other_writes(tmp_path, changes, use_diff):
    ours, theirs = LlamaConfig(**SIZES, **changes), transformers.LlamaConfig(**SIZES, **copy.deepcopy(changes))
    theirs.to_json_file(tmp_path / "theirs.json", use_diff=use_diff)
    ours.to_json_file(tmp_path / "ours.json", use_diff=use_diff)
    assert LlamaConfig.from_json_file(tmp_path / "theirs.json") == ours
    read = transformers.LlamaConfig.from_json_file(tmp_path / "ours.json")
    assert read.to_dict() | {"quantization_config": 0} == theirs.to_dict() | {"quantization_config": 0}
    if use_diff:
        written = json.loads(theirs.to_json_string())
        assert written.pop("transformers_version")
        assert json.loads(ours.to_json_string()) == written


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_labels": 1},
        {"num_labels": 7},
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {0: "a", 1: "b"}, "num_labels": 2},
        {"id2label": {"0": "a"}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
        {"id2label": None, "label2id": {"a": 0}},
        {"label2id": {"a": 0, "b": 1, "c": 2}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:num_labels is 3, but id2label names 1")
def test_labels_are_read_as_theirs(values):
    theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(values))
    ours = LlamaConfig.from_dict(values)
    assert (ours.num_labels, ours.id2label) == (theirs.num_labels, theirs.id2label)
    if theirs.label2id is not None:  # theirs leaves it out where id2label comes alone
        assert ours.label2id == theirs.label2id
    for count in (ours.num_labels, 5):
        theirs.num_labels = ours.num_labels = count
        assert (ours.num_labels, ours.id2label) == (theirs.num_labels, theirs.id2label)
    assert ours.label2id == theirs.label2id


def test_an_original_length_outside_is_read_as_theirs():
    values = {
        **SIZES,
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    }
    theirs = TheirRotary(transformers.LlamaConfig.from_dict(copy.deepcopy(values)))
    x, positions = torch.zeros(1, 30, 1, 8), torch.arange(30)[None]
    for a, b in zip(
        LlamaRotaryEmbedding(LlamaConfig.from_dict(values))(x, positions), theirs(x, positions), strict=True
    ):
        assert torch.equal(a[:, :, 0], b)


def test_a_label_without_a_choice_is_refused_by_both():
    values = {"problem_type": "single_label_classification", "num_labels": 1}
    with pytest.raises(ValueError, match="num_labels > 1"):
        transformers.LlamaConfig(**values)
    with pytest.raises(ConfigError, match="needs num_labels of at least 2"):
        LlamaConfig(**values)

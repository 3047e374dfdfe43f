"""A config.json is read as transformers reads it, in every spelling that its rotary settings have had."""

import copy

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as TheirRotary

from tests.conftest import tiny_config
from workbench.config import ConfigError, LlamaConfig
from workbench.model.rope import LlamaRotaryEmbedding, apply_rope

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


@pytest.mark.parametrize("values", SPELLINGS)
def test_every_spelling_of_the_rotary_settings_is_read_as_theirs(values):
    theirs = transformers.LlamaConfig.from_dict(copy.deepcopy(values)).rope_parameters
    if theirs["rope_type"] == "default":
        ours = LlamaConfig.from_dict(values).rope_parameters
        assert (ours["rope_type"], ours["rope_theta"]) == ("default", theirs["rope_theta"])
        assert "type" not in ours
    else:
        with pytest.raises(ConfigError, match=f"rope_type is '{theirs['rope_type']}'; this version computes default"):
            LlamaConfig.from_dict(values)


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
    torch.testing.assert_close(apply_rope(x, *ours(x, positions)), expected)


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

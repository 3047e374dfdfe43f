import json
import re

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from workbench.config import ConfigError, LlamaConfig
from workbench.model import LlamaForCausalLM

# What transformers 5 writes, shortened to what matters.
TODAY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "transformers_version": "5.1.0",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": [2, 7],
    "dtype": "bfloat16",
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
# What transformers 4 wrote.
OLDER = {
    **{key: value for key, value in TODAY.items() if key not in ("rope_parameters", "dtype", "head_dim")},
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "rope_interleaved": False,
}


def test_defaults_are_those_of_the_documentation():
    config = LlamaConfig()
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32000, 4096, 11008)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (32, 32, 32)
    assert (config.head_dim, config.rms_norm_eps, config.max_position_embeddings) == (128, 1e-6, 2048)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert config.use_cache
    assert not config.tie_word_embeddings
    assert config.attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("kind", "label", "n_rep"), [("mha", "MHA", 1), ("gqa", "GQA", 2), ("mqa", "MQA", 4)], ids=["mha", "gqa", "mqa"]
)
def test_the_kind_of_attention_follows_from_the_heads(kind, label, n_rep):
    config = tiny_config(kind)
    assert (config.attention_kind, config.n_rep, config.kv_heads, config.d_head) == (label, n_rep, 4 // n_rep, 8)


def test_a_single_head_is_called_mha():
    assert LlamaConfig(num_attention_heads=1, num_key_value_heads=1).attention_kind == "MHA"


@pytest.mark.parametrize(
    ("eos", "expected"), [(None, ()), (7, (7,)), (0, (0,)), ([7, 9], (7, 9))], ids=["none", "one", "zero", "several"]
)
def test_end_tokens_are_always_a_tuple(eos, expected):
    assert LlamaConfig(eos_token_id=eos).eos_token_ids == expected


@pytest.mark.parametrize("values", [TODAY, OLDER], ids=["today", "older"])
def test_a_config_json_of_any_age_is_read(values):
    config = LlamaConfig.from_dict(values)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}
    assert config.dtype == "bfloat16"
    assert (config.head_dim, config.kv_heads, config.attention_kind) == (64, 3, "GQA")
    assert config.eos_token_ids == (2, 7)
    assert config.tie_word_embeddings


def test_todays_and_the_older_spelling_give_equal_configs():
    assert LlamaConfig.from_dict(TODAY) == LlamaConfig.from_dict(OLDER)


def test_reading_does_not_change_what_was_given():
    before = json.dumps({**OLDER, "rope_scaling": {"type": "default"}})
    values = json.loads(before)
    LlamaConfig.from_dict(values)
    assert json.dumps(values) == before


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_scaling_is_read_under_both_of_its_spellings(key):
    config = LlamaConfig.from_dict({**OLDER, "rope_scaling": {key: "default"}})
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_scaling_that_is_not_computed_is_refused_under_both_spellings(key):
    with pytest.raises(ConfigError, match="rope_type is 'su'; allowed are default, linear, dynamic, yarn, longrope, l"):
        LlamaConfig.from_dict({**OLDER, "rope_scaling": {key: "su", "factor": 8.0}})


def test_a_missing_rope_theta_is_ten_thousand():
    values = {key: value for key, value in OLDER.items() if key != "rope_theta"}
    assert LlamaConfig.from_dict(values).rope_parameters["rope_theta"] == 10000.0


def test_the_dtype_may_be_a_torch_dtype():
    assert LlamaConfig(dtype=torch.float16).dtype == "float16"


@pytest.mark.parametrize("values", [{}, TODAY, OLDER], ids=["defaults", "today", "older"])
def test_to_dict_is_read_back_to_an_equal_config(values):
    config = LlamaConfig.from_dict(values)
    written = json.loads(json.dumps(config.to_dict()))
    assert written["model_type"] == "llama"
    assert "attn_implementation" not in written, "a property of this run, not of the checkpoint"
    assert LlamaConfig.from_dict(written) == config


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", None], ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
def test_a_size_must_be_a_whole_positive_number(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is {value!r}; it must be a whole number of at least 1\."):
        tiny_config(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 30},
            r"hidden_size 30 cannot be divided into num_attention_heads 4 equal heads\. Change one .*head_dim",
        ),
        (
            {"num_key_value_heads": 3},
            r"num_attention_heads 4 is not a multiple of num_key_value_heads 3: each key/value head must serve",
        ),
        ({"num_key_value_heads": 8}, r"num_attention_heads 4 is not a multiple of num_key_value_heads 8"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads is 0; it must be a whole number of at least 1"),
        ({"head_dim": 7}, r"head_dim is 7; rotary embeddings need an even one"),
        ({"hidden_size": 36}, r"head_dim is 9; rotary embeddings need an even one"),
        ({"head_dim": 0}, r"head_dim is 0; it must be a whole number of at least 1, or None"),
        ({"head_dim": 8.0}, r"head_dim is 8\.0; it must be a whole number"),
        ({"hidden_act": "swish"}, r"hidden_act is 'swish'; allowed are silu, gelu, gelu_pytorch_tanh, relu"),
        ({"dtype": "float64"}, r"dtype is 'float64'; allowed are float32, float16, bfloat16"),
        ({"rms_norm_eps": 0.0}, r"rms_norm_eps is 0\.0; it must be a positive, finite number"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps is nan; it must be a positive, finite number"),
        ({"rms_norm_eps": "1e-5"}, r"rms_norm_eps is '1e-5'; it must be a positive, finite number"),
        ({"attention_dropout": 1.0}, r"attention_dropout is 1\.0; it must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout is -0\.1; it must lie in \[0, 1\)"),
        ({"attention_dropout": None}, r"attention_dropout is None; it must lie in \[0, 1\)"),
        ({"rope_parameters": {"rope_theta": 0}}, r"rope_theta is 0; it must be a positive, finite number"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, r"rope_theta is '1e4'; it must be a positive, finite"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, r"rope_theta is nan; it must be a positive, finite number"),
        ({"rope_parameters": {"rope_theta": float("inf")}}, r"rope_theta is inf; it must be a positive, finite number"),
        ({"rope_parameters": {"rope_theta": 10**400}}, r"rope_theta is a whole number of about 400 digits; it mus"),
        ({"rope_parameters": {"rope_theta": True}}, r"rope_theta is True; it must be a positive, finite number"),
        ({"rope_parameters": "linear"}, r"rope_parameters is 'linear'; it must be None or a dictionary, .*rope_type.*"),
        ({"pad_token_id": "0"}, r"pad_token_id is '0'; it must be a whole number of at least 0, or None\."),
        ({"pad_token_id": -1}, r"pad_token_id is -1; it must be a whole number of at least 0, or None\."),
        ({"pad_token_id": [0]}, r"pad_token_id is \[0\]; it must be a whole number of at least 0, or None\."),
        ({"bos_token_id": 1.0}, r"bos_token_id is 1\.0; it must be a whole number of at least 0, or None\."),
        ({"bos_token_id": False}, r"bos_token_id is False; it must be a whole number"),
        ({"eos_token_id": "2"}, r"eos_token_id is '2'; it must be a whole number of at least 0, a list of them, or N"),
        ({"eos_token_id": [2, "3"]}, r"eos_token_id is \[2, '3'\]; it must be a whole number of at least 0, a list"),
        ({"eos_token_id": [2, None]}, r"eos_token_id is \[2, None\]; it must be"),
        ({"eos_token_id": True}, r"eos_token_id is True; it must be"),
        ({"eos_token_id": {"id": 2}}, r"eos_token_id is \{'id': 2\}; it must be"),
        ({"attention_bias": "false"}, r"attention_bias is 'false'; it must be true or false, not text or a number"),
        ({"mlp_bias": 0}, r"mlp_bias is 0; it must be true or false, not text or a number"),
        ({"tie_word_embeddings": None}, r"tie_word_embeddings is None; it must be true or false"),
        ({"use_cache": "true"}, r"use_cache is 'true'; it must be true or false"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_values_that_no_llama_can_have_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["linear", [1], 2.0, True], ids=repr)
def test_rope_settings_of_another_type_are_named(name, value):
    message = f'{name} is {value!r}; it must be None or a dictionary, {{"rope_type": "default", "rope_theta": '
    with pytest.raises(ConfigError, match=re.escape(message)):
        LlamaConfig.from_dict({**OLDER, name: value})


def test_a_negative_id_in_a_config_json_means_none():
    config = LlamaConfig.from_dict({**OLDER, "pad_token_id": -1, "bos_token_id": -1, "eos_token_id": -1})
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_ids) == (None, None, ())
    assert LlamaConfig.from_dict({**OLDER, "eos_token_id": [-1, 5]}).eos_token_ids == (5,)


def test_a_row_that_has_ended_is_not_filled_with_a_negative_id():
    ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
    first = tiny_model(eos_token_id=None).generate(ids, max_new_tokens=1)[:, -1]
    assert first[0] != first[1], "only one of the rows is to end at once"
    torch.manual_seed(0)
    values = {**tiny_config().to_dict(), "pad_token_id": -1, "eos_token_id": [-1, int(first[0])]}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig.from_dict(values)).eval()
    torch.manual_seed(0)
    out = model.generate(ids, max_new_tokens=5)
    assert out[0, 3:].tolist() == [int(first[0])] * (out.shape[1] - 3)
    assert out.shape[1] > 4


def test_another_architecture_is_refused():
    with pytest.raises(ConfigError, match="model_type is 'mistral', but only 'llama' checkpoints can be loaded"):
        LlamaConfig.from_dict({**TODAY, "model_type": "mistral"})


def test_a_file_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TODAY))
    assert LlamaConfig.from_json_file(path) == LlamaConfig.from_dict(TODAY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json is not valid JSON \(.*\)\. Download the file again"),
        (b"\xff\xfe", r"config\.json is not valid JSON \(.*\)\. Download the file again"),
        (b"[]", r"config\.json holds a list, but a JSON object is expected"),
        (b'{"vocab_size": -3}', r"config\.json: vocab_size is -3; it must be a whole number of at least 1"),
        (b'{"model_type": "gpt2"}', r"config\.json: model_type is 'gpt2'"),
    ],
    ids=["cut-off", "not-text", "a-list", "bad-size", "other-model"],
)
def test_errors_in_a_file_name_the_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        LlamaConfig.from_json_file(path)


def test_older_spellings_are_arguments_too():
    config = LlamaConfig(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2}, torch_dtype="float16")
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 500.0, "factor": 2}
    assert config.dtype == "float16"
    assert LlamaConfig(rope_theta=7.0).rope["rope_theta"] == 7.0
    assert LlamaConfig(rope_theta=7.0, rope_parameters={"rope_theta": 9.0}).rope["rope_theta"] == 9.0
    assert not hasattr(config, "rope_theta")
    with pytest.raises(ConfigError, match="rope_theta is -1"):
        LlamaConfig(rope_theta=-1)


def test_a_config_is_made_again_of_its_dictionary():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_labels=3)
    assert LlamaConfig(**{**config.to_dict(), "transformers_version": "5.23.0"}) == config
    with pytest.raises(ConfigError, match="model_type is 'gpt2'"):
        LlamaConfig(model_type="gpt2")

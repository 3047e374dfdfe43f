"""Every argument of LlamaConfig: what is refused, and by which words."""

import dataclasses
import math
import re

import pytest

from tests.conftest import tiny_config
from workbench.config import ConfigError, LlamaConfig

HUGE = 10**5000  # more digits than Python writes out
SIZES = [0, -1, 1.5, "8", [8], {}, True, math.nan, 2**63, HUGE]
TOKENS = [-1, 1.0, "1", True, {}, 2**63, math.inf]
FLAGS = [None, 0, 1, "true", [], math.nan]
# Argument → values that it cannot have. A new argument has to be put in here.
WRONG = {
    "vocab_size": [*SIZES, None],
    "hidden_size": [*SIZES, None],
    "intermediate_size": [*SIZES, None],
    "num_hidden_layers": [*SIZES, None],
    "num_attention_heads": [*SIZES, None],
    "num_key_value_heads": [*SIZES, 3],
    "hidden_act": ["swish", "SILU", "", 1, None, ["silu"], {}],
    "max_position_embeddings": [*SIZES, None],
    "initializer_range": [-0.1, 1.5, math.nan, math.inf, "0.02", None, True, [0.02], HUGE],
    "rms_norm_eps": [0, -1e-6, math.nan, math.inf, "1e-6", None, True, [1e-6], HUGE],
    "use_cache": FLAGS,
    "pad_token_id": [*TOKENS, [0], 97],
    "bos_token_id": [*TOKENS, [1]],
    "eos_token_id": [*TOKENS, [2, None], [2, "3"], [[2]]],
    "pretraining_tp": [0, -1, 1.5, "1", True, [1]],
    "tie_word_embeddings": FLAGS,
    "rope_parameters": ["linear", 1, [1], True],
    "attention_bias": FLAGS,
    "attention_dropout": [-0.1, 1.0, 2, math.nan, "0.1", None, True, [0.1]],
    "mlp_bias": FLAGS,
    "head_dim": [0, -8, 7, 8.0, "8", True, [8], 2**63],
    "dtype": ["float64", "fp16", 16, ["float32"], {}],
    "attn_implementation": ["flash", "SDPA", "", 1, True, ["sdpa"], {}],
    "num_labels": [0, -1, 2.0, "2", True, [2], 10**7, HUGE],
    "id2label": [{}, [], ["a"], "a", 1, {1: "a"}, {0: "a", 2: "b"}, {"x": "a"}, {0: 1}, {-1: "a"}, {0.0: "a"}],
    "problem_type": ["classification", "", 1, True, ["regression"]],
    "output_hidden_states": FLAGS,
    "output_attentions": FLAGS,
    "return_dict": FLAGS,
    "architectures": ["LlamaForCausalLM", 1, [1], {}, ("LlamaForCausalLM",)],
    "quantization_config": ["int8", 1, [1], True],
}
LABELLED = [{}, [], "a", {"a": "x"}, {"a": 1}, {1: 0}, {"a": 0, "c": 1}, {"a": True}]
ALL = [(name, value) for name, values in WRONG.items() for value in values]


def label(value):
    return "a huge int" if value is HUGE else repr(value)


def test_every_argument_is_here():
    assert {field.name for field in dataclasses.fields(LlamaConfig)} == {*WRONG, "label2id"}


@pytest.mark.parametrize(("name", "value"), ALL, ids=label)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"\b{name}\b") as caught:
        tiny_config(**{name: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in ALL if n != "num_labels"], ids=label)
def test_a_file_with_it_is_refused_by_name(name, value):
    """In a file a negative id is none, and null is "not given" where it means nothing."""
    read = (name.endswith("token_id") and value == -1) or (value is None and name in OUTPUTS)
    values = {**tiny_config().to_dict(), name: value}
    if read or (name == "rope_parameters" and not value):
        LlamaConfig.from_dict(values)
    else:
        with pytest.raises(ConfigError, match=rf"\b{name}\b"):
            LlamaConfig.from_dict(values)


OUTPUTS = ("output_hidden_states", "output_attentions", "return_dict")


@pytest.mark.parametrize("value", LABELLED, ids=repr)
def test_label2id_must_be_the_inverse(value):
    with pytest.raises(ConfigError, match=r"^label2id "):
        tiny_config(id2label={0: "a", 1: "b"}, label2id=value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 3, "id2label": {0: "a"}}, "num_labels is 3; id2label names 1 labels. Give one of the two."),
        ({"label2id": {"a": 0}}, "label2id is given without id2label. Give id2label; label2id is then made from it."),
        (
            {"id2label": {0: "a"}, "label2id": {"b": 0}},
            "label2id gives 'b' the id 0, but id2label calls 0 'a'. Leave label2id out, and it is made from id2label.",
        ),
        ({"id2label": {1: "a", 2: "b"}}, "id2label is {1: 'a', 2: 'b'}; its 2 keys must be 0 to 1, each once."),
        ({"id2label": {"zero": "a"}}, "id2label has the id 'zero'; ids of labels are whole numbers of at least 0."),
        ({"id2label": {0: None}}, "id2label is {0: None}; each label must be text, and None is not."),
        (
            {"problem_type": "single_label_classification", "num_labels": 1},
            "problem_type is 'single_label_classification', which needs num_labels of at least 2. For two classes",
        ),
        (
            {"problem_type": "ranking"},
            "problem_type is 'ranking'; allowed are regression, single_label_classification, multi_label_classific",
        ),
        ({"attn_implementation": "flash"}, "attn_implementation is 'flash'; allowed are eager, sdpa, flex_attention."),
        ({"pad_token_id": 97}, "pad_token_id is 97, but vocab_size is 97: it must be below that, because the embed"),
        ({"initializer_range": 1.5}, "initializer_range is 1.5; it must lie in [0, 1]."),
        ({"pretraining_tp": 0}, "pretraining_tp is 0; it must be a whole number of at least 1."),
        ({"quantization_config": "int8"}, "quantization_config is 'int8'; it must be None or a dictionary."),
        ({"architectures": "Llama"}, "architectures is 'Llama'; it must be None or a list of names, [\"LlamaForC"),
        ({"vocab_size": 2**63}, "vocab_size is 9223372036854775808; it must be a whole number of at least 1 and below"),
        ({"vocab_size": HUGE}, "vocab_size is a whole number of about 5000 digits; it must be a whole number of at"),
        ({"num_labels": 10**7}, "num_labels is 10000000; it must be at most 100000."),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_the_words(changes, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        tiny_config(**changes)


def test_an_argument_that_does_not_exist_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'rope_tetha'"):
        LlamaConfig(rope_tetha=1e6)
    with pytest.raises(TypeError, match="takes 1 positional argument"):
        LlamaConfig(32000)


def test_boundaries_that_are_allowed():
    config = LlamaConfig(
        vocab_size=1, hidden_size=2, num_attention_heads=1, initializer_range=0, attention_dropout=0, rms_norm_eps=1
    )
    assert config.head_dim == 2
    assert LlamaConfig(initializer_range=1, pretraining_tp=None, eos_token_id=[]).eos_token_ids == ()
    assert LlamaConfig(vocab_size=2**63 - 1).vocab_size == 2**63 - 1


# --- labels ------------------------------------------------------------------------------------------------------


def test_two_unnamed_labels_are_the_default():
    config = LlamaConfig()
    assert (config.num_labels, config.id2label) == (2, {0: "LABEL_0", 1: "LABEL_1"})
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    assert config.problem_type is None


def test_names_of_labels_count_them():
    config = LlamaConfig(id2label={"1": "b", "0": "a", "2": "b"}, label2id={"a": "0", "b": 2})
    assert config.num_labels == 3
    assert list(config.id2label.items()) == [(0, "a"), (1, "b"), (2, "b")]
    assert config.label2id == {"a": 0, "b": 2}


def test_assigning_the_number_of_labels_renames_them():
    config = LlamaConfig(id2label={0: "a", 1: "b"})
    config.num_labels = 2
    assert config.id2label == {0: "a", 1: "b"}, "as many as before keep their names"
    config.num_labels = 3
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


def test_assigning_names_counts_them():
    config = LlamaConfig()
    config.id2label = {"0": "x"}
    assert (config.num_labels, config.id2label, config.label2id) == (1, {0: "x"}, {"x": 0})


@pytest.mark.parametrize(("name", "value"), [("num_labels", 0), ("num_labels", None), ("id2label", {1: "a"})])
def test_a_refused_assignment_changes_nothing(name, value):
    config = LlamaConfig(id2label={0: "a", 1: "b"})
    with pytest.raises(ConfigError, match=f"^{name} is"):
        setattr(config, name, value)
    assert config == LlamaConfig(id2label={0: "a", 1: "b"})


# --- rotary parameters -------------------------------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
NUMBERS = [None, "2", True, [2.0], {}, math.nan, math.inf, -1, 1e300, HUGE]
WRONG_ROPE = [
    *[("rope_type", {"rope_type": value}) for value in ("su", "", None, 1, ["linear"], {})],
    *[("rope_theta", {"rope_theta": value}) for value in (0, -1.0, *NUMBERS[:7], HUGE)],
    ("rope_theta", {**YARN, "rope_theta": 1.0}),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    *[("factor", {**LINEAR, "factor": value}) for value in (*NUMBERS, 0.99)],
    *[("factor", {"rope_type": "dynamic", "factor": value}) for value in (*NUMBERS, 0.99)],
    *[("factor", {**YARN, "factor": value}) for value in (*NUMBERS[1:], 0.99)],
    *[("factor", {**LLAMA3, "factor": value}) for value in (*NUMBERS, 0.99)],
    *[("factor", {**LONGROPE, "factor": value}) for value in (*NUMBERS[1:], 0.99)],
    *[("low_freq_factor", {**LLAMA3, "low_freq_factor": value}) for value in (*NUMBERS, 0, 4.0)],
    *[("high_freq_factor", {**LLAMA3, "high_freq_factor": value}) for value in (*NUMBERS, 0, 1.0)],
    *[
        ("original_max_position_embeddings", {**base, "original_max_position_embeddings": value})
        for base in (YARN, LLAMA3, LONGROPE)
        for value in (0, 1, -5, 8192.0, "8192", True, [1], HUGE)
    ],
    *[
        (name, {**YARN, name: value})
        for name in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        for value in NUMBERS[1:]
    ],
    *[(name, {**YARN, name: 0}) for name in ("attention_factor", "beta_fast", "beta_slow")],
    ("beta_fast", {**YARN, "beta_fast": 1.0, "beta_slow": 2.0}),
    ("beta_fast", {**YARN, "beta_slow": 33.0}),
    *[("truncate", {**YARN, "truncate": value}) for value in (None, 0, 1, "true")],
    *[("attention_factor", {**LONGROPE, "attention_factor": value}) for value in (*NUMBERS[1:], 0)],
    *[
        (name, {**LONGROPE, name: value})
        for name in ("short_factor", "long_factor")
        for value in (None, 1.0, "1", [], [1.0] * 3, [1.0] * 5, [1.0, 1.0, 1.0, 0], [1.0, "1", 1.0, 1.0], [HUGE] * 4)
    ],
    *[(name, {**LINEAR, name: 1.0}) for name in ("facter", "beta_fast", "short_factor", "low_freq_factor")],
    ("factor", {"rope_type": "default", "factor": 2.0}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_ROPE, ids=lambda value: "" if isinstance(value, dict) else value)
def test_a_wrong_rotary_parameter_is_refused_by_name(name, value):
    given = dict(value)
    with pytest.raises(ConfigError, match=rf"\b{name}\b") as caught:
        tiny_config(rope_parameters=value)
    assert len(str(caught.value)) < 400
    assert value == given


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rope_type": "su"}, "rope_type is 'su'; allowed are default, linear, dynamic, yarn, longrope, llama3."),
        ({"rope_type": "linear"}, "rope_parameters of rope_type 'linear' lack factor, which it needs."),
        ({"rope_type": "llama3"}, "rope_parameters of rope_type 'llama3' lack factor, low_freq_factor, high_freq_fa"),
        (
            {**LINEAR, "facter": 1},
            "rope_parameters have 'facter', which rope_type 'linear' does not know; it knows rope_theta, factor.",
        ),
        ({**LINEAR, "factor": 0.5}, "factor is 0.5; for rope_type 'linear' it must be a number from 1 to 1e+18."),
        (
            {**LONGROPE, "long_factor": [1.0]},
            "long_factor has 1 numbers; it needs 4, one for each pair of the head_dim 8.",
        ),
        ({**LONGROPE, "short_factor": [1, 2, 3, 0]}, "short_factor is [1, 2, 3, 0]; it must be a list of numbers fr"),
        ({**LLAMA3, "high_freq_factor": 1}, "high_freq_factor is 1, which must be greater than low_freq_factor, 1.0."),
        ({**YARN, "beta_fast": 0.5}, "beta_fast is 0.5, which must not be less than beta_slow, 1."),
        ({**YARN, "rope_theta": 0.5}, "rope_theta is 0.5; for rope_type 'yarn' it must be greater than 1."),
        (
            {**YARN, "factor": None, "original_max_position_embeddings": 256},
            "factor is None, so it is max_position_embeddings 128 / original_max_position_embeddings 256, which must",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1; a Llama rotates the whole head, and no pa"),
    ],
    ids=repr,
)
def test_the_words_about_rotary_parameters(value, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        tiny_config(rope_parameters=value)


def test_dynamic_needs_two_pairs():
    with pytest.raises(ConfigError, match="head_dim is 2; rope_type 'dynamic' needs at least 4"):
        tiny_config(head_dim=2, rope_parameters={"rope_type": "dynamic", "factor": 2.0})


@pytest.mark.parametrize("value", [YARN, LLAMA3, LONGROPE], ids=lambda value: value["rope_type"])
def test_the_original_length_is_the_whole_one_unless_given(value):
    config = tiny_config(rope_parameters={**value, "original_max_position_embeddings": None})
    assert config.rope_parameters["original_max_position_embeddings"] == 128
    assert config.rope_parameters == tiny_config(rope_parameters=value).rope_parameters


def test_a_file_may_have_remarks_among_its_rotary_parameters():
    values = {**tiny_config().to_dict(), "rope_parameters": {**YARN, "finetuned": True, "type": "linear"}}
    with pytest.warns(UserWarning, match="rope_type 'yarn' has no parameter 'finetuned': it is left out"):
        config = LlamaConfig.from_dict(values)
    assert config == tiny_config(rope_parameters=YARN)


def test_an_original_length_outside_goes_first():
    values = {**tiny_config().to_dict(), "rope_parameters": {**YARN, "original_max_position_embeddings": 16}}
    config = LlamaConfig.from_dict({**values, "original_max_position_embeddings": 32})
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    plain = LlamaConfig.from_dict({**tiny_config().to_dict(), "original_max_position_embeddings": 32})
    assert plain.rope_parameters == tiny_config().rope_parameters

"""`from_pretrained`: sources, heads of other tasks, overrides, warnings, and every argument that is wrong."""

import json
import warnings

import pytest
import torch

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from tests.checkpoints.test_gguf_model import same_weights
from workbench import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.load import default_model, load
from workbench.config import ConfigError
from workbench.model.joined import _adjacent

CLASSES = [
    LlamaModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaForQuestionAnswering,
]
HEAD_NAMES = {
    LlamaModel: set(),
    LlamaForCausalLM: {"lm_head.weight"},
    LlamaForSequenceClassification: {"score.weight"},
    LlamaForTokenClassification: {"score.weight", "score.bias"},
    LlamaForQuestionAnswering: {"qa_outputs.weight", "qa_outputs.bias"},
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiny", small_model())


def base_of(model):
    return {name.split(".", 1)[1] if "." in name and name.split(".")[0] in ("model", "transformer") else name: value
            for name, value in model.state_dict().items()
            if not name.startswith(("lm_head", "score", "qa_outputs"))}  # fmt: skip


# Models and their heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("target", CLASSES)
@pytest.mark.parametrize("source", CLASSES)
def test_the_base_of_any_model_fills_any_model(tmp_path, source, target, kind):
    saved = source(small_model(kind).config)
    saved.save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model, info = target.from_pretrained(tmp_path, output_loading_info=True)
    expected = base_of(saved)
    actual = base_of(model)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name
    missing = HEAD_NAMES[target] - HEAD_NAMES[source]
    assert info["missing_keys"] == missing
    assert info["unexpected_keys"] == HEAD_NAMES[source] - HEAD_NAMES[target]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    assert len(said) == bool(missing)
    for name in missing:
        assert name in str(said[0].message)
    assert not any(value.is_meta for value in model.state_dict().values())
    assert not model.training


def test_the_warning_says_what_is_new_and_what_to_do(folder):
    with pytest.warns(UserWarning, match="newly initialised") as said:
        LlamaForTokenClassification.from_pretrained(folder)
    assert len(said) == 1
    assert str(said[0].message) == (
        f"LlamaForTokenClassification: not in {folder}, and newly initialised: score.weight, score.bias. "
        "Train the new weights before you use what they give."
    )
    assert said[0].filename == __file__


def test_new_weights_are_those_of_a_new_model(tmp_path):
    config = small_model(num_labels=50, initializer_range=0.1).config
    LlamaModel(config).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="score.weight, score.bias"):
        model = LlamaForTokenClassification.from_pretrained(tmp_path, dtype="bfloat16")
    weight = model.score.weight.float()
    assert 0.09 < weight.std() < 0.11
    assert weight.abs().max() < 0.6
    assert not model.score.bias.any()
    assert model.score.weight.dtype == torch.bfloat16
    assert model.score.weight.requires_grad


def test_other_things_that_are_missing_or_too_much_are_errors(tmp_path):
    model = small_model()
    state = model.state_dict()
    without = {name: value for name, value in state.items() if name != "model.layers.1.mlp.up_proj.weight"}
    model.save_pretrained(tmp_path / "a", state_dict=without)
    for target in CLASSES:
        with pytest.raises(
            CheckpointError, match=r"1 missing: (\w+\.)?layers.1.mlp.up_proj.weight\. Weights and config"
        ):
            target.from_pretrained(tmp_path / "a")
    extra = {**state, "model.layers.0.self_attn.q_norm.weight": torch.ones(8)}
    model.save_pretrained(tmp_path / "b", state_dict=extra)
    with pytest.raises(CheckpointError, match=r"1 unexpected: model.layers.0.self_attn.q_norm.weight"):
        LlamaForSequenceClassification.from_pretrained(tmp_path / "b")
    twice = {**state, "transformer.norm.weight": state["model.norm.weight"]}
    model.save_pretrained(tmp_path / "c", state_dict=twice)
    with pytest.raises(CheckpointError, match=r"has model.norm.weight and transformer.norm.weight, which are the same"):
        LlamaForCausalLM.from_pretrained(tmp_path / "c")


def test_sizes_that_do_not_fit(tmp_path):
    LlamaForSequenceClassification(small_model(num_labels=3).config).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"1 of another shape: score.weight is \[3, 32\] instead of \[4, 32\].*ignore_mismatched_sizes=True gives",
    ):
        LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    with pytest.warns(UserWarning, match="newly initialised") as said:
        model = LlamaForSequenceClassification.from_pretrained(
            tmp_path, num_labels=4, ignore_mismatched_sizes=True, dtype="float16"
        )
    assert len(said) == 1
    assert "of another shape in" in str(said[0].message)
    assert "score.weight ([3, 32], here [4, 32])" in str(said[0].message)
    assert model.score.weight.shape == (4, 32)
    assert model.score.weight.dtype == torch.float16
    assert list(model.config.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]


def test_strict_loading_stays_strict(tmp_path):
    LlamaModel(small_model().config).save_pretrained(tmp_path)
    write_folder(tmp_path / "tokenizer", small_model())
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head.weight"):
        load(tmp_path)


def test_fewer_layers(folder):
    with pytest.warns(UserWarning, match=r"left out: model.layers.1.* and 6 more\.$"):
        model = LlamaForCausalLM.from_pretrained(folder, num_hidden_layers=1)
    assert len(model.model.layers) == 1
    full = LlamaForCausalLM.from_pretrained(folder)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, full.model.layers[0].mlp.up_proj.weight)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match="9 unexpected: model.layers.1"):  # nobody asked for it
        LlamaForCausalLM.from_pretrained(folder)


# Sources --------------------------------------------------------------------------------------------------------------


def test_sources(tmp_path, folder):
    model = small_model()
    file = write_gguf(tmp_path / "tiny.gguf", model)
    for source, options in (
        (file, {}),
        (str(file), {}),
        (tmp_path, {"gguf_file": "tiny.gguf"}),
        (str(tmp_path.parent), {"subfolder": tmp_path.name, "gguf_file": "tiny.gguf"}),
    ):
        same_weights(LlamaForCausalLM.from_pretrained(source, **options), model)
    inner = LlamaForCausalLM.from_pretrained(tmp_path, subfolder="tiny")
    same_weights(inner, LlamaForCausalLM.from_pretrained(folder))
    base = LlamaModel.from_pretrained(file)
    assert torch.equal(base.embed_tokens.weight, model.model.embed_tokens.weight)


def test_no_source_is_the_default_model():
    model = LlamaModel.from_pretrained(None)
    assert model.config.hidden_size == 576
    assert default_model().is_file()


def test_projections_lie_side_by_side(tmp_path, folder):
    for source in (folder, write_gguf(tmp_path / "a.gguf", small_model(), "Q8_0")):
        for target in CLASSES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                base = target.from_pretrained(source).base_model
            for layer in base.layers:
                attention, mlp = layer.self_attn, layer.mlp
                assert _adjacent([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
                assert _adjacent([mlp.gate_proj.weight, mlp.up_proj.weight])


def test_generation_defaults(folder):
    assert LlamaForCausalLM.from_pretrained(folder).stored_generation_config is None
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "do_sample": True}))
    assert LlamaForCausalLM.from_pretrained(folder).generation_config.temperature == 0.7
    assert load(folder).model.generation_config.do_sample is True
    assert LlamaModel.from_pretrained(folder).stored_generation_config is None
    for wrong, message in (("{", "is not valid JSON"), ('{"temperature": "hot"}', "temperature")):
        (folder / "generation_config.json").write_text(wrong)
        with pytest.raises(CheckpointError, match=message):
            LlamaForCausalLM.from_pretrained(folder)


# Config ---------------------------------------------------------------------------------------------------------------


def test_overrides(folder):
    with pytest.warns(UserWarning, match="score.weight"):
        model = LlamaForSequenceClassification.from_pretrained(
            folder,
            num_labels=3,
            problem_type="multi_label_classification",
            output_attentions=True,
            attn_implementation="eager",
            pad_token_id=5,
        )
    config = model.config
    assert (config.num_labels, config.problem_type, config.pad_token_id) == (3, "multi_label_classification", 5)
    assert config.attn_implementation == "eager"
    assert config.output_attentions
    assert model.score.weight.shape == (3, 32)
    named = LlamaForCausalLM.from_pretrained(folder, id2label={0: "a", 1: "b", 2: "c"})
    assert named.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_a_given_config_is_copied(tmp_path, folder):
    config = LlamaConfig.from_pretrained(folder)
    config.rms_norm_eps = 0.25
    model = LlamaForCausalLM.from_pretrained(folder, config=config, dtype="bfloat16", use_cache=False)
    assert model.config is not config
    assert model.config.rms_norm_eps == 0.25
    assert (config.dtype, config.use_cache) == (None, True)
    assert (model.config.dtype, model.config.use_cache) == ("bfloat16", False)
    config.save_pretrained(tmp_path / "other")
    for path in (tmp_path / "other", tmp_path / "other" / "config.json"):
        assert LlamaForCausalLM.from_pretrained(folder, config=path).config.rms_norm_eps == 0.25


def test_no_random_numbers_are_drawn_and_a_second_model_shares_nothing(folder):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second = LlamaForCausalLM.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    assert torch.equal(torch.rand(1), expected)
    with torch.no_grad():
        first.model.embed_tokens.weight.zero_()
    assert second.model.embed_tokens.weight.abs().sum() > 0


# Wrong arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, CheckpointError, "dtype is 'int8'; allowed are auto, float32, bfloat16, float16"),
        ({"dtype": torch.float64}, CheckpointError, "dtype is torch.float64"),
        ({"torch_dtype": 3}, CheckpointError, "dtype is 3"),
        ({"config": {"hidden_size": 3}}, TypeError, "config is a dict; it must be a LlamaConfig, or the path of one"),
        ({"config": "/no/where"}, CheckpointNotFoundError, "/no/where"),
        ({"revision": 3}, TypeError, "revision is 3; it must be a branch, tag or commit as text, or None"),
        ({"token": 3}, TypeError, "token is 3; it must be an access token"),
        ({"cache_dir": 3}, TypeError, "cache_dir is 3; it must be a folder, or None"),
        ({"local_files_only": "no"}, TypeError, "local_files_only is 'no'; it must be True or False"),
        ({"subfolder": 3}, TypeError, "subfolder is 3; it must be a folder inside the source"),
        ({"subfolder": "../x"}, CheckpointError, "subfolder is '../x'; it must be a path inside the source"),
        ({"subfolder": "absent"}, CheckpointNotFoundError, "There is nothing at .*absent"),
        ({"gguf_file": b"x"}, TypeError, "gguf_file is b'x'; it must be the name of a GGUF file"),
        ({"gguf_file": "/etc/passwd"}, CheckpointError, "gguf_file is '/etc/passwd'; it must be a path inside"),
        ({"gguf_file": "absent.gguf"}, CheckpointNotFoundError, "There is nothing at .*absent.gguf"),
        ({"gguf_file": "config.json"}, CheckpointError, "but a GGUF file starts with"),
        ({"ignore_mismatched_sizes": 1}, TypeError, "ignore_mismatched_sizes is 1; it must be True or False"),
        ({"output_loading_info": "x"}, TypeError, "output_loading_info is 'x'"),
        ({"progress": None}, TypeError, "progress is None"),
        ({"low_cpu_mem_usage": "x"}, TypeError, "low_cpu_mem_usage is 'x'; it must be True or False"),
        ({"trust_remote_code": 1}, TypeError, "trust_remote_code is 1; it must be True or False"),
        ({"use_safetensors": False}, CheckpointError, "use_safetensors is False, but nothing else is read"),
        ({"num_labels": 0}, ConfigError, "num_labels"),
        ({"num_labels": "3"}, ConfigError, "num_labels"),
        ({"attn_implementation": "magic"}, ConfigError, "attn_implementation is 'magic'"),
        ({"num_key_value_heads": 3}, ConfigError, "num_key_value_heads"),
        ({"hidden_size": 64}, CheckpointError, "of another shape"),
        ({"device_mapp": "auto"}, TypeError, r"has no argument 'device_mapp'. Did you mean device_map"),
        ({"zzz": 1}, TypeError, r"LlamaForCausalLM.from_pretrained has no argument 'zzz'"),
        ({"max_memory": {0: "1GB"}}, CheckpointError, "max_memory is given, but device_map is None"),
        ({"offload_folder": 3}, TypeError, "offload_folder is 3; it must be a folder"),
    ],
)
def test_arguments(folder, options, error, message):
    with pytest.raises(error, match=message):
        LlamaForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("source", [3, b"x", ["a"], 1.5])
def test_a_source_of_another_type(source):
    with pytest.raises(TypeError, match=r"source is .*; it must be a path, a Hub id such as 'owner/name', or None"):
        LlamaForCausalLM.from_pretrained(source)


def test_no_source_but_something_inside_it():
    with pytest.raises(CheckpointError, match="source is None. Give it too"):
        LlamaForCausalLM.from_pretrained(None, gguf_file="x.gguf")


def test_arguments_that_change_nothing(folder):
    options = {"low_cpu_mem_usage": True, "trust_remote_code": True, "use_safetensors": True, "torch_dtype": "auto"}
    same_weights(LlamaForCausalLM.from_pretrained(folder, **options), LlamaForCausalLM.from_pretrained(folder))


def test_another_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="model_type is 'gpt2', but only 'llama' checkpoints can be loaded"):
        LlamaForCausalLM.from_pretrained(folder)

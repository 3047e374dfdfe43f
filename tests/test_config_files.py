"""config.json: from where it is read, what is written, and what damaged ones do."""

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_config
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.load import default_model
from workbench.config import ConfigError, LlamaConfig

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "plain": {},
    "rope": {"rope_parameters": ROPE},
    "longrope": {
        "rope_parameters": {"rope_type": "longrope", "short_factor": [1, 2, 3, 4.5], "long_factor": [2.0, 3, 4, 5]}
    },
    "labels": {"id2label": {0: "bad", 1: "good", 2: "ugly"}, "problem_type": "multi_label_classification"},
    "number of labels": {"num_labels": 5, "problem_type": "regression"},
    "outputs": {"output_hidden_states": True, "output_attentions": True, "return_dict": False},
    "architectures": {"architectures": ["LlamaForSequenceClassification"], "dtype": "bfloat16"},
    "quantized": {"quantization_config": {"quant_method": "torchao", "group_size": 128, "modules": ["lm_head", None]}},
    "ends": {"eos_token_id": [2, 7], "bos_token_id": None},
    "sizes": {"head_dim": 16, "attention_bias": True, "pretraining_tp": 2, "hidden_act": "relu"},
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return tiny_config(**request.param)


@pytest.mark.parametrize("use_diff", [True, False], ids=["what differs", "everything"])
def test_what_is_written_is_read_back_equal(config, tmp_path, use_diff):
    path = tmp_path / "config.json"
    config.to_json_file(path, use_diff=use_diff)
    assert path.read_text() == config.to_json_string(use_diff)
    assert LlamaConfig.from_json_file(path) == config
    assert LlamaConfig.from_pretrained(path) == config
    assert LlamaConfig.from_pretrained(str(tmp_path)) == config
    assert LlamaConfig.from_dict(config.to_dict()) == LlamaConfig.from_dict(config.to_diff_dict()) == config


def test_saving_makes_the_folder(config, tmp_path):
    folder = tmp_path / "a" / "b"
    config.save_pretrained(folder)
    assert (folder / "config.json").read_text() == config.to_json_string()
    assert LlamaConfig.from_pretrained(folder) == config


def test_the_text_is_sorted_and_names_the_model_type():
    text = LlamaConfig().to_json_string()
    assert text.endswith("}\n")
    values = json.loads(text)
    assert list(values) == sorted(values)
    assert values["model_type"] == LlamaConfig.model_type == "llama"
    assert values["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_defaults_that_are_no_property_of_the_checkpoint_are_left_out():
    everything, differing = LlamaConfig().to_dict(), LlamaConfig().to_diff_dict()
    assert everything.keys() - differing.keys() == {
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "quantization_config",
        "return_dict",
    }
    assert "attn_implementation" not in everything
    assert everything["id2label"] == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_dictionary_shares_nothing_with_the_config():
    config = tiny_config(**CONFIGS["quantized"], rope_parameters=ROPE)
    values = config.to_dict()
    values["quantization_config"]["modules"].append("x")
    values["rope_parameters"]["factor"] = 1.0
    values["id2label"][0] = "x"
    assert config == tiny_config(**CONFIGS["quantized"], rope_parameters=ROPE)


def test_an_attention_implementation_is_read_and_not_written(tmp_path):
    for spelling in ("attn_implementation", "_attn_implementation"):
        config = LlamaConfig.from_dict({spelling: "eager"})
        assert config.attn_implementation == config._attn_implementation == "eager"
        assert not config.to_json_string(use_diff=False).count("attn")
        with pytest.raises(ConfigError, match="attn_implementation is 'fast'; allowed are eager, sdpa, flex_attention"):
            LlamaConfig.from_dict({spelling: "fast"})
        assert LlamaConfig.from_dict({spelling: "flash_attention_2"}).attn_implementation == "sdpa"
    assert LlamaConfig(attn_implementation=None).attn_implementation == "sdpa"


# --- activations that are functions ------------------------------------------------------------------------------


def squared(x):
    return x * x


def test_a_function_as_activation_stays_in_python(tmp_path):
    config = tiny_config(hidden_act=squared)
    assert config.hidden_act is squared
    message = "hidden_act is the function 'squared', which config.json cannot hold. Set it to one of silu, gelu, "
    for write in (
        config.to_dict,
        config.to_diff_dict,
        config.to_json_string,
        lambda: config.to_json_file(tmp_path / "config.json"),
        lambda: config.save_pretrained(tmp_path / "folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            write()
    assert list(tmp_path.iterdir()) == []
    config.hidden_act = "relu"
    assert config.to_dict()["hidden_act"] == "relu"


@pytest.mark.parametrize("value", [object(), math.nan, {1: {2, 3}}, b"x"], ids=["object", "nan", "set", "bytes"])
def test_what_json_cannot_hold_is_not_written(tmp_path, value):
    config = tiny_config(quantization_config={"a": value})
    (tmp_path / "config.json").write_text("before")
    with pytest.raises(ConfigError, match=r"The config cannot be written as JSON: .*Is it in quantization_config\?"):
        config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "before"


# --- from_pretrained ---------------------------------------------------------------------------------------------


def test_a_gguf_file(tmp_path):
    config = LlamaConfig.from_pretrained(default_model())
    assert (config.hidden_size, config.num_hidden_layers, config.attention_kind) == (576, 30, "GQA")
    changed = LlamaConfig.from_pretrained(default_model(), attn_implementation="eager", num_labels=4)
    assert (changed.attn_implementation, changed.num_labels) == ("eager", 4)
    (tmp_path / "cut.gguf").write_bytes(default_model().open("rb").read(1000))
    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        LlamaConfig.from_pretrained(tmp_path / "cut.gguf")


@pytest.mark.parametrize(
    ("overrides", "name", "expected"),
    [
        ({"num_labels": 4}, "id2label", {i: f"LABEL_{i}" for i in range(4)}),
        ({"num_labels": 3}, "id2label", {0: "bad", 1: "good", 2: "ugly"}),
        ({"id2label": {0: "a", 1: "b"}}, "num_labels", 2),
        ({"id2label": {0: "a", 1: "b"}}, "label2id", {"a": 0, "b": 1}),
        ({"num_key_value_heads": 1}, "attention_kind", "MQA"),
        ({"rope_parameters": ROPE}, "rope", ROPE),
        ({"attn_implementation": "eager"}, "attn_implementation", "eager"),
        ({"pad_token_id": None}, "pad_token_id", None),
        ({"dtype": "float16"}, "dtype", "float16"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:num_labels is 4, but id2label names 3")
def test_overrides_go_first(tmp_path, overrides, name, expected):
    older = {**tiny_config(**CONFIGS["labels"]).to_dict(), "rope_theta": 7.0, "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert getattr(LlamaConfig.from_pretrained(tmp_path, **overrides), name) == expected


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"num_lables": 4}, TypeError, "unexpected keyword argument 'num_lables'"),
        ({"vocab_size": -4}, ConfigError, r"config\.json: vocab_size is -4"),
        ({"pad_token_id": -1}, ConfigError, r"config\.json: pad_token_id is -1; it must be"),
        (
            {"num_labels": 4, "id2label": {0: "a"}},
            ConfigError,
            r"config\.json: num_labels is 4; id2label names 1 labels",
        ),
    ],
    ids=str,
)
def test_overrides_are_checked(tmp_path, overrides, error, message):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        LlamaConfig.from_pretrained(tmp_path, **overrides)


@pytest.mark.filterwarnings("default")
def test_a_file_with_two_numbers_of_labels_is_read_as_theirs():
    with pytest.warns(UserWarning, match="num_labels is 3, but id2label names 1 labels: their names are dropped"):
        config = LlamaConfig.from_dict({"num_labels": 3, "id2label": {"0": "a"}, "label2id": {"a": 0}})
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert LlamaConfig.from_dict({"label2id": {"a": 7}}) == LlamaConfig()


@pytest.mark.parametrize("source", ["nothing/here/at/all", "nothing.gguf", "folder", "/nowhere/config.json"])
def test_nothing_there(tmp_path, monkeypatch, source):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointNotFoundError, match=r"There is no file '.*(nothing|config\.json).*'. Give a folder wit"
    ):
        LlamaConfig.from_pretrained(source)
    with pytest.raises(FileNotFoundError):
        LlamaConfig.from_pretrained(source)


@pytest.mark.parametrize("source", [None, 7, b"folder", ["folder"]], ids=repr)
def test_a_source_of_another_type(source):
    with pytest.raises(TypeError, match="source is .*; it must be a folder, a config.json, a .gguf file or a Hub id"):
        LlamaConfig.from_pretrained(source)


def test_a_hub_id_is_fetched(tmp_path, monkeypatch):
    seen = []
    only = {"files": ("config.json",)}
    first = {"revision": "v2", "token": "secret", "cache_dir": tmp_path, "local_files_only": True}
    tiny_config().save_pretrained(tmp_path)
    monkeypatch.setattr(
        "workbench.checkpoints.hub.fetch", lambda *args, **options: seen.append((args, options)) or tmp_path
    )
    assert LlamaConfig.from_pretrained("owner/name", **first) == tiny_config()
    assert LlamaConfig.from_pretrained("owner/name") == tiny_config()
    assert seen == [(("owner/name",), {**first, **only}), (("owner/name",), only)]


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    tiny_config().save_pretrained(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("workbench.checkpoints.hub.fetch", None)
    assert LlamaConfig.from_pretrained("owner/name") == tiny_config()


@pytest.mark.parametrize("values", [None, [], "llama", 7], ids=repr)
def test_from_dict_of_something_else(values):
    with pytest.raises(ConfigError, match="values is .*; it must be a dictionary, the contents of a config.json"):
        LlamaConfig.from_dict(values)


# --- damage ------------------------------------------------------------------------------------------------------

GOOD = json.dumps({**tiny_config(**CONFIGS["labels"]).to_dict(), "rope_parameters": ROPE, "quantization_config": {}})
KEYS = sorted(
    {*json.loads(GOOD), *ROPE, "rope_scaling", "rope_theta", "torch_dtype", "num_labels", "short_factor", "type"}
)
NUMBERS = st.one_of(
    st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 2**64, 1e308])
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["llama3", "yarn", "longrope"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw):
    """The bytes of a good config.json with values exchanged, bytes changed, or the end cut off."""
    values = json.loads(GOOD)
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        target = (
            values["rope_parameters"] if key in ROPE and isinstance(values.get("rope_parameters"), dict) else values
        )
        target[key] = draw(VALUES)
    data = bytearray(json.dumps(values).encode())
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=2)):
        data[place] = byte
    return bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])


def read_or_refused(path, data):
    """Whether the file is read; only a ConfigError may say that it is not, and soon."""
    path.write_bytes(data)
    start, config, refused = time.perf_counter(), None, ""
    try:
        config = LlamaConfig.from_pretrained(path)
    except ConfigError as error:
        refused = str(error)
    assert time.perf_counter() - start < 5
    assert config is not None or str(path) in refused
    assert len(refused) < 1500
    if config is not None:
        assert LlamaConfig.from_dict(json.loads(config.to_json_string())) == config
    return config is not None


@pytest.mark.filterwarnings("ignore:rope_type", "ignore:num_labels")
def test_damaged_files_are_read_or_refused(tmp_path):
    read = []

    @settings(max_examples=500, deadline=None, derandomize=True, database=None)
    @given(data=damaged())
    def check(data):
        read.append(read_or_refused(tmp_path / "config.json", data))

    check()
    assert len(read) >= 500
    assert 25 < sum(read) < 475, "some of each"


@pytest.mark.parametrize(
    ("data", "readable"),
    [
        (GOOD.encode(), True),
        (b"{}", True),
        (b"", False),
        (b"null", False),
        (b"\xef\xbb\xbf{}", False),
        (b'{"vocab_size": ' + b"9" * 100_000 + b"}", False),
        (b'{"rope_theta": 1' + b"0" * 4000 + b"}", False),
        (b'{"rms_norm_eps": NaN}', False),
        (b'{"rms_norm_eps": Infinity}', False),
        (b'{"initializer_range": 1e999}', False),
        (b"[" * 100_000 + b"]" * 100_000, False),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, False),
        (b'{"quantization_config":' + b'{"a":' * 400 + b"1" + b"}" * 401, True),
        (b'{"num_labels": 1000000000}', False),
        (b'{"id2label": {"0": "a", "' + b"9" * 5000 + b'": "b"}}', False),
        (b'{"model_type": ' + b'"x' * 1 + b"y" * 100_000 + b'"}', False),
        (b'{"model_type": ["llama"]}', False),
        (b'{"eos_token_id": ' + b"[" * 300 + b"]" * 300 + b"}", False),
        (b'{"vocab_size": 1, "vocab_size": 70, "\\ud800": 1}', True),
        (b'{"quantization_config": {"\\ud800": "\\udfff"}}', True),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_particular_damage(tmp_path, data, readable):
    assert read_or_refused(tmp_path / "config.json", data) == readable


def test_every_truncation_is_refused(tmp_path):
    for length in range(0, len(GOOD), 7):
        assert not read_or_refused(tmp_path / "config.json", GOOD.encode()[:length]), length

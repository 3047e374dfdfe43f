import json

import pytest

from tests.conftest import tiny_config
from workbench.generation import GenerationConfig


def test_what_is_set_survives_a_file(tmp_path):
    config = GenerationConfig(do_sample=True, top_p=0.9, eos_token_id=[1, 2], stop_strings=["a"], length_penalty=2)
    config.save_pretrained(tmp_path / "new")
    assert GenerationConfig.from_pretrained(tmp_path / "new") == config
    assert GenerationConfig.from_pretrained(tmp_path / "new", top_p=0.5).top_p == 0.5
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == config.to_diff_dict()


def test_a_bias_on_sequences_survives_a_file(tmp_path):
    GenerationConfig(sequence_bias={(1, 2): 3.0}).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).sequence_bias == [[[1, 2], 3.0]]


def test_every_option_is_in_the_dictionary():
    values = GenerationConfig(top_k=3).to_dict()
    assert values["top_k"] == 3
    assert values["max_length"] is None
    assert GenerationConfig(**values) == GenerationConfig(top_k=3)
    assert GenerationConfig.from_dict({**values, "transformers_version": "5.0"}) == GenerationConfig(top_k=3)
    assert "top_k" in repr(GenerationConfig(top_k=3))


def test_a_file_of_transformers_with_what_is_not_computed_here_warns():
    with pytest.warns(UserWarning, match=r"generation_config\.json sets guidance_scale, penalty_alpha, which generate"):
        config = GenerationConfig.from_dict({"guidance_scale": 2.0, "penalty_alpha": 0.6, "top_k": 4, "custom": 1})
    assert config == GenerationConfig(top_k=4)


@pytest.mark.filterwarnings("error")
def test_values_that_change_nothing_do_not_warn():
    values = {"guidance_scale": 1.0, "num_beam_groups": 1, "low_memory": False, "penalty_alpha": None, "top_k": 4}
    assert GenerationConfig.from_dict(values) == GenerationConfig(top_k=4)


def test_negative_ids_of_older_files_are_none():
    config = GenerationConfig.from_dict({"pad_token_id": -1, "bos_token_id": -1, "eos_token_id": [-1, 4]})
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_ids) == (None, None, (4,))
    assert GenerationConfig.from_dict({"eos_token_id": -1}).eos_token_ids == ()


def test_the_tokens_of_a_models_config():
    config = GenerationConfig.from_model_config(tiny_config(eos_token_id=[3, 4]))
    assert config == GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=[3, 4])


def test_update_returns_what_is_no_option_and_is_all_or_nothing():
    config = GenerationConfig(top_k=3)
    assert config.update(top_k=4, top_p=0.5, colour="red") == {"colour": "red"}
    assert (config.top_k, config.top_p) == (4, 0.5)
    with pytest.raises(ValueError, match="top_p is 7"):
        config.update(top_k=9, top_p=7)
    assert (config.top_k, config.top_p) == (4, 0.5)


def test_a_value_set_later_is_checked_before_it_is_written(tmp_path):
    config = GenerationConfig()
    config.top_k = -1
    with pytest.raises(ValueError, match="top_k is -1"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"generation_config\.json is not valid JSON .* Download the file again"),
        ("[1]", r"generation_config\.json holds a list, but a JSON object is expected"),
        ('{"top_k": "many"}', r"generation_config\.json: top_k is 'many'; it must be 0"),
        ("[" * 100_000, r"generation_config\.json is not valid JSON"),
    ],
    ids=["cut off", "a list", "a wrong value", "deep"],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_folder_without_one(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no generation_config\.json; give a folder in Hugging Face format"
    ):
        GenerationConfig.from_pretrained(tmp_path)


def test_an_option_that_does_not_exist():
    with pytest.raises(TypeError, match=r"'topk' is no option of GenerationConfig\. Did you mean top_k"):
        GenerationConfig(topk=3)

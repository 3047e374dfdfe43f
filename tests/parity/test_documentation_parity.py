"""The documentation's examples give the same text with transformers as with workbench, on the default model."""

import pytest
import transformers  # noqa: F401 - what the examples import

from tests import documentation as doc

NEW = '{"do_sample": false, "max_new_tokens": 10, "eos_token_id": 2}'


@pytest.fixture(scope="session")
def default_folder(default_pair, tmp_path_factory):
    """The default model, saved by workbench; its generation config makes the pipeline's text short and repeatable."""
    target = tmp_path_factory.mktemp("default")
    loaded, _ = default_pair
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("example", "generation"),
    [(doc.PIPELINE, NEW), (doc.AUTO, NEW), (doc.CAUSAL_LM, '{"eos_token_id": 2}')],
    ids=["pipeline", "auto classes and static cache", "causal lm"],
)
def test_the_example_gives_the_same_text(example, generation, default_folder):
    (default_folder / "generation_config.json").write_text(generation)
    # In float32: two computations of float16 need not agree on the likeliest token.
    example = example.replace("torch.float16", "torch.float32")
    value, printed, _ = doc.run_example(example, default_folder)
    expected_value, expected_printed, _ = doc.run_example(example, default_folder, "transformers")
    assert value == expected_value
    assert printed == expected_printed
    assert value or printed

"""Every code example of the Llama documentation page runs with `transformers` replaced by `workbench`.

What else is replaced: the model's name by a local folder, and CUDA by the CPU.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import documentation as doc
from tests.compat.tiny_folders import tiny_folder
from workbench.checkpoints.load import load
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.tokenizer import LlamaTokenizer, LlamaTokenizerFast

PROMPT = "Plants create energy through a process known as"
LLAMA2 = Path(__file__).parents[2] / "shared" / "data" / "llama2-tokenizer"
needs_llama2 = pytest.mark.skipif(
    not (LLAMA2 / "tokenizer.model").is_file(), reason="the Llama 2 tokenizer.model is not beside this checkout"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Widths that 128 divides, for the int4 example.
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_folder(tmp_path_factory.mktemp("llama"), vocabulary="words", **sizes)


def test_pipeline(folder):
    value, _, names = doc.run_example(doc.PIPELINE, folder)
    (record,) = value
    assert record["generated_text"].startswith(PROMPT)
    assert len(record["generated_text"]) > len(PROMPT)
    assert names["pipeline"].dtype == torch.float16


def test_auto_classes_and_the_static_cache(folder):
    _, printed, names = doc.run_example(doc.AUTO, folder)
    assert printed.startswith(PROMPT)
    assert names["output"].shape[1] == names["input_ids"]["input_ids"].shape[1] + 20
    assert names["model"].dtype == torch.float16
    assert names["model"].config.attn_implementation == "sdpa"


def test_the_command_line(folder):
    command = doc.adapted(doc.COMMAND_LINE, folder).replace("workbench", f"{sys.executable} -m workbench.cli", 1)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (record,) = json.loads(result.stdout)
    assert record["generated_text"].startswith(PROMPT)


def test_int4(folder):
    _, printed, names = doc.run_example(doc.INT4, folder)
    assert printed.startswith(PROMPT)
    model = names["model"]
    plain = LlamaForCausalLM.from_pretrained(folder)
    assert type(model.model.layers[0].mlp.down_proj) is not type(plain.model.layers[0].mlp.down_proj)
    ids = names["input_ids"]["input_ids"]
    with torch.no_grad():
        exact, packed = plain(ids).logits, model(ids).logits.float()
    error = (exact - packed).norm() / exact.norm()
    assert 0 < error < 0.5


def test_the_attention_mask_visualizer(folder):
    _, printed, names = doc.run_example(doc.VISUALIZER, folder)
    rows = [line for line in printed.splitlines() if "■" in line or "⬚" in line]
    tokens = len(LlamaTokenizer.from_pretrained(folder)(PROMPT)["input_ids"])
    assert len([row for row in rows if "⬚" in row]) >= tokens - 1
    assert type(names["visualizer"]).__name__ == "AttentionMaskVisualizer"


def test_the_configuration():
    """A 7 B model of random weights has 27 GB; without memory it is the same code."""
    with torch.device("meta"):
        _, _, names = doc.run_example(doc.CONFIG, "")
    assert type(names["model"]) is LlamaModel
    configuration = names["configuration"]
    assert names["model"].config is configuration
    assert configuration.vocab_size == 32000
    assert (configuration.hidden_size, configuration.num_hidden_layers) == (4096, 32)
    assert sum(parameter.numel() for parameter in names["model"].parameters()) == 6_607_343_616


def test_the_configuration_with_small_sizes():
    small = (
        "LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)"
    )
    _, _, names = doc.run_example(doc.CONFIG.replace("LlamaConfig()", small), "")
    assert names["model"](torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 32)


@needs_llama2
def test_the_tokenizer():
    value, _, names = doc.run_example(doc.TOKENIZER, LLAMA2)
    assert value == [1, 15043, 445, 338, 263, 1243]
    assert isinstance(names["tokenizer"], LlamaTokenizerFast)


def test_causal_lm(folder):
    value, _, names = doc.run_example(doc.CAUSAL_LM, folder)
    assert value.startswith("Hey, are you conscious? Can you talk to me?")
    assert names["generate_ids"].shape == (1, 30)


# The default model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def default_folder(tmp_path_factory):
    """The default model as a folder, whose generation config makes the pipeline's text short and repeatable."""
    target = tmp_path_factory.mktemp("default")
    loaded = load(progress=False)
    loaded.model.to(torch.bfloat16).save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)
    (target / "generation_config.json").write_text('{"do_sample": false, "max_new_tokens": 6, "eos_token_id": 2}')
    return target


def test_the_pipeline_of_the_default_model(default_folder):
    value, _, _ = doc.run_example(doc.PIPELINE, default_folder)
    assert value[0]["generated_text"].startswith(PROMPT)
    assert len(value[0]["generated_text"].split()) > len(PROMPT.split())


def test_auto_classes_of_the_default_model(default_folder):
    _, printed, _ = doc.run_example(doc.AUTO, default_folder)
    assert printed.startswith(PROMPT)
    assert len(printed.split()) > len(PROMPT.split())


def test_causal_lm_of_the_default_model(default_folder):
    (default_folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    value, _, names = doc.run_example(doc.CAUSAL_LM, default_folder)
    assert value.startswith("Hey, are you conscious? Can you talk to me?")
    assert 12 < names["generate_ids"].shape[1] <= 30


# Usage notes ----------------------------------------------------------------------------------------------------------


@needs_llama2
def test_decoding_puts_no_space_before_a_first_word():
    tokenizer = LlamaTokenizer.from_pretrained(LLAMA2)
    ids = tokenizer.encode("Banana", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    assert tokenizer.decode(ids) == "Banana"


def test_a_padding_token_is_added_and_used(folder):
    """The checkpoints have none: "add_special_tokens({"pad_token":"<pad>"}), resize the embedding, set the id"."""
    tokenizer = LlamaTokenizer.from_pretrained(folder, pad_token=None)
    model = LlamaForCausalLM.from_pretrained(folder)
    before = model.config.vocab_size
    assert tokenizer.add_special_tokens({"pad_token": "<pad>"}) == 1
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    assert model.config.pad_token_id == before == len(tokenizer) - 1
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    texts = ["hello world", "hello"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch.input_ids[1, 0] == tokenizer.pad_token_id
    together = model.generate(**batch, max_new_tokens=5)
    for row, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")
        alone = model.generate(**ids, max_new_tokens=5)[0, ids.input_ids.shape[1] :]
        assert together[row, batch.input_ids.shape[1] :][: len(alone)].tolist() == alone.tolist()


def test_the_examples_hold_no_other_package(folder):
    for text in (doc.PIPELINE, doc.AUTO, doc.INT4, doc.VISUALIZER, doc.CONFIG, doc.TOKENIZER, doc.CAUSAL_LM):
        assert "transformers" in text
        assert "transformers" not in doc.adapted(text, folder)
        assert "cuda" not in doc.adapted(text, folder)
        assert not any(model in doc.adapted(text, folder) for model in doc.MODELS)

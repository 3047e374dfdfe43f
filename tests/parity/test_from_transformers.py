"""A model of transformers wrapped here: equal numbers, shared memory, nothing imported."""

import subprocess
import sys

import pytest
import torch
import transformers

import workbench
from tests.checkpoints.conftest import small_model, write_folder
from tests.parity.test_pretrained_parity import HEADS, OPTIONS, both, equal_outputs
from workbench import from_transformers
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.load import Loaded


def their_model(head="ForCausalLM", kind="gqa", **changes):
    sizes = {k: v for k, v in small_model(kind, **changes).config.to_dict().items() if k != "architectures"}
    return both(head)[1](transformers.LlamaConfig(**sizes)).eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_same_numbers_on_the_same_memory(head, kind):
    theirs = their_model(head, kind, num_labels=3)
    ours = from_transformers(theirs)
    assert type(ours) is both(head)[0]
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        assert value.data_ptr() == expected[name].data_ptr(), name
        assert value.requires_grad == expected[name].requires_grad
    equal_outputs(ours, theirs)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_config(name):
    theirs = their_model(**OPTIONS[name])
    ours = from_transformers(theirs)
    assert ours.model.embed_tokens.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == (name == "tied")
    equal_outputs(ours, theirs)


def test_a_change_in_place_is_seen_and_moving_one_leaves_the_other():
    theirs = their_model()
    ours = from_transformers(theirs)
    with torch.no_grad():
        theirs.model.layers[0].mlp.up_proj.weight.mul_(2)
    equal_outputs(ours, theirs)
    before = theirs.model.layers[0].self_attn.q_proj.weight.data_ptr()
    ours.to(torch.bfloat16)
    assert theirs.dtype == torch.float32
    assert theirs.model.layers[0].self_attn.q_proj.weight.data_ptr() == before


def test_mode_frozen_weights_and_attention():
    theirs = their_model()
    theirs.train()
    theirs.model.embed_tokens.weight.requires_grad_(False)
    theirs.set_attn_implementation("eager")
    ours = from_transformers(theirs)
    assert ours.training
    assert not ours.model.embed_tokens.weight.requires_grad
    assert ours.config.attn_implementation == "eager"


def test_with_a_tokenizer(tmp_path):
    folder = write_folder(tmp_path / "tiny", small_model())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = from_transformers(theirs, their_tokenizer)
    assert isinstance(loaded, Loaded)
    assert (loaded.name, loaded.source) == ("tiny", str(folder))
    model, tokenizer = loaded
    text = "hello world<|im_end|> hello"
    assert tokenizer.encode(text) == their_tokenizer.encode(text)
    assert tokenizer.special_tokens_map == dict(their_tokenizer.special_tokens_map)
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(
        model.generate(ids, max_new_tokens=5, do_sample=False), theirs.generate(ids, max_new_tokens=5, do_sample=False)
    )
    tokenizer.pad_token = "<tool>"
    assert their_tokenizer.pad_token == "<|im_end|>"


def test_refused():
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=9))
    with pytest.raises(TypeError, match="model is a GPT2LMHeadModel of the type 'gpt2'; only Llamas can be wrapped"):
        from_transformers(gpt2)
    for wrong in (torch.nn.Linear(2, 2), "model", None, small_model()):
        with pytest.raises(TypeError, match="model is a .*; a Llama that transformers has loaded is needed"):
            from_transformers(wrong)
    with pytest.raises(TypeError, match="tokenizer is a str without a backend"):
        from_transformers(their_model(), "tokenizer")


def test_weights_that_cannot_be_shared():
    with torch.device("meta"):
        nowhere = their_model()
    with pytest.raises(
        CheckpointError, match="model.embed_tokens.weight has no memory: it is offloaded or on the meta"
    ):
        from_transformers(nowhere)
    theirs = their_model()
    theirs.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(64, 32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight is a torch.int8 tensor .*cannot be shared"):
        from_transformers(theirs)
    theirs = their_model()
    theirs.model.layers[0].mlp.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"2 parameters differ from those of a Llama.*Merge or remove adapters"):
        from_transformers(theirs)
    theirs = their_model()
    theirs.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(CheckpointError, match="quantised by transformers"):
        from_transformers(theirs)


def test_transformers_is_not_imported():
    code = (
        "import sys, workbench; workbench.from_transformers; workbench.AutoModelForCausalLM; workbench.load;"
        "assert 'transformers' not in sys.modules and 'accelerate' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_a_public_name():
    assert workbench.from_transformers is from_transformers

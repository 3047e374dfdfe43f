import copy

import pytest
import torch
from torch import nn

from tests.conftest import tiny_config, tiny_model
from workbench.model import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
)

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
ALL = [
    LlamaModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaForQuestionAnswering,
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_what_all_models_share(kind):
    model = kind(tiny_config()).eval()
    base = model.base_model
    assert type(base) is LlamaModel
    assert model.get_input_embeddings() is base.embed_tokens
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - 97 * 32
    base.requires_grad_(False)
    head = model.num_parameters(only_trainable=True)
    assert head == model.num_parameters() - base.num_parameters()
    other = nn.Embedding(97, 32)
    model.set_input_embeddings(other)
    assert base.embed_tokens is other


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="config is a dict; a LlamaConfig is needed"):
        LlamaModel({"hidden_size": 32})


# Embeddings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_more_tokens_leave_the_old_ones_as_they_were(tied):
    model = tiny_model(tie_word_embeddings=tied)
    before = model(IDS).logits
    old_head = model.lm_head.weight.clone()
    embedding = model.resize_token_embeddings(103)
    assert embedding is model.get_input_embeddings()
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == 103
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    after = model(IDS).logits
    torch.testing.assert_close(after[..., :97], before)
    torch.testing.assert_close(model.lm_head.weight[97:], old_head.mean(0).expand(6, 32))
    assert model(torch.tensor([[102, 1]])).logits.isfinite().all()


@torch.no_grad()
def test_fewer_tokens_keep_the_first():
    model = tiny_model()
    before = model(IDS[:, :4] % 50).logits
    model.resize_token_embeddings(50)
    torch.testing.assert_close(model(IDS[:, :4] % 50).logits, before[..., :50])
    with pytest.raises(ValueError, match="input_ids holds 50; token ids of this model lie in 0 … 49"):
        model(torch.tensor([[50]]))


def test_resizing_to_a_multiple_and_at_random():
    model = tiny_model()
    model.resize_token_embeddings(100, pad_to_multiple_of=64, mean_resizing=False)
    assert model.config.vocab_size == 128
    new = model.model.embed_tokens.weight[97:]
    assert 0.2 < new.std() < 0.4
    assert model.resize_token_embeddings() is model.model.embed_tokens
    assert model.config.vocab_size == 128


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "7"], ids=str)
def test_a_size_that_is_none_is_refused(value):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"new_num_tokens is .*; it must be a whole number of at least 1"):
        model.resize_token_embeddings(value)
    assert model.config.vocab_size == 97


# Gradient checkpointing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpointed_gradients_are_the_same_and_layers_run_twice(reentrant):
    model = tiny_model()
    other = copy.deepcopy(model).train()
    model.train()
    other.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert other.is_gradient_checkpointing
    runs = []
    other.model.layers[1].mlp.register_forward_pre_hook(lambda *a: runs.append(1))
    model(IDS, labels=IDS).loss.backward()
    other(IDS, labels=IDS).loss.backward()
    assert len(runs) == 2
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    other.gradient_checkpointing_disable()
    other(IDS, labels=IDS).loss.backward()
    assert len(runs) == 3


def test_checkpointing_makes_no_cache_and_refuses_one():
    model = tiny_model().train()
    cache = model(IDS).past_key_values
    model.gradient_checkpointing_enable()
    assert model(IDS, use_cache=True).past_key_values is None
    with pytest.raises(
        ValueError, match=r"past_key_values is given, but gradient checkpointing computes each layer twi"
    ):
        model(IDS, past_key_values=cache)
    assert cache.length == 12
    model.eval()
    assert model(IDS).past_key_values.length == 12


# Training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_dropout_is_in_training_only(implementation):
    model = tiny_model(attention_dropout=0.5, attn_implementation=implementation)
    with torch.no_grad():
        still = model(IDS).logits
        assert torch.equal(model(IDS).logits, still)
        model.train()
        first, second = model(IDS).logits, model(IDS).logits
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, still)


def test_a_few_steps_of_training_learn_a_text():
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    model.eval()
    with torch.no_grad():  # what the fast path reads is what was trained
        torch.testing.assert_close(model(IDS, labels=IDS).loss, model.train()(IDS, labels=IDS).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_stays_near_float32(dtype):
    model = tiny_model(initializer_range=0.1)
    reference = model(IDS).logits
    logits = model.to(dtype)(IDS).logits
    assert logits.dtype == dtype
    assert (logits.float() - reference).abs().max() < 0.05 * reference.abs().max()


# Input --------------------------------------------------------------------------------------------------------------

WRONG = {
    "ids as a list": (dict(input_ids=[[1, 2]]), TypeError, r"input_ids is a list; a tensor of shape \(batch, pos"),
    "ids as floats": (dict(input_ids=torch.rand(1, 3)), ValueError, "input_ids holds torch.float32; token ids are"),
    "embeddings as a list": (dict(inputs_embeds=[1.0]), TypeError, "inputs_embeds is a list; a tensor is needed"),
    "whole embeddings": (
        dict(inputs_embeds=torch.ones(1, 2, 32).long()),
        ValueError,
        "inputs_embeds holds torch.int64; floating-point numbers are needed",
    ),
    "positions as a list": (dict(input_ids=IDS, position_ids=[0]), TypeError, "position_ids is a list; a tensor"),
    "positions as floats": (
        dict(input_ids=IDS, position_ids=torch.arange(12.0)[None]),
        ValueError,
        "position_ids holds torch.float32; positions are whole numbers",
    ),
    "a mask as a list": (dict(input_ids=IDS, attention_mask=[1]), TypeError, "attention_mask is a list; a tensor"),
    "a tuple as cache": (
        dict(input_ids=IDS, past_key_values=((1, 2),)),
        TypeError,
        r"past_key_values is a builtins.tuple; a workbench KV cache is needed",
    ),
    "labels as a list": (dict(input_ids=IDS, labels=[1]), TypeError, r"labels is a list; a tensor of shape"),
    "labels as floats": (dict(input_ids=IDS, labels=IDS.float()), ValueError, "labels holds torch.float32; token ids"),
    "labels out of range": (
        dict(input_ids=IDS, labels=IDS.masked_fill(IDS[0, 5] == IDS, 97)),
        ValueError,
        r"labels holds 97; token ids lie in 0 … 96, or are -100",
    ),
    "logits_to_keep below 0": (dict(input_ids=IDS, logits_to_keep=-1), ValueError, "logits_to_keep is -1; it must be"),
    "logits_to_keep as text": (dict(input_ids=IDS, logits_to_keep="1"), TypeError, "logits_to_keep is '1'; give a"),
    "logits_to_keep as a matrix": (
        dict(input_ids=IDS, logits_to_keep=torch.zeros(2, 2).long()),
        ValueError,
        r"logits_to_keep is a tensor of shape \(2, 2\)",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_arguments_of_another_kind_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(**arguments)


def test_an_option_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="output_hidden_state'"):
        tiny_model()(IDS, output_hidden_state=True)


@torch.no_grad()
def test_a_plain_tuple_if_that_is_asked_for():
    model = tiny_model()
    full = model(IDS, output_hidden_states=True, labels=IDS)
    plain = model(IDS, output_hidden_states=True, labels=IDS, return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == 4
    assert torch.equal(plain[0], full.loss)
    assert torch.equal(plain[1], full.logits)
    model.config.return_dict = False
    assert type(model(IDS)) is tuple
    assert type(model.model(IDS)) is tuple
    assert model(IDS, return_dict=True).logits.shape == (2, 12, 97)


@torch.no_grad()
def test_the_config_can_ask_for_states_and_patterns():
    model = tiny_model(output_hidden_states=True, output_attentions=True)
    out = model(IDS)
    assert len(out.hidden_states) == 4
    assert len(out.attentions) == 3
    assert model(IDS, output_attentions=False).attentions is None


def test_generation_defaults_can_be_set_on_the_model():
    model = tiny_model(eos_token_id=5)
    assert model.stored_generation_config is None
    model.generation_config.pad_token_id = 7
    assert model.generation_config.eos_token_id == 5
    assert model.stored_generation_config.pad_token_id == 7
    model.generation_config.max_new_tokens = 3
    assert model.generate(IDS, eos_token_id=None).shape == (2, 15)


@torch.no_grad()
def test_outputs_are_read_as_a_dictionary_too():
    out = tiny_model()(IDS, labels=IDS)
    assert list(out.keys()) == [name for name, _ in out.items()] == ["loss", "logits", "past_key_values"]
    assert all(a is b for a, b in zip(out.values(), out.to_tuple(), strict=True))
    assert dict(out)["logits"] is out.logits


def test_a_callable_activation():
    model = tiny_model(hidden_act=torch.tanh)
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, tiny_model()(IDS).logits)
    assert model.model.layers[0].mlp.act_fn is torch.tanh


@torch.no_grad()
def test_a_larger_embedding_put_in_place_knows_its_tokens():
    model = tiny_model()
    model.set_input_embeddings(nn.Embedding(110, 32))
    assert model(torch.tensor([[105]])).logits.shape == (1, 1, 97)


def test_a_move_to_where_it_is_leaves_the_weights():
    model = tiny_model()
    other = copy.deepcopy(model)
    layer = other.model.layers[0].self_attn
    layer.k_proj.weight = nn.Parameter(layer.k_proj.weight.clone())  # shared with somebody else, say
    kept = layer.k_proj.weight.data_ptr()
    other.to("cpu")
    assert layer.k_proj.weight.data_ptr() == kept


def test_small_members_that_other_code_looks_for():
    model = tiny_model()
    assert model.can_generate()
    assert not model.model.can_generate()
    assert model.get_decoder() is model.model
    assert model.vocab_size == 97
    assert model.main_input_name == "input_ids"

"""Every number of a tiny random model equals transformers', by attention kind and by attention implementation."""

import pytest
import torch
import transformers

from tests.conftest import tiny_config
from workbench.cache import DynamicCache
from workbench.model import LlamaForCausalLM, LlamaModel

RELATIVE = 1e-5


def pair(kind, implementation="eager", **changes):
    """Our model and transformers', with the same weights."""
    config = tiny_config(kind, attn_implementation=implementation, **changes)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{key: value for key, value in config.to_dict().items() if key not in ("architectures", "model_type")}
        )
    ).eval()
    theirs.set_attn_implementation("eager")
    ours = LlamaForCausalLM(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def close(actual, expected, what):
    """Largest difference relative to the largest expected magnitude."""
    assert actual.shape == expected.shape, what
    scale = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= RELATIVE * scale, f"{what}: {error / scale:.2e} relative"


@pytest.fixture
def ids():
    return torch.randint(1, 97, (2, 17))


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_logits_hidden_states_and_attentions(kind, implementation, ids):
    ours, theirs = pair(kind, implementation)
    mine = ours(ids, output_hidden_states=True, output_attentions=True)
    reference = theirs(ids, output_hidden_states=True, output_attentions=True)
    close(mine.logits, reference.logits, "logits")
    assert len(mine.hidden_states) == len(reference.hidden_states) == 4
    assert len(mine.attentions) == len(reference.attentions) == 3
    for i, (a, b) in enumerate(zip(mine.hidden_states, reference.hidden_states, strict=True)):
        close(a, b, f"hidden_states[{i}]")
    for i, (a, b) in enumerate(zip(mine.attentions, reference.attentions, strict=True)):
        close(a, b, f"attentions[{i}]")
    close(ours(ids).logits, reference.logits, "logits without outputs")


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_options_of_the_config(kind, ids):
    for name, changes in {
        "bias": {"attention_bias": True, "mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
        "head_dim": {"head_dim": 16},
        "gelu": {"hidden_act": "gelu_pytorch_tanh"},
        "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    }.items():
        ours, theirs = pair(kind, "sdpa", **changes)
        close(ours(ids).logits, theirs(ids).logits, name)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_left_padding(kind, implementation, ids):
    ours, theirs = pair(kind, implementation)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    mine = ours(ids, attention_mask=mask, position_ids=positions).logits
    reference = theirs(ids, attention_mask=mask, position_ids=positions).logits
    close(mine[mask.bool()], reference[mask.bool()], "logits of real tokens")


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_four_dimensional_masks(implementation, ids):
    ours, theirs = pair("gqa", implementation)
    allowed = torch.ones(17, 17, dtype=torch.bool).tril()
    allowed[9:, 2:6] = False
    additive = torch.zeros(17, 17).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    reference = theirs(ids, attention_mask=additive.expand(2, 1, 17, 17)).logits
    close(ours(ids, attention_mask=additive).logits, reference, "additive")
    close(ours(ids, attention_mask=allowed[None, None]).logits, reference, "boolean")
    soft = additive + torch.randn(17, 17).tril()
    close(ours(ids, attention_mask=soft).logits, theirs(ids, attention_mask=soft).logits, "a bias that forbids nothing")


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_cached_chunks(kind, ids):
    ours, theirs = pair(kind, "sdpa")
    reference = theirs(ids, output_hidden_states=True)
    cache, start = DynamicCache(), 0
    for size in (5, 1, 8, 1, 2):
        out = ours(ids[:, start : start + size], past_key_values=cache, output_hidden_states=True)
        close(out.logits, reference.logits[:, start : start + size], f"logits of {start}+{size}")
        close(out.hidden_states[2], reference.hidden_states[2][:, start : start + size], f"layer 1 of {start}+{size}")
        start += size
    assert cache.length == 17


PACKED = {
    "two texts": [[0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7]],
    "three texts, then two": [[0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 7], [*range(10), *range(7)]],
    "a gap": [[0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]],
    "one text": [list(range(5, 22))],
}


@pytest.mark.parametrize("positions", PACKED.values(), ids=PACKED.keys())
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_texts_packed_in_one_row(implementation, positions, ids):
    ours, theirs = pair("gqa", implementation)
    theirs.set_attn_implementation("sdpa")
    positions = torch.tensor(positions).expand(2, -1)
    for cached in (False, True):
        options = dict(position_ids=positions, use_cache=cached, labels=ids)
        mine, reference = ours(ids, **options), theirs(ids, **options)
        close(mine.logits, reference.logits, f"logits, use_cache={cached}")
        close(mine.loss, reference.loss, f"loss, use_cache={cached}")


@torch.no_grad()
def test_a_loss_over_accumulated_batches(ids):
    ours, theirs = pair("gqa")
    close(
        ours(ids, labels=ids, num_items_in_batch=50).loss, theirs(ids, labels=ids, num_items_in_batch=50).loss, "loss"
    )


@torch.no_grad()
def test_loss_and_kept_logits(ids):
    ours, theirs = pair("gqa", "sdpa")
    labels = ids.clone()
    labels[0, :6] = -100
    mine, reference = ours(ids, labels=labels), theirs(ids, labels=labels)
    close(mine.loss, reference.loss, "loss")
    close(ours(ids, logits_to_keep=3).logits, theirs(ids, logits_to_keep=3).logits, "last three")
    some = torch.tensor([1, 8])
    close(ours(ids, logits_to_keep=some).logits, theirs(ids, logits_to_keep=some).logits, "two positions")


def test_gradients(ids):
    ours, theirs = pair("gqa", "sdpa")
    ours(ids, labels=ids).loss.backward()
    theirs(ids, labels=ids).loss.backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, expected[name].grad, name)


@torch.no_grad()
def test_embeddings_as_input_and_the_base_model(ids):
    ours, theirs = pair("gqa", "sdpa")
    embedded = theirs.model.embed_tokens(ids)
    close(ours(inputs_embeds=embedded).logits, theirs(inputs_embeds=embedded).logits, "inputs_embeds")
    base = LlamaModel(ours.config).eval()
    base.load_state_dict(theirs.model.state_dict(), strict=True)
    close(base(ids).last_hidden_state, theirs.model(ids).last_hidden_state, "last_hidden_state")


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_greedy_generation_of_a_padded_batch(kind, ids):
    ours, theirs = pair(kind, "sdpa")
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = dict(attention_mask=mask, max_new_tokens=30, eos_token_id=5, pad_token_id=0)
    assert ours.generate(ids, **options).tolist() == theirs.generate(ids, do_sample=False, **options).tolist()


def test_sampled_generation_draws_the_same_tokens(ids):
    ours, theirs = pair("gqa", "sdpa")
    options = dict(max_new_tokens=25, do_sample=True, temperature=0.8, top_k=20, top_p=0.9, pad_token_id=0)
    torch.manual_seed(7)
    mine = ours.generate(ids, **options)
    torch.manual_seed(7)
    assert mine.tolist() == theirs.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("no RoPE", lambda m: setattr(
            m.model.rotary_emb, "forward", lambda x, p: (torch.ones(1, 1, 1, 8), torch.zeros(1, 1, 1, 8)))),
        ("values of the wrong group", lambda m: m.model.layers[1].self_attn.hook_v.register_forward_hook(
            lambda module, args, out: out.flip(2))),
        ("gain lost", lambda m: m.model.layers[0].input_layernorm.weight.data.fill_(0.5)),
    ],
)  # fmt: skip
@torch.no_grad()
def test_the_comparison_notices_a_planted_bug(name, break_it, ids):
    ours, theirs = pair("gqa")
    break_it(ours)
    with pytest.raises(AssertionError, match="relative"):
        close(ours(ids).logits, theirs(ids).logits, name)

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_config, tiny_model
from tests.strategies import splits
from workbench.cache import DynamicCache
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.rope import LlamaRotaryEmbedding, apply_rope, signed

KINDS = ["mha", "gqa", "mqa"]
RELATIVE = 1e-5
IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
MODELS = {}


def shared(kind="gqa", implementation="sdpa"):
    """One model for all tests that leave it as it is."""
    if (kind, implementation) not in MODELS:
        torch.manual_seed(0)
        MODELS[kind, implementation] = tiny_model(kind, attn_implementation=implementation)
    return MODELS[kind, implementation]


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds is needed; neither was given"),
        (
            {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 12, 32)},
            "exactly one of input_ids and inputs_embeds is needed; both was given",
        ),
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \(2, 0\); expected \(batch, positions\), one at least"),
        ({"input_ids": IDS[:0]}, r"input_ids has shape \(0, 12\); expected \(batch, positions\), one at least"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(12,\); expected \(batch, positions\)"),
        (
            {"input_ids": torch.tensor([[1, 97, 2]])},
            r"input_ids holds 97; token ids of this model lie in 0 … 96\. Is this the tokenizer of another model\?",
        ),
        ({"input_ids": torch.tensor([[1, -4, 200]])}, r"input_ids holds -4; token ids of this model lie in 0 … 96"),
        ({"inputs_embeds": torch.zeros(1, 0, 32)}, r"inputs_embeds has shape \(1, 0, 32\); expected .*, 32\), one pos"),
        ({"inputs_embeds": torch.zeros(1, 4, 31)}, r"inputs_embeds has shape \(1, 4, 31\); expected .*, 32\)"),
        ({"inputs_embeds": torch.zeros(4, 32)}, r"inputs_embeds has shape \(4, 32\); expected"),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 11)},
            r"attention_mask has shape \(2, 11\); expected \(batch, positions\) \(2, 12\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 12, 11).bool()},
            r"4-D attention_mask has shape \(2, 1, 12, 11\); expected \(2 or 1, 1 or 4, 12, 12\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.zeros(2, 3, 12, 12)},
            r"additive 4-D attention_mask has 3 heads; give one for all heads, or one for each of the model's 4",
        ),
        # One position for twelve tokens would broadcast: no RoPE at all, and no error.
        (
            {"input_ids": IDS, "position_ids": torch.zeros(1, 1)},
            r"position_ids has shape \(1, 1\); expected \(2 or 1, 12\): one position a new token",
        ),
        ({"input_ids": IDS, "position_ids": torch.arange(12)}, r"position_ids has shape \(12,\); expected"),
    ],
    ids=[
        "neither input",
        "both inputs",
        "no position",
        "no row",
        "1-D ids",
        "id past the vocabulary",
        "negative id",
        "no embedding",
        "wrong width",
        "2-D embeddings",
        "short mask",
        "wrong 4-D mask",
        "wrong heads of a 4-D mask",
        "one position",
        "1-D positions",
    ],
)
@pytest.mark.parametrize("of", ["with head", "base"])
def test_input_that_cannot_be_right_is_refused(of, arguments, message):
    model = shared() if of == "with head" else shared().model
    cache = DynamicCache()
    with pytest.raises(ValueError, match=message):
        model(**arguments, past_key_values=cache)
    assert cache.length == 0, "a refused call leaves the cache as it was"


@torch.no_grad()
def test_the_mask_must_cover_the_cached_positions_too():
    cache = shared()(IDS[:, :5]).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 2\); expected .* \(2, 7\), counting cached"):
        shared()(IDS[:, 5:7], attention_mask=torch.ones(2, 2), past_key_values=cache)
    assert cache.length == 5


def test_labels_must_fit_the_logits():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 11\) but the logits cover \(2, 12\)"):
        shared()(IDS, labels=IDS[:, 1:])
    with pytest.raises(ValueError, match=r"but the logits cover \(2, 3\).*leave logits_to_keep at 0"):
        shared()(IDS, labels=IDS, logits_to_keep=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaModel(tiny_config(attn_implementation="flash")),
        lambda: LlamaForCausalLM(tiny_config(attn_implementation="flash")),
        lambda: tiny_model().set_attn_implementation("flash"),
    ],
    ids=["base", "with head", "switching"],
)
def test_an_unknown_attention_implementation_is_refused(make):
    with pytest.raises(ValueError, match="attn_implementation is 'flash'; allowed are eager, sdpa"):
        make()


@torch.no_grad()
def test_switching_the_implementation_switches_it(monkeypatch):
    model, called = tiny_model(), []
    monkeypatch.setattr("workbench.model.attention.sdpa_attention", lambda *a, **k: called.append(1) or 1 / 0)
    model.set_attn_implementation("eager")
    model(IDS)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ZeroDivisionError):
        model(IDS)
    assert called == [1]


@torch.no_grad()
def test_outputs_are_found_by_attribute_key_and_position():
    out = shared()(IDS, output_hidden_states=True)
    assert list(out) == out.keys() == ["logits", "past_key_values", "hidden_states"]
    assert out[0] is out["logits"] is out.logits
    assert out[-1] is out.hidden_states
    assert out[:2] == (out.logits, out.past_key_values)
    assert len(out) == len(out.to_tuple()) == 3
    assert "logits" in out
    assert "attentions" not in out
    assert out.loss is None
    with pytest.raises(KeyError, match="'attentions' is not in this output; it has logits, past_key_values"):
        out["attentions"]
    with pytest.raises(IndexError):
        out[3]
    assert shared()(IDS, labels=IDS).keys()[0] == "loss"
    assert shared().model(IDS).keys() == ["last_hidden_state", "past_key_values"]


@torch.no_grad()
def test_a_cache_is_made_unless_it_is_not_wanted():
    assert shared()(IDS).past_key_values.length == 12
    assert shared()(IDS, use_cache=False).past_key_values is None
    model = LlamaForCausalLM(tiny_config(use_cache=False)).eval()
    assert model(IDS).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values.length == 12


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_attentions_and_hidden_states_have_their_shapes(implementation):
    out = shared("gqa", implementation)(IDS, output_attentions=True, output_hidden_states=True)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 12, 12)] * 3
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 12, 32)] * 4


@pytest.mark.parametrize("keep", [0, 1, 5, 12, torch.tensor([0, 7]), torch.tensor([-1])], ids=str)
@torch.no_grad()
def test_logits_to_keep_are_the_same_rows_of_all_logits(keep):
    whole = shared()(IDS).logits
    expected = whole[:, keep] if isinstance(keep, torch.Tensor) else whole[:, -keep:] if keep else whole
    torch.testing.assert_close(shared()(IDS, logits_to_keep=keep).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_labels_that_count():
    labels = IDS.clone()
    labels[0, :6] = -100
    out = shared()(IDS, labels=labels)
    logprobs = out.logits.log_softmax(-1)
    each = [-logprobs[row, t, labels[row, t + 1]] for row in range(2) for t in range(11) if labels[row, t + 1] != -100]
    torch.testing.assert_close(out.loss, torch.stack(each).mean())


def in_chunks(model, ids, sizes, **options):
    """The logits of a prompt given piece by piece to one cache."""
    cache, start, parts = DynamicCache(), 0, []
    mask, positions = options.get("attention_mask"), options.get("position_ids")
    for size in sizes:
        end = start + size
        some = {} if mask is None else {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
        parts.append(model(ids[:, start:end], past_key_values=cache, **some).logits)
        start = end
    assert cache.length == start == ids.shape[1]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
@given(sizes=splits(), padded=st.integers(0, 5))
@example(sizes=[12], padded=0)
@example(sizes=[1] * 12, padded=3)
@settings(max_examples=15, deadline=None, derandomize=True)
@torch.no_grad()
def test_any_split_into_chunks_gives_the_logits_of_one_pass(kind, implementation, sizes, padded):
    model = shared(kind, implementation)
    options = {}
    if padded:
        mask = torch.ones_like(IDS)
        mask[0, :padded] = 0
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    whole = model(IDS, **options).logits
    assert relative_error(in_chunks(model, IDS, sizes, **options), whole) < RELATIVE


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_comparison_of_chunks_notices_positions_that_are_off_by_one(kind):
    model, cache = shared(kind), DynamicCache()
    whole = model(IDS).logits
    model(IDS[:, :5], past_key_values=cache)
    rest = model(IDS[:, 5:], past_key_values=cache, position_ids=torch.arange(4, 11)[None]).logits
    assert relative_error(rest, whole[:, 5:]) > 1e-2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_left_padding_does_not_change_the_logits_of_real_tokens(kind, implementation):
    model = shared(kind, implementation)
    alone = model(IDS[:1, 4:]).logits
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(IDS, attention_mask=mask, position_ids=positions).logits
    assert relative_error(padded[:1, 4:], alone) < RELATIVE
    assert relative_error(padded[1:], model(IDS[1:]).logits) < RELATIVE, "the unpadded row"
    assert padded.isfinite().all(), "the padding's own rows may attend to nothing"
    # Neither may be left out: what this test would see of a mask or of positions that were ignored.
    assert relative_error(model(IDS, position_ids=positions).logits[:1, 4:], alone) > 1e-2


@torch.no_grad()
def test_positions_count_and_their_common_offset_does_not():
    moved = shared()(IDS, position_ids=torch.arange(12)[None] + 40).logits
    assert relative_error(moved, shared()(IDS).logits) < 1e-4, "rotary positions are relative"
    stretched = shared()(IDS, position_ids=torch.arange(12)[None] * 2).logits
    assert relative_error(stretched, shared()(IDS).logits) > 1e-2


@torch.no_grad()
def test_a_later_token_never_changes_an_earlier_position():
    other = IDS.clone()
    other[:, 8:] = (other[:, 8:] + 11) % 97
    assert torch.equal(shared()(other).logits[:, :8], shared()(IDS).logits[:, :8])
    assert not torch.allclose(shared()(other).logits[:, 8:], shared()(IDS).logits[:, 8:])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_bfloat16_runs_and_stays_near_float32(implementation):
    exact = shared("gqa", implementation)(IDS).logits
    torch.manual_seed(0)
    model = tiny_model(attn_implementation=implementation).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    mask = torch.ones_like(IDS)
    out = model(IDS[:, :9], attention_mask=mask[:, :9], output_hidden_states=True, output_attentions=True)
    assert {t.dtype for t in (out.logits, *out.hidden_states, *out.attentions)} == {torch.bfloat16}
    last = model(IDS[:, 9:], past_key_values=out.past_key_values).logits
    assert relative_error(torch.cat((out.logits, last), 1).float(), exact) < 0.1


@torch.no_grad()
def test_a_forward_leaves_nothing_on_the_modules():
    model = tiny_model()
    model(IDS)  # the rotary frequencies are a constant of the config and are made once
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    first = model(IDS).logits
    model(IDS[:1, :3], output_attentions=True)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert torch.equal(model(IDS).logits, first)


def test_tied_weights_are_one_and_count_once():
    tied, untied = tiny_model(tie_word_embeddings=True), tiny_model()
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert untied.num_parameters() - tied.num_parameters() == 97 * 32


def test_rotary_embedding_is_a_rotation_of_each_plane_by_its_frequency():
    config = tiny_config(rope_parameters={"rope_theta": 100.0})
    x = torch.randn(1, 3, 2, 8, dtype=torch.float32)
    positions = torch.tensor([[0, 1, 5]])
    rotated = apply_rope(x, *signed(*LlamaRotaryEmbedding(config)(x, positions)))
    torch.testing.assert_close(rotated[:, 0], x[:, 0], msg="position 0 is not turned")
    for j, position in enumerate(positions[0].tolist()):
        for plane in range(4):
            angle = torch.tensor(position * 100.0 ** (-2 * plane / 8))
            # Half-split layout: a plane is dimensions i and i + d_head / 2, here one complex number.
            number = torch.complex(x[0, j, :, plane], x[0, j, :, plane + 4]) * torch.polar(torch.tensor(1.0), angle)
            torch.testing.assert_close(rotated[0, j, :, plane], number.real)
            torch.testing.assert_close(rotated[0, j, :, plane + 4], number.imag)

"""`selfcheck` passes on right models of every kind, and notices each planted bug."""

import sys

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from workbench.config import ACTIVATIONS
from workbench.instrument import capture, resolve
from workbench.instrument.selfcheck import INVARIANTS, selfcheck
from workbench.model import LlamaModel
from workbench.model.mask import Mask
from workbench.model.quantized import QuantizedEmbedding

KINDS = ["mha", "gqa", "mqa"]
ROPE = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 4.0, 6.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


def with_rope(kind, name, **changes):
    rope = {"rope_theta": 10000.0, "rope_type": "default", **ROPE[name]}
    if name == "dynamic":
        changes["max_position_embeddings"] = 8  # shorter than the text: θ changes from chunk to chunk
    model = tiny_model(kind, rope_parameters=rope, **changes)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def wrong(model):
    return {check.name for check in selfcheck(model, verbose=False).failures}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rope", ROPE)
def test_right_models_pass(kind, rope):
    found = selfcheck(with_rope(kind, rope), verbose=False)
    assert found.passed, str(found)
    assert len(found.checks) == len(INVARIANTS) == 28
    assert max(check.error for check in found.checks) < 2e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "eager"},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"hidden_act": "gelu"},
        {"tie_word_embeddings": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_right_models_of_other_configurations_pass(changes):
    assert wrong(tiny_model("gqa", **changes)) == set()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_pass(dtype):
    assert wrong(with_rope("gqa", "default").to(dtype)) == set()


def test_quantized_weights_pass():
    from workbench.checkpoints.quantize import quantize

    model = tiny_model("gqa", hidden_size=64, intermediate_size=96)
    assert wrong(quantize(model, "int8")) == set()


def test_a_quantized_embedding_passes():
    model = tiny_model("gqa", tie_word_embeddings=True)
    embedding = QuantizedEmbedding(97, 32, torch.float32, 0).set_weight(model.model.embed_tokens.weight.detach())
    model.model.embed_tokens, model.lm_head = embedding, embedding.as_output()
    assert wrong(model) == set()


@pytest.mark.parametrize("name", [*ACTIVATIONS, torch.sigmoid], ids=str)
def test_every_activation_passes(name):
    assert wrong(tiny_model("gqa", hidden_act=name)) == set()


def test_a_model_without_a_head_is_checked_but_for_the_logits():
    found = selfcheck(LlamaModel(tiny_config()).eval(), verbose=False)
    assert found.passed
    assert len(found.checks) == 26


# --- planted bugs ---------------------------------------------------------------------------------------------------


def no_rope(model, patch):
    right = model.model.rotary_emb.forward
    patch.setattr(
        model.model.rotary_emb,
        "forward",
        lambda x, p: (torch.ones_like(right(x, p)[0]), torch.zeros_like(right(x, p)[1])),
    )


def shifted_position(model, patch):
    right = model.model.rotary_emb.forward
    patch.setattr(model.model.rotary_emb, "forward", lambda x, p: right(x, p + 1))


def flipped_mask(model, patch):
    right = Mask.allowed
    patch.setattr(Mask, "allowed", lambda self, *a, **k: ~right(self, *a, **k))


def wrong_group(model, patch):
    def mixed(pattern, v):
        return pattern @ v.roll(1, 1).repeat_interleave(4 // v.shape[1], dim=1)

    patch.setattr("workbench.model.llama.mix_values", mixed)


def wrong_group_of_keys(model, patch):
    from workbench.model import attention

    right = attention.dot_products
    patch.setattr(attention, "dot_products", lambda q, k, scale: right(q, k.roll(1, 1), scale))


@pytest.mark.parametrize("rope", ROPE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bug", "noticed"),
    [
        (no_rope, {"q_rot is RoPE of q", "k_rot is RoPE of k"}),
        (shifted_position, {"q_rot is RoPE of q", "k_rot is RoPE of k"}),
        (flipped_mask, {"mask is what the rules allow, cell by cell", "pattern is 0 where the mask forbids"}),
        (wrong_group, {"pattern @ v_cached is z"}),
        (wrong_group_of_keys, {"scores are q_rot · k_cached / √d_head, masked"}),
    ],
    ids=["no RoPE", "shifted position", "flipped mask", "wrong KV group", "wrong KV group of keys"],
)
def test_a_planted_bug_is_noticed_and_said_where(kind, rope, bug, noticed, monkeypatch):
    if kind == "mqa" and bug in (wrong_group, wrong_group_of_keys):
        return  # there is one group: no wrong one
    model = with_rope(kind, rope)
    bug(model, monkeypatch)
    assert noticed <= wrong(model)


@pytest.mark.parametrize(
    ("at", "setting", "value", "noticed"),
    [
        ("layers.1.input_layernorm", "variance_epsilon", 10.0, "attn_norm is RMSNorm of resid_pre"),
        ("layers.1.post_attention_layernorm", "variance_epsilon", 1e-2, "mlp_norm is RMSNorm of resid_mid"),
        ("norm", "variance_epsilon", 10.0, "final_norm is RMSNorm of the last resid_post"),
        ("layers.1.mlp", "act_fn", torch.relu, "act is act_fn(gate) · up"),
        ("layers.1.self_attn", "scaling", 0.4, "scores are q_rot · k_cached / √d_head, masked"),
    ],
    ids=lambda x: str(x),
)
def test_a_module_that_is_set_otherwise_than_the_config_is_noticed(at, setting, value, noticed):
    model = tiny_model()
    setattr(model.model.get_submodule(at), setting, value)
    assert wrong(model) == {noticed}


def test_the_first_layer_is_not_compared_with_itself():
    """There is no layer before it; the embedding is what it is compared with."""
    model = tiny_model()
    model.model.hook_embed.register_forward_hook(lambda module, args, out: out * torch.nan)
    name = "resid_pre is resid_post of the layer before"
    [check] = [check for check in selfcheck(model, verbose=False).checks if check.name == name]
    assert check.layer != 0


# For every invariant, a point whose output is changed after it was captured, or before.
CHANGED = {
    "embed is row input_ids of the embedding": ("embed", "before"),
    "resid_pre of layer 0 is embed": ("embed", "after"),
    "resid_pre is resid_post of the layer before": ("layers.0.resid_post", "after"),
    "attn_norm is RMSNorm of resid_pre": ("layers.1.resid_pre", "after"),
    "q is q_proj(attn_norm)": ("layers.1.q", "before"),
    "k is k_proj(attn_norm)": ("layers.1.k", "before"),
    "v is v_proj(attn_norm)": ("layers.1.v", "before"),
    "q_rot is RoPE of q": ("layers.1.q", "after"),
    "k_rot is RoPE of k": ("layers.1.k", "after"),
    "the cache received k_rot": ("layers.1.k_rot", "after"),
    "the cache received v": ("layers.1.v", "after"),
    "scores are q_rot · k_cached / √d_head, masked": ("layers.1.q_rot", "after"),
    "pattern is the softmax of scores": ("layers.1.scores", "after"),
    "rows of pattern sum to 1": ("layers.1.pattern", "before"),
    "pattern @ v_cached is z": ("layers.1.v_cached", "after"),
    "attn_out is o_proj(z)": ("layers.1.z", "after"),
    "resid_pre + attn_out is resid_mid": ("layers.1.attn_out", "after"),
    "mlp_norm is RMSNorm of resid_mid": ("layers.1.resid_mid", "after"),
    "gate is gate_proj(mlp_norm)": ("layers.1.mlp_norm", "after"),
    "up is up_proj(mlp_norm)": ("layers.1.up", "before"),
    "act is act_fn(gate) · up": ("layers.1.gate", "after"),
    "mlp_out is down_proj(act)": ("layers.1.act", "after"),
    "resid_mid + mlp_out is resid_post": ("layers.1.mlp_out", "after"),
    "final_norm is RMSNorm of the last resid_post": ("layers.2.resid_post", "after"),
    "logits are lm_head(final_norm)": ("final_norm", "after"),
    "logits are the output's": ("logits", "after"),
    "pattern is 0 where the mask forbids": ("layers.1.pattern", "before"),
}
FROM_THE_MASK = {"mask is what the rules allow, cell by cell"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHANGED)
def test_every_invariant_can_fail(name, kind, monkeypatch):
    model = tiny_model(kind)
    point, when = CHANGED[name]

    def change(module, args, out):
        return out * 1.1 + 0.05

    if when == "before":
        resolve(model, [point])[0].module.register_forward_hook(change)
    else:

        def hooked_inside(*args, **kwargs):
            return _Inside(capture(*args, **kwargs), resolve(model, [point])[0].module, change)

        monkeypatch.setattr(sys.modules["workbench.instrument.selfcheck"], "capture", hooked_inside)
    assert name in wrong(model)


class _Inside:
    """A capture in whose block another hook is registered: after the capture's own."""

    def __init__(self, block, module, hook):
        self.block, self.module, self.hook = block, module, hook

    def __enter__(self):
        acts = self.block.__enter__()
        self.handle = self.module.register_forward_hook(self.hook)
        return acts

    def __exit__(self, *error):
        self.handle.remove()
        return self.block.__exit__(*error)


def test_every_invariant_is_broken_by_one_of_these_tests():
    assert set(CHANGED) | FROM_THE_MASK == set(INVARIANTS)


def test_the_report_is_a_table(monkeypatch, capsys):
    model = tiny_model()
    assert str(selfcheck(model)) + "\n" == capsys.readouterr().out
    no_rope(model, monkeypatch)
    found = selfcheck(model, verbose=False)
    assert capsys.readouterr().out == ""
    assert not found.passed
    text = str(found)
    assert "WRONG" in text
    assert f"{28 - len(found.failures)} of 28 invariants hold." in text
    frame = found.to_pandas()
    assert list(frame.columns) == ["name", "error", "layer", "tolerance", "passed"]
    assert frame.set_index("name").loc["q_rot is RoPE of q", "layer"] in (0, 1, 2)
    assert (~frame["passed"]).sum() == len(found.failures)


def test_nan_is_wrong():
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    assert "resid_mid + mlp_out is resid_post" in wrong(model)


def test_it_leaves_the_model_as_it_was():
    model = tiny_model().train()
    before = model.state_dict()
    selfcheck(model, verbose=False)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_too_few_tokens_and_other_models_are_refused():
    with pytest.raises(
        ValueError, match=r"input_ids has shape \(1, 1\); \(batch, positions\) with at least 2 is needed"
    ):
        selfcheck(tiny_model(), torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(TypeError, match="hook points belong to a LlamaForCausalLM or LlamaModel; got Linear"):
        selfcheck(torch.nn.Linear(2, 2))

"""How points may be written: patterns, ranges of layers, and the names that two other libraries have for them."""

import pytest

from tests.conftest import tiny_model
from workbench.instrument import POINTS, resolve
from workbench.instrument.recipes import FROM_ATTENTION, INPUTS

MODEL = tiny_model()


def found(*names, layers=None):
    return [item.full_name for item in resolve(MODEL, names, layers)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.1:3.q", ["layers.1.q", "layers.2.q"]),
        ("layers.:.q", ["layers.0.q", "layers.1.q", "layers.2.q"]),
        ("layers.-2:.q", ["layers.1.q", "layers.2.q"]),
        ("layers.::2.q", ["layers.0.q", "layers.2.q"]),
        ("layers.*.k_rot", ["layers.0.k_rot", "layers.1.k_rot", "layers.2.k_rot"]),
        ("layers.-1.q", ["layers.2.q"]),
        ("layers.1.resid_*", ["layers.1.resid_pre", "layers.1.resid_mid", "layers.1.resid_post"]),
        ("layers.0.?", ["layers.0.q", "layers.0.k", "layers.0.v", "layers.0.z"]),
        (
            "*_norm",
            [*(f"layers.{i}.attn_norm" for i in range(3)), *(f"layers.{i}.mlp_norm" for i in range(3)), "final_norm"],
        ),
        ("log*", ["logits"]),
    ],
)
def test_ranges_of_layers_and_patterns(name, expected):
    assert found(name) == expected


def test_a_star_is_every_point():
    inside = sum(point.per_layer for point in POINTS.values())
    assert len(found("*")) == 3 * inside + len(POINTS) - inside
    assert found("*", layers=[1]) == [name for name in found("*") if "layers" not in name or ".1." in name]


# A name of TransformerLens (3.x, its hook points) → ours. Written out, not read from the table under test.
TRANSFORMER_LENS = {
    "hook_embed": "embed",
    "blocks.1.hook_resid_pre": "layers.1.resid_pre",
    "blocks.1.hook_resid_mid": "layers.1.resid_mid",
    "blocks.1.hook_resid_post": "layers.1.resid_post",
    "blocks.1.attn.hook_q": "layers.1.q",
    "blocks.1.attn.hook_k": "layers.1.k",
    "blocks.1.attn.hook_v": "layers.1.v",
    "blocks.1.attn.hook_rot_q": "layers.1.q_rot",
    "blocks.1.attn.hook_rot_k": "layers.1.k_rot",
    "blocks.1.attn.hook_attn_scores": "layers.1.scores",
    "blocks.1.attn.hook_pattern": "layers.1.pattern",
    "blocks.1.attn.hook_z": "layers.1.z",
    "blocks.1.hook_attn_out": "layers.1.attn_out",
    "blocks.1.mlp.hook_pre": "layers.1.gate",
    "blocks.1.mlp.hook_pre_linear": "layers.1.up",
    "blocks.1.mlp.hook_post": "layers.1.act",
    "blocks.1.hook_mlp_out": "layers.1.mlp_out",
}
TRANSFORMERS = {
    "model.embed_tokens": "embed",
    "hidden_states[0]": "embed",
    "hidden_states[2]": "layers.1.resid_post",
    "hidden_states[-2]": "layers.1.resid_post",
    "attentions[1]": "layers.1.pattern",
    "attentions[-1]": "layers.2.pattern",
    "last_hidden_state": "final_norm",
    "model.norm": "final_norm",
    "lm_head": "logits",
    "model.layers.1": "layers.1.resid_post",
    "model.layers.1.input_layernorm": "layers.1.attn_norm",
    "model.layers.1.self_attn": "layers.1.attn_out",
    "model.layers.1.self_attn.q_proj": "layers.1.q",
    "model.layers.1.self_attn.o_proj": "layers.1.attn_out",
    "model.layers.1.post_attention_layernorm": "layers.1.mlp_norm",
    "model.layers.1.mlp": "layers.1.mlp_out",
    "model.layers.1.mlp.gate_proj": "layers.1.gate",
    "layers.1.mlp.up_proj": "layers.1.up",
    "model.layers.1.mlp.down_proj": "layers.1.mlp_out",
}


@pytest.mark.parametrize(("name", "ours"), [*TRANSFORMER_LENS.items(), *TRANSFORMERS.items()])
def test_other_libraries_names(name, ours):
    assert found(name) == [ours]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hidden_states[-1]",
            r"'hidden_states\[-1\]' may mean final_norm \(.*after the final norm\) or layers\.2\.resid_post",
        ),
        ("hidden_states[3]", r"may mean final_norm .* or layers\.2\.resid_post"),
        (
            "hook_normalized",
            r"'hook_normalized' may mean attn_norm, mlp_norm or final_norm, which here are after the gain",
        ),
        ("blocks.1.ln1.hook_normalized", r"may mean attn_norm, mlp_norm or final_norm"),
        ("ln_final.hook_normalized", r"may mean attn_norm, mlp_norm or final_norm"),
        ("past_key_values[1]", r"'past_key_values\[1\]' may mean layers\.1\.k_cached or layers\.1\.v_cached"),
    ],
)
def test_names_that_may_mean_several_points_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        found(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hidden_states[7]",
            r"'hidden_states\[7\]' does not exist; this model has hidden_states\[0\] … hidden_states\[3\]",
        ),
        ("attentions[3]", r"layer 3 does not exist; this model has layers 0 … 2"),
        ("model.layers.5", r"layer 5 does not exist"),
        ("layers.5:.q", r"'layers\.5:\.q' means no layer; this model has layers 0 … 2"),
        ("layers.1:2:0.q", r"'1:2:0' is no layer; write a number, a range such as 2:6, or \*"),
        ("layers.0.embed", r"'layers\.0\.embed' is no hook point: embed is not inside a layer"),
        ("xyz*", r"'xyz\*' is no hook point"),
        ("layers.1.hook_resid_pots", r"did you mean hook_resid_post"),
        ("hook_ptrn", r"'hook_ptrn' is no hook point; did you mean"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        found(name)


@pytest.mark.parametrize("name", [3, None, ("q", 1)])
def test_a_name_is_a_text(name):
    with pytest.raises(TypeError, match=r"a hook point is named by a text such as 'resid_post' or 'layers\.3\.q'; got"):
        found(name)


def test_a_model_without_hook_points_is_refused():
    from torch import nn

    with pytest.raises(TypeError, match="hook points belong to a LlamaForCausalLM or LlamaModel; got Linear"):
        resolve(nn.Linear(2, 2), ["q"])


def test_the_table_says_what_each_point_is_checked_by():
    from workbench.instrument.selfcheck import INVARIANTS

    named = {name for point in POINTS.values() for name in point.invariants}
    assert named == set(INVARIANTS)
    assert all(point.invariants and point.formula for point in POINTS.values())
    aliases = [alias for point in POINTS.values() for alias in point.aliases]
    assert len(aliases) == len(set(aliases))


def test_what_is_derived_is_a_point_and_comes_after_what_it_is_derived_from():
    order = list(POINTS)
    assert set(INPUTS) | set(FROM_ATTENTION) < set(POINTS)
    for name, inputs in INPUTS.items():
        assert all(order.index(i) < order.index(name) for i in inputs) or name == "resid_pre"

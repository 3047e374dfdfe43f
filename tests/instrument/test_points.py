"""Each hook point is what the table says: its invariant holds, and a planted bug breaks exactly that check."""

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import HEADS, tiny_config, tiny_model
from workbench.instrument import POINTS, capture, resolve
from workbench.model import LlamaModel

KINDS = ["mha", "gqa", "mqa"]
IDS = torch.randint(1, 97, (2, 11), generator=torch.Generator().manual_seed(3))
CAUSAL = torch.ones(11, 11, dtype=torch.bool).tril()


class Run:
    """One forward with every point captured; `r("q")` is that point in the layer looked at."""

    def __init__(self, model, acts, out, layer):
        self.model, self.acts, self.out, self.i = model, acts, out, layer
        self.layer = model.model.layers[layer]
        self.attn, self.mlp = self.layer.self_attn, self.layer.mlp

    def __call__(self, name):
        return self.acts[name, self.i] if POINTS[name].per_layer else self.acts[name]


def heads(x):
    return x.view(2, 11, -1, 8)


def norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def rope(x):
    """Each plane (i, i + d_head/2) of position p, as a complex number, times e^(i·p·θ^(−2i/d_head))."""
    angles = torch.outer(torch.arange(11.0), 10000.0 ** (-torch.arange(4.0) / 4))[None, :, None]
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def per_query_head(x):
    """(batch, pos, kv_head, d_head) → (batch, q_head, pos, d_head), every key/value head repeated for its group."""
    return x.repeat_interleave(4 // x.shape[2], dim=2).transpose(1, 2)


def raw_scores(r):
    scores = per_query_head(r("q_rot")) @ per_query_head(r("k_rot")).transpose(2, 3) / 8**0.5
    return scores.masked_fill(~CAUSAL, -torch.inf)


# name → (what it says as (actual, expected), and a bug that it must notice). A bug ("q", "after") changes the output of
# that point after it was captured: what goes on is not what is shown. "before" changes it before.
INVARIANTS = {
    "embed is hidden_states[0]": (
        lambda r: (r("embed"), r.out.hidden_states[0]),
        ("embed", "after"),
    ),
    "embed is the embedding's rows": (
        lambda r: (r("embed"), r.model.model.embed_tokens.weight[IDS]),
        ("embed", "before"),
    ),
    "resid_pre is hidden_states[layer]": (
        lambda r: (r("resid_pre"), r.out.hidden_states[r.i]),
        ("resid_pre", "before"),
    ),
    "resid_post is the next layer's resid_pre": (
        lambda r: (r("resid_post"), r.acts["resid_pre", r.i + 1] if r.i < 2 else r("resid_post")),
        ("resid_post", "after"),
    ),
    "resid_pre + attn_out = resid_mid": (
        lambda r: (r("resid_pre") + r("attn_out"), r("resid_mid")),
        ("attn_out", "after"),
    ),
    "resid_mid + mlp_out = resid_post": (
        lambda r: (r("resid_mid") + r("mlp_out"), r("resid_post")),
        ("mlp_out", "after"),
    ),
    "attn_norm is resid_pre normed, after the gain": (
        lambda r: (r("attn_norm"), norm(r("resid_pre"), r.layer.input_layernorm.weight)),
        ("resid_pre", "after"),
    ),
    "mlp_norm is resid_mid normed, after the gain": (
        lambda r: (r("mlp_norm"), norm(r("resid_mid"), r.layer.post_attention_layernorm.weight)),
        ("resid_mid", "after"),
    ),
    "q is q_proj(attn_norm)": (
        lambda r: (r("q"), heads(F.linear(r("attn_norm"), r.attn.q_proj.weight))),
        ("attn_norm", "after"),
    ),
    "k is k_proj(attn_norm)": (
        lambda r: (r("k"), heads(F.linear(r("attn_norm"), r.attn.k_proj.weight))),
        ("attn_norm", "after"),
    ),
    "v is v_proj(attn_norm)": (
        lambda r: (r("v"), heads(F.linear(r("attn_norm"), r.attn.v_proj.weight))),
        ("attn_norm", "after"),
    ),
    "q_rot is RoPE of q": (lambda r: (r("q_rot"), rope(r("q"))), "positions shifted by one"),
    "k_rot is RoPE of k": (lambda r: (r("k_rot"), rope(r("k"))), "no RoPE"),
    "k_rot is what the cache holds": (
        lambda r: (r("k_rot"), r.out.past_key_values.keys(r.i).transpose(1, 2)),
        ("k_rot", "after"),
    ),
    "v is what the cache holds": (
        lambda r: (r("v"), r.out.past_key_values.values(r.i).transpose(1, 2)),
        ("v", "after"),
    ),
    "scores are q_rot · k_rot / sqrt(d_head), masked": (lambda r: (r("scores"), raw_scores(r)), "mask flipped"),
    "pattern rows sum to 1": (
        lambda r: (r("pattern").sum(-1), torch.ones(2, 4, 11)),
        ("pattern", "before"),
    ),
    "pattern is the softmax of scores": (
        lambda r: (r("pattern"), r("scores").softmax(-1)),
        ("scores", "after"),
    ),
    "pattern is the output's attentions": (
        lambda r: (r("pattern"), r.out.attentions[r.i]),
        ("pattern", "after"),
    ),
    "pattern @ v = z": (
        lambda r: (r("z"), (r("pattern") @ per_query_head(r("v"))).transpose(1, 2)),
        ("v", "after"),
    ),
    "o_proj(z) = attn_out": (
        lambda r: (r("attn_out"), F.linear(r("z").flatten(2), r.attn.o_proj.weight)),
        ("z", "after"),
    ),
    "gate is gate_proj(mlp_norm)": (
        lambda r: (r("gate"), F.linear(r("mlp_norm"), r.mlp.gate_proj.weight)),
        ("mlp_norm", "after"),
    ),
    "up is up_proj(mlp_norm)": (
        lambda r: (r("up"), F.linear(r("mlp_norm"), r.mlp.up_proj.weight)),
        ("mlp_norm", "after"),
    ),
    "act is silu(gate) · up": (
        lambda r: (r("act"), r("gate") * r("gate").sigmoid() * r("up")),
        ("gate", "after"),
    ),
    "down_proj(act) = mlp_out": (
        lambda r: (r("mlp_out"), F.linear(r("act"), r.mlp.down_proj.weight)),
        ("act", "after"),
    ),
    "final_norm is the last resid_post normed": (
        lambda r: (r("final_norm"), norm(r.acts["resid_post", 2], r.model.model.norm.weight)),
        ("final_norm", "before"),
    ),
    "final_norm is hidden_states[-1]": (
        lambda r: (r("final_norm"), r.out.hidden_states[-1]),
        ("final_norm", "after"),
    ),
    "logits are lm_head(final_norm)": (
        lambda r: (r("logits"), F.linear(r("final_norm"), r.model.lm_head.weight)),
        ("final_norm", "after"),
    ),
    "logits are the output's": (lambda r: (r("logits"), r.out.logits), ("logits", "after")),
}


def perturb(model, point, layer=1):
    module = resolve(model, [point], layers=[layer])[0].module
    module.register_forward_hook(lambda module, args, out: out * 1.1 + 0.05)


def break_rope(model, monkeypatch, shift):
    """`shift` positions further, or (None) no rotation at all."""
    right = model.model.rotary_emb.forward

    def wrong(x, positions):
        cos, sin = right(x, positions + (shift or 0))
        return (cos, sin) if shift is not None else (torch.ones_like(cos), torch.zeros_like(sin))

    monkeypatch.setattr(model.model.rotary_emb, "forward", wrong)


def gains_that_count(model):
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@torch.no_grad()
def run(kind, layer=1, bug=None, monkeypatch=None):
    model = gains_that_count(tiny_model(kind))
    if bug == "no RoPE":
        break_rope(model, monkeypatch, None)
    elif bug == "positions shifted by one":
        break_rope(model, monkeypatch, 1)
    elif bug == "mask flipped":
        monkeypatch.setattr("workbench.model.mask.causal", lambda: flipped_causal())
    elif bug and bug[1] == "before":
        perturb(model, bug[0])
    with capture(model, *POINTS) as acts:
        if bug and bug[1] == "after":
            perturb(model, bug[0])  # hooks run in the order they were registered: after the capture's
        out = model(IDS, output_hidden_states=True, output_attentions=True)
    return Run(model, acts, out, layer)


def flipped_causal():
    from workbench.model.mask import Rule

    return Rule("flipped", "C", lambda q, k: k >= q)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_invariant_holds_in_every_layer(kind):
    for layer in range(3):
        result = run(kind, layer)
        for name, (sides, _) in INVARIANTS.items():
            try:
                close(*sides(result))
            except AssertionError as error:
                raise AssertionError(f"{name}, layer {layer}: {error}") from error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INVARIANTS)
def test_an_invariant_notices_a_planted_bug(name, kind, monkeypatch):
    sides, bug = INVARIANTS[name]
    result = run(kind, 1, bug, monkeypatch)
    with pytest.raises(AssertionError, match="not close"):
        close(*sides(result))


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_pattern_at_v_notices_values_of_another_group(kind, monkeypatch):
    monkeypatch.setattr(
        "workbench.model.llama.mix_values",
        lambda pattern, v: pattern @ v.flip(1).repeat_interleave(4 // v.shape[1], dim=1),
    )
    with pytest.raises(AssertionError, match="not close"):
        close(*INVARIANTS["pattern @ v = z"][0](run(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_axes_of_the_table_are_the_shapes(kind):
    q_heads, kv_heads = HEADS[kind]
    sizes = {
        "batch": 2,
        "pos": 11,
        "q_pos": 11,
        "k_pos": 11,
        "d_model": 32,
        "d_mlp": 48,
        "d_head": 8,
        "vocab": 97,
        "slot": 11,
        "q_head": q_heads,
        "kv_head": kv_heads,
    }
    result = run(kind)
    for name, point in POINTS.items():
        shape = tuple(1 if (name, axis) == ("mask", "batch") else sizes[axis] for axis in point.axes)
        assert tuple(result(name).shape) == shape, name
        assert point.axes[point.position_axis] in ("pos", "q_pos", "slot")


def test_a_name_means_every_layer_or_one():
    model = tiny_model()
    assert [item.full_name for item in resolve(model, ["q"])] == ["layers.0.q", "layers.1.q", "layers.2.q"]
    assert [item.full_name for item in resolve(model, ["layers.2.q"])] == ["layers.2.q"]
    assert [item.full_name for item in resolve(model, ["logits", "embed"])] == ["logits", "embed"]
    assert resolve(model, ["layers.2.q"])[0].module is model.model.layers[2].self_attn.hook_q


def test_layers_restrict_names_without_one():
    names = [item.full_name for item in resolve(tiny_model(), ["q", "layers.1.k", "final_norm"], layers=[0, -1])]
    assert names == ["layers.0.q", "layers.2.q", "layers.1.k", "final_norm"]


def test_a_point_named_twice_is_found_once():
    names = [item.full_name for item in resolve(tiny_model(), ["q", "layers.0.q", "q"], layers=[0, -3])]
    assert names == ["layers.0.q"]


def test_the_base_model_has_every_point_but_the_logits():
    base = LlamaModel(tiny_config())
    assert len(resolve(base, [name for name in POINTS if name != "logits"])) == 3 * 21 + 2
    with pytest.raises(ValueError, match="'logits' is not a point of LlamaModel: it has no language-model head"):
        resolve(base, ["logits"])


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        (["resid_pots"], None, r"'resid_pots' is no hook point; did you mean resid_post"),
        (["layers.0.patern"], None, r"'layers\.0\.patern' is no hook point; did you mean pattern"),
        (["zzzzzzzz"], None, r"'zzzzzzzz' is no hook point; did you mean embed, resid_pre, .*logits"),
        (["chunks.0.q"], None, r"'chunks\.0\.q' is no hook point; a point of one layer is written 'layers\.3\.resid"),
        (["layers.x.q"], None, r"'layers\.x\.q' is no hook point; a point of one layer is written"),
        (["layers.3.q"], None, r"layer 3 does not exist; this model has layers 0 … 2"),
        (["q"], [3], r"layer 3 does not exist; this model has layers 0 … 2"),
        (["q"], [-4], r"layer -4 does not exist; this model has layers 0 … 2"),
        ([], None, r"no hook point was named\. Points are embed, resid_pre"),
        (["q"], [], r"no hook point was named"),
    ],
    ids=[
        "typo",
        "typo in a layer",
        "nonsense",
        "other prefix",
        "no number",
        "past",
        "filter",
        "below",
        "none",
        "empty",
    ],
)
def test_points_that_do_not_exist_are_refused(names, layers, message):
    with pytest.raises(ValueError, match=message):
        resolve(tiny_model(), names, layers)

import re

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.analysis.attribution import accumulated_attribution, logit_attribution
from workbench.cache import DynamicCache
from workbench.checkpoints.quantization import requested
from workbench.checkpoints.quantize import quantize
from workbench.instrument import capture
from workbench.instrument.edit import edit

LENGTH = 9
IDS = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(3))
POINTS = ("embed", "z", "mlp_out", "resid_post")
SHAPES = {
    "plain": {},
    "heads narrower than hidden / heads": {"head_dim": 4},
    "heads wider": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "large eps in the norm": {"rms_norm_eps": 0.5},
    "tied": {"tie_word_embeddings": True, "pad_token_id": None},
}


def a_model(kind="gqa", dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = tiny_model(kind, **changes)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.to(dtype)


@torch.no_grad()
def run(model, points=POINTS, **options):
    with capture(model, *points, **options) as acts:
        logits = model(IDS).logits
    return acts, logits


@torch.no_grad()
def by_hand(model, row, position, token, against=None):
    """{(component, layer, head): contribution}, in float64, by plain hooks and matrices; and the running sums."""
    found = {}
    taps = {"embed": model.model.hook_embed}
    for i, layer in enumerate(model.model.layers):
        taps |= {("z", i): layer.self_attn.hook_z, ("mlp", i): layer.hook_mlp_out, ("mid", i): layer.hook_resid_mid}
        taps |= {("post", i): layer.hook_resid_post}
    handles = [
        tap.register_forward_hook(lambda m, a, x, name=name: found.update({name: x[row, position].double()}))
        for name, tap in taps.items()
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    final = found["post", len(model.model.layers) - 1]
    scale = 1 / torch.sqrt((final**2).mean() + model.config.rms_norm_eps)
    unembed = model.lm_head.weight.double()
    column = unembed[token] - (0 if against is None else unembed[against])
    direction = scale * model.model.norm.weight.double() * column
    out = {("embed", -1, None): found["embed"] @ direction}
    running = {(-1, "embed"): found["embed"] @ direction}
    for i, layer in enumerate(model.model.layers):
        width = model.config.d_head
        for head in range(4):
            weight = layer.self_attn.o_proj.weight.double()[:, head * width : (head + 1) * width]
            out["head", i, head] = (weight @ found["z", i][head]) @ direction
        mlp = found["mlp", i]
        if layer.self_attn.o_proj.bias is not None:
            out["attn_bias", i, None] = layer.self_attn.o_proj.bias.double() @ direction
            out["mlp_bias", i, None] = layer.mlp.down_proj.bias.double() @ direction
            mlp = mlp - layer.mlp.down_proj.bias.double()
        out["mlp", i, None] = mlp @ direction
        running[i, "resid_mid"] = found["mid", i] @ direction
        running[i, "resid_post"] = found["post", i] @ direction
    return {key: float(value) for key, value in out.items()}, {key: float(value) for key, value in running.items()}


def as_dict(frame):
    assert not frame.duplicated(["row", "token", "component", "layer", "head"]).any()
    columns = (frame[name] for name in ("component", "layer", "head", "contribution"))
    return {(c, layer, None if pd.isna(h) else h): value for c, layer, h, value in zip(*columns, strict=True)}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_contributions_are_those_of_plain_matrices_and_sum_to_the_models_logit(kind, shape):
    model = a_model(kind, **SHAPES[shape])
    acts, logits = run(model)
    for row, position, token in ((0, LENGTH - 1, 40), (1, 3, 7)):
        frame = logit_attribution(model, acts, token, position, row=row)
        assert list(frame.columns) == ["row", "token", "component", "layer", "head", "contribution"]
        assert frame["row"].unique().tolist() == [row]
        assert_same(as_dict(frame), by_hand(model, row, position, token)[0])
        assert frame["contribution"].sum() == pytest.approx(float(logits[row, position, token]), abs=1e-4)


@pytest.mark.parametrize("shape", ["plain", "biases"])
def test_against_a_distractor_it_is_the_difference_that_is_split(shape):
    model = a_model(**SHAPES[shape])
    acts, logits = run(model)
    frame = logit_attribution(model, acts, 40, against=7)
    assert_same(as_dict(frame), by_hand(model, 0, -1, 40, against=7)[0])
    assert frame["contribution"].sum() == pytest.approx(float(logits[0, -1, 40] - logits[0, -1, 7]), abs=1e-4)
    right, wrong = logit_attribution(model, acts, 40), logit_attribution(model, acts, 7)
    np.testing.assert_allclose(frame["contribution"], right["contribution"] - wrong["contribution"], atol=1e-9)


def test_several_tokens_and_all_rows_of_a_batch_at_once():
    model = a_model()
    acts, logits = run(model)
    frame = logit_attribution(model, acts, [40, 7, 0], position=4, row=None)
    for (row, token), part in frame.groupby(["row", "token"]):
        assert_same(as_dict(part), by_hand(model, row, 4, token)[0])
        assert part["contribution"].sum() == pytest.approx(float(logits[row, 4, token]), abs=1e-4)
    assert len(frame) == 2 * 3 * (1 + 3 * (4 + 1))
    assert frame["head"].isna().sum() == 2 * 3 * (1 + 3)
    negative = logit_attribution(model, acts, 40, row=-1)
    assert negative["contribution"].tolist() == logit_attribution(model, acts, 40, row=1)["contribution"].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_running_sum_is_the_stream_in_the_same_direction(shape):
    model = a_model(**SHAPES[shape])
    acts, logits = run(model)
    frame = accumulated_attribution(model, acts, [40, 7], row=None)
    assert list(frame.columns) == ["row", "token", "layer", "point", "logit"]
    for (row, token), part in frame.groupby(["row", "token"]):
        keys = list(zip(part["layer"], part["point"], strict=True))
        assert keys == [(-1, "embed"), *((i, p) for i in range(3) for p in ("resid_mid", "resid_post"))]
        assert_same(dict(zip(keys, part["logit"], strict=True)), by_hand(model, row, -1, token)[1])
        assert part["logit"].iloc[-1] == pytest.approx(float(logits[row, -1, token]), abs=1e-4)


@torch.no_grad()
def test_a_decode_step_is_split_like_the_same_position_of_one_pass():
    model, cache = a_model(), DynamicCache()
    with capture(model, *POINTS) as acts:
        for start, stop in ((0, 5), (5, 8), (8, 9)):
            model(IDS[:, start:stop], past_key_values=cache)
    assert_same(as_dict(logit_attribution(model, acts, 40)), by_hand(model, 0, -1, 40)[0])
    some, _ = run(model, positions=[2, 6])
    assert_same(as_dict(logit_attribution(model, some, 40, position=6)), by_hand(model, 0, 6, 40)[0])


@torch.no_grad()
def test_a_head_that_writes_nothing_contributes_nothing():
    model = a_model()
    model.model.layers[1].self_attn.o_proj.weight[:, 8:16] = 0
    acts, _ = run(model)
    frame = logit_attribution(model, acts, 40).set_index(["component", "layer", "head"])["contribution"]
    silent = frame.loc["head"].loc[1].loc[1]
    assert float(silent) == 0.0
    assert (frame.loc["head"].loc[1].loc[[0, 2, 3]] != 0).all()


@pytest.mark.parametrize("logits", [False, True], ids=["own norm and head", "captured logits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", ["plain", "biases"])
def test_rounding_is_no_gap(dtype, logits, shape):
    model = a_model(dtype=dtype, **SHAPES[shape])
    acts, out = run(model, (*POINTS, *(["logits"] if logits else [])))
    for position in range(LENGTH):
        frame = logit_attribution(model, acts, range(97), position, row=None)
        sums = frame.groupby(["row", "token"])["contribution"].sum().unstack()
        loose = 60 * torch.finfo(dtype).eps
        np.testing.assert_allclose(sums, out[:, position].double(), atol=max(loose, 1e-5), rtol=loose)


def test_a_capture_stored_in_lower_precision_is_as_coarse_as_that():
    model = a_model()
    acts, out = run(model, dtype=torch.bfloat16)
    for position in range(LENGTH):
        frame = logit_attribution(model, acts, range(97), position, row=None)
        sums = frame.groupby(["row", "token"])["contribution"].sum().unstack()
        np.testing.assert_allclose(sums, out[:, position], atol=0.1)


@pytest.mark.parametrize("bits", ["int4", "int8"])
@torch.no_grad()
def test_packed_weights_are_read_and_the_coarseness_of_their_products_is_no_gap(bits):
    model = quantize(a_model(hidden_size=128, intermediate_size=256), requested(bits))
    with capture(model, *POINTS, "logits") as acts:
        out = model(IDS).logits
    sums = logit_attribution(model, acts, range(97), row=None).groupby(["row", "token"])["contribution"].sum()
    np.testing.assert_allclose(sums.unstack(), out[:, -1], atol=0.05)
    with edit(model, {"layers.1.resid_mid": lambda x: x + 5.0}), capture(model, *POINTS, "logits") as acts:
        model(IDS)
    with pytest.raises(ValueError, match="a gap of"):
        logit_attribution(model, acts, range(97))


@pytest.mark.parametrize(
    "point", ["layers.1.resid_mid", "layers.0.attn_out", "layers.2.resid_post", "layers.1.resid_pre"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_an_edit_that_the_captured_parts_do_not_explain_is_an_error_with_the_gap(point, dtype):
    model = a_model(dtype=dtype)
    with edit(model, {point: lambda x: x + 1.0}), capture(model, *POINTS) as acts:
        model(IDS)
    with pytest.raises(ValueError, match=r"sum to -?[\d.e-]+ but the logit is -?[\d.e-]+: a gap of") as caught:
        logit_attribution(model, acts, range(97))
    total, logit, gap, allowed = map(float, re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", str(caught.value))[:4])
    assert gap == pytest.approx(abs(total - logit), rel=0.02)
    assert gap > allowed > 0
    assert "something was edited between these points" in str(caught.value)


@torch.no_grad()
def test_edits_that_show_in_a_captured_part_are_split_with_it():
    model = a_model()
    edits = {"layers.1.z": lambda z: z * 0, "layers.0.mlp_out": lambda x: x * 3}
    with edit(model, edits), capture(model, *POINTS) as acts:
        out = model(IDS).logits
    frame = logit_attribution(model, acts, 40)
    assert frame["contribution"].sum() == pytest.approx(float(out[0, -1, 40]), abs=1e-4)
    assert (frame[(frame["layer"] == 1) & (frame["component"] == "head")]["contribution"] == 0).all()


@torch.no_grad()
def test_captured_logits_are_what_the_sum_is_held_against():
    model = a_model()
    with edit(model, {"logits": lambda x: x + 0.1}), capture(model, *POINTS, "logits") as acts:
        model(IDS)
    with pytest.raises(ValueError, match=r"a gap of 0\.1, where rounding explains"):
        logit_attribution(model, acts, 40)
    assert len(logit_attribution(model, acts, 40, against=7)) == 16  # the same shift of both goes out


@torch.no_grad()
def test_another_models_weights_are_noticed():
    model, other = a_model(), a_model()
    other.model.layers[2].self_attn.o_proj.weight.mul_(1.01)
    acts, _ = run(model)
    with pytest.raises(ValueError, match=r"not of one forward of this model"):
        logit_attribution(other, acts, 40)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_tokens_that_are_alike_are_as_coarse_as_each_of_them(stored):
    model = a_model(dtype=stored)
    model.lm_head.weight[40] *= 1000
    model.lm_head.weight[7] = model.lm_head.weight[40]
    model.lm_head.weight[7, ::5] += 0.01
    acts, out = run(model, (*POINTS, "logits"))
    for position in range(LENGTH):
        sums = logit_attribution(model, acts, 40, position, against=7, row=None).groupby("row")["contribution"].sum()
        loose = 60 * torch.finfo(stored).eps * out[:, position, 40].abs().double()
        apart = (out[:, position, 40] - out[:, position, 7]).double()
        assert ((torch.tensor(sums.to_numpy()) - apart).abs() <= loose).all()
    with edit(model, {"logits": lambda x: x + 0.1 * x.abs() * (torch.arange(97) == 40)}):
        acts, _ = run(model, (*POINTS, "logits"))
    with pytest.raises(ValueError, match="a gap of"):
        logit_attribution(model, acts, 40, against=7)


def test_a_token_that_is_named_twice_counts_once():
    model = a_model()
    acts, _ = run(model)
    for split in (logit_attribution, accumulated_attribution):
        assert split(model, acts, [40, 7, 40]).equals(split(model, acts, [40, 7]))


@pytest.mark.parametrize("token", [40, np.int64(40), np.array(40), torch.tensor(40), torch.tensor([40])], ids=repr)
def test_one_token_is_any_whole_number(token):
    model = a_model()
    acts, _ = run(model)
    found = logit_attribution(model, acts, token, np.int64(3), torch.tensor(7), row=np.int64(1))
    assert found.equals(logit_attribution(model, acts, 40, 3, 7, row=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(tokens=3.0), r"token is 3\.0; a whole number is needed"),
        (dict(tokens=3, position=None), r"position is None; a whole number is needed"),
        (dict(tokens=3, position=slice(2)), r"position is slice\(None, 2, None\); a whole number is needed"),
        (dict(tokens=3, against=[4]), r"against is \[4\]; a whole number is needed"),
        (dict(tokens=3, row=1.0), r"row is 1\.0; a whole number is needed"),
    ],
    ids=str,
)
def test_what_is_no_whole_number_is_refused(arguments, words):
    model = a_model()
    with pytest.raises(TypeError, match=words):
        logit_attribution(model, run(model)[0], **arguments)


@pytest.mark.parametrize("missing", ["embed", "z", "mlp_out", "resid_post"])
def test_a_missing_point_is_named_with_what_to_capture(missing):
    model = a_model()
    acts, _ = run(model, [point for point in POINTS if point != missing])
    name = missing if missing == "embed" else rf"layers\.{2 if missing == 'resid_post' else 0}\.{missing}"
    with pytest.raises(
        KeyError, match=rf"{name}' was not captured.*capture\(model, 'embed', 'z', 'mlp_out', 'resid_post'"
    ):
        logit_attribution(model, acts, 40)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(tokens=97), r"token 97 does not exist; ids lie in 0 … 96"),
        (dict(tokens=[3, -1]), r"token -1 does not exist"),
        (dict(tokens=3, against=99), r"token 99 does not exist"),
        (dict(tokens=3, position=9), r"position 9 was not captured; captured are 0 … 8"),
        (dict(tokens=3, row=2), r"row 2 does not exist; this capture has rows 0 … 1 of a batch"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(arguments, words):
    model = a_model()
    with pytest.raises(ValueError, match=words):
        logit_attribution(model, run(model)[0], **arguments)


def test_some_heads_cannot_make_up_the_whole():
    model = a_model()
    acts, _ = run(model, heads=[0, 2])
    with pytest.raises(ValueError, match=r"only heads 0, 2 were captured of 4, so contributions cannot sum"):
        logit_attribution(model, acts, 40)


def test_nobody_s_hooks_fire_and_none_are_left():
    model, fired = a_model(), []
    acts, _ = run(model)
    handle = model.model.norm.register_forward_hook(lambda *arguments: fired.append(1))
    accumulated_attribution(model, acts, 40)
    handle.remove()
    assert not fired
    assert hooks(model) == 0

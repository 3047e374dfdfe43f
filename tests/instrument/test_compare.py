"""Captures as tables, and the first place where two of them differ."""

import numpy as np
import pytest
import torch

from tests.conftest import tiny_model
from workbench.instrument import Activations, capture, resolve

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def captured(model, *points, hook=None, **options):
    with torch.no_grad():
        handle = resolve(model, [hook[0]])[0].module.register_forward_hook(hook[1]) if hook else None
        with capture(model, *points, **options) as acts:
            model(IDS)
        if handle:
            handle.remove()
    return acts


def test_captures_of_the_same_forward_do_not_differ():
    model = tiny_model()
    found = captured(model, "*").diff(captured(model, "*"))
    assert not found
    assert found.first is None
    assert found.table["max"].max() == 0
    assert found.table["same_bits"].all()
    assert str(found) == "66 points compared; the largest relative difference is 0.00e+00."


@pytest.mark.parametrize(
    ("point", "position"), [("layers.1.z", 4), ("layers.0.attn_out", 11), ("embed", 0), ("layers.2.mlp_out", 7)]
)
def test_the_first_divergence_is_the_point_that_was_changed_and_its_position(point, position):
    def change(module, args, out):
        out = out.clone()
        out[1, position] += 0.5
        return out

    model = tiny_model()
    points = ["embed", "z", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm", "logits"]
    found = captured(model, *points).diff(captured(model, *points, hook=(point, change)))
    assert found
    assert found.first == point
    row = found.table.set_index("name").loc[point]
    assert row["position"] == position
    assert row["max"] == pytest.approx(0.5, abs=1e-6)
    assert not row["same_bits"]
    assert f"The first beyond 1e-05 is {point}, at position {position}." in str(found)


def test_differences_within_the_tolerance_are_none():
    model = tiny_model()
    points = ["resid_post", "logits"]
    small = captured(model, *points, hook=("layers.0.resid_post", lambda module, args, out: out * (1 + 1e-4)))
    assert captured(model, *points).diff(small)
    assert not captured(model, *points).diff(small, tolerance=1e-2)


def test_relative_is_to_the_largest_magnitude_and_infinities_in_place_are_equal():
    a, b = Activations(), Activations()
    a.append("layers.0.scores", torch.tensor([[[[2.0, -torch.inf], [1.0, 4.0]]]]))
    b.append("layers.0.scores", torch.tensor([[[[2.0, -torch.inf], [1.0, 3.0]]]]))
    row = a.diff(b).table.iloc[0]
    assert (row["max"], row["relative"], row["position"]) == (1.0, 0.25, 1)
    c = Activations()
    c.append("layers.0.scores", torch.tensor([[[[2.0, 0.0], [1.0, 4.0]]]]))
    assert np.isinf(a.diff(c).table.iloc[0]["max"])


def test_points_that_one_of_them_lacks_are_named():
    model = tiny_model()
    found = captured(model, "q", "k").diff(captured(model, "q", "v"))
    assert found.only_a == tuple(f"layers.{i}.k" for i in range(3))
    assert found.only_b == tuple(f"layers.{i}.v" for i in range(3))
    assert "Only the first has layers.0.k, layers.1.k, layers.2.k. Only the second has layers.0.v" in str(found)


def test_captures_that_cannot_be_compared_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"no point in common: one has layers\.0\.q, .* the other layers\.0\.k"):
        captured(model, "q").diff(captured(model, "k"))
    with pytest.raises(ValueError, match=r"'layers\.0\.q' has shape \(2, 12, 4, 8\) in one capture and \(2, 3, 4, 8\)"):
        captured(model, "q").diff(captured(model, "q", positions=slice(-3, None)))


def test_the_summary_is_one_row_a_tensor():
    model = tiny_model()
    acts = captured(model, "embed", "resid_post", "resid_mid", "resid_pre", "attn_out", "scores")
    frame = acts.to_pandas().set_index("name")
    assert list(frame.index) == list(acts)
    row = frame.loc["layers.1.resid_post"]
    tensor = acts["resid_post", 1]
    assert (row["layer"], row["point"], row["shape"], row["dtype"]) == (1, "resid_post", (2, 12, 32), "float32")
    assert row["bytes"] == 2 * 12 * 32 * 4
    assert row["rms"] == pytest.approx(float(tensor.square().mean().sqrt()), rel=1e-5)
    assert row["max"] == pytest.approx(float(tensor.abs().max()), rel=1e-6)
    assert row["mean"] == pytest.approx(float(tensor.mean()), rel=1e-4, abs=1e-6)
    assert bool(row["stored"])
    assert not frame.loc["layers.1.resid_mid", "stored"]
    assert np.isfinite(frame.loc["layers.1.scores", "max"]), "masked scores are infinite and left out"


@pytest.mark.parametrize("options", [{}, {"positions": [2, 5], "heads": [1, 3]}], ids=["all", "some"])
def test_the_numbers_of_a_point_are_a_table(options):
    model = tiny_model()
    acts = captured(model, "q", "k", "resid_post", "pattern", **options)
    positions = options.get("positions", range(12))
    frame = acts.to_pandas(("q", 1))
    assert frame.index.names == ["batch", "pos", "q_head"]
    assert frame.columns.name == "d_head"
    heads = options.get("heads", range(4))
    for i, position in enumerate(positions):
        for j, head in enumerate(heads):
            np.testing.assert_array_equal(frame.loc[(1, position, head)], acts["q", 1][1, i, j])
    kv_heads = acts.kv_heads or (0, 1)
    assert set(acts.to_pandas("layers.2.k").index.get_level_values("kv_head")) == set(kv_heads)
    assert acts.to_pandas("layers.0.resid_post").shape == (2 * len(list(positions)), 32)
    pattern = acts.to_pandas(("pattern", 0))
    assert list(pattern.index.names) == ["batch", "q_head", "q_pos"]
    assert list(pattern.columns) == list(range(12))
    np.testing.assert_allclose(pattern.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_on_one_side_differs(wrong):
    a, b = Activations(), Activations()
    a.append("layers.0.q", torch.ones(1, 3, 1, 2))
    b.append("layers.0.q", torch.ones(1, 3, 1, 2).index_fill(1, torch.tensor([2]), wrong))
    for found in (a.diff(b), b.diff(a)):
        row = found.table.iloc[0]
        assert found
        assert found.first == "layers.0.q"
        assert (row["max"], row["position"], row["same_bits"]) == (torch.inf, 2, False)
    assert not b.diff(b)


def test_captures_with_gradients_are_tables_too():
    model = tiny_model()
    with capture(model, "z", "resid_post", layers=[1], gradients=True) as acts:
        model(IDS)
    assert acts.to_pandas()["rms"].gt(0).all()
    assert acts.to_pandas(("resid_post", 1)).shape == (24, 32)
    assert not acts.diff(acts)

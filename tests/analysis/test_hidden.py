import numpy as np
import pytest
import torch

from tests.conftest import tiny_model
from tests.memory import Largest
from workbench.analysis.hidden import (
    component_sizes,
    cosine_similarity,
    outlier_dimensions,
    pca_trajectories,
    residual_norms,
)
from workbench.instrument import Activations, capture

LENGTH, WIDTH = 9, 32
IDS = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def run(*points, **options):
    torch.manual_seed(0)
    model = tiny_model()
    with capture(model, *(points or ("embed", "resid_post")), **options) as acts:
        model(IDS)
    return acts


def states(acts, row=0):
    """(state, pos, d_model) in float64."""
    tensors = [acts["embed"], *(acts["resid_post", i] for i in range(3))]
    return torch.stack([x[row] for x in tensors]).double().numpy()


def made(*layers):
    """A capture of one text whose residual states after each layer are these."""
    acts = Activations()
    for i, x in enumerate(layers):
        acts.append(f"layers.{i}.resid_post", torch.as_tensor(x, dtype=torch.float32)[None])
    return acts


@pytest.mark.parametrize("row", [0, 1])
def test_norms_are_lengths_and_root_mean_squares(row):
    acts = run()
    x = states(acts, row)
    frame = residual_norms(acts, row=row)
    np.testing.assert_allclose(frame, np.sqrt((x**2).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(residual_norms(acts, "rms", row=row), np.sqrt((x**2).mean(-1)), rtol=1e-5)
    assert (frame.index.name, frame.columns.name) == ("layer", "position")
    assert frame.index.tolist() == [-1, 0, 1, 2]
    assert frame.columns.tolist() == list(range(LENGTH))


def test_layers_positions_and_what_counts_can_be_chosen():
    acts = run()
    x = states(acts)
    keep = [0, 0, 1, 1, 1, 1, 1, 0, 1]
    frame = residual_norms(acts, layers=["embed", 2], positions=slice(1, 8), keep=keep)
    assert frame.index.tolist() == [-1, 2]
    assert frame.columns.tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_allclose(frame, np.sqrt((x[[0, 3]][:, 2:7] ** 2).sum(-1)), rtol=1e-5)
    some = run(positions=[4, 7, 8])
    assert residual_norms(some, keep=torch.tensor(keep)).columns.tolist() == [4, 8]


@pytest.mark.parametrize("which", ["norms", "cosine", "pca", "outliers", "sizes"])
def test_padding_is_left_out_everywhere(which):
    keep = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    acts, changed = run("embed", "resid_post", "attn_out", "mlp_out"), None
    changed = Activations()
    for name in acts:
        x = acts[name].clone()
        x[:, :3] = 1000.0
        changed.append(name, x)
    look = {
        "norms": lambda a: residual_norms(a, keep=keep),
        "cosine": lambda a: cosine_similarity(a, layer=1, keep=keep),
        "pca": lambda a: pca_trajectories(a, keep=keep).to_pandas(),
        "outliers": lambda a: outlier_dimensions(a, 2.0, 0.0, 0.0, keep=keep),
        "sizes": lambda a: component_sizes(a, keep=keep),
    }[which]
    assert len(look(acts)) > 0
    assert look(acts).equals(look(changed))


def test_similarity_across_tokens_is_the_cosine():
    acts = run()
    x = states(acts, 1)[2]
    expected = x @ x.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    frame = cosine_similarity(acts, layer=1, row=1)
    np.testing.assert_allclose(frame, expected, atol=1e-6)
    np.testing.assert_allclose(np.diag(frame), 1.0, atol=1e-12)
    assert frame.index.tolist() == frame.columns.tolist() == list(range(LENGTH))
    some = cosine_similarity(acts, layer="embed", positions=[5, 0])
    x = states(acts)[0][[5, 0]]
    np.testing.assert_allclose(some.loc[5, 0], x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1]), atol=1e-6)


def test_similarity_across_layers_is_the_cosine():
    acts = run()
    x = states(acts)[:, -2]
    expected = x @ x.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(x, axis=1))
    frame = cosine_similarity(acts, position=-2)
    np.testing.assert_allclose(frame, expected, atol=1e-6)
    assert frame.index.tolist() == frame.columns.tolist() == [-1, 0, 1, 2]
    assert cosine_similarity(acts, position=-2, layers=[2, 0]).index.tolist() == [2, 0]


def test_opposite_states_and_states_without_direction():
    frame = cosine_similarity(made([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0]]), layer=0)
    np.testing.assert_allclose(frame.loc[0], [1.0, -1.0, 0.0, np.nan], atol=1e-12)
    assert frame.loc[3].isna().all()
    many = cosine_similarity(made(torch.randn(300, 7)), layer=0)
    assert many.max(axis=None) == 1.0, "rounding makes no cosine larger than 1"


@pytest.mark.parametrize("chosen", [{}, {"layer": 1, "position": 2}], ids=["neither", "both"])
def test_similarity_needs_a_layer_or_a_position(chosen):
    with pytest.raises(ValueError, match=r"exactly one of layer and position is needed; (neither|both) was given"):
        cosine_similarity(run(), **chosen)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_components_are_those_of_the_singular_value_decomposition(n, centred, unit):
    acts = run()
    x = states(acts)
    if unit:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True))
    flat = x.reshape(-1, WIDTH)
    mean = flat.mean(0) if centred else np.zeros(WIDTH)
    _, values, right = np.linalg.svd(flat - mean, full_matrices=False)
    found = pca_trajectories(acts, n, centred=centred, unit=unit)
    assert found.coordinates.shape == (4, LENGTH, n)
    np.testing.assert_allclose(np.abs(np.einsum("cd,cd->c", found.components, right[:n])), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.explained, values[:n] ** 2 / (values**2).sum(), rtol=1e-8)
    np.testing.assert_allclose(found.centre, mean, atol=1e-5)
    np.testing.assert_allclose(found.coordinates, (x - mean) @ found.components.T, atol=1e-4)
    assert (np.take_along_axis(found.components, np.abs(found.components).argmax(1)[:, None], 1) > 0).all()
    assert found.layers == (-1, 0, 1, 2)
    assert found.positions == tuple(range(LENGTH))


def test_signs_do_not_depend_on_the_order_of_states():
    acts = run()
    one = pca_trajectories(acts, 3)
    other = pca_trajectories(acts, 3, layers=[2, 0, "embed", 1], positions=range(LENGTH - 1, -1, -1))
    np.testing.assert_allclose(one.components, other.components, atol=1e-5)
    np.testing.assert_allclose(one.coordinates[0], other.coordinates[2, ::-1], atol=1e-4)


def test_a_line_has_one_component():
    line = np.array([1.0, 2.0, 3.0]) + np.outer(np.arange(8.0), [3.0, 0.0, -4.0])
    found = pca_trajectories(made(line[:4], line[4:]), 3)
    np.testing.assert_allclose(found.explained, [1.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.components[0], [-0.6, 0.0, 0.8], atol=1e-6)
    steps = np.diff(found.coordinates[:, :, 0].ravel())
    np.testing.assert_allclose(steps, -5.0, rtol=1e-5)
    table = found.to_pandas()
    assert list(table.columns) == ["layer", "position", "pc1", "pc2", "pc3"]
    assert table[["layer", "position"]].to_numpy().tolist() == [[i, j] for i in range(2) for j in range(4)]
    np.testing.assert_array_equal(table["pc1"], found.coordinates[:, :, 0].ravel())


@pytest.mark.parametrize("n", [0, 33])
def test_more_components_than_there_are_are_refused(n):
    with pytest.raises(ValueError, match=rf"n is {n}; 36 states of 32 numbers have 1 … 32 components"):
        pca_trajectories(run(), n)


@pytest.mark.parametrize("positions", [3, 8, 40], ids=["few", "as many as numbers", "many"])
@pytest.mark.parametrize("unit", [False, True])
def test_components_of_many_states_are_found_layer_by_layer(positions, unit):
    x = torch.randn(12, positions, 8, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 9)
    wide = x.double().numpy()
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True)) if unit else wide
    flat = wide.reshape(-1, 8)
    _, values, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    found = pca_trajectories(made(*x), 3, unit=unit)
    np.testing.assert_allclose(np.abs(np.einsum("cd,cd->c", found.components, right[:3])), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.explained, values[:3] ** 2 / (values**2).sum(), rtol=1e-8)
    np.testing.assert_allclose(found.coordinates, (wide - flat.mean(0)) @ found.components.T, atol=1e-4)


def test_no_tensor_of_all_states_is_made():
    acts = made(*torch.randn(30, 100, 16))
    with Largest() as seen:
        pca_trajectories(acts, 2)
    assert 100 * 16 * 8 <= seen.nbytes <= 3 * 100 * 16 * 8


def outliers(**options):
    """Ten layers of twenty positions: ±1 everywhere, but dimension 3 is 10 from layer 4 on, dimension 5 is −30 at the
    first position of all layers, and dimension 7 is 20 everywhere in one layer.
    """
    x = np.sign(np.random.default_rng(0).standard_normal((10, 20, 200)))
    x[4:, :, 3] = 10.0
    x[:, 0, 5] = -30.0
    x[3, :, 7] = 20.0
    return outlier_dimensions(made(*x), **options), x


def test_an_outlier_is_large_in_enough_layers_and_states():
    frame, x = outliers()
    assert frame["dimension"].tolist() == [3]
    assert frame["layers"].tolist() == pytest.approx([0.6])
    sizes = np.sqrt((x**2).mean(-1, keepdims=True))
    # At the first position the state itself is larger, so 10 is no more than six times its root mean square there.
    assert frame["states"].tolist() == pytest.approx([((np.abs(x) / sizes)[..., 3] >= 6).mean()])
    assert frame["largest"].tolist() == [10.0]
    assert frame["ratio"].tolist() == pytest.approx([(np.abs(x) / sizes)[..., 3].max()], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "dimensions"),
    [
        (dict(state_share=0.0), [3, 5]),
        (dict(state_share=0.0, layer_share=0.0), [3, 7, 5]),
        (dict(layer_share=0.7), []),
        (dict(layer_share=0.6), [3]),
        (dict(layer_share=0.1), [3, 7]),
        (dict(threshold=12.0, state_share=0.0), [5]),
        (dict(threshold=10.0, relative=False), [3]),
        (dict(threshold=10.1, relative=False), []),
        (dict(threshold=0.9, relative=False), None),
        (dict(positions=[0], threshold=6.0, state_share=0.9), [5]),
        (dict(layers=[3, 4], state_share=0.4), [7, 3]),
    ],
    ids=str,
)
def test_what_counts_as_an_outlier_can_be_chosen(options, dimensions):
    frame, x = outliers(**options)
    found = frame["dimension"].tolist()
    assert found == dimensions if dimensions is not None else len(found) == x.shape[-1]


@pytest.mark.parametrize(("large", "found"), [(2, []), (3, [5]), (4, [5])])
def test_a_share_that_is_just_reached_counts(large, found):
    x = np.ones((4, 50, 200))
    x[:, :large, 5] = 30.0  # 3 of 50 states are 6 %
    assert outlier_dimensions(made(*x))["dimension"].tolist() == found
    one = outlier_dimensions(made(*x), layer_share=1.0, state_share=large / 50)
    assert one[["layers", "states"]].to_numpy().tolist() == [[1.0, large / 50]]


def test_the_embedding_is_no_layer_unless_it_is_asked_for():
    acts = made(np.ones((4, 40)))
    embed = np.ones((4, 40))
    embed[:, 2] = 90.0
    acts.append("embed", torch.as_tensor(embed, dtype=torch.float32)[None])
    assert outlier_dimensions(acts)["dimension"].tolist() == []
    assert outlier_dimensions(acts, layers=["embed", 0])["dimension"].tolist() == [2]


def test_sizes_of_what_attention_and_mlp_add():
    acts = run("attn_out", "mlp_out")
    frame = component_sizes(acts, positions=[2, -1], row=1)
    assert list(frame.columns) == ["layer", "position", "attn", "mlp", "attn_share"]
    assert frame[["layer", "position"]].to_numpy().tolist() == [[i, p] for i in range(3) for p in (2, 8)]
    for _, line in frame.iterrows():
        attn, mlp = (
            float((acts[point, int(line["layer"])][1, int(line["position"])].double() ** 2).sum() ** 0.5)
            for point in ("attn_out", "mlp_out")
        )
        assert line["attn"] == pytest.approx(attn, rel=1e-5)
        assert line["mlp"] == pytest.approx(mlp, rel=1e-5)
        assert line["attn_share"] == pytest.approx(attn / (attn + mlp), rel=1e-5)


def test_only_layers_of_which_both_were_captured_are_compared():
    acts = run("layers.0.attn_out", "layers.1.attn_out", "layers.1.mlp_out")
    assert component_sizes(acts)["layer"].unique().tolist() == [1]
    with pytest.raises(KeyError, match=r"need 'attn_out' and 'mlp_out' of the same layer; captured are layers\.0"):
        component_sizes(run("layers.0.attn_out", "layers.1.mlp_out"))


LOOKS = {
    "norms": residual_norms,
    "cosine": lambda a, **options: cosine_similarity(a, layer=1, **options),
    "pca": lambda a, **options: pca_trajectories(a, **options).to_pandas(),
    "outliers": lambda a, **options: outlier_dimensions(a, 2.0, 0.0, 0.0, **options),
    "sizes": component_sizes,
}


@pytest.mark.parametrize("which", LOOKS)
def test_captures_that_gradients_flow_through_are_looked_at_too(which):
    torch.manual_seed(0)
    model, points = tiny_model(), ("embed", "resid_post", "attn_out", "mlp_out")
    with capture(model, *points, gradients=True) as acts:
        model(IDS).logits.sum().backward()
    assert acts["resid_post", 1].requires_grad
    np.testing.assert_allclose(LOOKS[which](acts), LOOKS[which](run(*points)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("which", LOOKS)
@pytest.mark.parametrize("one", [3, np.int64(3), np.array(3), torch.tensor(3), torch.tensor([3])], ids=repr)
def test_one_position_is_any_whole_number(which, one):
    acts = run("embed", "resid_post", "attn_out", "mlp_out")
    options = {"row": np.int64(-1)}
    assert LOOKS[which](acts, positions=one, **options).equals(LOOKS[which](acts, positions=[3], row=1))
    several = torch.tensor([1, -2])
    assert LOOKS[which](acts, positions=several, **options).equals(LOOKS[which](acts, positions=[1, -2], row=1))


@pytest.mark.parametrize(
    ("look", "error", "words"),
    [
        (lambda a: residual_norms(a, positions=2.0), TypeError, r"position is 2\.0; a whole number is needed"),
        (lambda a: residual_norms(a, positions=[True]), TypeError, r"position is True; a whole number is needed"),
        (lambda a: residual_norms(a, row=None), TypeError, r"row is None; a whole number is needed"),
        (lambda a: residual_norms(a, row=-3), ValueError, r"row -3 does not exist; this capture has rows 0 … 1"),
        (lambda a: residual_norms(a, layers=[1.0]), ValueError, r"layers has 1\.0; write numbers from 0, or 'embed'"),
        (lambda a: cosine_similarity(a, position=slice(2)), TypeError, r"position is slice\(None, 2, None\); a whole"),
        (lambda a: residual_norms(a, "l1"), ValueError, r"kind is 'l1'; allowed are 'l2' and 'rms'"),
        (
            lambda a: residual_norms(a, keep=[1, 1]),
            ValueError,
            r"keep has shape \(2,\); one number .* text's 9 positions",
        ),
        (lambda a: residual_norms(a, keep=[0] * 9), ValueError, r"no captured position is left"),
        (lambda a: residual_norms(a, row=5), ValueError, r"row 5 does not exist; this capture has rows 0 … 1"),
        (lambda a: pca_trajectories(a, layers=[7]), KeyError, r"state after layer 7 was not captured"),
        (lambda a: cosine_similarity(a, position=30), ValueError, r"position 30 was not captured"),
    ],
)
def test_what_does_not_exist_is_refused(look, error, words):
    with pytest.raises(error, match=words):
        look(run())

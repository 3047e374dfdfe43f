import numpy as np
import pytest
import torch

from tests.analysis.attention_cases import CASES, LENGTH, case, eager, texts
from workbench.analysis.attention import AttentionMap
from workbench.instrument import capture


def rolled(patterns):
    """Rollout of (layer, head, q, k), as the paper writes it: Ã = A + I with rows scaled to 1, multiplied up."""
    result = np.eye(patterns.shape[-1])
    for layer in patterns.astype(np.float64):
        mixing = layer.mean(0) + np.eye(patterns.shape[-1])
        result = (mixing / mixing.sum(1, keepdims=True)) @ result
    return result


@pytest.mark.parametrize("cells", [1 << 19, 300], ids=["one block", "several blocks"])
@pytest.mark.parametrize("name", CASES)
def test_rollout_and_its_rows_are_the_product_of_all_layers(name, cells, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention_blocks.CELLS", cells)
    expected = case(name)
    for row in range(len(expected.ids)):
        attention, whole = AttentionMap(expected.acts, row=row), rolled(expected.patterns[:, row])
        found = attention.rollout()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole, atol=1e-5, rtol=0)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        for q in (0, 6, LENGTH - 1):
            np.testing.assert_allclose(attention.rollout_row(q), whole[q], atol=1e-5, rtol=0)


def test_rollout_of_chosen_layers():
    attention, patterns = AttentionMap(case("gqa").acts), case("gqa").patterns[:, 0]
    np.testing.assert_allclose(attention.rollout([0, 2]), rolled(patterns[[0, 2]]), atol=1e-5)
    np.testing.assert_allclose(attention.rollout_row(9, [0, 2]), rolled(patterns[[0, 2]])[9], atol=1e-5)


def test_a_position_that_may_attend_to_nothing_stays_itself():
    attention = AttentionMap(case("padding").acts, row=0)
    np.testing.assert_array_equal(attention.rollout()[:5], np.eye(LENGTH)[:5])
    np.testing.assert_array_equal(attention.rollout_row(3), np.eye(LENGTH)[3])


@torch.no_grad()
@pytest.mark.parametrize("look", [lambda a: a.rollout(), lambda a: a.rollout_row(3)], ids=["whole", "row"])
def test_what_rollout_lacks_is_named(look):
    model = eager()
    with capture(model, "q_rot", "k_rot", layers=[0, 2]) as acts:
        model(texts())
    with pytest.raises(ValueError, match=r"rollout multiplies the layers from 0 on; captured are 0, 2\. Capture the"):
        look(AttentionMap(acts))
    with capture(model, "q_rot", "k_rot", heads=[1, 2]) as acts:
        model(texts())
    with pytest.raises(
        ValueError, match=r"rollout averages all heads of a layer; only query heads 1 … 2 were captured"
    ):
        look(AttentionMap(acts))


def test_a_query_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"query 17 does not exist; this map has positions 0 … 16"):
        AttentionMap(case("gqa").acts).rollout_row(17)


def test_rollout_stops_when_asked():
    attention, calls = AttentionMap(case("gqa").acts), []

    def stop():
        calls.append(1)
        return len(calls) == 2

    assert attention.rollout(should_stop=stop) is None
    assert len(calls) == 2
    calls.clear()
    assert attention.rollout_row(16, should_stop=stop) is None
    assert len(calls) == 2

import math

import pytest
import torch

from workbench.generation import Timeline
from workbench.generation.timeline import TOP, score_tokens


def tree():
    """0 → 1 → 2, and a branch 1 → 3 → 4."""
    timeline = Timeline()
    for token, parent in ((10, None), (11, 0), (12, 1), (13, 1), (14, 3)):
        timeline.add(token, "prompt" if parent is None else "sampled", parent)
    return timeline


def test_nodes_are_numbered_in_the_order_they_are_added():
    timeline = tree()
    assert [node.index for node in timeline.nodes] == [0, 1, 2, 3, 4]
    assert [node.source for node in timeline.nodes] == ["prompt", "sampled", "sampled", "sampled", "sampled"]


@pytest.mark.parametrize(("index", "tokens"), [(0, [10]), (2, [10, 11, 12]), (4, [10, 11, 13, 14])])
def test_a_path_is_the_text_up_to_a_node(index, tokens):
    assert [node.token for node in tree().path(index)] == tokens


@pytest.mark.parametrize(("index", "tokens"), [(0, [11]), (1, [12, 13]), (2, []), (3, [14])])
def test_children_are_what_was_taken_after_a_node(index, tokens):
    assert [node.token for node in tree().children(index)] == tokens


def test_a_first_token_was_predicted_by_nothing():
    node = Timeline().add(10, "prompt", None)
    assert (node.logprob, node.entropy, node.rank, node.top_ids, node.top_logprobs) == (None, None, None, (), ())
    assert (node.ms, node.positions_computed, node.cache_bytes) == (0.0, 0, 0)


def test_a_node_holds_the_row_of_the_prediction_it_came_from():
    logits = torch.randn(3, 50)
    scores = score_tokens(logits, torch.tensor([4, 7, 1]), top=5)
    node = Timeline().add(7, "forced", None, scores, row=1)
    logprobs = logits[1].log_softmax(-1)
    assert node.logprob == pytest.approx(logprobs[7].item())
    assert node.entropy == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), rel=1e-5)
    assert node.rank == 1 + int((logits[1] > logits[1, 7]).sum())
    assert node.top_ids == tuple(logits[1].topk(5).indices.tolist())
    assert node.top_logprobs == pytest.approx(tuple(logprobs.topk(5).values.tolist()))
    assert node.source == "forced"
    # Plain Python, so that a timeline can be kept and written without tensors.
    assert {type(v) for v in (node.logprob, node.entropy, *node.top_logprobs)} == {float}
    assert {type(v) for v in (node.rank, *node.top_ids)} == {int}


def test_recording_a_cost_changes_that_node_only_and_nothing_else_of_it():
    timeline = tree()
    before = list(timeline.nodes)
    timeline.record_cost(3, ms=1.5, positions=7, cache_bytes=4096)
    node = timeline.nodes[3]
    assert (node.ms, node.positions_computed, node.cache_bytes) == (1.5, 7, 4096)
    assert (node.index, node.parent, node.token, node.source) == (3, 1, 13, "sampled")
    assert timeline.nodes[:3] + timeline.nodes[4:] == before[:3] + before[4:]
    assert before[3].ms == 0.0, "a node somebody holds does not change"
    assert timeline.path(4)[2] == node
    assert timeline.children(1)[1] == node


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_scores_are_of_the_plain_softmax_in_float32(dtype):
    logits = (torch.randn(6, 40) * 4).to(dtype)
    tokens = torch.randint(0, 40, (6,))
    scores = score_tokens(logits, tokens)
    logprobs = logits.double().log_softmax(-1)
    for row, token in enumerate(tokens.tolist()):
        assert scores.logprob[row].item() == pytest.approx(logprobs[row, token].item(), abs=1e-5)
        entropy = -sum(p * math.log(p) for p in logprobs[row].exp().tolist())
        assert scores.entropy[row].item() == pytest.approx(entropy, abs=1e-5)
        assert scores.rank[row].item() == 1 + sum(v > logits[row, token].item() for v in logits[row].tolist())
    assert scores.top_ids.shape == scores.top_logprobs.shape == (6, TOP)
    torch.testing.assert_close(scores.top_logprobs, logprobs.topk(TOP).values.float(), rtol=1e-5, atol=1e-5)


def test_ties_share_the_better_rank():
    logits = torch.tensor([[3.0, 1.0, 3.0, 0.0, 1.0]]).expand(5, 5)
    assert score_tokens(logits, torch.arange(5)).rank.tolist() == [1, 3, 1, 5, 3]


def test_top_is_at_most_the_vocabulary():
    assert score_tokens(torch.randn(2, 3), torch.tensor([0, 1]), top=20).top_ids.shape == (2, 3)


def test_tokens_that_cannot_occur_leave_the_entropy_finite():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    scores = score_tokens(logits, torch.tensor([2]))
    assert scores.entropy.item() == pytest.approx(math.log(2))
    assert scores.logprob.item() == -math.inf
    assert scores.rank.item() == 3


def test_the_entropy_of_a_certain_prediction_is_zero_and_of_an_even_one_the_logarithm():
    logits = torch.stack((torch.tensor([1000.0] + [0.0] * 9), torch.zeros(10)))
    assert score_tokens(logits, torch.tensor([0, 0])).entropy.tolist() == pytest.approx([0.0, math.log(10)])

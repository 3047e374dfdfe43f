import math

import pytest
import torch

from workbench.generation.timeline import TOP, score_tokens


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


def test_rows_are_plain_python_so_that_a_timeline_is_kept_without_tensors():
    row = score_tokens(torch.randn(3, 50), torch.tensor([4, 7, 1]), top=5).rows()[1]
    assert {type(v) for v in (row["logprob"], row["entropy"], *row["top_logprobs"], *row["top_logits"])} == {float}
    assert {type(v) for v in (row["rank"], *row["top_ids"])} == {int}
    assert type(row["top_ids"]) is tuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_model
from tests.memory import Largest
from workbench.analysis import predictions as module
from workbench.analysis.predictions import Scratch, head_blocks, largest, predictions

STATES, POSITIONS, VOCAB = 3, 5, 1000


def some_logits(scale=4.0, dtype=torch.float32):
    torch.manual_seed(0)
    return (torch.randn(POSITIONS * STATES, VOCAB, dtype=torch.float64) * scale).to(dtype)


def some_tokens(columns=2):
    return torch.randint(0, VOCAB, (POSITIONS * STATES, columns), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [1000, 300, 64, 1], ids=lambda w: f"blocks of {w}")
def test_all_numbers_are_those_of_plain_float64(width):
    logits, tokens = some_logits(), some_tokens()
    if width == 1:
        logits, tokens = logits[:, :97], tokens % 97
    found = predictions(logits.split(width, 1), STATES, tokens, 7)
    logprobs = logits.double().log_softmax(-1)
    top = logprobs.topk(7)
    assert found.top_ids.tolist() == top.indices.tolist()
    close = dict(rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.top_logprobs.double(), top.values, **close)
    torch.testing.assert_close(found.entropy.double(), -(logprobs.exp() * logprobs).sum(-1), **close)
    own = logprobs.gather(1, tokens)
    torch.testing.assert_close(found.logprob.double(), own, **close)
    expected = torch.stack([1 + (logprobs > own[:, i, None]).sum(1) for i in range(2)], 1)
    assert found.rank.tolist() == expected.tolist()
    final = logprobs[STATES - 1 :: STATES].repeat_interleave(STATES, 0)
    kl = F.kl_div(logprobs, final, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.kl.double(), kl, **close)
    reverse = F.kl_div(final, logprobs, log_target=True, reduction="none").sum(-1)
    assert not torch.allclose(kl, reverse, rtol=1e-2), "the direction would be seen"
    assert torch.equal(found.final_logits, logits[STATES - 1 :: STATES])


def test_a_final_row_diverges_from_itself_by_exactly_nothing_and_nothing_is_negative():
    logits = some_logits(scale=30.0)  # nearly certain: rounding would make entropy and divergence negative
    logits[1::STATES] = logits[2::STATES] * (1 + 1e-7 * torch.randn(POSITIONS, VOCAB))
    found = predictions(logits.split(300, 1), STATES, some_tokens(), 3)
    assert found.kl[2::STATES].tolist() == [0.0] * POSITIONS
    assert (found.kl >= 0).all()
    assert (found.entropy >= 0).all()
    assert found.kl[1::STATES].max() < 1e-4


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_large_logits_neither_overflow_nor_vanish(shift):
    logits = some_logits(scale=40.0) + shift
    found = predictions(logits.split(300, 1), STATES, some_tokens(), 3)
    logprobs = logits.double().log_softmax(-1)
    torch.testing.assert_close(found.logprob.double(), logprobs.gather(1, some_tokens()), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found.entropy.double(), torch.special.entr(logprobs.exp()).sum(-1), rtol=1e-3, atol=2e-4)


def test_sums_over_a_large_vocabulary_stay_exact():
    torch.manual_seed(0)
    logits = torch.randn(20, 50_000) * 4 + 20
    found = predictions(torch.split(logits, 17_000, 1), 5, torch.zeros(20, 1, dtype=torch.long), 5)
    logprobs = logits.double().log_softmax(-1)
    close = dict(rtol=0, atol=3e-5)
    torch.testing.assert_close(found.entropy.double(), torch.special.entr(logprobs.exp()).sum(-1), **close)
    torch.testing.assert_close(found.logprob[:, 0].double(), logprobs[:, 0], **close)


def test_equal_logits_share_a_rank():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 0.0]])
    found = predictions(logits.split(2, 1), 1, torch.tensor([[1, 4, 3, 0, 5]]), 6)
    assert found.rank.tolist() == [[1, 1, 4, 5, 6]]
    assert sorted(found.top_ids[0, :3].tolist()) == [1, 2, 4]
    assert found.top_ids[0, 3:].tolist() == [3, 0, 5]


@pytest.mark.parametrize(
    ("given", "used"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_numbers_are_computed_in_float32_or_wider(given, used):
    found = predictions(some_logits(dtype=given).split(300, 1), STATES, some_tokens(), 3)
    assert {x.dtype for x in (found.top_logprobs, found.entropy, found.kl, found.logprob)} == {used}
    exact = some_logits(dtype=given).double().log_softmax(-1)
    torch.testing.assert_close(found.logprob.double(), exact.gather(1, some_tokens()), rtol=1e-5, atol=1e-5)


def test_memory_that_was_used_before_changes_nothing():
    scratch = Scratch()
    for logits in (some_logits(), some_logits()[:6, :200], some_logits(dtype=torch.float64), some_logits(scale=1.0)):
        tokens = some_tokens()[: len(logits)] % logits.shape[1]
        used = predictions(logits.split(170, 1), STATES, tokens, 3, scratch=scratch)
        fresh = predictions(logits.split(170, 1), STATES, tokens, 3)
        for name in ("top_ids", "top_logprobs", "entropy", "kl", "logprob", "rank"):
            assert torch.equal(getattr(used, name), getattr(fresh, name)), name


def test_it_can_be_stopped_between_blocks():
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 3

    assert predictions(some_logits().split(200, 1), STATES, some_tokens(), 3, should_stop) is None
    assert len(asked) == 3
    assert predictions([some_logits()], STATES, some_tokens(), 3, should_stop) is not None
    assert len(asked) == 3, "a single block has nothing between"


@pytest.mark.parametrize("columns", [5, 64, 640, 1000, 1281, 4096])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_largest_are_exactly_those_of_a_sort(columns, k):
    x = torch.randn(40, columns)
    x[0, -1] = x[1, 0] = x[2, columns // 2] = 9.0  # the rest behind the last group, the first, the middle
    x[3, : min(columns, 12)] = torch.arange(20.0, 20.0 + min(columns, 12))  # all in one group
    values, ids = largest(x, k)
    order = x.sort(descending=True)
    assert torch.equal(values, order.values[:, :k])
    assert torch.equal(ids, order.indices[:, :k])


def test_the_largest_of_many_equal_ones_are_as_large():
    x = torch.zeros(3, 4096)
    x[1, ::7] = 1.0
    values, ids = largest(x, 10)
    assert torch.equal(values, x.topk(10).values)
    assert torch.equal(x.gather(1, ids), values)
    assert all(len(set(row)) == 10 for row in ids.tolist()), "no column twice"


@pytest.mark.parametrize("block", [1, 640, 1 << 20], ids=["small blocks", "some", "one"])
@pytest.mark.parametrize("head", ["plain", "biased", "wrapped", "other"])
@torch.no_grad()
def test_blocks_of_the_head_are_the_logits_of_the_states(head, block):
    model = tiny_model(vocab_size=300)
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)
    states = torch.randn(7, 32)
    expected = F.linear(model.model.norm(states), model.lm_head.weight)
    if head == "biased":
        weight, model.lm_head = model.lm_head.weight, torch.nn.Linear(32, 300)
        model.lm_head.weight.copy_(weight)
        expected = expected + model.lm_head.bias
    if head == "wrapped":
        plain = model.lm_head.forward
        model.lm_head.forward = lambda x: plain(x) * 2
        expected = expected * 2
    if head == "other":
        model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Tanh())
        expected = expected.tanh()
    blocks = list(head_blocks(model, states, block))
    assert [b.shape[1] for b in blocks] == {1: [64] * 4 + [44], 640: [64] * 4 + [44], 1 << 20: [300]}[block]
    assert all(b.is_contiguous() for b in blocks)
    np.testing.assert_allclose(torch.cat(blocks, 1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_tensor_larger_than_a_few_blocks_is_made(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 6400)
    model = tiny_model(vocab_size=20_000)
    states = torch.randn(50, 32)
    with Largest() as seen:
        blocks = head_blocks(model, states, module.BLOCK)
        predictions(blocks, 5, torch.zeros(50, 1, dtype=torch.long), 3)
    whole = 50 * 20_000
    assert 0 < seen.nbytes < whole  # a quarter of its bytes
    with Largest() as seen:
        model.lm_head.forward(states)
    assert seen.nbytes == whole * 4, "the measure sees the whole"

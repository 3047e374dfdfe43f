import math

import pytest
import torch

from workbench.generation import Sampler

CPU = torch.device("cpu")
# Five tokens, not in order of likelihood.
PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
LOGITS = PROBABILITIES.log()[None]


def kept(sampler, logits=LOGITS):
    return sampler.filter(logits)[0].isfinite().nonzero()[:, 0].tolist()


def draws(sampler, logits=LOGITS, count=4000):
    return sampler.pick(logits.expand(count, -1), sampler.generator(CPU))


def test_the_default_takes_the_most_likely_token():
    assert Sampler().greedy
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -2.0, 4.0]])
    assert Sampler().pick(logits).tolist() == [1, 0]


def test_temperature_zero_is_greedy_whatever_else_is_set():
    assert Sampler(temperature=0, top_k=3, top_p=0.5, seed=9).pick(LOGITS).tolist() == [1]


def test_temperature_one_draws_from_the_plain_softmax():
    shares = draws(Sampler(temperature=1.0)).bincount(minlength=5) / 4000
    torch.testing.assert_close(shares, PROBABILITIES, rtol=0, atol=0.03)
    assert torch.equal(Sampler(temperature=1.0).filter(LOGITS), LOGITS)


@pytest.mark.parametrize("temperature", [0.5, 2.0], ids=["cold", "hot"])
def test_temperature_divides_the_logits(temperature):
    expected = PROBABILITIES ** (1 / temperature) / (PROBABILITIES ** (1 / temperature)).sum()
    shares = draws(Sampler(temperature=temperature)).bincount(minlength=5) / 4000
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (0, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (500, [0, 1, 2, 3, 4])],
    ids=["one", "two", "three", "zero keeps all", "all", "more than there are"],
)
def test_top_k_keeps_the_most_likely(top_k, expected):
    assert kept(Sampler(temperature=1.0, top_k=top_k)) == expected


def test_tokens_that_tie_with_the_last_kept_one_stay():
    assert kept(Sampler(temperature=1.0, top_k=4)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.999, [0, 1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, expected):
    assert kept(Sampler(temperature=1.0, top_p=top_p)) == expected


@pytest.mark.parametrize("top_p", [1e-9, 0.5, 0.999999])
def test_top_p_always_keeps_the_most_likely_token(top_p):
    certain = torch.full((1, 5), -1e4)
    certain[0, 3] = 1e4
    assert kept(Sampler(temperature=1.0, top_p=top_p), certain)[:1] == [3]
    assert draws(Sampler(temperature=1.0, top_p=top_p), certain, 20).unique().tolist() == [3]


def test_top_p_of_one_keeps_tokens_too_unlikely_for_float32_sums():
    logits = torch.tensor([[0.0, -100.0, -200.0]])
    assert torch.equal(Sampler(temperature=1.0, top_p=1.0).filter(logits), logits)


def test_top_p_counts_after_top_k_and_temperature():
    # Of the two tokens that top-k leaves, the first has 0.5 / 0.8 = 0.625 of the probability.
    assert kept(Sampler(temperature=1.0, top_k=2, top_p=0.6)) == [1]
    assert kept(Sampler(temperature=1.0, top_k=0, top_p=0.6)) == [1, 3]
    # At temperature 0.25 the first token alone has 0.88.
    assert kept(Sampler(temperature=0.25, top_p=0.8)) == [1]


def test_each_row_is_cut_by_itself():
    logits = torch.stack((LOGITS[0], LOGITS[0].flip(0)))
    both = Sampler(temperature=1.0, top_p=0.6).filter(logits)
    assert torch.equal(both[0].isfinite(), both[1].isfinite().flip(0))


def test_only_kept_tokens_are_drawn():
    assert set(draws(Sampler(temperature=1.0, top_k=2)).tolist()) == {1, 3}


def test_filtering_does_not_change_the_logits_given():
    before = LOGITS.clone()
    Sampler(temperature=0.7, top_k=2, top_p=0.6).filter(LOGITS)
    assert torch.equal(LOGITS, before)


def test_the_same_seed_draws_the_same_tokens_and_another_one_others():
    first, again = draws(Sampler(temperature=1.0, seed=4)), draws(Sampler(temperature=1.0, seed=4))
    assert torch.equal(first, again)
    assert not torch.equal(first, draws(Sampler(temperature=1.0, seed=5)))


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    draws(Sampler(temperature=1.0, seed=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_one_is_drawn_from():
    sampler, many = Sampler(temperature=1.0), LOGITS.expand(50, -1)
    torch.manual_seed(1)
    first = sampler.pick(many)
    torch.manual_seed(1)
    assert torch.equal(sampler.pick(many), first)
    assert not torch.equal(sampler.pick(many), first)


def test_half_precision_logits_are_drawn_in_float32():
    sampler = Sampler(temperature=1.0, top_p=0.9)
    assert set(draws(sampler, LOGITS.bfloat16(), 200).tolist()) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.5}, r"temperature is -0\.5; it must be 0 \(greedy\) or a positive number"),
        ({"temperature": math.nan}, r"temperature is nan; it must be 0 \(greedy\)"),
        ({"temperature": math.inf}, r"temperature is inf; it must be 0 \(greedy\)"),
        ({"top_k": -1}, r"top_k is -1; it must be 0 \(all tokens\) or a positive whole number"),
        ({"top_k": 2.5}, r"top_k is 2\.5; it must be 0 \(all tokens\) or a positive whole number"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must lie in \(0, 1\], where 1 keeps all tokens"),
        ({"top_p": 1.1}, r"top_p is 1\.1; it must lie in \(0, 1\]"),
        ({"top_p": math.nan}, r"top_p is nan; it must lie in \(0, 1\]"),
    ],
    ids=repr,
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**values)

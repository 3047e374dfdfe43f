"""Rules by what they do, masks that only look inverted, masks without queries, and where a mask adds to scores."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from workbench.analysis.mask import applied_mask
from workbench.analysis.mask_checks import check_mask
from workbench.model.mask import Mask, Rule, causal, custom, document, empty_slot, padding, sink, window
from workbench.model.mask_rules import RULES, kind_of

KEEP = torch.tensor([[0, 0, 1, 1, 1, 1]])
NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 1]])
ALL = torch.ones(6, 6, dtype=torch.bool)


def mask_of(*rules, bias=None):
    return Mask(rules, torch.arange(6), torch.arange(6), bias)


def test_a_rule_is_of_the_kind_that_made_it_whatever_it_is_called():
    made = [causal(), padding(KEEP), window(2), sink(1), document(NUMBERS), empty_slot(), custom(ALL)]
    assert [kind_of(rule) for rule in made] == list(RULES)
    assert [kind_of(dataclasses.replace(rule, name="causal", letter="?")) for rule in made] == list(RULES)
    assert kind_of(sink(1, torch.tensor([2]))) == "sink"
    assert kind_of(Rule("causal", "C", lambda q, k: k <= q)) is None


# --- what is known of a text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("renamed", [False, True])
def test_padding_and_documents_are_known_by_any_name(renamed):
    rules = [causal(), padding(KEEP), document(NUMBERS)]
    rules = [dataclasses.replace(rule, name=f"my {rule.name}") for rule in rules] if renamed else rules
    report = check_mask(mask_of(*rules))
    assert report["padding"].passed is report["documents"].passed is True
    assert report["fully masked rows"].detail == "queries 0–1 may attend to nothing, all of them padding"
    assert report.real.tolist() == [[False, False, True, True, True, True]]


@pytest.mark.parametrize("name", ["keep", "numbers"])
@pytest.mark.parametrize("value", [3, torch.tensor([3])], ids=["a number", "a tensor"])
def test_a_rule_of_ones_own_says_nothing_of_padding_or_documents(name, value):
    allows = {"keep": lambda q, k, *row, keep: k < keep + 9, "numbers": lambda q, k, *row, numbers: k < numbers + 9}
    report = check_mask(mask_of(causal(), Rule("mine", "M", allows[name], {name: value})))
    assert (report["padding"].passed, report["documents"].passed) == (None, None)
    assert report.passed


def test_an_exception_says_nothing_of_padding():
    report = check_mask(mask_of(causal(), window(2), dataclasses.replace(padding(KEEP), excepts="window")))
    assert report["padding"].passed is None
    assert report["fully masked rows"].passed


# --- polarity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 1, 2, 3])
def test_a_mask_that_sees_everything_but_its_own_position_is_not_called_inverted(seed):
    cells = ALL.clone()
    if seed is not None:  # as many later cells as earlier ones
        cells = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)) < 0.7
        cells = cells | cells.T
    later = int(cells.triu(1).sum())
    polarity = check_mask(mask_of(custom(cells & ~torch.eye(6, dtype=torch.bool))))["polarity"]
    assert polarity.passed
    assert polarity.detail == f"bidirectional: {later} cells later than the query may be attended to"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            ~ALL.tril(),
            "queries 1–4 may attend to later positions but not to earlier ones or their own: the mask looks inverted. "
            "True means may attend; try ~mask",
        ),
        (
            ~(ALL.tril() & ~ALL.tril(-3)),
            "queries 1–4 may attend to later positions but not to their own, and to fewer earlier ones: the mask looks "
            "inverted. True means may attend; try ~mask",
        ),
        (
            ALL.triu(),
            "queries 1–4 may attend to later positions and their own but to none earlier: the mask looks transposed "
            "or inverted. Queries come first, and True means may attend; try mask.mT or ~mask",
        ),
    ],
    ids=["inverted", "inverted window", "transposed"],
)
def test_what_looks_wrong_is_said_as_it_is(cells, words):
    polarity = check_mask(mask_of(custom(cells)))["polarity"]
    assert polarity.passed is False
    assert polarity.detail == words


def test_queries_that_see_their_own_position_are_not_named():
    cells = ~ALL.tril()
    cells[2, 2] = True
    detail = check_mask(mask_of(custom(cells)))["polarity"].detail
    assert detail.startswith("queries 1, 3–4 may attend to later positions but not to earlier ones or their own")


# --- nothing to check ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "keys"), [(0, 5), (5, 0), (0, 0)])
def test_a_mask_without_cells_is_refused(queries, keys):
    mask = Mask([causal()], torch.arange(queries), torch.arange(keys))
    with pytest.raises(ValueError, match=rf"this mask has {queries} queries and {keys} keys; at least one of each is"):
        check_mask(mask)


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("head", [None, 0, 3, np.int64(2)], ids=repr)
def test_what_is_added_to_scores_is_shown_where_it_is(heads, head):
    bias = torch.zeros(1, heads, 6, 6)
    bias[0, -1, 3, 1] = 2.0
    bias[0, 0, 2, 0] = -math.inf
    shown = applied_mask(mask_of(causal(), bias=bias), 5, head)
    expected = bias if head is None or heads == 1 else bias[:, head : head + 1]
    assert shown.biased == (shown.bias is not None) == bool((expected == 2.0).any())
    if shown.biased:
        np.testing.assert_array_equal(shown.bias, expected[:, :, :5, :5].numpy())
        assert shown.bias.dtype == np.float32


def test_a_mask_that_only_forbids_adds_nothing():
    assert applied_mask(mask_of(causal()), 5).bias is None
    forbids = torch.zeros(1, 1, 6, 6).masked_fill(~ALL.tril(), -math.inf)
    shown = applied_mask(mask_of(custom(ALL.tril()), bias=forbids), 5)
    assert (shown.biased, shown.bias) == (False, None)
    bias = torch.zeros(1, 4, 6, 6, dtype=torch.bfloat16)
    bias[0, 1, 3, 1] = 2.0
    assert applied_mask(mask_of(causal(), bias=bias), 5, head=1).bias[0, 0, 3, 1] == 2.0
    other = applied_mask(mask_of(causal(), bias=bias), 5, head=2)
    assert (other.biased, other.bias) == (False, None), "what is added is of the head that is shown"


@pytest.mark.parametrize("head", [-1, 4])
def test_a_head_that_does_not_exist_is_refused(head):
    with pytest.raises(ValueError, match=rf"head {head} does not exist; this mask has heads 0 … 3"):
        applied_mask(mask_of(causal(), bias=torch.zeros(1, 4, 6, 6)), 5, head)
    for mask in (mask_of(causal()), mask_of(causal(), bias=torch.zeros(1, 1, 6, 6))):
        assert applied_mask(mask, 5, 4).rules[0] == ("causal", "C"), "one mask for all heads, however many"
        with pytest.raises(ValueError, match=r"head -1 does not exist; heads count from 0"):
            applied_mask(mask, 5, -1)
    with pytest.raises(TypeError, match=r"head is 1\.0; a whole number is needed"):
        applied_mask(mask_of(causal()), 5, 1.0)

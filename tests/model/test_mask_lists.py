"""Rules as data, rules of one's own, and what is refused."""

import dataclasses
import json

import pytest
import torch

from tests.model.test_mask_rules import LEFT, PACKED, RULES, tensor
from workbench.model.mask import (
    Mask,
    Rule,
    build_mask,
    causal,
    custom,
    document,
    empty_slot,
    padding,
    rules_as_data,
    rules_from_data,
    sink,
    window,
)


@pytest.mark.parametrize("name", RULES)
def test_rules_come_back_from_json(name):
    rules = [*RULES[name][0], empty_slot(), custom(torch.rand(2, 4, 9) > 0.5)]
    back = rules_from_data(json.loads(json.dumps(rules_as_data(rules))))
    assert [(rule.name, rule.letter) for rule in back] == [(rule.name, rule.letter) for rule in rules]
    q, k = torch.arange(5, 9), torch.arange(9)
    assert torch.equal(Mask(back, q, k).reasons(), Mask(rules, q, k).reasons())
    assert list(map(repr, back)) == list(map(repr, rules))


def test_a_rule_that_was_renamed_keeps_its_name_and_tensors_may_stay_tensors():
    cells = torch.rand(1, 2, 2) > 0.5
    cut = dataclasses.replace(custom(cells), name="cut", letter="K")
    data = rules_as_data([cut, window(3)], lists=False)
    assert {**data[0], "allowed": None} == {"rule": "custom", "name": "cut", "letter": "K", "allowed": None}
    assert torch.equal(data[0]["allowed"], cells)
    assert data[1] == {"rule": "window", "n": 3}
    for back in (rules_from_data(data), rules_from_data(json.loads(json.dumps(rules_as_data([cut, window(3)]))))):
        assert [(rule.name, rule.letter) for rule in back] == [("cut", "K"), ("window", "W")]
        assert torch.equal(back[0].parameters["allowed"], cells)
        assert back[0].by_cell


def test_rules_can_be_read():
    rules = [causal(), window(64), sink(4), padding(tensor(LEFT)), sink(2, first=tensor([3, 0]))]
    assert list(map(repr, rules)) == [
        "causal()",
        "window(n=64)",
        "sink(n=4)",
        "padding(keep=(2, 9))",
        "sink(n=2, first=(2,))",
    ]
    assert rules_as_data([causal(), window(64), padding(tensor([[0, 1]]))]) == [
        {"rule": "causal"},
        {"rule": "window", "n": 64},
        {"rule": "padding", "keep": [[False, True]]},
    ]
    mask = Mask(rules[:3], torch.arange(2), torch.arange(2))
    assert repr(mask) == "Mask(causal() + window(n=64) + sink(n=4): 2 queries × 2 keys)"
    letters = [
        rule.letter for rule in (*rules[:4], document(tensor(PACKED)), empty_slot(), custom(torch.ones(1, 1) > 0))
    ]
    assert letters == ["C", "W", "S", "P", "D", "E", "X"]


def test_a_rule_of_one_s_own_works_and_says_that_it_cannot_be_written():
    even = Rule("even", "2", lambda q, k: k % 2 == 0)
    by_row = Rule("by_row", "R", lambda q, k, row, limit: k < limit[row], {"limit": tensor([2, 4])})
    mask = build_mask([even, by_row], torch.arange(4), torch.arange(4), 2, 4)
    assert mask.allowed()[:, 0].tolist() == [[True, False, False, False], [True, False, True, False]]
    two = Rule("two", "T", lambda q, k, row, a, b: k < 9, {"a": torch.zeros(1, 9), "b": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"two\(a=\(1, 9\), b=\(1, 3\)\) knows positions 0 … 2"):
        build_mask([two], torch.arange(4), torch.arange(4), 2, 4)
    with pytest.raises(ValueError, match=r"the rule even\(\) is a function of its own and cannot be written as data"):
        rules_as_data([causal(), even])
    with pytest.raises(ValueError, match=r"the rule causal\(\) is a function of its own"):
        rules_as_data([Rule("causal", "C", lambda q, k: k >= q)])


def test_a_rule_that_is_only_called_causal_takes_no_shortcut():
    mask = Mask([Rule("causal", "C", lambda q, k: k < q)], torch.arange(3), torch.arange(3))
    assert not mask.is_causal
    assert not Mask([Rule("causal", "C", lambda q, k: k < q)], torch.tensor([2]), torch.arange(3)).allows_all


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"rule": "band"}], r"there is no rule 'band'; there are causal, padding, window, sink, document, empty_slot"),
        ([{"n": 3}], r"there is no rule None"),
        ([{"rule": "window"}], r"the data of rule 'window' do not fit it: .*missing 1 required"),
        ([{"rule": "causal", "n": 3}], r"the data of rule 'causal' do not fit it: .*unexpected keyword"),
        ([{"rule": "window", "n": 0}], r"window\(n\): n is 0; a whole number of at least 1 is needed"),
    ],
)
def test_data_that_are_no_rules_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        rules_from_data(data)


WRONG_RULES = {
    "window 0": (lambda: window(0), ValueError, r"window\(n\): n is 0; a whole number of at least 1 is needed\."),
    "window True": (lambda: window(True), ValueError, r"window\(n\): n is True"),
    "window 2.0": (lambda: window(2.0), ValueError, r"window\(n\): n is 2\.0"),
    "sink -1": (lambda: sink(-1), ValueError, r"sink\(n\): n is -1; a whole number of at least 1 is needed\."),
    "first of two axes": (
        lambda: sink(1, first=torch.zeros(1, 2)),
        ValueError,
        r"sink\(first\): first has shape \(1, 2\); \(rows,\) is needed\.",
    ),
    "keep as a list": (
        lambda: padding([[1, 0]]),
        TypeError,
        r"padding\(keep\): keep is a list; a tensor \(rows, positions\) is needed\.",
    ),
    "keep of one axis": (lambda: padding(torch.ones(3)), ValueError, r"keep has shape \(3,\); \(rows, positions\)"),
    "keep without rows": (lambda: padding(torch.ones(0, 3)), ValueError, r"keep has shape \(0, 3\)"),
    "keep of 2": (
        lambda: padding(torch.tensor([[2, 1]])),
        ValueError,
        r"keep holds other values than 0 \(padding\) and 1",
    ),
    "keep of halves": (
        lambda: padding(torch.tensor([[0.5]])),
        ValueError,
        r"keep holds other values than whole numbers",
    ),
    "documents by halves": (
        lambda: document(torch.tensor([[0.5]])),
        ValueError,
        r"document\(numbers\): numbers holds other values than whole numbers",
    ),
    "custom of integers": (
        lambda: custom(torch.ones(2, 2).long()),
        TypeError,
        r"custom\(allowed\): allowed is torch\.int64; a tensor of booleans is needed, True = may attend\.",
    ),
    "custom of a list": (lambda: custom([[True]]), TypeError, r"allowed is list; a tensor of booleans"),
    "custom of four axes": (
        lambda: custom(torch.ones(1, 1, 2, 2).bool()),
        ValueError,
        r"allowed has shape \(1, 1, 2, 2\); \(queries, keys\) or \(rows, queries, keys\) is needed\.",
    ),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_rules_with_wrong_parameters_are_refused(name):
    make, kind, message = WRONG_RULES[name]
    with pytest.raises(kind, match=message):
        make()


def of(*rows):
    return padding(torch.ones(*rows))


WRONG_LISTS = {
    "one rule": (
        causal(),
        TypeError,
        r"attention_mask is a Rule; .* Put the rule into a list: attention_mask=\[causal",
    ),
    "empty": ([], ValueError, r"attention_mask is an empty list of rules: every query would see every position"),
    "a number among them": (
        [causal(), 3],
        TypeError,
        r"attention_mask is a list; .* item 1 of the list is a int, no rule",
    ),
    "a function": ([causal], TypeError, r"item 0 of the list is a function, no rule such as causal\(\)"),
    "text": ("causal", TypeError, r"attention_mask is a str; a tensor, a list of rules, a Mask or None is needed\."),
    "sink alone": (
        [causal(), sink(4)],
        ValueError,
        r"sink\(n=4\) makes exceptions from the rule 'window', but there is none among \['causal', 'sink'\], so it "
        r"would do nothing\. Add window\(n\), or leave sink out\.",
    ),
    "nine": ([window(9)] * 9, ValueError, r"a mask has at most 8 rules, one reason bit each; these are 9: \[window"),
    "too short": (
        [causal(), of(2, 5)],
        ValueError,
        r"padding\(keep=\(2, 5\)\) knows positions 0 … 4, but the positions go to 5\. .*count too: give 6 or more\.",
    ),
    "other rows": (
        [causal(), of(3, 6)],
        ValueError,
        r"padding\(keep=\(3, 6\)\) is for 3 batch rows; this forward has 2",
    ),
    "rows of each other": (
        [of(2, 6), document(torch.zeros(3, 6))],
        ValueError,
        r"padding\(keep=\(2, 6\)\) is for 2 batch rows, another rule for 3; each needs 1 row or the same\.",
    ),
    "cells": (
        [custom(torch.ones(6, 6).bool())],
        ValueError,
        r"custom\(allowed=\(1, 6, 6\)\) has 6 queries × 6 keys; there are 3 × 6 here\.",
    ),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_lists_that_do_not_fit_are_refused(name):
    given, kind, message = WRONG_LISTS[name]
    with pytest.raises(kind, match=message):
        build_mask(given, torch.arange(3, 6), torch.arange(6), 2, 4)


def test_longer_tables_than_needed_are_taken():
    mask = build_mask([causal(), of(1, 90), document(torch.zeros(1, 77))], torch.arange(3), torch.arange(3), 2, 4)
    assert torch.equal(mask.allowed()[0], torch.ones(3, 3).tril().bool())


def test_rules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        causal().name = "other"

"""What is printed of a mask, and what is sent to the page."""

import numpy as np
import pytest
import torch

from workbench.analysis.mask import applied_mask
from workbench.model.mask import Mask, Rule, build_mask, causal, empty_slot, padding
from workbench.views.mask import at_positions, idle_words, mask_payload, mask_text, visible, width


def mask_of(length, attention_mask=None, batch=1):
    positions = torch.arange(length)
    return build_mask(attention_mask, positions, positions, batch, 4)


def lines(mask, tokens, row=0, most=100, head=None, **options):
    return mask_text(applied_mask(mask, most, head), tokens, row, **options).split("\n")


def test_a_causal_mask():
    assert lines(mask_of(3), ["<s>", " a", "\n"]) == [
        "■ may attend   ⬚ masked: causal 3",
        "",
        "  key 0 1 2",
        "0 <s> ■ ⬚ ⬚",
        "1 ␣a  ■ ■ ⬚",
        "2 ⏎   ■ ■ ■",
    ]


def test_one_token():
    assert lines(mask_of(1), ["<s>"]) == ["■ may attend", "", "  key 0", "0 <s> ■"]


def test_left_padding_and_the_queries_that_may_attend_to_nothing():
    mask = mask_of(3, torch.tensor([[0, 0, 1], [1, 1, 1]]), batch=2)
    assert lines(mask, ["<pad>", "<pad>", "a"]) == [
        "■ may attend   ⬚ masked: causal 2, padding 5, causal + padding 1",
        "",
        "    key 0 1 2",
        "0 <pad> ⬚ ⬚ ⬚",
        "1 <pad> ⬚ ⬚ ⬚",
        "2 a     ⬚ ⬚ ■",
        "",
        "Queries 0–1 may attend to nothing: their weights are zero.",
    ]
    assert lines(mask, ["a", "b", "c"], row=1)[0] == "■ may attend   ⬚ masked: causal 3"


def test_rows_and_columns_are_numbered_by_position_also_in_a_cache_with_empty_slots():
    keep = torch.tensor([[True] * 9 + [False] + [True] * 2])
    mask = Mask([causal(), empty_slot(), padding(keep)], torch.tensor([10, 11]), torch.tensor([8, 9, 10, 11, -1]))
    assert lines(mask, list("abcdefghijkl")) == [
        "■ may attend   ⬚ masked: causal 1, empty_slot 2, padding 2",
        "",
        "         1 1",
        " key 8 9 0 1 -",
        "10 k ■ ⬚ ■ ⬚ ⬚",
        "11 l ■ ⬚ ■ ■ ⬚",
    ]


def test_wide_and_long_tokens_keep_the_columns_straight():
    shown = lines(mask_of(3), ["漢字", "e\u0301", "x" * 60])
    assert shown[3:] == [
        f"0 漢字{' ' * 20} ■ ⬚ ⬚",
        f"1 e\u0301{' ' * 23} ■ ■ ⬚",
        f"2 {'x' * 23}… ■ ■ ■",
    ]


def test_a_long_mask_is_cut_and_says_so():
    shown = lines(mask_of(2000), ["a"] * 2000, most=2)
    assert shown == [
        "■ may attend   ⬚ masked: causal 1",
        "",
        "key 0 1",
        "0 a ■ ⬚",
        "1 a ■ ■",
        "",
        "Shown: the first 2 of 2,000 queries and the first 2 of 2,000 keys.",
    ]


def test_colours_only_where_asked():
    mask = mask_of(2, torch.tensor([[0, 1]]))
    plain, colored = (mask_text(applied_mask(mask, 9), ["p", "a"], color=color) for color in (False, True))
    assert "\x1b" not in plain
    assert "1 a \x1b[93m⬚\x1b[0m \x1b[92m■\x1b[0m" in colored  # padding yellow, the diagonal green
    assert "0 p \x1b[93m⬚\x1b[0m \x1b[90m⬚\x1b[0m" in colored  # causal grey
    assert "masked: \x1b[90mcausal\x1b[0m 1, \x1b[93mpadding\x1b[0m 2" in colored


def test_a_rule_that_has_no_colour_of_its_own_is_shown_too():
    positions = torch.arange(3)
    mask = Mask([causal(), Rule("window", "W", lambda q, k: q - k < 2)], positions, positions)
    assert "window 1" in lines(mask, list("abc"))[0]
    assert "\x1b[96m⬚" in lines(mask, list("abc"), color=True)[-1]


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_mask_of_the_caller_s_own(kind):
    allowed = torch.tensor([[[[0, 0, 1], [1, 1, 0], [1, 0, 1]]]], dtype=torch.bool)
    given = allowed if kind == torch.bool else torch.zeros(1, 1, 3, 3).masked_fill(~allowed, torch.finfo(kind).min)
    assert lines(mask_of(3, given), list("abc")) == [
        "■ may attend   ⬚ masked: custom 4",
        "",
        "key 0 1 2",
        "0 a ⬚ ⬚ ■",
        "1 b ■ ■ ⬚",
        "2 c ■ ⬚ ■",
    ]


def test_a_mask_with_one_for_each_head():
    given = torch.zeros(1, 4, 2, 2)
    given[0, :, 0, 1] = -torch.inf
    given[0, 2, 1, 0] = -torch.inf
    given[0, 1, 1, 1] = 0.5
    mask = mask_of(2, given)
    words = lines(mask, list("ab"))
    assert words[3:5] == ["0 a ■ ⬚", "1 b ■ ■"]
    assert words[-2:] == [
        "The heads have different masks: shown is what at least one of them may attend to; head= picks one.",
        "The mask also adds numbers to the scores of cells that may attend; they are not shown.",
    ]
    assert lines(mask, list("ab"), head=0)[3:5] == ["0 a ■ ⬚", "1 b ■ ■"]
    assert lines(mask, list("ab"), head=2)[3:5] == ["0 a ■ ⬚", "1 b ⬚ ■"]
    assert not any("different masks" in line for line in lines(mask, list("ab"), head=2))


def test_idle_queries_are_named_in_runs_and_only_where_every_key_is_known():
    mask = mask_of(6, torch.tensor([[0, 0, 1, 0, 0, 0]]))
    whole, cut = applied_mask(mask, 6), applied_mask(mask, 2)
    assert idle_words(whole, whole.reasons[0]) == "Queries 0–1 may attend to nothing: their weights are zero."
    assert idle_words(cut, cut.reasons[0]) == ""
    one = applied_mask(mask_of(2, torch.tensor([[0, 1]])), 2)
    assert idle_words(one, one.reasons[0]) == "Query 0 may attend to nothing: its weights are zero."
    holes = np.array([[1, 1], [0, 1], [1, 1]], np.uint8)
    apart = applied_mask(Mask([causal()], torch.arange(3), torch.arange(2)), 3)
    assert idle_words(apart, holes) == "Queries 0, 2 may attend to nothing: their weights are zero."


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", "∅"), (" a\t\n", "␣a⇥⏎"), ("\x1b[31m", "<U+001B>[31m"), ("\u200b", "<U+200B>"), ("\u0301", "◌\u0301")],
)
def test_what_cannot_be_seen_is_spelled_out(text, shown):
    assert visible(text) == shown


def test_width_counts_columns():
    assert [width(text) for text in ("ab", "漢", "e\u0301", "␣a")] == [2, 2, 1, 2]


def test_tokens_of_positions():
    assert at_positions(["a", "b", "c"], np.array([2, -1, 0])) == ["c", "", "a"]


def test_the_payload_has_reasons_rules_and_the_labels_of_each_text():
    mask = applied_mask(mask_of(2, torch.tensor([[0, 1], [1, 1]]), batch=2), 9)
    content, arrays = mask_payload(mask, [["<p>", "a"], ["b", "c"]], ["one", "two"], "Attention mask", "tiny")
    assert arrays["reasons"].tolist() == [[[2, 1], [2, 0]], [[0, 1], [0, 0]]]
    assert [(rule["name"], rule["letter"]) for rule in content["rules"]] == [("causal", "C"), ("padding", "P")]
    assert [text["name"] for text in content["texts"]] == ["one", "two"]
    assert [text["queries"] for text in content["texts"]] == [["<p>", "a"], ["b", "c"]]
    assert content["texts"][0]["keys"] == ["<p>", "a"]
    assert content["texts"][0]["notes"] == ["Query 0 may attend to nothing: its weights are zero."]
    assert content["texts"][1]["notes"] == []
    assert content["query_index"] == content["key_index"] == [0, 1]
    assert (content["title"], content["subtitle"], content["notes"]) == ("Attention mask", "tiny", [])


def test_an_empty_slot_has_no_index_and_no_token():
    mask = applied_mask(Mask([causal(), empty_slot()], torch.tensor([1]), torch.tensor([0, 1, -1])), 9)
    content, _ = mask_payload(mask, [["a", "b"]], ["a"], "", "")
    assert content["key_index"] == [0, 1, None]
    assert content["texts"][0]["keys"] == ["a", "b", ""]

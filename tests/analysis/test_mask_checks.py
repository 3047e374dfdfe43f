"""Checks of masks: what each one finds, where, and in which words; against counts made cell by cell."""

import math

import pytest
import torch

import workbench.analysis.mask_checks as mask_checks
from tests.memory import Largest
from workbench.analysis.mask import applied_mask
from workbench.analysis.mask_checks import check_mask
from workbench.model.mask import Mask, Rule, build_mask, causal, custom, document, empty_slot, padding, sink, window

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
TRIL = torch.ones(1, 1, 7, 7).tril().bool()
BAND = TRIL & ~torch.ones(1, 1, 7, 7).tril(-3).bool()


def mask_of(given=None, length=7, batch=2):
    positions = torch.arange(length)
    return build_mask(given, positions, positions, batch, 4)


def verdicts(report):
    return {check.name: check.passed for check in report.checks}


GOOD = {"fully masked rows": True, "polarity": True, "documents": None, "padding": None, "empty slots": True}


def expect(report, **wrong):
    """All checks as for a plain causal mask, except those named."""
    assert verdicts(report) == {**GOOD, **{name.replace("_", " "): value for name, value in wrong.items()}}
    assert report.passed == (False not in verdicts(report).values())


def test_a_causal_mask_is_good_and_printed_as_a_table():
    report = check_mask(mask_of())
    expect(report)
    assert str(report).split("\n") == [
        "causal(): 1 row, 7 queries, 7 keys",
        "ok    fully masked rows  every query may attend to a key",
        "ok    polarity           no query may attend to a later position",
        "–     documents          not checked: nothing says that there are several; give documents= or position_ids=",
        "–     padding            not checked: nothing says which positions are padding; give padding=",
        "ok    empty slots        no slot is empty",
        "keys per query: least 1, median 4, most 7",
    ]


def test_a_failed_check_is_printed_as_such_and_is_in_the_table_of_pandas():
    report = check_mask(mask_of(~TRIL))
    assert str(report).split("\n")[2].startswith("FAIL  polarity           queries 1–5 may attend to later positions")
    frame = report.to_pandas()
    assert frame.columns.tolist() == ["name", "passed", "detail"]
    assert frame.set_index("name").passed["polarity"] is False
    assert frame.set_index("name").passed["documents"] is None


# --- fully masked rows -----------------------------------------------------------------------------------------------
def test_padding_on_the_left_leaves_queries_without_keys_and_that_is_usual():
    report = check_mask(mask_of(LEFT))
    expect(report, padding=True)
    assert report["fully masked rows"].detail == "row 0: queries 0–1 may attend to nothing, all of them padding"
    assert report.counts.tolist() == [[0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]]
    assert report.real.tolist() == LEFT.bool().tolist()
    assert report.keys_per_query == (1, 3.5, 7)


def test_a_token_that_may_attend_to_nothing_is_a_fault():
    own = TRIL.clone()
    own[..., [2, 3, 5], :] = False
    report = check_mask(mask_of(own))
    expect(report, fully_masked_rows=False)
    assert report["fully masked rows"].detail == (
        "queries 2–3, 5 may attend to nothing: zeros come out of attention; if these are padding, give padding="
    )
    assert report.keys_per_query == (0, 1, 7)


def test_tokens_and_padding_without_keys_are_told_apart():
    own = TRIL.repeat(2, 1, 1, 1)
    own[0, :, :4] = False
    report = check_mask(mask_of(own), padding=LEFT)
    assert report["fully masked rows"].detail == (
        "row 0: queries 2–3 may attend to nothing: zeros come out of attention; also row 0: queries 0–1 may attend to "
        "nothing, but padding"
    )
    own[0, :, 2:4] = TRIL[0, :, 2:4]
    assert check_mask(mask_of(own), padding=LEFT)["fully masked rows"].passed


def test_a_head_that_is_masked_alone_is_found():
    bias = torch.zeros(1, 4, 7, 7).masked_fill(~TRIL, -math.inf)
    bias[:, 2, 4] = -math.inf
    report = check_mask(mask_of(bias))
    expect(report, fully_masked_rows=False)
    assert report["fully masked rows"].detail.startswith("query 4 may attend to nothing in some of the heads")
    bias[:, 2, 4, 0] = 0
    expect(check_mask(mask_of(bias)))


# --- polarity --------------------------------------------------------------------------------------------------------
INVERTED = {
    "a causal mask": ~TRIL,
    "a causal mask with its diagonal": ~torch.ones(1, 1, 7, 7).tril(-1).bool(),
    "a window": ~BAND,
    "an additive causal mask": torch.zeros(1, 1, 7, 7).masked_fill(TRIL, -math.inf),
    "a rule": [Rule("flipped", "C", lambda q, k: k >= q)],
}


@pytest.mark.parametrize("name", INVERTED)
def test_an_inverted_mask_is_noticed(name):
    polarity = check_mask(mask_of(INVERTED[name]))["polarity"]
    assert polarity.passed is False
    assert polarity.detail.startswith("queries 1–5 may attend to later positions")
    assert polarity.detail.endswith("~mask")


UPRIGHT = {
    "causal": (None, True, "no query may attend to a later position"),
    "window": ([causal(), window(1)], True, "no query may attend to a later position"),
    "bidirectional": ([document(torch.zeros(1, 7))], True, "bidirectional: 21 cells later than the query may be att"),
    "bidirectional, padded": ([padding(LEFT)], True, "bidirectional: 31 cells later than the query"),
    "bidirectional, padded on the right": ([padding(RIGHT)], True, "bidirectional: 31 cells later"),
    "two documents of three and four": ([document(PACKED)], True, "bidirectional: 9 cells later"),
    "documents of two": ([document(torch.tensor([[0, 1, 1, 2, 2, 3, 3]]))], True, "bidirectional: 3 cells later"),
    "padding in the middle": ([padding(torch.tensor([[1, 1, 0, 0, 0, 0, 1]]))], True, "bidirectional: 3 cells later"),
    "a prefix seen by all": (TRIL | (torch.arange(7) < 3), True, "bidirectional: 3 cells later"),
    "padded on the left": (LEFT, True, "no query may attend to a later position"),
}


@pytest.mark.parametrize("name", UPRIGHT)
def test_other_masks_are_not_called_inverted(name):
    given, passed, detail = UPRIGHT[name]
    polarity = check_mask(mask_of(given))["polarity"]
    assert polarity.passed is passed
    assert polarity.detail.startswith(detail)


def test_one_text_of_a_batch_that_is_inverted_is_named():
    given = torch.cat((TRIL, ~TRIL))
    polarity = check_mask(mask_of(given))["polarity"]
    assert polarity.detail.startswith("row 1: queries 1–5 may attend to later positions but not")
    two_of_three = check_mask(mask_of(torch.cat((~BAND, ~BAND, torch.ones_like(BAND))), batch=3))["polarity"]
    assert two_of_three.detail.startswith(
        "row 0: queries 1–5; row 1: queries 1–5 may attend to later positions but not"
    )


def test_what_padding_sees_does_not_count():
    upside_down = torch.ones(1, 1, 7, 7).triu().bool()
    upside_down[..., 5:, :] = True
    assert check_mask(mask_of(upside_down), padding=RIGHT[:1])["polarity"].passed is False


def test_queries_without_a_key_of_their_own_are_not_called_inverted():
    report = check_mask(Mask([window(9)], torch.tensor([3, 4]), torch.tensor([0, 1, 6, 7])))
    assert report["polarity"].detail == "bidirectional: 4 cells later than the query may be attended to"


@pytest.mark.parametrize("padding", [None, LEFT, RIGHT])
def test_an_inverted_mask_with_padding_is_noticed(padding):
    keep = torch.stack((LEFT[0], RIGHT[0])).bool()
    given = ~(TRIL & keep[:, None, None])
    polarity = check_mask(mask_of(given), padding=padding)["polarity"]
    assert polarity.passed is False
    assert "row 0: queries" in polarity.detail
    assert "row 1: queries" in polarity.detail


def test_one_query_alone_has_no_polarity():
    polarity = check_mask(Mask([causal()], torch.tensor([6]), torch.arange(7)))["polarity"]
    assert polarity.passed is None
    assert polarity.detail == "not checked: no query has a token before it and one after it"


@pytest.mark.parametrize("cells", [1, 2**21])
@pytest.mark.parametrize("rows", [1, 2])
def test_an_additive_mask_of_zeros_and_ones_is_noticed(rows, cells, monkeypatch):
    monkeypatch.setattr(mask_checks, "CELLS", cells)
    ones = TRIL.float().repeat(rows, 1, 1, 1)
    ones[:, :, 4:] = 0
    report = check_mask(mask_of(ones))
    assert report["polarity"].passed is False
    assert report["polarity"].detail == (
        "the additive mask holds 0 and 1 only: it adds 1 to some scores and forbids nothing. Give booleans (True = may "
        "attend), or −inf where masked"
    )


@pytest.mark.parametrize("cell", [-math.inf, 0.5, -1.0])
def test_other_additive_masks_are_not(cell):
    bias = TRIL.float()
    bias[..., 6, 0] = cell
    assert check_mask(mask_of(bias))["polarity"].passed
    assert check_mask(mask_of(torch.zeros(1, 1, 7, 7)))["polarity"].passed


# --- documents -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "told",
    [
        dict(documents=PACKED),
        dict(documents=PACKED.repeat(2, 1)),
        dict(position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]])),
    ],
    ids=["documents", "a row each", "position_ids"],
)
def test_a_leak_between_documents_is_found(told):
    report = check_mask(mask_of(), **told)
    expect(report, documents=False)
    rows = len(next(iter(told.values())))
    where, first = (
        ("queries 3–6", "query 3") if rows == 1 else ("row 0: queries 3–6; row 1: queries 3–6", "row 0, query 3")
    )
    assert report["documents"].detail == (
        f"{where} may attend to another document, {12 * rows} cells; first {first} (document 1) to key 0 (document 0)"
    )
    expect(check_mask(mask_of([causal(), document(PACKED)]), **told), documents=True)


def test_a_single_leaking_cell_is_found_and_placed():
    allowed = (TRIL & (PACKED[0][:, None] == PACKED[0])).repeat(2, 1, 1, 1)
    expect(check_mask(mask_of(allowed), documents=PACKED), documents=True)
    allowed[1, 0, 5, 2] = True
    assert check_mask(mask_of(allowed), documents=PACKED)["documents"].detail == (
        "row 1: query 5 may attend to another document, 1 cell; first row 1, query 5 (document 1) to key 2 (document 0)"
    )


def test_the_mask_s_own_documents_are_the_default_and_can_be_corrected():
    mask = mask_of([causal(), document(PACKED)])
    assert check_mask(mask)["documents"].passed
    assert check_mask(mask)["documents"].detail == "no token may attend to another document"
    finer = check_mask(mask, documents=torch.tensor([[0, 0, 2, 1, 1, 1, 1]]))["documents"]
    assert finer.detail.endswith("2 cells; first query 2 (document 2) to key 0 (document 0)")
    assert check_mask(mask, position_ids=torch.arange(7)[None])["documents"].passed is None


def test_a_sink_that_reaches_into_the_first_document_is_a_leak():
    report = check_mask(mask_of([causal(), window(2), sink(1)]), documents=PACKED)
    assert "queries 3–6 may attend to another document, 5 cells" in report["documents"].detail


def test_padding_leaks_nothing():
    assert check_mask(mask_of(RIGHT), documents=torch.tensor([[0, 0, 0, 0, 0, 1, 1]]))["documents"].detail.startswith(
        "row 1: queries 5–6 may attend to another document, 10 cells"
    )


# --- padding and empty slots -----------------------------------------------------------------------------------------
def test_attention_to_padding_is_found():
    report = check_mask(mask_of(), padding=LEFT)
    expect(report, padding=False)
    assert report["padding"].detail == (
        "row 0: queries 2–6 may attend to padding, 10 cells; first row 0, query 2 to key 0"
    )
    expect(check_mask(mask_of(LEFT), padding=LEFT), padding=True)


def test_padding_that_attends_to_padding_does_no_harm():
    report = check_mask(mask_of(), padding=RIGHT)
    expect(report, padding=True)
    assert report["padding"].detail == "no token may attend to padding; padding itself does, which nothing reads"
    assert check_mask(mask_of(RIGHT))["padding"].detail == "no token may attend to padding"


def test_a_padding_rule_is_checked_with_what_is_given():
    wrong = check_mask(mask_of(LEFT), padding=RIGHT)
    assert wrong["padding"].passed  # queries of row 0 that see position 5 or 6 are padding themselves
    assert check_mask(mask_of(RIGHT), padding=LEFT)["padding"].detail.startswith("row 0: queries 2–6")


def test_empty_slots_are_counted_and_guarded():
    q, k = torch.tensor([8, 9]), torch.tensor([8, 9, -1, 3, -1])
    closed = check_mask(Mask([causal(), empty_slot()], q, k))
    expect(closed, polarity=True)
    assert closed["empty slots"].detail == "2 empty, none may be attended to"
    open_ = check_mask(Mask([causal()], q, k))
    expect(open_, polarity=True, empty_slots=False)
    assert open_["empty slots"].detail == "queries 8–9 may attend to slots without a token"
    assert open_.counts.tolist() == [[4, 5]]


def test_a_ring_is_checked_by_positions():
    q, k = torch.tensor([8, 9]), torch.tensor([8, 9, 5, 6, 7])
    numbers = torch.tensor([[0] * 7 + [1] * 3])
    report = check_mask(Mask([causal(), window(3)], q, k), documents=numbers)
    assert report["documents"].detail == (
        "query 8 may attend to another document, 1 cell; first query 8 (document 1) to key 6 (document 0)"
    )


# --- all of it, cell by cell -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("cells", [1, 50, 2**21], ids=["a query at a time", "some", "all at once"])
def test_counts_are_those_of_every_cell(cells, monkeypatch):
    monkeypatch.setattr(mask_checks, "CELLS", cells)
    generator = torch.Generator().manual_seed(3)
    allowed = torch.rand(2, 1, 11, 13, generator=generator) > 0.6
    k_pos = torch.tensor([4, 3, -1, 0, 1, 2, 10, 9, 8, 7, 6, 5, -1])
    keep = torch.rand(2, 11, generator=generator) > 0.3
    numbers = torch.randint(0, 3, (2, 11), generator=generator)
    mask = Mask([custom(allowed[:, 0])], torch.arange(11), k_pos)
    report = check_mask(mask, documents=numbers, padding=keep)
    leaks, padded, counts = 0, 0, [[0] * 11 for _ in range(2)]
    for row in range(2):
        for q in range(11):
            for j, k in enumerate(k_pos.tolist()):
                if not allowed[row, 0, q, j]:
                    continue
                counts[row][q] += 1
                if k >= 0 and keep[row, q]:
                    padded += not keep[row, k]
                    leaks += bool(keep[row, k]) and int(numbers[row, q]) != int(numbers[row, k])
    assert report.counts.tolist() == counts
    assert f" {leaks} cells" in report["documents"].detail
    assert f" {padded} cells" in report["padding"].detail
    assert min(leaks, padded) > 5


def test_no_whole_matrix_is_made():
    length = 4096
    positions = torch.arange(length)
    keep = torch.ones(2, length)
    keep[0, :9] = 0
    mask = build_mask([causal(), window(300), sink(4), padding(keep)], positions, positions, 2, 4)
    with Largest() as seen:
        report = check_mask(mask, documents=positions[None] // 100)
    assert 0 < seen.nbytes <= max(mask_checks.CELLS, 8 * 2 * length)
    assert seen.nbytes < 2 * length * length / 10
    assert report["documents"].passed is False
    assert report.keys_per_query == (1, 300, 304)


def test_positions_in_words_are_cut_where_there_are_many():
    own = TRIL.new_zeros(9, 1, 30, 30)
    own[:, :, 1::2] = torch.ones(30, 30).tril().bool()[1::2]
    words = check_mask(mask_of(own, 30, 9))["fully masked rows"].detail
    assert words.startswith("row 0: queries 0, 2, 4, 6, 8, 10 …; and 8 more rows may attend to nothing")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="both documents and position_ids are given"):
        check_mask(mask_of(), documents=PACKED, position_ids=PACKED)
    with pytest.raises(ValueError, match=r"padding\(keep=\(2, 5\)\) knows positions 0 … 4, but the positions go to 6"):
        check_mask(mask_of(), padding=LEFT[:, :5])
    with pytest.raises(ValueError, match=r"what is given with it are for \[1, 2, 3\] rows; they must agree"):
        check_mask(mask_of(TRIL.repeat(2, 1, 1, 1)), documents=PACKED.repeat(3, 1))
    with pytest.raises(TypeError, match=r"document\(numbers\): numbers is a list"):
        check_mask(mask_of(), position_ids=[[0, 1]])
    with pytest.raises(KeyError, match="there is no check 'leaks'; there are fully masked rows, polarity, documents"):
        check_mask(mask_of())["leaks"]


def test_rules_are_described_where_a_mask_is_shown():
    shown = applied_mask(mask_of([causal(), window(3), sink(1)]), 4)
    assert shown.described == ("causal()", "window(n=3)", "sink(n=1)")
    assert shown.rules == (("causal", "C"), ("window", "W"), ("sink", "S"))
    assert shown.reasons[0].tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_a_head_of_a_mask_without_a_custom_rule_is_shown_with_what_only_it_may_not():
    bias = torch.zeros(1, 4, 3, 3)
    bias[:, 2, 2, 0] = -math.inf
    mask = Mask([causal()], torch.arange(3), torch.arange(3), bias)
    shown = applied_mask(mask, 9, head=2)
    assert shown.rules == (("causal", "C"), ("custom", "X"))
    assert shown.reasons[0].tolist() == [[0, 1, 1], [0, 0, 1], [2, 0, 0]]
    assert applied_mask(mask, 9, head=1).reasons[0, 2].tolist() == [0, 0, 0]
    full = Mask([window(9)] * 8, torch.arange(3), torch.arange(3), bias)
    with pytest.raises(ValueError, match="this mask has 8 rules, and what it forbids to head 2 needs one more"):
        applied_mask(full, 9, head=2)

"""Every rule and mixture of rules, in every form, against an oracle that goes cell by cell in plain Python."""

import math

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from tests.memory import Largest
from workbench.model.mask import (
    Mask,
    Rule,
    build_mask,
    causal,
    custom,
    document,
    empty_slot,
    padding,
    rules_from_data,
    sink,
    window,
)

CPU = torch.device("cpu")
LENGTH = 9
LEFT = [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9]
RIGHT = [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]]
PACKED = [[0, 0, 0, 0, 1, 1, 2, 2, 2], [5, 5, 5, 5, 5, 5, 5, 3, 3]]
ONE_ROW = [[0, 0, 0, 1, 1, 1, 1, 1, 4]]
PLACES = {  # positions of the queries and of the key slots
    "prefill": (range(9), range(9)),
    "chunk": (range(5, 9), range(9)),
    "one query": ([8], range(9)),
    "static with empty slots": (range(4, 7), [0, 1, 2, 3, 4, 5, 6, -1, -1, -1]),
    "ring": (range(6, 9), [8, 2, 3, -1, 4, 5, 6, 7]),
    "ring without the first positions": ([7, 8], [8, 4, 5, 6, 7]),
}


def words(q, k, row, *, causal=True, keep=None, n=None, sinks=0, first=(0, 0), docs=None):
    """Names of the rules that forbid a cell, by its positions."""
    if k < 0:
        return {"empty_slot"}
    wrong = set()
    if causal and k > q:
        wrong.add("causal")
    if keep and not keep[row][k]:
        wrong.add("padding")
    if n and q - k >= n and not first[row] <= k < first[row] + sinks:
        wrong.add("window")
    if docs and docs[min(row, len(docs) - 1)][q] != docs[min(row, len(docs) - 1)][k]:
        wrong.add("document")
    return wrong


def tensor(rows):
    return torch.tensor(rows)


RULES = {  # what is given to the forward, and what the oracle is told
    "causal": ([causal()], dict()),
    "left padding": ([causal(), padding(tensor(LEFT))], dict(keep=LEFT)),
    "right padding": ([padding(tensor(RIGHT)), causal()], dict(keep=RIGHT)),
    "packed": ([causal(), document(tensor(PACKED))], dict(docs=PACKED)),
    "packed, all rows alike": ([causal(), document(tensor(ONE_ROW))], dict(docs=ONE_ROW)),
    "window": ([causal(), window(3)], dict(n=3)),
    "window of one": ([causal(), window(1)], dict(n=1)),
    "window and sink": ([causal(), window(2), sink(3)], dict(n=2, sinks=3)),
    "sink before window": ([sink(1), causal(), window(4)], dict(n=4, sinks=1)),
    "sink of each row": (
        [causal(), window(2), sink(2, first=tensor([3, 0])), padding(tensor(LEFT))],
        dict(n=2, sinks=2, first=(3, 0), keep=LEFT),
    ),
    "everything": (
        [causal(), padding(tensor(RIGHT)), document(tensor(PACKED)), window(3), sink(5)],
        dict(keep=RIGHT, docs=PACKED, n=3, sinks=5),
    ),
    "bidirectional": ([padding(tensor(LEFT))], dict(causal=False, keep=LEFT)),
    "window without causal": ([window(3)], dict(causal=False, n=3)),
}
EVERY_CASE = [pytest.param(place, name, id=f"{place}-{name}") for place in PLACES for name in RULES]


def case(place, name):
    """The mask, and the oracle's cells [row][query][key] as sets of names."""
    q, k = (list(positions) for positions in PLACES[place])
    rules, told = RULES[name]
    mask = build_mask(rules, torch.tensor(q), torch.tensor(k), 2, 4)
    return mask, [[[words(a, b, row, **told) for b in k] for a in q] for row in range(2)]


def own_mask(form, place="prefill"):
    """A 4-D mask of the caller's, and the oracle's cells."""
    q, k = (torch.tensor(list(positions)) for positions in PLACES[place])
    allowed = torch.rand(2, 1, len(q), len(k)) > 0.4
    given = allowed
    if form != "boolean":
        heads = 4 if form == "additive, a head each" else 1
        given = torch.randn(2, heads, len(q), len(k)).masked_fill(~allowed, -math.inf)
    mask = build_mask(given, q, k, 2, 4)
    empty = [{"empty_slot"} if position < 0 else set() for position in k.tolist()]
    cells = [
        [[(set() if cell else {"custom"}) | wrong for cell, wrong in zip(line, empty, strict=True)] for line in row[0]]
        for row in allowed.tolist()
    ]
    return mask, cells


def open_cells(cells):
    return torch.tensor([[[not wrong for wrong in line] for line in row] for row in cells])


def assert_as_told(mask, cells):
    """`allowed`, reason bits, the form for SDPA, the additive form and `mask_mod`, cell by cell."""
    expected = open_cells(cells)
    names = [rule.name for rule in mask.rules]
    shape = tuple(expected.shape)
    assert torch.equal(mask.allowed().expand(shape), expected)
    assert mask.batch == len(mask.allowed()) == len(mask.reasons())
    reasons = mask.reasons().expand(shape).tolist()
    for row, lines in enumerate(cells):
        for i, line in enumerate(lines):
            for j, wrong in enumerate(line):
                bits = {name for bit, name in enumerate(names) if reasons[row][i][j] >> bit & 1}
                assert bits == wrong, f"row {row}, query {i}, key {j}"
    dense, bias = mask.dense(torch.float32, CPU), mask.bias(torch.float32)
    assert torch.equal(
        (dense if dense.dtype == torch.bool else dense > -math.inf).expand(2, -1, -1, -1)[:, 0], expected
    )
    assert torch.equal((bias > -math.inf).expand(2, -1, -1, -1)[:, 0], expected)
    assert mask.extra is not None or set(bias.unique().tolist()) <= {0.0, -math.inf}
    modded = flex.create_mask(mask.mask_mod(CPU), 2, 1, shape[1], shape[2], device="cpu")[:, 0]
    assert torch.equal(modded, expected)


@pytest.mark.parametrize(("place", "name"), EVERY_CASE)
def test_every_form_says_what_the_oracle_says(place, name):
    mask, cells = case(place, name)
    assert_as_told(mask, cells)
    if mask.is_causal:
        assert torch.equal(open_cells(cells)[0], torch.ones(len(mask.q_pos), len(mask.k_pos)).tril().bool())
    if mask.allows_all:
        assert open_cells(cells).all()
    assert mask.is_causal == (name == "causal" and place == "prefill")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["boolean", "additive", "additive, a head each"])
def test_every_form_of_a_mask_of_the_caller_s_own(form, place):
    assert_as_told(*own_mask(form, place))


def test_the_oracle_notices_wrong_bits():
    mask, cells = case("prefill", "window and sink")
    for wrong in (
        Mask([causal(), window(2)], mask.q_pos, mask.k_pos),
        Mask([causal(), window(3), sink(3)], mask.q_pos, mask.k_pos),
        Mask([causal(), window(2), sink(2)], mask.q_pos, mask.k_pos),
    ):
        with pytest.raises(AssertionError):
            assert_as_told(wrong, cells)


def test_an_empty_slot_is_forbidden_for_that_reason_alone():
    rules = [causal(), padding(tensor([[0] * LENGTH])), window(1), document(tensor([[0] * 8 + [1]]))]
    mask = build_mask(rules, torch.tensor([8]), torch.tensor([-1, 8]), 1, 4)
    assert [rule.name for rule in mask.rules] == ["causal", "padding", "window", "document", "empty_slot"]
    assert mask.reasons()[0, 0].tolist() == [0b10000, 0b00010]
    same = build_mask([empty_slot(), causal()], torch.tensor([8]), torch.tensor([-1, 8]), 1, 4)
    assert [rule.name for rule in same.rules] == ["empty_slot", "causal"]


@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_a_mask_of_the_caller_s_own_cannot_open_an_empty_slot(form):
    given = torch.ones(1, 1, 1, 3, dtype=torch.bool) if form == "boolean" else torch.zeros(1, 1, 1, 3)
    mask = build_mask(given, torch.tensor([1]), torch.tensor([0, -1, 1]), 1, 4)
    assert mask.reasons()[0, 0].tolist() == [0, 0b10, 0]
    assert mask.bias(torch.float32)[0, 0, 0].tolist() == [0, -math.inf, 0]


@pytest.mark.parametrize(("place", "name"), EVERY_CASE)
def test_every_tile_is_a_part_of_the_whole(place, name):
    plain, _ = case(place, name)
    mask = plain.with_rules(custom(torch.rand(2, len(plain.q_pos), len(plain.k_pos)) > 0.3))
    assert [rule.name for rule in mask.rules] == [*(rule.name for rule in plain.rules), "custom"]
    whole, reasons = mask.allowed(), mask.reasons()
    assert torch.equal(whole, reasons == 0)
    last = len(mask.q_pos) - 1
    for q in (slice(0, 1), slice(last, None), slice(None), slice(2, 2), torch.tensor([last, 0, last])):
        for k in (slice(0, 2), slice(3, None), slice(-2, None), torch.tensor([4, 0])):
            assert torch.equal(mask.allowed(q, k), whole[:, q][:, :, k]), (q, k)
            assert torch.equal(mask.reasons(q, k), reasons[:, q][:, :, k]), (q, k)


@pytest.mark.parametrize("q", [slice(1, 3), torch.tensor([2, 0])], ids=["slice", "indices"])
def test_the_mask_of_some_queries(q):
    bias = torch.randn(2, 4, 3, 8)
    mask = case("ring", "everything")[0].with_rules(custom(torch.rand(2, 3, 8) > 0.3))
    mask = Mask(mask.rules, mask.q_pos, mask.k_pos, bias)
    part = mask.of_queries(q)
    assert torch.equal(part.q_pos, mask.q_pos[q])
    assert torch.equal(part.k_pos, mask.k_pos)
    assert torch.equal(part.reasons(), mask.reasons()[:, q])
    assert torch.equal(part.dense(torch.float32, CPU), mask.dense(torch.float32, CPU)[:, :, q])
    assert [rule.name for rule in part.rules] == [rule.name for rule in mask.rules]


def test_a_single_query_of_a_causal_mask_that_is_cut_out_sees_no_later_key():
    whole = Mask([causal()], torch.arange(5), torch.arange(5))
    part = whole.of_queries(slice(2, 3))
    assert not part.allows_all
    assert part.allowed()[0, 0].tolist() == [True, True, True, False, False]
    assert whole.of_queries(slice(4, 5)).allows_all


def test_a_light_mask_keeps_no_dense_tensor_and_says_the_same():
    mask, cells = case("prefill", "everything")
    dense = mask.dense(torch.float32, CPU)
    assert mask.dense(torch.float32, CPU) is dense, "all layers share one"
    light = mask.light()
    assert held(light) < 2_000 < held(mask) + dense.nbytes * 20
    assert held(mask) - held(light) == dense.nbytes
    assert_as_told(light, cells)
    assert mask.dense(torch.float32, CPU) is dense, "the other one is left as it is"


def held(mask):
    """Bytes of all tensors that an object holds."""
    tensors = {}

    def look(thing):
        if isinstance(thing, torch.Tensor):
            tensors[thing.data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            for value in thing.values():
                look(value)
        elif isinstance(thing, list | tuple):
            for value in thing:
                look(value)
        elif isinstance(thing, Mask | Rule):
            look(vars(thing))

    look(mask)
    return sum(tensors.values())


def test_what_the_caller_does_to_its_tensors_later_changes_no_mask():
    given = {
        "keep": torch.ones(1, 4, dtype=torch.bool),
        "numbers": torch.zeros(1, 4, dtype=torch.long),
        "allowed": torch.ones(1, 4, 4, dtype=torch.bool),
        "first": torch.zeros(1, dtype=torch.long),
        "4-D": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        "additive": torch.zeros(1, 1, 4, 4),
    }
    positions = torch.arange(4)
    rules = [padding(given["keep"]), document(given["numbers"]), custom(given["allowed"])]
    masks = [
        Mask([*rules, window(1), sink(4, first=given["first"])], positions, positions),
        build_mask(given["4-D"], positions, positions, 1, 1),
        build_mask(given["additive"], positions, positions, 1, 1),
    ]
    before = [mask.bias(torch.float32) for mask in masks]
    for value in given.values():
        value[..., 2:] = 0 if value.dtype == torch.bool else -9
        value[..., 0] = 3
    for mask, bias in zip(masks, before, strict=True):
        assert torch.equal(mask.bias(torch.float32), bias)
        assert (bias == 0).all()


def test_a_tile_costs_a_tile_and_never_the_whole_matrix():
    length = 20_000
    positions = torch.arange(length)
    keep = torch.ones(2, length, dtype=torch.long)
    keep[0, :7] = 0
    with Largest() as making:
        mask = build_mask(
            [causal(), window(64), sink(4), padding(keep), document(positions[None] // 1000)],
            positions,
            positions,
            2,
            4,
        )
    assert 0 < making.nbytes <= 2 * length * 8, "O(T): the tables"
    q, k = slice(12_000, 12_100), slice(11_900, 12_050)
    with Largest() as seen:
        reasons, allowed = mask.reasons(q, k), mask.allowed(q, k)
        part = mask.of_queries(q).light()
    assert 100 * 150 <= seen.nbytes <= 2 * length * 8
    assert torch.equal(part.reasons(k=k), reasons)
    with Largest() as small:
        small_tile = mask.reasons(slice(5, 9), slice(0, 9))
    assert small.nbytes <= 2 * length * 8
    assert torch.equal(allowed, reasons == 0)
    assert small_tile[:, 3].tolist() == [[8, 8, 8, 8, 8, 8, 8, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]]
    with Largest() as whole:
        Mask(mask.rules, positions[:3000], positions[:3000]).dense(torch.float32, CPU)
    assert whole.nbytes >= 3000**2, "the measure sees a whole matrix"


@pytest.mark.parametrize("data", [["x"], [{"rule": "causal"}, None], [["rule", "causal"]], {"rule": "causal"}], ids=str)
def test_data_that_hold_no_dictionaries_are_refused(data):
    with pytest.raises(TypeError, match=r"the data hold .*; a dictionary for each rule is needed, \{\"rule\": \""):
        rules_from_data(data)

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.analysis.attention_cases import CASES, DOCUMENTS, LENGTH, Case, case, constructed, eager, read, texts
from tests.analysis.test_attention_pictures import Largest, by_hand
from workbench.analysis.attention import AttentionMap
from workbench.analysis.attention_blocks import CELLS
from workbench.analysis.heads import METRICS, find_heads, head_metrics
from workbench.cache import DynamicCache
from workbench.instrument import Activations, capture
from workbench.model.mask import Rule, causal, document, padding

FEW = 6  # so few different tokens that most of them come again
N_REP = {"mha": 1, "mqa": 4, "padding mqa": 4, "only cached keys": 4, "additive 4-D": 1}


def repeated(kind="gqa", **options):
    return read(eager(kind), texts(most=FEW, seed=8), **options)


def by_loops(pattern, ids, real, numbers, allowed):
    """The metrics of one head (q, k), from their definitions."""
    length = len(pattern)
    found = {name: [] for name in METRICS[:-1]}
    for q in range(length):
        if not real[q] or not allowed[q].any():
            continue
        text = [k for k in range(length) if real[k] and numbers[k] == numbers[q]]
        may = [k for k in text if allowed[q, k]]
        if q - 1 in may:
            found["previous_token"].append(pattern[q, q - 1])
        if q in may:
            found["current_token"].append(pattern[q, q])
        if text[0] in may:
            found["first_token"].append(pattern[q, text[0]])
        after = [k for k in may if k <= q and k - 1 in text and ids[k - 1] == ids[q]]
        if after:
            found["induction"].append(sum(pattern[q, k] for k in after))
        same = [k for k in may if k < q and ids[k] == ids[q]]
        if same:
            found["duplicate_token"].append(sum(pattern[q, k] for k in same))
        found["entropy"].append(-sum(w * np.log(w) for w in pattern[q] if w > 0))
        found["distance"].append(sum(pattern[q, k] * (q - k) for k in range(length)))
    return {name: np.mean(values) if values else np.nan for name, values in found.items()}


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def check(expected: Case, frame, row=0, n_rep=2, numbers=None, layers=range(3), ids=None):
    ids = (expected.ids[row] if ids is None else ids).tolist()
    numbers = np.zeros(len(ids), int) if numbers is None else numbers
    real = expected.real[row]
    assert list(frame.columns) == ["layer", "head", "kv_head", *METRICS]
    assert frame[["layer", "head"]].to_numpy().tolist() == [[i, h] for i in layers for h in range(4)]
    assert frame["kv_head"].tolist() == [h // n_rep for _ in layers for h in range(4)]
    for _, line in frame.iterrows():
        layer, head = int(line["layer"]), int(line["head"])
        patterns = expected.patterns[layer, row].astype(np.float64) * real[None, :, None]
        loops = by_loops(patterns[head], ids, real, numbers, patterns[head] > 0)
        others = [h for h in range(4) if h // n_rep == head // n_rep and h != head]
        loops["group_similarity"] = np.mean([cosine(patterns[head], patterns[h]) for h in others]) if others else np.nan
        for name in METRICS:
            assert line[name] == pytest.approx(loops[name], abs=2e-5, nan_ok=True), (layer, head, name)


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [CELLS, 5 * LENGTH * 4], ids=["one block", "several blocks"])
@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_loops_over_the_patterns_that_were_used(name, cells, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention_blocks.CELLS", cells)
    expected = case(name)
    for row in range(len(expected.ids)):
        ids = texts(len(expected.ids), most=FEW, seed=8)[row]  # any tokens: the patterns are what they are
        frame = head_metrics(AttentionMap(expected.acts, row=row), ids)
        numbers = DOCUMENTS[0].numpy() if name.startswith("documents") else None
        check(expected, frame, row, N_REP.get(name, 2), numbers, ids=ids)


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_tokens_are_those_that_were_captured(kind):
    expected = repeated(kind)
    n_rep = {"mha": 1, "gqa": 2, "mqa": 4}[kind]
    check(expected, head_metrics(expected.acts), n_rep=n_rep)
    check(expected, head_metrics(AttentionMap(expected.acts), expected.ids[0].tolist()), n_rep=n_rep)
    check(expected, head_metrics(expected.acts, expected.ids[0].numpy(), layers=[2]), n_rep=n_rep, layers=[2])
    assert head_metrics(expected.acts)["induction"].notna().all()


def test_tokens_of_a_text_read_in_pieces_are_joined():
    expected = repeated(cuts=(4, 9, 10, 11), cache=DynamicCache())
    check(expected, head_metrics(expected.acts))


def test_tokens_are_those_of_the_row_of_the_batch():
    expected = read(eager(), texts(2, most=FEW, seed=8))
    assert (expected.ids[0] != expected.ids[1]).any()
    for row in range(2):
        check(expected, head_metrics(AttentionMap(expected.acts, row=row)), row)


def test_a_length_looks_at_the_first_positions_only():
    expected = repeated()
    short = Case(expected.acts, expected.ids[:, :11], expected.patterns[..., :11, :11], expected.real[:, :11])
    check(short, head_metrics(AttentionMap(expected.acts, length=11)))
    check(short, head_metrics(AttentionMap(expected.acts, length=11), expected.ids[0]))


def test_a_metric_without_a_query_to_average_over_is_nan():
    ids = torch.arange(1, LENGTH + 1)  # no token comes again
    frame = head_metrics(case("gqa").acts, ids)
    assert frame[["induction", "duplicate_token"]].isna().all(axis=None)
    assert frame[["previous_token", "current_token", "first_token", "entropy", "distance"]].notna().all(axis=None)
    assert head_metrics(case("mha").acts, ids)["group_similarity"].isna().all()
    assert head_metrics(case("gqa").acts, ids)["group_similarity"].notna().all()


def test_what_the_mask_excludes_does_not_count():
    for name, row in (("padding", 0), ("padding", 1), ("documents by rule", 0)):
        attention = AttentionMap(case(name).acts, row=row)
        first = head_metrics(attention, texts(3)[row])["first_token"]
        whole = case(name).patterns[:, row, :, :, 0].mean(-1).flatten()
        assert abs(first.to_numpy() - whole).max() > 0.01, "not simply the weight on position 0"


def hand_made(where, length=30, heads=1):
    """A head with all of its weight, evenly, on the keys that `where(q, k)` says; on itself where there are none."""
    pattern = np.zeros((heads, length, length), np.float32)
    for q in range(length):
        keys = [k for k in range(q + 1) if where(q, k)] or [q]
        pattern[:, q, keys] = 1 / len(keys)
    return pattern


def test_heads_made_for_one_thing_do_that():
    half = torch.randint(1, 90, (15,), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([half, half]).tolist()
    assert len(set(ids)) == 14, "one of them comes again in each half"
    heads = {
        "previous_token": lambda q, k: k == q - 1,
        "current_token": lambda q, k: k == q,
        "first_token": lambda q, k: k == 0,
        "induction": lambda q, k: k > 0 and ids[k - 1] == ids[q],
        "duplicate_token": lambda q, k: k < q and ids[k] == ids[q],
    }
    patterns = np.concatenate([hand_made(where) for where in heads.values()])
    frame = head_metrics(constructed(patterns), ids)
    for i, name in enumerate(heads):
        assert frame[name][i] == pytest.approx(1, abs=1e-4), name
        for other in set(heads) - {name}:
            assert frame[other][i] < 0.6, f"{name} is no {other} head"
    assert frame["entropy"][1] == pytest.approx(0, abs=1e-4)
    assert frame["distance"][0] == pytest.approx(29 / 30, abs=1e-4), "one back, but the first on itself"
    assert frame["distance"][2] == pytest.approx(14.5, abs=1e-3)
    even = head_metrics(constructed(hand_made(lambda q, k: True)), ids)
    assert even["entropy"][0] == pytest.approx(np.log(np.arange(1, 31)).mean(), abs=1e-4)


def test_group_similarity_is_one_for_equal_heads_and_zero_for_heads_with_nothing_in_common():
    acts = Activations()
    one, other = hand_made(lambda q, k: k == q)[0], hand_made(lambda q, k: k == q - 1)[0]
    other[0, 0] = 0  # the first query of both looks at itself otherwise
    scores = torch.tensor(np.stack([one, one, one, other, other, other])).clamp(min=1e-30).log() * 30**0.5
    acts.append("layers.0.q_rot", scores.permute(1, 0, 2)[None].contiguous())
    acts.append("layers.0.k_rot", torch.eye(30)[None, :, None].expand(1, 30, 2, 30).contiguous())
    same = head_metrics(acts, list(range(30)))
    np.testing.assert_allclose(same["group_similarity"], 1, atol=1e-4)
    acts = Activations()
    acts.append("layers.0.q_rot", scores[[0, 3]].permute(1, 0, 2)[None].contiguous())
    acts.append("layers.0.k_rot", torch.eye(30)[None, :, None].contiguous())
    apart = head_metrics(acts, list(range(30)))
    np.testing.assert_allclose(apart["group_similarity"], (1 / 30) / np.sqrt(1 * (29 + 1 / 30) / 30), atol=2e-3)


@torch.no_grad()
def test_of_a_capture_of_some_positions_these_queries_count():
    model, kept = eager(), [3, 4, 9, 16]
    with capture(model, "q_rot", "k_rot", positions=kept) as acts:
        model(texts(most=FEW, seed=8))
    expected = repeated()
    patterns = np.zeros_like(expected.patterns)
    patterns[..., kept, :] = expected.patterns[..., kept, :]
    frame = head_metrics(acts)
    for _, line in frame.iterrows():
        pattern = patterns[int(line["layer"]), 0, int(line["head"])]
        loops = by_loops(pattern, expected.ids[0].tolist(), np.ones(LENGTH, bool), np.zeros(LENGTH), pattern > 0)
        for name in METRICS[:-1]:
            assert line[name] == pytest.approx(loops[name], abs=2e-5, nan_ok=True), name


@torch.no_grad()
def test_of_a_capture_of_some_heads_these_are_measured():
    model = eager()
    with capture(model, "q_rot", "k_rot", heads=[1, 2, 3]) as acts:
        model(texts(most=FEW, seed=8))
    found, whole = head_metrics(acts), head_metrics(repeated().acts)
    assert found["head"].tolist() == [1, 2, 3] * 3
    assert found["kv_head"].tolist() == [0, 1, 1] * 3
    expected = whole[whole["head"] > 0].reset_index(drop=True)
    np.testing.assert_allclose(found[list(METRICS[:-1])], expected[list(METRICS[:-1])], atol=1e-6)
    assert found["group_similarity"].isna().tolist() == [True, False, False] * 3


def test_layers_are_told_as_they_are_done_and_those_that_are_complete_are_kept():
    told, expected = [], repeated()
    frame = head_metrics(expected.acts, on_layer=lambda layer, rows: told.append((layer, rows)))
    assert [layer for layer, _ in told] == [0, 1, 2]
    for layer, rows in told:
        np.testing.assert_array_equal(rows.to_numpy(), frame[frame["layer"] == layer].to_numpy())
    stopped = head_metrics(
        expected.acts, should_stop=lambda: len(told) >= 5, on_layer=lambda *layer: told.append(layer)
    )
    assert stopped["layer"].unique().tolist() == [0, 1]
    nothing = head_metrics(expected.acts, should_stop=lambda: True)
    assert (len(nothing), list(nothing.columns)) == (0, list(frame.columns))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([1, 2, 3], r"\(3,\)"),
        (torch.ones(1, LENGTH, dtype=torch.long), r"\(1, 17\)"),
        (torch.ones(17), r"float32"),
    ],
    ids=["too few", "two axes", "no whole numbers"],
)
def test_tokens_that_do_not_fit_are_refused(tokens, words):
    with pytest.raises(
        ValueError, match=rf"tokens has shape .*{words}.* the ids of the 17 positions of this map are need"
    ):
        head_metrics(case("gqa").acts, tokens)


def test_tokens_that_are_not_known_are_asked_for():
    with pytest.raises(ValueError, match=r"the tokens of this text were not captured\. Give their ids: tokens=\[…\]"):
        head_metrics(by_hand())
    with pytest.raises(TypeError, match=r"an AttentionMap or the Activations of a capture are needed; got list"):
        head_metrics([1, 2])


# --- search ----------------------------------------------------------------------------------------------------------


def similarity(expected, row, target):
    patterns = expected.patterns[:, row].astype(np.float64) * expected.real[row][:, None]
    target = target * (patterns > 0).any((0, 1))
    return {(i, h): cosine(patterns[i, h], target) for i, h in itertools.product(range(3), range(4))}


@pytest.mark.parametrize("cells", [CELLS, 5 * LENGTH * 4], ids=["one block", "several blocks"])
@pytest.mark.parametrize("name", ["mha", "gqa", "decode", "padding", "window", "documents", "ring cache", "both ways"])
def test_heads_are_found_by_the_cosine_between_patterns(name, cells, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention_blocks.CELLS", cells)
    expected, noise = case(name), np.random.default_rng(0).random((LENGTH, LENGTH))
    for row in range(len(expected.ids)):
        attention = AttentionMap(expected.acts, row=row)
        for like, target in (
            ((1, 2), expected.patterns[1, row, 2]),
            (noise, noise),
            (torch.from_numpy(noise), noise),
            (lambda q, k: k >= q - 2, np.tri(LENGTH, k=LENGTH) - np.tri(LENGTH, k=-3)),
            (lambda q, k: 1 / (1 + abs(q - k)), 1 / (1 + abs(np.arange(LENGTH)[:, None] - np.arange(LENGTH)))),
        ):
            found, cosines = find_heads(attention, like), similarity(expected, row, target)
            assert list(found.columns) == ["layer", "head", "kv_head", "similarity"]
            assert len(found) == 12
            assert found["similarity"].is_monotonic_decreasing
            for _, line in found.iterrows():
                assert line["similarity"] == pytest.approx(cosines[int(line["layer"]), int(line["head"])], abs=1e-5)


def test_a_head_looks_most_like_itself():
    found = find_heads(case("gqa").acts, like=(2, 1), top=3)
    assert len(found) == 3
    assert found.iloc[0][["layer", "head", "kv_head"]].tolist() == [2, 1, 0]
    assert found["similarity"][0] == pytest.approx(1, abs=1e-6)
    assert found["similarity"][1] < 0.999
    assert find_heads(case("gqa").acts, like=(2, 1), layers=[0])["layer"].unique().tolist() == [0]


def test_heads_made_for_one_thing_are_found_by_a_function():
    patterns = np.concatenate([hand_made(lambda q, k, back=back: k == q - back) for back in range(5)])
    found = find_heads(constructed(patterns), like=lambda q, k: k == q - 3)
    assert found["head"][0] == 3
    assert found["similarity"][0] > 0.9
    assert found["similarity"][1] < 0.3


@pytest.mark.parametrize(
    ("like", "error", "words"),
    [
        (np.ones((3, 17)), ValueError, r"like has shape \(3, 17\); this map has 17 positions, so \(17, 17\) is needed"),
        (np.triu(np.ones((17, 17)), 1), ValueError, r"no weight in any cell where a query may attend"),
        ((0, 9), ValueError, r"head 9 does not exist; this layer has query heads 0 … 3"),
        ((9, 0), KeyError, r"layers\.9\.q_rot' was not captured"),
        ("induction", TypeError, r"like is 'induction'; give \(layer, head\), an array of weights"),
    ],
)
def test_a_pattern_that_cannot_be_looked_for_is_refused(like, error, words):
    with pytest.raises(error, match=words):
        find_heads(case("gqa").acts, like)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_the_pattern_to_look_for_holds_in_masked_cells_does_not_matter(value):
    like = np.where(np.tri(LENGTH, dtype=bool), case("gqa").patterns[1, 0, 2], value)
    found = find_heads(case("gqa").acts, like)
    assert found.equals(find_heads(case("gqa").acts, case("gqa").patterns[1, 0, 2]))
    assert found.iloc[0][["layer", "head"]].tolist() == [1, 2]
    like[9, 3] = value
    with pytest.raises(ValueError, match=rf"like is {value} for query 9 and key 3, which may attend; finite weights"):
        find_heads(case("gqa").acts, like)


@pytest.mark.parametrize("top", [0, -1])
def test_no_heads_cannot_be_asked_for(top):
    with pytest.raises(ValueError, match=rf"top is {top}; 1 or more heads are needed"):
        find_heads(case("gqa").acts, (0, 0), top=top)


def test_rules_say_what_is_padding_and_what_is_a_document_whatever_they_are_called():
    keep, numbers = torch.ones(1, LENGTH), DOCUMENTS.clone()
    keep[0, :3] = 0
    named = [causal(), padding(keep), document(numbers)]
    renamed = [dataclasses.replace(rule, name=f"my {rule.name}") for rule in named]
    own = [*named, Rule("padding", "Q", lambda q, k, keep: k < keep, {"keep": 900})]
    ids = texts(most=FEW, seed=8)[0]
    frames = [head_metrics(read(eager(), texts(), masks=lambda a, b, r=r: r).acts, ids) for r in (named, renamed, own)]
    plain = head_metrics(read(eager(), texts(), masks=lambda a, b: [causal()]).acts, ids)
    for frame in frames[1:]:
        assert frame.equals(frames[0])
    assert (frames[0]["first_token"] - plain["first_token"]).abs().max() > 0.01


def test_a_search_that_is_stopped_gives_the_complete_layers():
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 2

    assert sorted(find_heads(case("gqa").acts, (0, 0), should_stop=stop)["layer"].unique()) == [0, 1]
    assert len(find_heads(case("gqa").acts, (0, 0), should_stop=lambda: True)) == 0


def test_no_tensor_of_the_size_of_the_whole_pattern_is_ever_made():
    length = 2048
    attention, ids = by_hand(4, 2, length), torch.randint(0, 50, (length,))
    for look in (
        lambda: head_metrics(attention, ids),
        lambda: find_heads(attention, (0, 1)),
        lambda: find_heads(attention, lambda q, k: k == q - 1),
    ):
        with Largest() as seen:
            look()
        assert 0 < seen.nbytes <= CELLS * 4
        assert seen.nbytes < length * length * 4 / 7


def test_threads_give_the_same_numbers():
    attention = AttentionMap(repeated().acts)
    one = (head_metrics(attention), find_heads(attention, (1, 1)), list(attention.thumbnails(size=6)))
    torch.set_num_threads(2)
    two = (head_metrics(attention), find_heads(attention, (1, 1)), list(attention.thumbnails(size=6)))
    torch.set_num_threads(1)
    np.testing.assert_array_equal(one[0].to_numpy(), two[0].to_numpy())
    np.testing.assert_array_equal(one[1].to_numpy(), two[1].to_numpy())
    for a, b in zip(one[2], two[2], strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)

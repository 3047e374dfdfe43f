"""What an edit says when it cannot be made, or did not take effect."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, VECTOR
from workbench.cache import DynamicCache
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import EditError
from workbench.instrument.edits import add, knock_out, mean, patch, scale, swap_kv, zero
from workbench.model.mask import Mask, padding


def double(x):
    return x * 2


# --- on entry: nothing is hooked, the block does not run


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"zz": double}, r"'zz' is no hook point; did you mean"),
        (zero("layers.9.z"), r"layer 9 does not exist; this model has layers 0 … 2\."),
        (zero("z", layers=[0, 3]), r"layer 3 does not exist; this model has layers 0 … 2\."),
        (zero("layers.1.z", layers=2), r"names layers in its point and others in layers\. Leave one of them out\."),
        (zero("embed", layers=1), r"names layers, but 'embed' is in none\. Leave layers out\."),
        (zero("z", heads=4), r"head 4 does not exist; this model has query heads 0 … 3\."),
        (zero("k", heads=[0, -3]), r"head -3 does not exist; this model has key/value heads 0 … 1\."),
        (zero("z", heads=[1, -3]), r"heads \[1, -3\] name one query head twice; this model has 4\."),
        (zero("act", neurons=48), r"neuron 48 does not exist; this model has neurons 0 … 47\."),
        (zero("z", neurons=1), r"names neurons, but 'z' has none\. Neurons can be chosen at gate, up, act\."),
        (zero("mlp_out", heads=1), r"names heads, but 'mlp_out' has none\. Heads can be chosen at q, k, v, q_rot, k_r"),
        (zero("z", positions=[0, 128]), r"position 128 is out of range; this model has positions 0 … 127 \(max_positi"),
        (add("z", 1.0, positions=slice(128, None)), r"position 128 is out of range"),
        (knock_out(edges=[(128, 1)]), r"position 128 is out of range"),
        (knock_out(heads=4, keys=1), r"head 4 does not exist; this model has query heads 0 … 3\."),
        (zero("mask"), r"zero\('mask'\) cannot be applied to 'mask': it is a Mask, not a tensor\. Use knock_out, or g"),
        (add("scores", 1.0), r"cannot be applied to 'scores': its last axis grows with the text\. Use knock_out, or g"),
        (mean("pattern", VECTOR), r"cannot be applied to 'pattern': its last axis grows with the text"),
        (mean("k_cached"), r"mean\('k_cached'\): 'k_cached' holds all of the text at every step\. Give the mean: a te"),
        (add("z", VECTOR), r"its values have shape \(32,\); needed is \(4, 8\) or \(8,\) or one number\."),
        (add("z", VECTOR.view(4, 8), heads=[0, 1]), r"shape \(4, 8\); needed is \(2, 8\) or \(8,\) or one number\."),
        (add("act", VECTOR, neurons=[0, 1]), r"shape \(32,\); needed is \(2,\) or one number\."),
        (mean("v", VECTOR.view(4, 8)), r"shape \(4, 8\); needed is \(2, 8\) or \(8,\) or one number\."),
        (patch("z", torch.zeros(1, 2, 3, 8)), r"shape \(1, 2, 3, 8\); needed is batch, 2, 4, 8\."),
        (patch("z", torch.zeros(1, 2, 4, 8), heads=1), r"shape \(1, 2, 4, 8\); needed is batch, 2, 1, 8\."),
        (patch("z", {0: torch.zeros(1, 1, 4, 8), 3: torch.zeros(1, 1, 4, 8)}), r"layer 3 does not exist"),
        ({"v": zero("z")}, r"zero\('z'\) is given under 'v', but it changes 'layers\.0\.z'\."),
        ({"layers.1.z": zero("z", layers=0)}, r"is given under 'layers\.1\.z', but it changes 'layers\.0\.z'\."),
        ({"k_rot": swap_kv(0, 0, 1)}, r"changes k_rot and v; give it in a list instead of under 'k_rot'\."),
        ({}, r"no edit was given\."),
        ([], r"no edit was given\."),
        ({"z": []}, r"no edit was given\."),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_model_has_no_place_for_is_refused_on_entry(edits, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message), edit(model, edits):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (double, r"edits is <function double .*>; give \{point: function\}, a ready-made edit or a list of them\."),
        ("z", r"edits is 'z'; give \{point: function\}"),
        ([double], r"a list of edits holds <function double .*>; only ready-made ones, which know their point, can be"),
        ({"z": 3}, r"the edits of 'z' holds 3; only functions and ready-made ones can be in it\."),
        ({"z": [double, None]}, r"the edits of 'z' holds None; only functions and ready-made ones can be in it\."),
        ({"z": lambda: 1}, r"the edit of 'z' by <lambda> takes \(\); it is called as f\(tensor\) or f\(tensor, site\)"),
        ({"z": lambda a, b, c: a}, r"takes \(a, b, c\); it is called as f\(tensor\) or f\(tensor, site\)\."),
        ({"z": lambda a, *, key: a}, r"takes \(a, key\); it is called as f\(tensor\) or f\(tensor, site\)\."),
        ({3: double}, r"a hook point is named by a text such as 'resid_post' or 'layers\.3\.q'; got 3\."),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_edit_is_refused_on_entry(edits, message):
    model = tiny_model()
    with pytest.raises(TypeError, match=message), edit(model, edits):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


def test_only_this_librarys_models_can_be_edited():
    message = r"hook points belong to a LlamaForCausalLM or LlamaModel; got Linear\."
    with pytest.raises(TypeError, match=message), edit(torch.nn.Linear(2, 2), zero("z")):
        pass
    base = tiny_model().model
    with pytest.raises(ValueError, match=r"'logits' is not a point of LlamaModel"), edit(base, zero("logits")):
        pass


def test_positions_behind_the_trained_length_are_allowed_where_it_has_no_end():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope, max_position_embeddings=8)
    with torch.no_grad(), edit(model, zero("z", positions=10)):
        model(IDS)


# --- when it is made


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: zero("z", heads=[]), ValueError, r"heads is empty: nothing would be edited\. Leave it out for all\."),
        (lambda: zero("z", heads=[1, 1]), ValueError, r"heads names 1 twice\."),
        (lambda: zero("z", heads="1"), TypeError, r"heads holds '1'; whole numbers are needed\."),
        (lambda: zero("z", heads=1.0), TypeError, r"heads holds 1\.0; whole numbers are needed\."),
        (lambda: zero("z", layers=True), TypeError, r"layers holds True; whole numbers are needed\."),
        (lambda: zero("z", positions=-1), ValueError, r"positions holds -1; positions are absolute, 0 is the first to"),
        (lambda: zero("z", positions=slice(-3, None)), ValueError, r"positions is slice\(-3, None, None\); a slice of"),
        (lambda: zero("z", positions=slice(0, -1)), ValueError, r"a slice of absolute positions is slice\(5, 9\) or "),
        (lambda: zero("z", positions=slice(0, None, 2)), ValueError, r"a slice of absolute positions is"),
        (lambda: zero("z", positions=slice(3, 3)), ValueError, r"positions is empty: nothing would be edited\."),
        (lambda: zero(3), TypeError, r"zero: hook points are named by texts such as 'resid_post'; got \(3,\)\."),
        (lambda: scale("z", "2"), TypeError, r"factor is '2'; a number is needed\."),
        (lambda: scale("z", float("inf")), ValueError, r"scale: the factor is inf; a finite number is needed\."),
        (lambda: add("z", float("nan")), ValueError, r"vector is nan; a finite number is needed\."),
        (lambda: add("z", -float("inf")), ValueError, r"vector is -inf; a finite number is needed\."),
        (lambda: add("z", [1.0]), TypeError, r"vector is \[1\.0\]; a number is needed\."),
        (lambda: add("z", torch.ones(8).long()), TypeError, r"add: values are tensors of float32, float64, float16, b"),
        (lambda: add("z", torch.ones(0)), TypeError, r"that are not empty; got torch\.float32 of shape \(0,\)\."),
        (knock_out, ValueError, r"knock_out: give edges=\[\(query, key\), …\], or queries, keys or both\."),
        (lambda: knock_out(edges=[(1, 0)], keys=1), ValueError, r"give edges, or queries and keys; not both\."),
        (lambda: knock_out(edges=[]), ValueError, r"knock_out: edges is empty: nothing would be edited\."),
        (lambda: knock_out(edges=[(1, 2)]), ValueError, r"edge \(1, 2\) does not exist: a pair is \(query position, k"),
        (lambda: knock_out(edges=[(1, -1)]), ValueError, r"edge \(1, -1\) does not exist"),
        (lambda: knock_out(edges=[3]), TypeError, r"edges holds 3; pairs \(query position, key position\) are needed"),
        (lambda: knock_out(edges=[(1, 2, 3)]), TypeError, r"edges holds \(1, 2, 3\); pairs"),
        (lambda: knock_out(queries=[1, 2], keys=[3, 4]), ValueError, r"no query of \[1, 2\] sees a key of \[3, 4\]"),
        (lambda: knock_out(queries=2, keys=slice(3, None)), ValueError, r"no query of \[2\] sees a key of slice\(3, N"),
        (lambda: swap_kv(0, 1, 1), ValueError, r"heads names 1 twice\."),
    ],
)  # fmt: skip
def test_what_no_model_could_do_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- what a function returns


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (
            lambda x: None,
            r"None at 'layers\.0\.z'; needed is a tensor of shape \(2, 12, 4, 8\), torch\.float32 on cpu\. A",
        ),
        (lambda x: 3, r"a int at 'layers\.0\.z'"),
        (lambda x: x[:, :, :2], r"a tensor of shape \(2, 12, 2, 8\), torch\.float32 on cpu at 'layers\.0\.z'"),
        (lambda x: x[:1], r"a tensor of shape \(1, 12, 4, 8\), torch\.float32 on cpu at 'layers\.0\.z'"),
        (lambda x: x.double(), r"a tensor of shape \(2, 12, 4, 8\), torch\.float64 on cpu at 'layers\.0\.z'"),
        (lambda x: x.to("meta"), r"a tensor of shape \(2, 12, 4, 8\), torch\.float32 on meta at 'layers\.0\.z'"),
    ],
)
@torch.no_grad()
def test_a_function_returns_a_tensor_like_the_one_it_is_given(function, found):
    model, cache = tiny_model(), DynamicCache()
    with (
        pytest.raises(EditError, match=r"^the edit of 'z' by <lambda> returned " + found),
        edit(model, {"z": function}),
    ):
        model(IDS, past_key_values=cache)
    assert cache.length == 0
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda mask: None, r"None at 'layers\.0\.mask'"),
        (lambda mask: torch.ones(12, 12), r"a tensor of shape \(12, 12\)"),
        (lambda mask: Mask(mask.rules, mask.q_pos + 1, mask.k_pos), r"Mask\(causal\(\): 12 queries × 12 keys\)"),
        (lambda mask: mask.of_queries(slice(0, 3)), r"Mask\(causal\(\): 3 queries × 12 keys\)"),
    ],
)
@torch.no_grad()
def test_a_function_at_a_mask_returns_a_mask_of_the_same_positions(function, found):
    message = (
        found + r".*; needed is a Mask of the same queries and keys, for example mask\.with_rules\(window\(64\)\)\."
    )
    model = tiny_model()
    with pytest.raises(EditError, match=message), edit(model, {"mask": function}):
        model(IDS)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda mask: mask.with_rules(padding(torch.ones(3, 12))), r"padding\(keep=\(3, 12\)\) is for 3 batch rows;"),
        (lambda mask: Mask(mask.rules, mask.q_pos, mask.k_pos, torch.zeros(1, 3, 12, 12)), r"for 1 batch rows and 3 h"),
        (lambda mask: Mask(mask.rules, mask.q_pos, mask.k_pos, torch.zeros(3, 1, 12, 12)), r"for 3 batch rows and 1 h"),
    ],
    ids=["rows of a rule", "heads", "rows of a bias"],
)  # fmt: skip
@torch.no_grad()
def test_a_function_at_a_mask_returns_one_for_this_batch_and_these_heads(function, found):
    model = tiny_model()
    message = r"^the edit of 'mask' by <lambda> returned a Mask at 'layers\.0\.mask' that this forward cannot use: .*"
    with pytest.raises(EditError, match=message + found), edit(model, {"mask": function}):
        model(IDS)
    assert hooks(model) == 0


# --- at the end: what did not take effect


def after(edits, starts=(0,), stop=12, **inputs):
    """Leaves a block of edits, in which positions were read in parts; those before the first were in the cache."""
    model, cache = tiny_model(), DynamicCache()
    if starts[0]:
        model(IDS[:, : starts[0]], past_key_values=cache)
    with edit(model, edits) as active:
        for start, end in zip(starts, (*starts[1:], stop), strict=True):
            model(IDS[:, start:end], past_key_values=cache, **inputs)
    return active


@pytest.mark.parametrize(
    "edits", [zero("z"), knock_out(edges=[(3, 1)]), {"z": double}], ids=["zero", "edge", "function"]
)
def test_without_a_forward_no_edit_takes_effect(edits):
    model = tiny_model()
    message = r" did not take effect: no forward of this model ran in the block, in its thread\."
    with pytest.raises(EditError, match=message), edit(model, edits):
        pass
    assert hooks(model) == 0
    with pytest.raises(EditError, match=message), edit(model, edits):
        tiny_model()(IDS)  # another one


PADDED = torch.ones(2, 12, dtype=torch.long)
PADDED[:, :2] = 0


@pytest.mark.parametrize(
    ("which", "starts", "stop", "message"),
    [
        (zero("z", positions=[3, 4, 7]), (5,), 12, "position 3, 4: in the cache before this block, whose forwards read "
         "positions 5 … 11."),
        (zero("z", positions=[2, 40]), (0, 6), 8, "position 40: not read in this block, whose forwards read positions "
         "0 … 7."),
        (zero("z", positions=[1, 40]), (5,), 6, "position 1: in the cache before this block, whose forwards read "
         "positions 5 … 5; position 40: not read in this block, whose forwards read positions 5 … 5."),
        (zero("z", positions=list(range(20))), (5,), 8, "position 0, 1, 2, 3, 4: in the cache before this block, whose "
         "forwards read positions 5 … 7; position 8, 9, 10, 11, 12, 13, … 6 more: not read in this block, whose"),
        (add("z", 1.0, positions=slice(20, None)), (0,), 12, "it found nothing to change in this block, whose forwards "
         "read positions 0 … 11."),
        (knock_out(edges=[(3, 1), (7, 1)]), (5,), 12, "edge (3, 1): its query was in the cache before this block, "
         "whose forwards read positions 5 … 11."),
        (knock_out(edges=[(30, 1)]), (0,), 12, "edge (30, 1): its query was not read in this block, whose forwards"),
        (knock_out(queries=[3, 7], keys=0), (5,), 12, "query 3: in the cache before this block, whose forwards read"),
        (knock_out(queries=[7, 9], keys=[8, 20, 1]), (0,), 12, "key 20: none of the queries that were read could see "),
        (knock_out(queries=[4, 11], keys=[6]), (0,), 12, "query 4: it could not see any of the keys"),
        (knock_out(queries=slice(20, None)), (0,), 12, "it found nothing to change in this block"),
    ],
    ids=lambda x: str(x) if not isinstance(x, str) else "",
)  # fmt: skip
@torch.no_grad()
def test_where_an_edit_did_not_take_effect(which, starts, stop, message):
    with pytest.raises(EditError) as caught:
        after(which, starts, stop)
    assert str(caught.value).startswith(f"{which} did not take effect")
    assert message in str(caught.value)


@torch.no_grad()
def test_edges_that_were_forbidden_already():
    with pytest.raises(EditError, match=r"edge \(5, 1\): it is forbidden already, by padding\.$"):
        after(knock_out(edges=[(5, 1), (5, 2)]), attention_mask=PADDED)
    twice = [knock_out(edges=[(5, 2)]), knock_out(edges=[(5, 2), (6, 2)])]
    with pytest.raises(EditError, match=r"edge \(5, 2\): it is forbidden already, by knocked_out\.$"):
        after(twice)
    half = PADDED.clone()
    half[0] = 1
    assert after(knock_out(edges=[(5, 1)]), attention_mask=half).hits == [3 * 4], "one row of two"


@torch.no_grad()
def test_logits_that_are_not_computed_cannot_be_edited():
    message = r"position 3: no row of it was computed \(see logits_to_keep\)\.$"
    with pytest.raises(EditError, match=message):
        after(zero("logits", positions=[3, 11]), logits_to_keep=1)
    model = tiny_model()
    message = r"zero\('logits'\) did not take effect: it found nothing to change in this block"
    with pytest.raises(EditError, match=message), edit(model, zero("logits")):
        model.model(IDS)


@torch.no_grad()
def test_every_edit_that_did_nothing_is_named():
    with pytest.raises(EditError) as caught:
        after([zero("z"), zero("q", positions=30), zero("k", positions=40)])
    assert "zero('q', positions=[30])" in str(caught.value)
    assert "zero('k', positions=[40])" in str(caught.value)
    assert "zero('z')" not in str(caught.value)


@torch.no_grad()
def test_positions_may_be_read_in_any_of_the_forwards():
    assert after([zero("z", positions=[3, 7, 11]), knock_out(edges=[(3, 1), (9, 2)])], (0, 4, 8, 9)).hits == [18, 48]
    model = tiny_model()
    with edit(model, knock_out(queries=[5, 9], keys=[2, 7])) as active:
        model(IDS[:, :7], use_cache=False)
        model(IDS, use_cache=False)
    assert active.hits == [3 * 2 * 4 * (1 + 3)]


def test_long_edits_are_shown_short():
    long = knock_out(edges=[(30, k) for k in range(20)])
    assert repr(long) == ("knock_out(edges=[(30, 0), (30, 1), (30, 2), (30, 3), (30, 4), (30, 5), … 14 more])")
    assert repr(zero("z", heads=range(8))) == "zero('z', heads=[0, 1, 2, 3, 4, 5, 6, 7])"
    assert repr(add("resid_post", VECTOR, 2, positions=slice(3, None))) == (
        "add('resid_post', positions=slice(3, None), values=<float32 (32,)>, scale=2.0)"
    )
    assert repr(swap_kv(-1, 0, 1)) == "swap_kv(layers=[-1], heads=[0, 1])"

"""Ready-made edits as JSON: every bit comes back, and what is no edit is refused."""

import json

import pytest
import torch

from tests.conftest import tiny_model
from tests.instrument.edit_references import IDS, edited
from workbench.instrument import capture
from workbench.instrument.edits import (
    add,
    edits_from_json,
    edits_to_json,
    knock_out,
    mean,
    patch,
    scale,
    swap_kv,
    zero,
)

ODD = torch.tensor([1.5, -0.0, float("nan"), float("inf"), -1e-45, 3.4e38, 1e-8, 0.1])


def examples():
    model = tiny_model()
    with torch.no_grad(), capture(model, "z", "embed") as acts:
        model(IDS.flip(1))
    return [
        zero("z", heads=[1, -1], positions=[3, 5], layers=range(2)),
        zero("act", neurons=[0, 47], positions=slice(4, None)),
        scale("layers.1.mlp_out", 0.1 + 0.2),
        add("resid_post", torch.randn(32), -1 / 3, layers=-1),
        add("act", 0.5, neurons=3),
        mean("z", heads=1),
        mean("z", acts, layers=[0, 2]),
        patch("z", acts, layers=1, heads=[0, 2], positions=[4, 1], source_positions=[1, 4]),
        patch("embed", acts, positions=[0]),
        knock_out(edges=[(9, 0), (5, 5)]),
        knock_out([0, 1], 2, queries=slice(5, None), keys=[0, 1]),
        swap_kv(1, 0, -1),
    ]


@torch.no_grad()
def test_edits_come_back_with_every_bit():
    model, made = tiny_model(), examples()
    read = edits_from_json(edits_to_json(made))
    for before, after in zip(made, read, strict=True):
        assert repr(after) == repr(before)
        assert after.to_json() == before.to_json()
        assert torch.equal(edited(model, after), edited(model, before)), before
        assert [repr(one) for one in edits_from_json(before.to_json())] == [repr(before)]
        for layer, tensor in (before.values or {}).items():
            assert torch.equal(after.values[layer], tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8,), (2, 4), (1, 2, 1, 4), ()], ids=str)
def test_tensors_keep_their_bits_whatever_they_are(dtype, shape):
    tensor = (ODD.to(dtype) if shape else ODD[2].to(dtype)).reshape(shape)
    [back] = edits_from_json(add("z", tensor).to_json())
    assert back.value(None).dtype == dtype
    assert back.value(None).shape == shape
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(back.value(None).view(bits), tensor.view(bits))


def test_what_is_written_is_plain_json():
    written = json.loads(add("z", torch.tensor([1.0, -2.0]), 3, heads=0, positions=slice(2, None)).to_json())
    assert written == {
        "kind": "add",
        "points": ["z"],
        "heads": [0],
        "positions": {"from": 2},
        "values": [{"layer": None, "dtype": "float32", "shape": [2], "data": "AACAPwAAAMA="}],
        "factor": 3.0,
    }
    assert json.loads(knock_out(edges=[(3, 1)]).to_json())["edges"] == [[3, 1]]


def z(kind, **more):
    return {"kind": kind, "points": ["z"], **more}


def good(dtype="float32", shape=(1,), data="AACAPw=="):
    return {"layer": None, "dtype": dtype, "shape": shape, "data": data}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"edits are read from JSON, and this is none: "),
        ("3", r"edit 0 of the JSON cannot be read: an object is needed; got 3\."),
        ('[{"kind": "zero", "points": ["z"]}, []]', r"edit 1 of the JSON cannot be read: an object is needed"),
        ({"points": ["z"]}, r"'kind' is missing; an edit has kind, points, layers, heads"),
        ({"kind": "zero"}, r"'points' is missing"),
        (z("zero", head=[1]), r"'head' is not known; an edit has kind, points, layers, heads"),
        (z("zap"), r"'zap' is no kind of edit; kinds are zero, mean, add, scale, patch,"),
        ({"kind": "zero", "points": "z"}, r"points is 'z'; a list of names is needed\."),
        ({"kind": "zero", "points": []}, r"zero: hook points are named by texts such as 'resid_post'; got \(\)\."),
        (z("zero", heads=1), r"heads is 1; a list of whole numbers is needed\."),
        (z("zero", heads=[True]), r"heads holds True; whole numbers are needed\."),
        (z("zero", positions={"to": 1}), r"positions is \{'to': 1\}; a list of positions or "),
        (z("zero", positions=[-1]), r"positions holds -1; positions are absolute, 0 is the "),
        (z("zero", factor=2.0), r"zero has no factor; it has layers, heads, neurons, positions"),
        (z("scale", factor="2"), r"factor is '2'; a number is needed\."),
        ('{"kind": "scale", "points": ["z"], "factor": NaN}', r"scale: the factor is nan; a finite number is needed\."),
        (z("knock_out", keys=[1]), r"knock_out is at mask; got z\."),
        ({"kind": "knock_out", "points": ["mask"], "edges": [[1]]}, r"edges is not a list of pairs \[query, key\]\."),
        ({"kind": "swap_kv", "points": ["k_rot", "v"], "heads": [1]}, r"swap_kv: two key/value heads are needed; got"),
        (z("add"), r"add: values are needed\."),
        (z("add", values=[]), r"add: values is empty\."),
        (z("add", values=3), r"values is not a list of tensors\."),
        (z("add", values=[{"layer": None}]), r"a tensor has layer, dtype, shape and data; got "),
        (z("add", values=[good("int8")]), r"dtype 'int8'; allowed are float32, "),
        (z("add", values=[good(shape=[2])]), r"\[2\] takes 8 bytes, but its data has 4"),
        (z("add", values=[good(shape=[0])]), r"\[0\] takes 0 bytes, but its data has 4"),
        (z("add", values=[good(data="A?")]), r"the data of a tensor is no base64: "),
        (z("patch", values=[good()]), r"patch: the position of each row of its values is needed"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_edit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        edits_from_json(text if isinstance(text, str) else json.dumps(text))

"""The generation panel's picture, without a model."""

import math

import numpy as np
import pytest

from workbench.generation import Sampler
from workbench.generation.timeline import Candidate, Node
from workbench.views import generation as view

PATH = [
    Node(0, None, 0, 7, "prompt", cache="dynamic"),
    Node(1, 0, 1, 8, "prompt", ms=12.34, positions_computed=2, cache_bytes=2_048, cache="dynamic"),
    Node(2, 1, 2, 9, "sampled", logprob=-0.5, ms=3.0, positions_computed=1, cache_bytes=3_300_000, phase="decode",
         cache="dynamic"),
]  # fmt: skip
OTHER = Node(3, 1, 2, 5, "forced", logprob=-2.0)
CANDIDATES = [Candidate(9, 4.0, -0.5, 1.0), Candidate(5, 2.5, -2.0, 0.0), Candidate(6, 2.0, -2.5, 0.0)]


def picture(at=1, **more):
    branches = [view.Branch(PATH[2], PATH[2], True, " b"), view.Branch(OTHER, OTHER, False, "x")]
    return view.generation(
        PATH, at, CANDIDATES, [" b", "x", "y"], [b" b", b"x", b""], " a", math.log(4), 90, branches, Sampler(), True, 3,
        **more,
    )  # fmt: skip


def test_numbers_are_the_candidates_own():
    content, arrays = picture()
    np.testing.assert_allclose(arrays["p"], np.exp([-0.5, -2.0, -2.5]), rtol=1e-6)
    assert arrays["share"].tolist() == [1.0, 0.0, 0.0]
    assert arrays["logit"].tolist() == [4.0, 2.5, 2.0]
    assert arrays["logprob"].tolist() == [-0.5, -2.0, -2.5]
    assert {array.dtype.name for array in arrays.values()} == {"float32"}
    assert content["rest"]["count"] == 90
    assert content["rest"]["p"] == pytest.approx(1 - np.exp([-0.5, -2.0, -2.5]).sum(), abs=1e-6)
    assert content["rest"]["share"] == 0


def test_tokens_say_where_they_were_taken():
    content, _ = picture()
    assert [(token["text"], token["taken"], token["bytes"]) for token in content["tokens"]] == [
        (" b", "path", "20 62"), ("x", "branch", "78"), ("y", None, ""),
    ]  # fmt: skip
    assert [(branch["node"], branch["on_path"], branch["more"]) for branch in content["branches"]] == [
        (2, True, 0), (3, False, 0),
    ]  # fmt: skip
    assert (content["run"], content["node"]) == (3, 1)
    assert content["after"] == {"text": " a", "id": 8, "position": 1}


def test_a_token_taken_twice_is_in_the_text_if_one_of_them_is():
    twin = Node(4, 1, 2, 9, "forced")
    branches = [view.Branch(PATH[2], PATH[2], True, " b"), view.Branch(twin, twin, False, " b")]
    for order in (branches, branches[::-1]):
        content, _ = view.generation(
            PATH, 1, CANDIDATES[:1], [" b"], [b" b"], "", 0.0, 0, order, Sampler(), True, 1
        )  # fmt: skip
        assert content["tokens"][0]["taken"] == "path"
        assert content["rest"] is None


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (0, {"prefill": "2 positions computed, up to position 1", "time": "12.3 ms", "cache": "dynamic, 2.0 kB"}),
        (1, {"prefill": "2 positions computed", "time": "12.3 ms", "cache": "dynamic, 2.0 kB"}),
        (2, {"decode": "1 position computed", "time": "3.0 ms", "cache": "dynamic, 3.3 MB"}),
    ],
)
def test_the_cost_of_the_step(at, words):
    content, _ = picture(at)
    cost = {line["label"]: line["value"] for line in content["cost"]}
    assert cost == {**words, "entropy": "1.39 nats, as 4.0 equally likely tokens"}


def test_no_cache_and_no_cost_are_said():
    node = Node(0, None, 0, 7, "prompt", ms=20_000, positions_computed=1)
    assert {"label": "cache", "value": "none, keeps nothing"} in view.cost([node], 0)
    assert {"label": "time", "value": "20.0 s"} in view.cost([node], 0)
    assert view.cost([Node(0, None, 0, 7, "prompt")], 0) == [{"label": "cost", "value": "not known"}]


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (26_500, "26.5 kB"), (250_000_000, "250 MB")]
)
def test_bytes(count, words):
    assert view.bytes_words(count) == words


def test_what_is_not_fresh_is_stale():
    assert picture()[0]["state"] == "ok"
    content, _ = picture(fresh=False)
    assert content["state"] == "stale"
    assert "before the cache or the edits were changed" in content["state_text"]


def test_without_numbers_there_are_words():
    content, arrays = view.without_numbers("empty", view.EMPTY, Sampler(0.5, 3, 0.9), False)
    assert (content["state"], content["state_text"]) == ("empty", view.EMPTY)
    assert content["sampler"] == {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    assert all(array.shape == (0,) for array in arrays.values())

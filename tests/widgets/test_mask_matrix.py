"""What the mask widget accepts and refuses, and what stands for it where it cannot be drawn."""

from typing import Any

import numpy as np
import pytest

from workbench.widgets import MaskMatrix

CAUSAL = {"name": "causal", "letter": "C", "label": "the key is after the query"}


def content(**more: Any) -> dict[str, Any]:
    labels = {"queries": ["a", "b"], "keys": ["a", "b"], "notes": []}
    whole = {"rules": [CAUSAL], "texts": [{"name": "0", **labels}], "query_index": [0, 1], "key_index": [0, 1]}
    return {"title": "Attention mask", "notes": [], **whole, **more}


def reasons(*shape: int, value: int = 0) -> dict[str, np.ndarray]:
    return {"reasons": np.full(shape, value, np.uint8)}


def test_shows_what_fits() -> None:
    assert MaskMatrix().show(content(), reasons(1, 2, 2, value=1)) == 1


def test_one_row_of_reasons_stands_for_all_texts() -> None:
    texts = content()["texts"] * 3
    for rows in (1, 3):
        assert MaskMatrix().show(content(texts=texts), reasons(rows, 2, 2)) == 1
    with pytest.raises(ValueError, match="reasons has 2 rows, but there are 3 texts; give 1 or as many"):
        MaskMatrix().show(content(texts=texts), reasons(2, 2, 2))


def test_words_instead_of_a_picture_need_no_array() -> None:
    assert MaskMatrix().show({"title": "Attention mask", "state": "empty", "state_text": "No text yet."}) == 1


@pytest.mark.parametrize("array", [np.zeros((1, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2))])
def test_other_shapes_and_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"reasons is \w+ of shape .*; wanted uint8 of shape \(texts or 1, 2, 2\)"):
        MaskMatrix().show(content(), {"reasons": array})


def test_labels_that_do_not_fit_are_refused() -> None:
    texts = [{"name": "0", "queries": ["a"], "keys": ["a", "b"]}]
    with pytest.raises(ValueError, match=r"text 0 has labels for \(1, 2\) queries and keys; the index says \(2, 2\)"):
        MaskMatrix().show(content(texts=texts), reasons(1, 2, 2))


def test_a_reason_that_no_rule_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="reasons holds 2, but 1 rules make at most 1"):
        MaskMatrix().show(content(), reasons(1, 2, 2, value=2))


def test_a_failed_call_leaves_the_picture() -> None:
    widget = MaskMatrix()
    widget.show(content(), reasons(1, 2, 2))
    before = widget._payload
    with pytest.raises(ValueError, match="reasons"):
        widget.show(content(), reasons(1, 3, 3))
    assert widget._payload is before


def test_a_click_moves_the_cursor_of_the_widget() -> None:
    widget = MaskMatrix()
    widget._answer({"id": 1, "name": "cursor", "params": {"query": 1, "key": 0}})
    assert widget.cursor == {"query": 1, "key": 0}
    widget._answer({"id": 2, "name": "cursor", "params": {"query": 0}})  # an empty slot has no key
    assert widget.cursor == {"query": 0, "key": 0}
    widget._answer({"id": 3, "name": "fly", "params": {}})
    assert "no action 'fly'" in widget.error["text"]


def test_its_text_stands_for_it_where_it_cannot_be_drawn() -> None:
    widget = MaskMatrix(text="■ ⬚\n■ ■")
    assert repr(widget) == "■ ⬚\n■ ■"
    bundle = widget._repr_mimebundle_()[0]
    assert bundle["text/plain"] == "■ ⬚\n■ ■"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "MaskMatrix" in repr(MaskMatrix())

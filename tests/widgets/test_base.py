"""The widgets without a kernel and without a page: what they send, and what they do with what the page sends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import traitlets

from workbench.widgets import Matrix, RunBar, TokenStrip, WorkbenchWidget
from workbench.widgets.base import KEPT_ERRORS, plain, wire_array


@pytest.fixture
def widget(monkeypatch: pytest.MonkeyPatch) -> WorkbenchWidget:
    return recording(WorkbenchWidget(), monkeypatch)


def recording(widget: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The widget with what it sends kept in `widget.sent`, as the page would get it."""
    widget.sent = []
    monkeypatch.setattr(
        widget, "send", lambda content, buffers=None: widget.sent.append((json.loads(json.dumps(content)), buffers))
    )
    return widget


def from_page(widget: Any, content: Any) -> None:
    widget._handle_custom_msg(content, [])


def action(name: str, **params: Any) -> dict[str, Any]:
    return {"kind": "action", "id": "v-1", "name": name, "params": params}


class TestPayload:
    def test_one_message_with_the_arrays_as_buffers_in_order(self, widget: Any) -> None:
        a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.uint8)
        assert widget.show({"title": "x"}, {"a": a, "b": b}) == 1
        [(message, buffers)] = widget.sent
        assert message == {
            "kind": "state",
            "rev": 1,
            "content": {"title": "x"},
            "arrays": [
                {"name": "a", "dtype": "float32", "shape": [2, 3]},
                {"name": "b", "dtype": "uint8", "shape": [2]},
            ],
        }
        assert bytes(buffers[0]) == a.tobytes()
        assert bytes(buffers[1]) == b.tobytes()

    def test_the_revision_grows_and_get_returns_the_last(self, widget: Any) -> None:
        widget.show({"n": 1})
        widget.show({"n": 2})
        from_page(widget, {"kind": "get"})
        assert [(m["rev"], m["content"]["n"]) for m, _ in widget.sent] == [(1, 1), (2, 2), (2, 2)]

    def test_get_before_anything_was_shown_is_silent(self, widget: Any) -> None:
        from_page(widget, {"kind": "get"})
        assert widget.sent == []

    def test_the_payload_is_no_trait(self, widget: Any) -> None:
        widget.show({"n": 1}, {"a": np.zeros(1000)})
        assert len(json.dumps(widget.get_state(["cursor", "error"]))) < 100
        assert set(widget.keys) - set(WorkbenchWidget().keys) == set()

    def test_what_was_shown_does_not_change_with_the_callers_array(self, widget: Any) -> None:
        values = np.zeros(3, np.float32)
        widget.show({}, {"a": values})
        values[:] = 7
        from_page(widget, {"kind": "get"})
        assert bytes(widget.sent[-1][1][0]) == bytes(12)


class TestArrays:
    @pytest.mark.parametrize(
        ("given", "sent"),
        [("float64", "float32"), ("float16", "float32"), ("int64", "int32"), ("bool", "uint8"), ("int16", "int16")],
    )
    def test_dtypes(self, given: str, sent: str) -> None:
        array = wire_array("a", np.array([0, 1, 1]).astype(given))
        assert array.dtype == sent
        assert array.tolist() == [0, 1, 1]

    def test_non_finite_numbers_survive(self) -> None:
        array = wire_array("a", np.array([np.nan, np.inf, -np.inf]))
        assert np.isnan(array[0])
        assert array[1:].tolist() == [np.inf, -np.inf]

    def test_not_contiguous(self) -> None:
        array = wire_array("a", np.arange(6, dtype=np.float32).reshape(2, 3).T)
        assert array.flags.c_contiguous
        assert array.tobytes() == np.array([0, 3, 1, 4, 2, 5], np.float32).tobytes()

    def test_integers_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="array 'ids' is int64 and holds numbers that do not fit in int32"):
            wire_array("ids", np.array([2**40]))

    @pytest.mark.parametrize("bad", [np.array(["x"]), np.array([1j]), np.array([None])])
    def test_other_dtypes_are_refused(self, bad: np.ndarray) -> None:
        with pytest.raises(TypeError, match="array 'a' has dtype .*; a widget can send float32"):
            wire_array("a", bad)


class TestContent:
    def test_numpy_and_tuples_become_plain(self) -> None:
        given = {"a": np.int64(3), "b": (np.float32(0.5), True), 4: None}
        assert plain(given) == {"a": 3, "b": [0.5, True], "4": None}

    def test_what_json_cannot_say_becomes_none(self) -> None:
        assert plain([float("nan"), np.inf]) == [None, None]

    def test_a_lone_surrogate_does_not_stop_the_message(self) -> None:
        assert plain("a\ud83d").encode() == b"a\\ud83d"

    def test_other_things_are_refused(self) -> None:
        with pytest.raises(TypeError, match="holds a set"):
            plain({"a": {1, 2}})


class TestActions:
    def test_name_and_parameters_reach_every_handler(self, widget: Any) -> None:
        got: list[Any] = []
        widget.on_action(lambda name, params: got.append((name, params)))

        @widget.on_action
        def second(name: str, params: dict[str, Any]) -> None:
            got.append(name)

        from_page(widget, action("cursor", query=3))
        assert got == [("cursor", {"query": 3}), "cursor"]
        assert widget.sent == [({"kind": "ack", "id": "v-1", "ok": True}, None)]

    def test_an_exception_is_shown_kept_and_answered(self, widget: Any) -> None:
        def fails(name: str, params: dict[str, Any]) -> None:
            raise ValueError("the prompt is empty")

        widget.on_action(fails)
        from_page(widget, action("run", prompt=""))
        from_page(widget, action("run", prompt=""))
        assert widget.error == {"text": "the prompt is empty", "count": 2}
        assert [m["ok"] for m, _ in widget.sent] == [False, False]
        kept = widget.errors[-1]
        assert (kept["action"], kept["params"]) == ("run", {"prompt": ""})
        assert "in fails" in kept["traceback"]

    @pytest.mark.parametrize(
        ("error", "shown"),
        [
            (ValueError("the prompt is empty"), "the prompt is empty"),
            (type("ConfigError", (ValueError,), {})("theta is -1"), "theta is -1"),
            (traitlets.TraitError("unknown settings"), "unknown settings"),
            (type("BusyError", (RuntimeError,), {"__module__": "workbench.session"})("a run goes on"), "a run goes on"),
            (RuntimeError("out of memory"), "RuntimeError: out of memory"),
            (type("CudaError", (RuntimeError,), {"__module__": "workbenches"})("no"), "CudaError: no"),
            (type("Odd", (KeyError,), {"__module__": "workbench.session"})("x"), "Odd: 'x'"),
            (KeyError("x"), "KeyError: 'x'"),
            (ValueError(), "ValueError"),
            (RuntimeError(), "RuntimeError"),
        ],
        ids=lambda value: repr(value) if isinstance(value, Exception) else "",
    )
    def test_words_written_to_be_read_are_shown_alone_others_with_their_class(
        self, widget: Any, error: Exception, shown: str
    ) -> None:
        def fails(name: str, params: dict[str, Any]) -> None:
            raise error

        widget.on_action(fails)
        from_page(widget, action("run"))
        assert widget.error["text"] == widget.errors[0]["text"] == shown

    def test_the_next_good_action_clears_the_line_but_not_the_list(self, widget: Any) -> None:
        def odd(name: str, params: dict[str, Any]) -> None:
            if name == "bad":
                raise KeyError("x")

        widget.on_action(odd)
        from_page(widget, action("bad"))
        from_page(widget, action("good"))
        assert widget.error == {}
        assert len(widget.errors) == 1

    def test_the_list_is_bounded(self, widget: Any) -> None:
        widget.on_action(lambda name, params: 1 / 0)
        for _ in range(KEPT_ERRORS + 5):
            from_page(widget, action("run"))
        assert len(widget.errors) == KEPT_ERRORS
        assert widget.error["count"] == KEPT_ERRORS + 5

    @pytest.mark.parametrize(
        "content", [{"kind": "other"}, {}, None, "text", [1], {"kind": "action"}, {"kind": "action", "name": 3}]
    )
    def test_unknown_messages_are_ignored(self, widget: Any, content: Any) -> None:
        called: list[str] = []
        widget.on_action(lambda name, params: called.append(name))
        from_page(widget, content)
        assert (called, widget.sent, widget.errors) == ([], [], [])

    def test_missing_parameters_are_none_given(self, widget: Any) -> None:
        got: list[Any] = []
        widget.on_action(lambda name, params: got.append(params))
        from_page(widget, {"kind": "action", "name": "stop", "params": None})
        assert got == [{}]


@pytest.mark.parametrize("kind", [RunBar, TokenStrip, Matrix])
def test_each_widget_brings_a_bundle_that_needs_nothing_else(kind: type[WorkbenchWidget]) -> None:
    code = str(kind._esm)  # type: ignore[attr-defined]
    assert "export {" in code
    assert "http://" not in code
    assert "https://" not in code
    assert not [line for line in code.splitlines() if line.startswith("import ")]


@pytest.mark.parametrize("kind", [RunBar, TokenStrip, Matrix])
def test_synced_traits_are_few(kind: type[WorkbenchWidget]) -> None:
    import ipywidgets

    own = set(kind().keys) - set(ipywidgets.DOMWidget().keys) - {"_esm", "_anywidget_id"}
    assert len(own) <= 8, own

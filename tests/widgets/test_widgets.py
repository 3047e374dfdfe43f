"""What each widget accepts and refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import traitlets

from workbench.widgets import Matrix, RunBar, TokenStrip


class TestRunBar:
    def test_settings_are_completed(self) -> None:
        bar = RunBar(settings={"seed": 3})
        assert bar.settings == {
            "max_new_tokens": 32,
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "seed": 3,
            "chat": False,
        }

    def test_unknown_settings_are_named(self) -> None:
        with pytest.raises(traitlets.TraitError, match="unknown settings beam; allowed are max_new_tokens"):
            RunBar(settings={"beam": 3})

    def test_unknown_states_are_refused(self) -> None:
        bar = RunBar()
        bar.status = {"state": "running", "text": "generating"}
        with pytest.raises(traitlets.TraitError, match="'busy'; allowed are idle, running, done, stopped, error"):
            bar.status = {"state": "busy"}
        assert bar.status["state"] == "running"

    def test_two_bars_do_not_share_settings(self) -> None:
        one, other = RunBar(), RunBar()
        one.settings = {**one.settings, "seed": 9}
        assert other.settings["seed"] == 0


class TestTokenStrip:
    content: dict[str, Any] = {
        "tokens": [{"text": "a", "id": 1, "source": "prompt"}, {"text": " b", "id": 2, "source": "sampled"}],
        "metrics": [{"name": "surprisal", "label": "Surprisal", "unit": "nats", "low": 0, "high": 10}],
        "metric": "surprisal",
    }

    def test_shows_one_number_a_token(self) -> None:
        assert TokenStrip().show(self.content, {"surprisal": np.array([np.nan, 1.0])}) == 1

    def test_no_tokens_are_fine(self) -> None:
        assert TokenStrip().show({"tokens": [], "metrics": [], "empty": "Run a prompt"}) == 1

    @pytest.mark.parametrize(
        ("arrays", "found"), [({}, "no array"), ({"surprisal": np.zeros(3)}, r"shape \(3,\)"), (None, "no array")]
    )
    def test_other_lengths_are_refused(self, arrays: Any, found: str) -> None:
        with pytest.raises(ValueError, match=rf"'surprisal' has {found}; wanted one number a token: shape \(2,\)"):
            TokenStrip().show(self.content, arrays)


class TestMatrix:
    def content(self, **more: Any) -> dict[str, Any]:
        return {"kind": "lens", "rows": ["L0", "embed"], "cols": ["a", "b", "c"], "metrics": [{"name": "p"}], **more}

    def test_shows_what_fits(self) -> None:
        arrays = {"p": np.zeros((2, 3)), "text": np.zeros((2, 3), int), "top_p": np.zeros((2, 3, 5))}
        assert Matrix().show(self.content(), arrays) == 1

    def test_words_instead_of_a_picture_need_no_array(self) -> None:
        for state in ("not captured", "empty", "error"):
            assert Matrix().show(self.content(state=state)) == 1

    def test_a_metric_without_array_is_named(self) -> None:
        with pytest.raises(ValueError, match="no array for metric p; arrays given: q"):
            Matrix().show(self.content(), {"q": np.zeros((2, 3))})

    def test_a_shape_that_does_not_fit_the_labels_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"array 'p' has shape \(3, 2\); the labels say \(2, 3\)"):
            Matrix().show(self.content(), {"p": np.zeros((3, 2))})

    @pytest.mark.parametrize(("key", "value"), [("kind", "heat"), ("state", "ready")])
    def test_unknown_names_are_refused(self, key: str, value: str) -> None:
        with pytest.raises(ValueError, match=f"{key} is '{value}'; allowed are"):
            Matrix().show(self.content(**{key: value}), {"p": np.zeros((2, 3))})

    def test_a_mask_reason_that_has_no_name_is_refused(self) -> None:
        arrays = {"p": np.zeros((2, 3)), "mask": np.full((2, 3), 2, np.uint8)}
        with pytest.raises(ValueError, match="mask holds 2, but mask_reasons has 1"):
            Matrix().show(self.content(mask_reasons=[{"letter": "c", "label": "causal"}]), arrays)

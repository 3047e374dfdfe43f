"""What the generation widget accepts and refuses."""

import numpy as np
import pytest

from workbench.widgets import Generation

TOKENS = [{"text": "a", "id": 1, "taken": None}, {"text": "b", "id": 2, "taken": None}]
ARRAYS = {name: np.zeros(2) for name in ("p", "share", "logit", "logprob")}


def test_shows_one_number_a_token():
    assert Generation().show({"state": "ok", "tokens": TOKENS}, ARRAYS) == 1
    assert Generation().show({"state": "empty", "state_text": "Run a prompt", "tokens": []}) == 1


@pytest.mark.parametrize(("array", "found"), [(None, "missing"), (np.zeros(3), r"of shape \(3,\)")])
def test_other_lengths_are_refused(array, found):
    arrays = {name: value for name, value in {**ARRAYS, "share": array}.items() if value is not None}
    with pytest.raises(ValueError, match=rf"'share' is {found}; wanted one number a token: shape \(2,\)"):
        Generation().show({"state": "ok", "tokens": TOKENS}, arrays)


def test_an_unknown_state_is_refused():
    with pytest.raises(ValueError, match="state is 'busy'; allowed are ok, empty, running, stale, error"):
        Generation().show({"state": "busy", "tokens": []})

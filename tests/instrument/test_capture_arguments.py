"""What `capture` is told: numbers of any kind, and what is refused before a hook is registered."""

import numpy as np
import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.instrument import capture

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
ONES = [1, [1], (1,), range(1, 2), np.int64(1), np.array([1]), np.array(1), torch.tensor(1), torch.tensor([1])]


@pytest.mark.parametrize("one", ONES, ids=repr)
@torch.no_grad()
def test_numbers_may_be_alone_and_of_any_library(one):
    model = tiny_model()
    with capture(model, "q", layers=one, heads=one, positions=one) as acts:
        model(IDS)
    assert list(acts) == ["layers.1.q"]
    assert acts.heads == (1,)
    assert acts.positions(("q", 1)).tolist() == [1]
    assert acts["q", 1].shape == (2, 1, 1, 8)


@pytest.mark.parametrize(
    "wrong", [1.9, "12", "1", [1.9], ["1"], True, [True], torch.tensor([True]), np.array([1.0])], ids=repr
)
@pytest.mark.parametrize("argument", ["layers", "heads", "positions"])
def test_other_numbers_are_refused(argument, wrong):
    model = tiny_model()
    with pytest.raises(TypeError, match=rf"{argument} is .*; (a|a slice or) whole numbers? (or several )?are needed"):
        capture(model, "q", **{argument: wrong}).__enter__()
    assert hooks(model) == 0


@pytest.mark.parametrize("argument", ["layers", "heads", "positions"])
def test_an_empty_choice_is_said_to_be_empty(argument):
    with pytest.raises(ValueError, match=rf"{argument} is empty.* Leave it out for all of them\."):
        capture(tiny_model(), "q", **{argument: []}).__enter__()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nonsense", "device is 'nonsense', but nothing can be stored there: Expected one of cpu"),
        ("meta", "device is 'meta', which holds no numbers"),
        pytest.param(
            "cuda",
            "device is 'cuda', but nothing can be stored there: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to store on"),
        ),
    ],
)
def test_places_where_nothing_can_be_stored_are_refused_before_the_block_runs(device, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message), capture(model, "q", device=device):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


@pytest.mark.parametrize("below", ["", "new/folder"])
def test_spilling_into_a_file_is_refused_before_the_block_runs(below, tmp_path):
    (tmp_path / "a").write_text("x")
    message = "spill is .*, but .*a is a file; a folder is needed, which may be new"
    with pytest.raises(ValueError, match=message), capture(tiny_model(), "q", spill=tmp_path / "a" / below):
        raise AssertionError("the block must not run")


def test_a_block_in_which_nothing_ran_is_noticed():
    message = (
        "no forward of this model ran in the block, in its own thread. What torch.compile compiled before the block"
    )
    with pytest.warns(UserWarning, match=message) as seen, capture(tiny_model(), "q"):
        tiny_model()(IDS)
    assert seen[0].filename == __file__


def test_of_a_compiled_model_the_model_itself_is_captured():
    model = tiny_model()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), capture(compiled, "q") as acts:
        model(IDS)
    assert len(acts) == 3

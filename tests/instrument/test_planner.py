"""What a capture will hold is known before it runs, and what would not fit is refused."""

import re

import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import capture, plan
from workbench.instrument.planner import CaptureBudgetError, human, to_bytes

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
KINDS = ["mha", "gqa", "mqa"]


CHOICES = {
    "all": {},
    "layers": {"layers": [0, 2]},
    "positions": {"positions": slice(-3, None)},
    "heads": {"heads": [1]},
    "bfloat16": {"dtype": torch.bfloat16},
    "stored": {"derive": False},
    "heads and positions": {"heads": [0, 3], "positions": [2, 4]},
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.parametrize(
    "points", [["*"], ["q_rot", "k_rot", "resid_post"], ["pattern"], ["logits"], ["z", "mask"]], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_predicted_bytes_are_the_measured_ones(kind, points, choice):
    model = tiny_model(kind)
    predicted = plan(model, points, tokens=12, batch=2, **choice)
    with capture(model, *points, **choice) as acts:
        model(IDS)
    assert predicted.nbytes == acts.nbytes
    held = sum(
        p.untyped_storage().nbytes() for n in acts._series for p in acts.series(n).parts if isinstance(p, torch.Tensor)
    )
    assert held == acts.nbytes


@torch.no_grad()
def test_predicted_bytes_of_a_step_and_with_gradients_recorded():
    model, cache = tiny_model(), DynamicCache()
    model(IDS, past_key_values=cache)
    with capture(model, "*") as acts:
        model(IDS[:, :1], past_key_values=cache)
    assert plan(model, "*", tokens=1, batch=2, past=12).nbytes == acts.nbytes
    with torch.enable_grad():
        predicted = plan(model, "*", tokens=12, batch=2).nbytes
        with capture(model, "*") as acts:
            model(IDS)
    assert predicted == acts.nbytes > plan(model, "*", tokens=12, batch=2).nbytes


def test_a_plan_is_a_table_with_time_and_advice():
    model = tiny_model()
    text = str(plan(model, "resid_*", tokens=100, batch=2, budget="10 kB"))
    assert "resid_mid" in text
    assert re.search(r"2 × 100 tokens: 230\.4 kB of a budget of 10\.0 kB", text)
    assert re.search(r"forward about 0\.\d\d s, with capture about", text)
    assert "too much. What would fit: " in text
    fitting = plan(model, "resid_post", tokens=10)
    assert fitting.fits
    assert "too much" not in str(fitting)
    assert 0 < fitting.seconds[0] <= fitting.seconds[1] < 1


@torch.no_grad()
def test_a_forward_past_the_budget_is_refused_before_it_runs():
    model, cache, ran = tiny_model(), DynamicCache(), []
    handle = model.model.layers[0].hook_resid_pre.register_forward_hook(lambda *a: ran.append(1))
    size = plan(model, "resid_post", tokens=5, batch=2).nbytes
    with capture(model, "resid_post", budget=size + 10) as acts:
        model(IDS[:, :5], past_key_values=cache)
        ran.clear()
        message = (
            r"capturing this forward of 2 × 7 tokens would take 5\.4 kB besides the 3\.8 kB held already, but the "
            r"budget is 3\.9 kB\. Nothing ran\. What would fit: 1 layers instead of 3 \(layers=…\); or "
            r"positions=slice\(-n, None\) with n at most 42% of the text; or "
            r'spill="folder" to keep them on disk; or a larger budget=\.'
        )
        with pytest.raises(CaptureBudgetError, match=message):
            model(IDS[:, 5:], past_key_values=cache)
        assert not ran
        assert acts["resid_post", 0].shape[1] == 5, "what was captured is kept"
        assert len(acts.spans) == 1
        assert cache.length == 5
    handle.remove()
    assert hooks(model) == 0


def test_what_the_advice_says_fits():
    model = tiny_model()
    needed = plan(model, "resid_post", tokens=50).nbytes
    tight = plan(model, "resid_post", tokens=50, budget=needed // 2)
    assert any("dtype=torch.bfloat16" in line for line in tight.advice)
    assert plan(model, "resid_post", tokens=50, dtype=torch.bfloat16).nbytes <= needed // 2
    assert any(line.startswith("1 layers") for line in tight.advice)
    assert plan(model, "resid_post", tokens=50, layers=[0]).nbytes <= needed // 2
    assert plan(model, "resid_post", tokens=50, positions=slice(-25, None)).nbytes <= needed // 2


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("500 MB", 500_000_000), ("2 GiB", 2 * 2**30), ("1.5kB", 1500), ("12", 12), ("3 b", 3)],
)
def test_budgets_are_written_in_units(text, size):
    assert to_bytes(text) == size


@pytest.mark.parametrize("budget", ["lots", "5 TB", -1, 1.5, True, ""])
def test_other_budgets_are_refused(budget):
    with pytest.raises(ValueError, match='give bytes as a whole number, or a text such as "500 MB" or "2 GiB"'):
        to_bytes(budget)


def test_without_a_budget_it_is_what_is_free():
    assert 10**8 < to_bytes(None) < 10**14
    assert human(1234) == "1.2 kB"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positions": []}, ValueError, "positions is empty: nothing would be captured"),
        ({"positions": "abc"}, TypeError, "positions is 'abc'; a slice or whole numbers are needed"),
        ({"positions": slice(None, None, -1)}, ValueError, "captured positions stay in the order of the text"),
        ({"heads": [4]}, ValueError, r"head 4 does not exist; this model has query heads 0 … 3"),
        ({"heads": []}, ValueError, "heads is empty"),
        ({"dtype": torch.int8}, TypeError, r"dtype is torch\.int8; a floating-point torch dtype"),
        ({"gradients": True, "heads": [0], "dtype": torch.bfloat16}, ValueError, "so heads, dtype cannot be applied"),
        ({"budget": "many"}, ValueError, "budget is 'many'"),
    ],
)
def test_choices_that_cannot_be_are_refused_and_nothing_is_hooked(options, error, message):
    model = tiny_model()
    with pytest.raises(error, match=message), capture(model, "q", **options):
        raise AssertionError("the block must not run")
    assert hooks(model) == 0


@pytest.mark.parametrize(("name", "value"), [("tokens", 0), ("batch", -1), ("tokens", 1.5), ("past", -1)])
def test_sizes_of_a_plan_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a whole number of at least"):
        plan(tiny_model(), "q", **{"tokens": 3, **{name: value}})

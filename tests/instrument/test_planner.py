"""What a capture will hold is known before it runs, and what would not fit is refused."""

import re
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import capture, plan, resolve
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
        predicted = plan(model, "*", tokens=12, batch=2, gradients=True).nbytes
        with capture(model, "*", gradients=True) as acts:
            model(IDS)
    assert predicted == acts.nbytes > plan(model, "*", tokens=12, batch=2).nbytes


def test_a_plan_is_of_a_forward_under_no_grad_wherever_it_is_made():
    model = tiny_model()
    predicted = plan(model, "*", tokens=12, batch=2).nbytes
    with torch.no_grad(), capture(model, "*") as acts:
        assert plan(model, "*", tokens=12, batch=2).nbytes == predicted
        model(IDS)
    assert predicted == acts.nbytes
    assert torch.is_grad_enabled()


def test_a_plan_is_a_table_with_time_and_advice():
    model = tiny_model()
    text = str(plan(model, "resid_*", tokens=100, batch=2, budget="10 kB"))
    assert "resid_mid" in text
    assert re.search(r"2 × 100 tokens: 179\.2 kB of a budget of 10\.0 kB", text)
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
            r"budget is 3\.9 kB\. Nothing ran\. What would fit: 1 layer instead of 3 \(layers=range\(0, 1\)\); or "
            r'positions=slice\(-2, None\); or spill="folder" to keep them on disk; or a larger budget=\.'
        )
        with pytest.raises(CaptureBudgetError, match=message):
            model(IDS[:, 5:], past_key_values=cache)
        assert not ran
        assert acts["resid_post", 0].shape[1] == 5, "what was captured is kept"
        assert len(acts.spans) == 1
        assert cache.length == 5
    handle.remove()
    assert hooks(model) == 0


@torch.no_grad()
def test_a_budget_is_of_all_forwards_together():
    model = tiny_model()
    size = plan(model, "resid_post", tokens=6, batch=2).nbytes
    with capture(model, "resid_post", budget=2 * size) as acts:
        model(IDS[:, :6])
        model(IDS[:, 6:])
    assert acts.nbytes == 2 * size
    with capture(model, "resid_post", budget=2 * size - 1) as acts:
        model(IDS[:, :6])
        with pytest.raises(CaptureBudgetError, match="besides the 4\\.6 kB held already"):
            model(IDS[:, 6:])
    assert acts.nbytes == size


def changed_by(line):
    """The options that a line of advice is about."""
    found = re.search(r"(layers|dtype|positions)=(range\(.*?\)|slice\(.*?\)|\[.*?\]|torch\.\w+)", line)
    return {found[1]: eval(found[2])} if found else None


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.2, 0.05, 0.01])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "points",
    [["*"], ["resid_post"], ["resid_post", "logits"], ["q_rot", "k_rot"], ["pattern", "z"], ["layers.1:3.q", "embed"]],
    ids=str,
)
def test_what_the_advice_says_fits(points, gradients, share):
    model = tiny_model()
    needed = plan(model, points, tokens=64, gradients=gradients).nbytes
    budget = int(share * needed)
    tight = plan(model, points, tokens=64, budget=budget, gradients=gradients)
    assert not tight.fits
    for line in tight.advice:
        if line.startswith("the points without "):
            without = re.findall(r"'(\w+)'", line)
            located = resolve(model, points)
            keeping = [item.full_name for item in located if item.point.name not in without]
            assert plan(model, keeping, tokens=64, budget=budget, gradients=gradients).fits, line
        elif changes := changed_by(line):
            assert plan(model, _without_layers(points, changes), 64, budget=budget, gradients=gradients, **changes).fits
        else:
            assert line == 'spill="folder" to keep them on disk'
    if gradients:
        assert not any(re.search("dtype|positions|spill", line) for line in tight.advice)


def _without_layers(points, changes):
    """`layers` restricts names without a layer."""
    return [point.rpartition(".")[2] for point in points] if "layers" in changes else points


def test_the_advice_is_as_much_as_fits():
    model = tiny_model()
    needed = plan(model, "resid_post", tokens=50).nbytes
    assert plan(model, "resid_post", tokens=50, budget=needed // 2).advice == (
        "1 layer instead of 3 (layers=range(0, 1))",
        "dtype=torch.bfloat16",
        "positions=slice(-25, None)",
        'spill="folder" to keep them on disk',
    )
    assert plan(model, ["resid_post", "logits"], tokens=50, budget=needed).advice == (
        "positions=slice(-24, None)",
        "the points without 'logits'",
        'spill="folder" to keep them on disk',
    )
    assert plan(model, "resid_post", tokens=50, budget=10).advice == ('spill="folder" to keep them on disk',)
    text = str(plan(model, "resid_post", tokens=1, budget=10, gradients=True))
    assert text.endswith("What would fit: a larger budget=.")


@torch.no_grad()
def test_what_is_spilled_is_no_matter_of_the_budget_but_of_the_disk(tmp_path, monkeypatch):
    model = tiny_model()
    with capture(model, "resid_post", budget="1 kB", spill=tmp_path / "new" / "folder") as acts:
        model(IDS)
        model(IDS)
    assert acts.nbytes == 2 * plan(model, "resid_post", tokens=12, batch=2).nbytes > 1000
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4000))
    message = (
        r"would take 9\.2 kB, but there are 4\.0 kB free for .*other\. Nothing ran\. What would fit: 1 layer instead "
        r"of 3 \(layers=range\(0, 1\)\); or positions=slice\(-5, None\); or a larger budget=\."
    )
    other = capture(model, "resid_post", spill=tmp_path / "other")
    with other as acts, pytest.raises(CaptureBudgetError, match=message):
        model(IDS)
    assert acts.nbytes == 0


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

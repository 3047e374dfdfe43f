import contextlib
import warnings

import pandas as pd
import pytest
import torch

import workbench
from tests.analysis.consistency_cases import ROPES, Dropping, Failing, ShiftedInOneLayer, ShortRing, Stale
from tests.conftest import hooks, tiny_config, tiny_model
from workbench.analysis import consistency_ways
from workbench.analysis.consistency import ConsistencyError, check_consistency
from workbench.cache import CACHES
from workbench.instrument import capture
from workbench.model import LlamaForCausalLM, llama, mask

LENGTH = 20
IDS = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(2))


def row(report, way):
    return report.table.set_index("way").loc[way]


def bugs(report):
    return report.table.loc[report.table["verdict"] == "bug", "way"].tolist()


def place(found):
    return found["point"], found["layer"], found["position"]


# ------------------------------------------------------------------------------------------ sound models


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("changes", [{}, {"attn_implementation": "eager"}], ids=["sdpa", "eager"])
def test_sound_models_are_ok_in_every_way(kind, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_consistency(tiny_model(kind, **changes), IDS)
    assert report.ok, str(report)
    assert (report.table["verdict"] == "ok").all()
    assert (report.table["largest"] <= 1e-5).all()
    report.raise_if_failed()
    ways = report.table["way"].tolist()
    assert ways[:7] == [
        "hooks on every point",
        "chunks of 10 + 10",
        "chunks of 1 + 19",
        "chunks of 4",
        "token by token",
        "left padding, in a batch",
        "no cache, read again",
    ]
    for name in ("dynamic", "static", "offloaded"):
        assert {f"{name} cache", f"{name} cache, cropped"} <= set(ways) or name not in CACHES
    for size in (23, 5):  # the whole text and the wrong tokens; a quarter of the text
        assert {f"sliding window {size} cache", f"sink window {size} cache, cropped"} <= set(ways)


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_is_ok(rope):
    theta = {"rope_theta": 10000.0}
    report = check_consistency(tiny_model(rope_parameters={**theta, **ROPES[rope]}), IDS)
    assert report.ok, str(report)


def test_a_text_as_long_as_the_model_was_made_for():
    model = tiny_model(max_position_embeddings=LENGTH, rope_parameters={"rope_theta": 1e4, **ROPES["dynamic"]})
    assert check_consistency(model, IDS).ok


def test_bfloat16_has_a_tolerance_of_its_own():
    model = tiny_model().bfloat16()
    report = check_consistency(model, IDS, chunks=[7])
    assert report.ok
    assert report.dtype == torch.bfloat16
    assert report.tolerance == 0.1
    assert (report.table["verdict"] == "ok").all()
    assert report.table["largest"].max() > 1e-4
    strict = check_consistency(model, IDS, tolerance=0, chunks=[7], caches=["dynamic"])
    assert strict.ok
    assert "rounding" in strict.table["verdict"].tolist()


def test_float64_and_a_model_without_a_head():
    report = check_consistency(tiny_model().double().model, IDS)
    assert report.ok
    assert "float64" in str(report)


@pytest.mark.parametrize("length", [4, 5])
def test_the_shortest_texts(model, length):
    assert check_consistency(model, IDS[:, :length]).ok


def test_the_default_model_is_consistent():
    loaded = workbench.load(progress=False)
    ids = loaded.tokenizer.encode("The ferry left the harbour at seven, an hour late, with eleven passengers.")
    report = check_consistency(loaded, ids, chunks=[(7, len(ids) - 7)])
    assert report.ok, str(report)
    assert report.table["largest"].max() < 1e-3  # rounding, not luck


# ------------------------------------------------------------------------------------------ planted bugs


def test_a_cache_that_drops_a_position(model):
    report = check_consistency(model, IDS, caches=[Dropping()])
    assert bugs(report) == ["dynamic cache", "dynamic cache, cropped"]
    assert not report.ok
    found = row(report, "dynamic cache")
    assert place(found) == ("k_cached", 0, 5)
    assert found["difference"] == float("inf")
    assert (found["first"], found["last"]) == (0, 9)


def test_a_cache_that_shifts_one_layer(model):
    report = check_consistency(model, IDS, caches=["static", ShiftedInOneLayer()])
    assert bugs(report) == ["dynamic cache", "dynamic cache, cropped"]
    found = row(report, "dynamic cache")
    assert place(found) == ("k_cached", 1, 0)
    assert (found["first"], found["last"]) == (10, 17)
    assert found["difference64"] > 0.1
    with pytest.raises(ConsistencyError, match="dynamic cache: first at k_cached of layer 1, position 0"):
        report.raise_if_failed()


def test_a_cache_that_is_stale_after_crop(model):
    report = check_consistency(model, IDS, caches=[Stale()])
    assert bugs(report) == ["dynamic cache, cropped"]
    assert place(row(report, "dynamic cache, cropped")) == ("v_cached", 2, 10)


def test_a_cache_that_raises(model):
    report = check_consistency(model, IDS, caches=[Failing()])
    assert bugs(report) == ["dynamic cache", "dynamic cache, cropped"][: len(bugs(report))]
    assert bugs(report)
    assert row(report, "dynamic cache")["error"] == "IndexError: no slot 10"
    assert "dynamic cache: IndexError: no slot 10" in str(report)
    assert hooks(model) == 0


def test_a_rope_offset_that_is_wrong_in_chunks(model, monkeypatch):
    right = llama.check_positions

    def wrong(position_ids, q_pos, batch):
        return right(position_ids, q_pos, batch) + int(position_ids is None and q_pos[0] > 0)

    monkeypatch.setattr(llama, "check_positions", wrong)
    report = check_consistency(model, IDS, caches=["static"])
    assert bugs(report) == [
        "chunks of 10 + 10",
        "chunks of 1 + 19",
        "chunks of 4",
        "token by token",
        "static cache",
        "static cache, cropped",
    ]
    found = row(report, "chunks of 10 + 10")
    assert place(found) == ("q_rot", 0, 10)
    assert (found["first"], found["last"]) == (10, 19)
    assert place(row(report, "chunks of 1 + 19")) == ("q_rot", 0, 1)
    assert place(row(report, "chunks of 4")) == ("q_rot", 0, 4)


@pytest.mark.parametrize(("keep", "position"), [("all", 0), ("one too few", 0), ("one hole", 3)])
def test_a_padding_mask_that_is_wrong(model, monkeypatch, keep, position):
    right = mask.padding

    def wrong(given):
        given = given.clone()
        if keep == "all":
            given[:] = True
        else:
            given[0, 5 if keep == "one too few" else 8] = False
        return right(given)

    monkeypatch.setattr(mask, "padding", wrong)
    report = check_consistency(model, IDS, caches=["dynamic"])
    assert bugs(report) == ["left padding, in a batch"]
    found = row(report, "left padding, in a batch")
    assert place(found) == ("mask", 0, position)
    assert found["difference"] == 1
    assert f"left padding, in a batch: first at mask of layer 0, position {position} (reading -5 …" in str(report)


def test_a_hook_that_changes_numbers(model, monkeypatch):
    @contextlib.contextmanager
    def changing(looked_at, *points, **options):
        def hook(module, args, output):
            if "gate" in points:
                output[:, 7:] *= 1.01

        handle = looked_at.model.layers[1].mlp.hook_gate.register_forward_hook(hook)
        try:
            with capture(looked_at, *points, **options) as acts:
                yield acts
        finally:
            handle.remove()

    monkeypatch.setattr(consistency_ways, "capture", changing)
    report = check_consistency(model, IDS, caches=["dynamic"])
    assert bugs(report) == ["hooks on every point"]
    assert place(row(report, "hooks on every point")) == ("resid_post", 1, 7)


@pytest.mark.parametrize(
    ("kinds", "verdict"), [((torch.float32,), "rounding"), ((torch.float32, torch.float64), "bug")]
)
def test_noise_in_one_data_type_is_rounding_and_in_both_a_bug(model, kinds, verdict):
    def noise(module, args, output):
        if output.dtype in kinds and output.shape[1] == 13:
            return output + 1e-4 * torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype) * output.abs().max()
        return None

    handle = model.model.layers[1].mlp.register_forward_hook(noise)
    report = check_consistency(model, IDS, caches=["dynamic"], chunks=[(7, 13), (10, 10)])
    handle.remove()
    found = row(report, "chunks of 7 + 13")
    assert found["verdict"] == verdict
    assert report.ok == (verdict == "rounding")
    assert (report.table["verdict"] != "ok").sum() == 1
    assert (found["first"], found["last"], found["layer"], found["position"]) == (7, 19, 1, 7)
    assert found["point"] == {"rounding": "resid_post", "bug": "mlp_out"}[verdict]
    if verdict == "rounding":
        assert found["difference"] > 1e-5 > found["difference64"]
        assert "it vanishes, so it is rounding." in str(report)
    else:
        assert found["difference64"] > 1e-5
        assert "it stays, so it is a bug." in str(report)


def test_a_bug_in_a_float64_model_is_placed_without_a_copy():
    report = check_consistency(tiny_model().double(), IDS, caches=[ShiftedInOneLayer()])
    found = row(report, "dynamic cache")
    assert place(found) == ("k_cached", 1, 0)
    assert pd.isna(found["difference64"])


def test_a_window_whose_store_is_too_short(model):
    report = check_consistency(model, IDS, caches=[ShortRing()], chunks=[5])
    assert bugs(report) == ["short cache", "short cache, cropped"]
    found = row(report, "short cache")
    assert place(found) == ("k_cached", 0, 4)
    assert (found["first"], found["last"]) == (10, 17)


# ------------------------------------------------------------------------------------------ stopping, the model


@pytest.mark.parametrize("asked", [0, 5, 60, 200])
def test_stopping_reports_what_was_finished(model, asked):
    calls, told = [], []

    def stop():
        calls.append(1)
        return len(calls) > asked

    report = check_consistency(model, IDS, should_stop=stop, on_progress=lambda *p: told.append(p))
    assert len(report.table) == len(told) < len(report.table) + len(report.skipped)
    assert not report.ok
    assert f"Stopped before {report.skipped[0]}" in str(report)
    assert hooks(model) == 0
    with pytest.raises(ConsistencyError, match="Stopped before"):
        report.raise_if_failed()


def test_the_model_is_unchanged(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, told = model.config.to_dict(), []
    check_consistency(model, IDS, caches=[ShiftedInOneLayer()], on_progress=lambda *p: told.append(p))
    assert model.training
    assert hooks(model) == 0
    assert model.config.to_dict() == config
    assert model.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert told == [(i, 9) for i in range(1, 10)]


def test_the_report_is_a_readable_table(model):
    lines = str(check_consistency(model, IDS, caches=["dynamic"], chunks=[(3, 17)])).splitlines()
    assert lines[0] == "20 tokens in float32, each way against one pass without a cache"
    assert lines[2].split() == ["way", "of", "reading", "verdict", "largest", "difference"]
    assert lines[5].split()[:6] == ["chunks", "of", "3", "+", "17", "ok"]
    assert lines[-1] == "7 ok, 0 rounding, 0 bug. Differences are relative; up to 1e-05 is ok."


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        (IDS, {"tolerance": -1}, ValueError, "tolerance is -1; a relative difference of 0 or more is needed"),
        (IDS, {"tolerance": float("nan")}, ValueError, "tolerance is nan"),
        (
            IDS,
            {"chunks": [(3, 4)]},
            ValueError,
            r"chunks holds \(3, 4\); each split is a list of sizes of at least 1 that",
        ),
        (IDS, {"chunks": [0]}, ValueError, "chunks holds 0; each split"),
        (IDS, {"chunks": []}, ValueError, "chunks is empty; give a size"),
        (IDS, {"caches": ["dinamic"]}, ValueError, "there is no cache 'dinamic'; there are dynamic"),
        (IDS, {"caches": [("dynamic", {"dtype": torch.bfloat16})]}, ValueError, "the dynamic cache is lossy by design"),
        (
            IDS,
            {"caches": ["quantized"]},
            ValueError,
            "the quantized cache is lossy by design: it differs from one pass",
        ),
        (IDS[:, :3], {}, ValueError, "ids has 3 tokens; at least 4 are needed"),
        (IDS.repeat(1, 7), {}, ValueError, r"ids has 140 tokens; the model was made for 128 positions"),
        (IDS.repeat(2, 1), {}, ValueError, r"ids has shape \(2, 20\); one text is needed"),
        ([], {}, ValueError, "ids is empty; one token at least is needed"),
        ("a text", {}, ValueError, "ids is a text, and there is no tokenizer"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model, ids, options, error, message):
    model.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(error, match=message):
        check_consistency(model, ids, **options)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_texts_that_change_the_rope_are_refused(rope):
    model = tiny_model(max_position_embeddings=32, rope_parameters={"rope_theta": 1e4, **ROPES[rope]})
    with pytest.raises(ValueError, match=f"ids has 40 tokens; the {rope} RoPE of this model .* longer than 32"):
        check_consistency(model, IDS.repeat(1, 2))


def test_quantized_weights_are_refused():
    model = workbench.quantize(LlamaForCausalLM(tiny_config(hidden_size=64, intermediate_size=64)).eval(), "int8")
    with pytest.raises(ValueError, match="weights of this model are quantized: .*load it without quantization"):
        check_consistency(model, IDS)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="got Linear"):
        check_consistency(torch.nn.Linear(2, 2), IDS)

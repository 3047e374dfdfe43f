import functools
import time
import types

import pandas as pd
import pytest
import torch

import workbench
from tests.conftest import hooks, tiny_model
from workbench.analysis import cache_compare
from workbench.analysis.cache_compare import common_slots, compare_caches
from workbench.cache import CACHES, DynamicCache, StaticCache
from workbench.model.mask import causal, sink, window

PROMPT = torch.randint(1, 97, (1, 9), generator=torch.Generator().manual_seed(5))
NEW = 6


class Planted(DynamicCache):
    """Adds to the keys or values of one layer, of what attention is given, once a number of positions is held."""

    def __init__(self, layer=2, since=0, k=0.0, v=0.0):
        super().__init__()
        self.layer, self.since, self.plus = layer, since, (k, v)

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        if layer == self.layer and k.shape[2] >= self.since:
            k, v = k + self.plus[0], v + self.plus[1]
        return k, v


class Rounded(DynamicCache):
    exact = False

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        return k.bfloat16().float(), v.bfloat16().float()


def of(table, cache):
    return table[table["cache"] == cache].set_index("step")


@torch.no_grad()
def by_hand(model, cache, tokens):
    """What a cache's forwards give, step by step, in the plainest way: logits, and hidden states of all layers."""
    text, logits, hidden = torch.cat((PROMPT, torch.tensor([tokens])), 1), [], []
    for step in range(len(tokens)):
        start, end = (0 if step == 0 else 8 + step), 9 + step
        hidden.append([])
        seen = functools.partial(lambda kept, module, inputs, out: kept.append(out[0].clone()), hidden[-1])
        handles = [layer.hook_resid_post.register_forward_hook(seen) for layer in model.model.layers]
        logits.append(model(text[:, start:end], past_key_values=cache).logits[0, -1])
        for handle in handles:
            handle.remove()
    return logits, hidden


# ------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize(("point", "column", "other"), [("k", "max_k", "max_v"), ("v", "max_v", "max_k")])
def test_a_planted_shift_is_found_in_its_layer_and_step_with_its_size(model, point, column, other):
    found = compare_caches(model, PROMPT, ["dynamic", Planted(2, 12, **{point: 0.25})], NEW)
    layers = found.layers.pivot(index="step", columns="layer", values=column)
    assert (layers.loc[:2] == 0).all(axis=None)
    assert (layers[[0, 1]] == 0).all(axis=None)
    assert layers.loc[3:, 2].tolist() == pytest.approx([0.25] * 3, abs=1e-6)
    assert (found.layers[other] == 0).all()
    hidden = found.layers.pivot(index="step", columns="layer", values="max_hidden")
    assert (hidden[[0, 1]] == 0).all(axis=None)
    assert (hidden.loc[:2] == 0).all(axis=None)
    assert (hidden.loc[3:, 2] > 0).all() or point == "k"  # the same amount on all keys changes no softmax
    row = found.summary.set_index("cache").loc["dynamic (2)"]
    assert row[column] == pytest.approx(0.25, abs=1e-6)
    assert row[other] == 0


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_every_number_of_a_step_is_that_of_a_plain_loop(kind):
    model = tiny_model(kind)
    found = compare_caches(model, PROMPT, ["dynamic", Rounded()], NEW)
    exact, rounded = DynamicCache(), Rounded()
    (a, hidden_a), (b, hidden_b) = (by_hand(model, cache, found.tokens) for cache in (exact, rounded))
    steps, layers = of(found.steps, "dynamic (2)"), found.layers
    for step in range(NEW):
        p, q = a[step].double().softmax(-1), b[step].double().softmax(-1)
        assert steps.loc[step, "kl"] == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-10)
        assert steps.loc[step, "max_logit"] == pytest.approx(float((a[step] - b[step]).abs().max()), rel=1e-3, abs=1e-6)
        assert steps.loc[step, "choice"] == int(b[step].argmax())
        for layer in range(3):
            row = layers[(layers["step"] == step) & (layers["layer"] == layer)].iloc[0]
            expected = float((hidden_a[step][layer] - hidden_b[step][layer]).abs().max())
            assert row["max_hidden"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
            end = 9 + step
            for column, store in (("max_k", "keys"), ("max_v", "values")):
                ours = getattr(exact, store)(layer)[:, :, :end]
                theirs = getattr(rounded, store)(layer)[:, :, :end].bfloat16().float()
                assert row[column] == pytest.approx(float((ours - theirs).abs().max()), rel=1e-3, abs=1e-6)
            assert row["positions"] == end
    assert of(found.steps, "dynamic")["kl"].eq(0).all()
    assert steps["kl"].gt(0).all()


def test_the_reference_chooses_greedily_and_the_others_read_its_tokens(model):
    found = compare_caches(model, PROMPT, ["static", "dynamic", "none"], NEW)
    expected = model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0, 9:].tolist()
    assert list(found.tokens) == expected == of(found.steps, "none")["token"].tolist()
    assert found.steps["same_choice"].all()
    assert found.summary["agreement"].eq(1).all()
    assert found.summary["first_divergence"].isna().all()
    assert of(found.steps, "none")["computed"].tolist() == [9, 10, 11, 12, 13, 14]
    assert of(found.steps, "static")["computed"].tolist() == [9, 1, 1, 1, 1, 1]
    assert of(found.steps, "static")["phase"].tolist() == ["prefill"] + ["decode"] * 5
    assert found.layers[["max_k", "max_v"]].max(axis=None) < 1e-4  # keys that are computed again are the same keys


def test_bytes_and_positions_are_those_of_the_caches(model):
    static = StaticCache(model.config, 20)
    found = compare_caches(model, PROMPT, ["dynamic", static, "none"], NEW)
    # 3 layers × keys and values × 2 heads × 20 positions × 8 numbers of 4 bytes
    assert of(found.steps, "static")["bytes"].tolist() == [3 * 2 * 2 * 20 * 8 * 4] * NEW
    assert of(found.steps, "static")["held"].tolist() == [9, 10, 11, 12, 13, 14]
    assert of(found.steps, "none")["bytes"].eq(0).all()
    assert of(found.steps, "none")["held"].eq(0).all()
    summary = found.summary.set_index("cache")
    assert summary.loc["static", "bytes"] == static.nbytes
    assert summary.loc["static", "bytes_ratio"] == summary.loc["dynamic", "bytes"] / static.nbytes
    assert pd.isna(summary.loc["none", "bytes_ratio"])


def test_a_cache_is_as_if_nobody_had_looked(model):
    given = DynamicCache()
    found = compare_caches(model, PROMPT, [given, "static"], NEW)
    plain = DynamicCache()
    by_hand(model, plain, found.tokens)
    for layer in range(3):
        assert torch.equal(given.keys(layer), plain.keys(layer))
        assert torch.equal(given.values(layer), plain.values(layer))


def test_the_first_other_choice_is_the_divergence(model):
    found = compare_caches(model, PROMPT, ["dynamic", Planted(1, 12, v=9.0)], NEW)
    logits, _ = by_hand(model, Planted(1, 12, v=9.0), found.tokens)
    own = [int(row.argmax()) for row in logits]
    first = next(i for i, (a, b) in enumerate(zip(own, found.tokens, strict=True)) if a != b)
    assert first >= 3  # nothing is planted before
    row = found.summary.set_index("cache").loc["dynamic (2)"]
    assert row["first_divergence"] == first
    assert row["agreement"] == sum(a == b for a, b in zip(own, found.tokens, strict=True)) / NEW
    assert f"dynamic (2): at step {first} it would have chosen token {own[first]} where the reference chose" in str(
        found
    )


def test_only_the_layers_asked_for_are_compared(model):
    found = compare_caches(model, PROMPT, ["dynamic", "static"], 2, layers=[-1, 0])
    assert sorted(found.layers["layer"].unique()) == [0, 2]
    assert len(found.layers) == 4


def test_slots_are_matched_by_position_whatever_their_order():
    ours, theirs = common_slots(torch.tensor([4, 5, -1, 2, 3]), torch.tensor([0, 1, 2, 3, 4, 5, 6]))
    assert ours.tolist() == [3, 4, 0, 1]
    assert theirs.tolist() == [2, 3, 4, 5]
    ours, theirs = common_slots(torch.tensor([-1, -1]), torch.tensor([0]))
    assert len(ours) == len(theirs) == 0


# ------------------------------------------------------------------------------------------ kinds of caches


@pytest.mark.parametrize(("name", "options"), [("sliding", {"window": 5}), ("sink", {"window": 4, "sinks": 2})])
def test_a_window_gives_the_numbers_of_its_mask_and_the_report_says_so(model, name, options):
    found = compare_caches(model, PROMPT, ["dynamic", (name, options)], NEW)
    text = torch.cat((PROMPT, torch.tensor([found.tokens])), 1)
    rules = [causal(), window(options["window"]), *([sink(options["sinks"])] if "sinks" in options else [])]
    with torch.no_grad():
        full, masked = (model(text, attention_mask=mask, use_cache=False).logits[0] for mask in (None, rules))
    for step, row in of(found.steps, name).iterrows():
        p, q = (logits[8 + step].double().log_softmax(-1) for logits in (full, masked))
        assert row["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-9)
    first_layer = found.layers[found.layers["layer"] == 0]
    assert first_layer["max_k"].max() < 1e-5  # the same keys, of the positions that both hold
    assert found.layers["max_k"].max() > 1e-2
    assert of(found.steps, name)["held"].max() < 15
    assert first_layer["positions"].iloc[-1] < 14
    assert f"{name}: a query sees the last {options['window']} positions" in found.report()
    assert ("and the first 2." in found.report()) == (name == "sink")


@pytest.mark.filterwarnings("ignore:an offloaded cache")  # there is no GPU
def test_all_lossless_caches_are_found_equal(model):
    exact = [name for name in ("dynamic", "static", "offloaded") if name in CACHES]
    wide = [(name, {"window": 40}) for name in ("sliding", "sink") if name in CACHES]
    found = compare_caches(model, PROMPT, [*exact, *wide], NEW)
    assert found.summary["exact"].all()
    assert found.summary[["max_k", "max_v", "max_hidden", "max_logit"]].max(axis=None) < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_cache_differs_in_keys_and_values_by_at_most_its_step(bits):
    model = tiny_model(hidden_size=128)  # heads of 32 numbers, one group
    found = compare_caches(
        model, PROMPT, ["dynamic", {"name": "quantized", "bits": bits, "group_size": 4, "residual_length": 4}], NEW
    )
    row = found.summary.set_index("cache").loc["quantized"]
    assert not row["exact"]
    assert "quantized: keeps keys and values rounded." in str(found)
    first = found.layers[(found.layers["layer"] == 0) & (found.layers["step"] == NEW - 1)].iloc[0]
    cache = DynamicCache()
    by_hand(model, cache, found.tokens)
    for column, stored in (("max_k", cache.keys(0)), ("max_v", cache.values(0))):
        span = float(stored.max() - stored.min())
        assert 0 < first[column] <= span / (2**bits - 1)


# ------------------------------------------------------------------------------------------ labels and text


def test_labels_tell_caches_of_a_name_apart(model):
    caches = ["static", {"name": "sliding", "window": 4}, ("sliding", {"window": 8}), DynamicCache(), "dynamic"]
    found = compare_caches(model, PROMPT, caches, 1)
    assert found.caches == ("static", "sliding window 4", "sliding window 8", "dynamic", "dynamic (2)")
    assert found.summary["cache"].tolist() == list(found.caches)


def test_given_caches_are_emptied_first(model):
    given = DynamicCache()
    with torch.no_grad():
        model(PROMPT, past_key_values=given)
    found = compare_caches(model, PROMPT, ["static", given], 2)
    assert found.summary[["max_k", "max_v", "max_logit"]].max(axis=None) == 0
    assert given.length == 10


def test_the_report_is_aligned_and_says_what_it_is_of(model):
    found = compare_caches(model, PROMPT, ["dynamic", "static"], NEW)
    lines = str(found).splitlines()
    assert lines[0] == "2 caches, 9 prompt tokens and 6 steps; the reference is dynamic."
    assert lines[2].split() == ["cache", "bytes", "smaller", "positions", "held", "prefill", "a", "token"]
    assert len(lines[2]) == len(lines[4]) == len(lines[5])
    assert lines[8].startswith("──")
    assert lines[9].split()[0] == "static"
    assert lines[9].endswith("100.0%     never")
    assert max(map(len, lines)) <= 110


def test_text_and_a_tokenizer_or_what_load_returned(model):
    class Letters:
        def encode(self, text):
            return [ord(letter) - 32 for letter in text]

        def decode(self, ids):
            return "".join(chr(32 + i) for i in ids)

    found = compare_caches(model, "HELLO", ["dynamic", "static"], 2, tokenizer=Letters())
    assert found.prompt_length == 5
    assert of(found.steps, "static")["text"].tolist() == [chr(32 + token) for token in found.tokens]
    assert of(found.steps, "static")["choice_text"].tolist() == of(found.steps, "static")["text"].tolist()
    other = compare_caches(model, "HELLO", ["dynamic", Planted(1, v=9.0)], NEW, tokenizer=Letters())
    at = of(other.steps, "dynamic (2)").loc[other.summary["first_divergence"].iloc[1]]
    own, chosen = (f"{chr(32 + at[name])!r} ({at[name]})" for name in ("choice", "token"))
    assert f"it would have chosen {own} where the reference chose {chosen}." in str(other)
    loaded = types.SimpleNamespace(model=model, tokenizer=Letters())
    assert workbench.compare_caches(loaded, "HELLO", ["dynamic", "static"], 2).tokens == found.tokens


# ------------------------------------------------------------------------------------------ times, stop, progress


def test_times_are_of_plain_forwards_only(model, monkeypatch):
    compare_layer = cache_compare.compare_layer

    def slow(*arguments):
        time.sleep(0.2)
        return compare_layer(*arguments)

    class SlowCopy(DynamicCache):
        def clone(self):
            time.sleep(0.2)
            return super().clone()

    monkeypatch.setattr(cache_compare, "compare_layer", slow)
    found = compare_caches(model, PROMPT, ["dynamic", SlowCopy()], 2, layers=[0])
    assert 0 < found.steps["ms"].max() < 150


@pytest.mark.parametrize("asked", [1, 3, 8, 13, 40])
def test_stopping_keeps_the_finished_steps(model, asked):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > asked

    told = []
    found = compare_caches(
        model, PROMPT, ["dynamic", "static"], NEW, should_stop=stop, on_progress=lambda *p: told.append(p)
    )
    assert found.stopped
    assert found.steps["step"].nunique() == len(found.tokens) == len(told) < NEW
    assert len(found.steps) == 2 * len(told)
    assert len(found.layers) == 3 * len(told)
    assert "stopped early" in str(found)
    assert hooks(model) == 0


def test_the_model_and_its_mode_stay(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    found = compare_caches(model, PROMPT, ["dynamic", "static"], 2, on_progress=lambda *p: told.append(p))
    assert told == [(1, 2), (2, 2)]
    assert not found.stopped
    assert model.training
    assert hooks(model) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------ bad input

SAME = DynamicCache()


@pytest.mark.parametrize(
    ("prompt", "caches", "options", "error", "message"),
    [
        (PROMPT, ["dynamic", "dinamic"], {}, ValueError, "there is no cache 'dinamic'; there are dynamic, static,"),
        (PROMPT, ["dynamic", ("none", {"bits": 2})], {}, ValueError, '"none" keeps nothing and has no options'),
        (PROMPT, ["dynamic", ("sliding", {"windw": 2})], {}, ValueError, "windw"),
        (PROMPT, ["dynamic", ("sliding", 5)], {}, TypeError, "a name with options is a pair"),
        (PROMPT, ["dynamic", 7], {}, TypeError, "caches holds 7; names"),
        (PROMPT, "dynamic", {}, TypeError, "caches is 'dynamic'; a list is needed"),
        (PROMPT, ["dynamic"], {}, ValueError, "caches names 1 of them; two or more are needed"),
        (PROMPT, [SAME, SAME], {}, ValueError, "holds the same dynamic cache twice"),
        (PROMPT, ["dynamic", ("static", {"max_cache_len": 9})], {}, ValueError, "has room for max_cache_len=9"),
        (PROMPT, ["dynamic", "static"], {"new_tokens": 0}, ValueError, "new_tokens is 0; a whole number of at least 1"),
        (PROMPT, ["dynamic", "static"], {"new_tokens": 2.0}, ValueError, "new_tokens is 2.0"),
        (
            PROMPT,
            ["dynamic", "static"],
            {"new_tokens": 120},
            ValueError,
            "make 129 positions; the model was made for 128",
        ),
        (
            PROMPT,
            ["dynamic", "static"],
            {"layers": [3]},
            ValueError,
            "layer 3 does not exist; this model has layers 0 … 2",
        ),
        ("a text", ["dynamic", "static"], {}, ValueError, "prompt is a text, and there is no tokenizer"),
        ([], ["dynamic", "static"], {}, ValueError, "prompt is empty; one token at least is needed"),
        (5, ["dynamic", "static"], {}, TypeError, "prompt is a int; a text or token ids are needed"),
        ([[1, 2], [3, 4]], ["dynamic", "static"], {}, ValueError, "one text is needed"),
        ([1, 97], ["dynamic", "static"], {}, ValueError, "input_ids holds 97; token ids of this model lie in 0 … 96"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model, prompt, caches, options, error, message):
    model.model.embed_tokens.register_forward_hook(lambda *_: pytest.fail("a forward ran"))
    with pytest.raises(error, match=message.replace("(", r"\(")):
        compare_caches(model, prompt, caches, **{"new_tokens": NEW, **options})


def test_a_model_without_a_head_is_refused(model):
    with pytest.raises(TypeError, match="model is a LlamaModel; a LlamaForCausalLM is needed"):
        compare_caches(model.model, PROMPT, ["dynamic", "static"])


@pytest.mark.parametrize(("length", "said"), [(20, False), (28, True)])
def test_angles_that_change_within_the_text_are_said(length, said):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    model = tiny_model(rope_parameters={**rope, "original_max_position_embeddings": 30}, max_position_embeddings=128)
    found = compare_caches(model, list(range(1, length + 1)), ["none", "dynamic"], new_tokens=8)
    assert found.angles_change == (30 if said else None)
    sentence = (
        "The RoPE of this model turns by other angles once a text is longer than 30 positions: keys that were cached"
    )
    assert (sentence in found.report()) is said
    assert (found.summary["max_logit"].iloc[1] > 0.1) == said

"""Attention on demand where the keys that were used are not those that were captured: refused, said, or read."""

import warnings

import pytest
import torch

import workbench
from tests.conftest import tiny_model
from workbench import AttentionMap
from workbench.cache import DynamicCache, make_cache
from workbench.instrument import Activations

NOT_THOSE = (
    "did not use the keys that were captured: k_cached was edited, rows of the cache were reordered, or the text"
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("gqa").eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 90, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_reordered_rows_are_noticed_until_the_text_ends(model, ids):
    with workbench.capture(model, "q_rot", "k_rot") as acts:
        cache = model(ids[:, :8]).past_key_values
        cache.reorder(torch.tensor([1, 0]))
        model(ids[:, 8:9], past_key_values=cache)
        model(ids[:, 9:10], past_key_values=cache)
    shown = AttentionMap(acts)
    assert shown.row(1, 1, 7).sum() == pytest.approx(1)
    for q in (8, 9):
        with pytest.raises(ValueError, match=NOT_THOSE):
            shown.row(1, 1, q)


@torch.no_grad()
def test_a_text_read_on_in_another_cache_is_noticed(model, ids, tmp_path):
    other = model(ids[1:, :8]).past_key_values
    with workbench.capture(model, "q_rot", "k_rot") as acts:
        model(ids[:1, :8], past_key_values=DynamicCache())
        model(ids[:1, 8:9], past_key_values=other)
    acts.save(tmp_path / "acts.safetensors")
    for shown in (AttentionMap(acts), AttentionMap(Activations.load(tmp_path / "acts.safetensors"))):
        with pytest.raises(ValueError, match="positions 8 " + NOT_THOSE):
            shown.row(0, 0, 8)


@torch.no_grad()
def test_edited_keys_of_the_cache_are_refused_in_their_layer_and_read_where_captured(model, ids):
    halved = {"layers.1.k_cached": lambda keys: keys * 0.5}

    with workbench.edit(model, halved), workbench.capture(model, "q_rot", "k_rot") as acts:
        cache = model(ids[:1, :8]).past_key_values
        model(ids[:1, 8:9], past_key_values=cache)
    with pytest.raises(ValueError, match=NOT_THOSE):
        AttentionMap(acts).head(1, 0)
    assert AttentionMap(acts).head(0, 0).shape == (9, 9)
    with workbench.edit(model, halved), workbench.capture(model, "q_rot", "k_rot", "k_cached") as acts:
        cache = model(ids[:1, :8]).past_key_values
        model(ids[:1, 8:9], past_key_values=cache)
    shown = torch.as_tensor(AttentionMap(acts).row(1, 1, 8))
    with workbench.edit(model, halved), workbench.capture(model, "pattern", derive=False) as reference:
        cache = model(ids[:1, :8]).past_key_values
        model(ids[:1, 8:9], past_key_values=cache)
    torch.testing.assert_close(shown, reference.step(("pattern", 1), 1)[0, 1, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dynamic", "static", "sliding", "sink", "offloaded"])
@torch.no_grad()
def test_with_an_exact_cache_queries_and_keys_are_enough(name, model, ids):
    options = {"window": 5} if name in ("sliding", "sink") else {}

    def read():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an offloaded cache says that there is nothing to offload from
            cache = make_cache(name, model.config, 12, **options)
        model(ids[:1, :7], past_key_values=cache)
        for at in range(7, 12):
            model(ids[:1, at : at + 1], past_key_values=cache)

    with workbench.capture(model, "q_rot", "k_rot") as acts:
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = AttentionMap(acts)
    with workbench.capture(model, "pattern", "mask", derive=False) as reference:
        read()
    for step, span in enumerate(reference.spans):
        used = reference.step(("pattern", 2), step)[0, 1]
        held = span.mask.k_pos
        expected = torch.zeros(span.count, 12)
        expected[:, held[held >= 0]] = used[:, held >= 0]
        found = torch.as_tensor(shown.head(2, 1))[span.start : span.start + span.count]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cache_that_rounds_is_said_and_what_it_gave_is_read(model, ids):
    def read():
        cache = DynamicCache(dtype=torch.bfloat16)
        model(ids[:1, :8], past_key_values=cache)
        model(ids[:1, 8:9], past_key_values=cache)

    with workbench.capture(model, "q_rot", "k_rot") as acts:
        read()
    with pytest.warns(UserWarning, match="the cache of this text rounds keys, and what it gave back was not captured"):
        AttentionMap(acts)
    with workbench.capture(model, "q_rot", "k_rot", "k_cached") as acts:
        read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = AttentionMap(acts)
    for step, span in enumerate(acts.spans):
        queries, keys = acts.step(("q_rot", 2), step)[0, :, 1], acts.step(("k_cached", 2), step)[0, :, 0]
        later = torch.ones(span.count, len(keys), dtype=torch.bool).triu(span.start + 1)
        used = (queries @ keys.T * 8**-0.5).masked_fill(later, -torch.inf).softmax(-1)
        found = torch.as_tensor(shown.head(2, 1))[span.start : span.start + span.count, : len(keys)]
        torch.testing.assert_close(found, used, rtol=0, atol=1e-6)


@torch.no_grad()
def test_scores_are_scaled_as_each_layer_does(ids, tmp_path):
    model = tiny_model("gqa").eval()
    model.model.layers[1].self_attn.scaling = 1.0
    with workbench.capture(model, "q_rot", "k_rot", "pattern", derive=False) as acts:
        model(ids[:1])
    acts.save(tmp_path / "acts.safetensors")
    for shown in (AttentionMap(acts), AttentionMap(Activations.load(tmp_path / "acts.safetensors"))):
        for layer in range(3):
            found = torch.as_tensor(shown.head(layer, 2))
            torch.testing.assert_close(found, acts["pattern", layer][0, 2], rtol=0, atol=1e-6)

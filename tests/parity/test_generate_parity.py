"""`generate` gives transformers' texts and scores: every way to choose tokens, cache and kind of attention."""

import pytest
import torch
import transformers

from tests.parity.generate_pairs import IDS, PADDED, assert_same, both, pair
from workbench.cache import DynamicCache, StaticCache

EVERYTHING = dict(return_dict_in_generate=True, output_scores=True, output_logits=True)
WAYS = {
    "greedy": {},
    "sampled": dict(do_sample=True, temperature=1.7, top_k=30, top_p=0.95),
    "beams": dict(num_beams=3),
    "sampled beams": dict(num_beams=3, do_sample=True, temperature=1.7, top_k=20),
}
CACHES = {
    "dynamic": dict(cache_implementation="dynamic"),
    "static": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
}
PADDING = {"unpadded": None, "padded": PADDED}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_ways_caches_and_padding(kind, way, cache, padding):
    assert_same(*both({"max_new_tokens": 10, **WAYS[way], **CACHES[cache], **EVERYTHING}, kind, mask=PADDING[padding]))


@pytest.mark.parametrize("way", WAYS)
def test_attentions_and_hidden_states(way):
    asked = dict(return_dict_in_generate=True, output_attentions=True, output_hidden_states=True)
    assert_same(*both({**asked, **WAYS[way], "max_new_tokens": 4}, attn_implementation="eager"))


@pytest.mark.parametrize("ends", [[5, 17, 23], list(range(1, 40))], ids=["three ends", "many ends"])
@pytest.mark.parametrize("way", WAYS)
def test_several_end_tokens(way, ends):
    mine, reference = both({**EVERYTHING, **WAYS[way], "max_new_tokens": 14, "eos_token_id": ends})
    assert_same(mine, reference)
    if len(ends) > 3:
        assert set(mine.sequences[:, 9:].flatten().tolist()) & set(ends), "a row ended"


@pytest.mark.parametrize("early_stopping", [True, False, "never"], ids=str)
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.5])
def test_beams_that_end(early_stopping, length_penalty):
    options = dict(num_beams=4, num_return_sequences=3, max_new_tokens=16, eos_token_id=list(range(20, 45)))
    asked = dict(early_stopping=early_stopping, length_penalty=length_penalty)
    for seed in range(3):
        ids = torch.randint(6, 97, (3, 6), generator=torch.Generator().manual_seed(seed))
        assert_same(*both({**options, **asked, **EVERYTHING}, ids=ids))


@pytest.mark.parametrize("returned", [1, 2, 5])
@pytest.mark.parametrize("sampled", [False, True], ids=["best", "drawn"])
def test_beams_of_a_padded_batch(returned, sampled):
    options = dict(num_beams=5, num_return_sequences=returned, do_sample=sampled, max_new_tokens=12)
    ends = dict(eos_token_id=list(range(60, 80)), pad_token_id=3)
    assert_same(*both({**options, **ends, **EVERYTHING}, mask=PADDED))


@pytest.mark.parametrize("cache", CACHES)
def test_several_draws_of_a_prompt(cache):
    options = dict(do_sample=True, num_return_sequences=3, max_new_tokens=12, eos_token_id=list(range(20, 30)))
    mine, reference = both({**options, **CACHES[cache], **EVERYTHING}, mask=PADDED)
    assert_same(mine, reference)
    assert len(set(map(tuple, mine.sequences.tolist()))) > 2


@pytest.mark.parametrize("seed", range(6))
def test_draws_of_other_seeds(seed):
    assert_same(*both(dict(do_sample=True, max_new_tokens=20, top_k=0), seed=seed))


LENGTHS = {
    "neither": {},
    "max_length": dict(max_length=15),
    "max_new_tokens": dict(max_new_tokens=6),
    "both: the new ones count": dict(max_length=12, max_new_tokens=6),
    "min_new_tokens": dict(max_new_tokens=30, min_new_tokens=12, eos_token_id=list(range(1, 60))),
    "min_length": dict(max_new_tokens=30, min_length=17, eos_token_id=list(range(1, 60))),
    "both: the new ones count here too": dict(
        max_new_tokens=30, min_length=25, min_new_tokens=3, eos_token_id=list(range(1, 60))
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("beams", [1, 3], ids=["one", "beams"])
def test_lengths(name, beams):
    assert_same(*both({**LENGTHS[name], "num_beams": beams}))


def test_the_default_ends_at_the_models_length():
    ids = torch.randint(6, 97, (1, 120))
    mine, reference = both({}, ids=ids)
    assert_same(mine, reference)
    assert mine.shape[1] == 128


def test_a_text_longer_than_the_model_was_trained_for():
    ids = torch.randint(6, 97, (1, 20))
    changes = dict(max_position_embeddings=24)
    with pytest.warns(UserWarning, match=r"reached 25 tokens, but the model was trained for 24 positions"):
        mine, reference = both(dict(max_new_tokens=12), ids=ids, **changes)
    assert_same(mine, reference)
    assert mine.shape[1] == 32


@pytest.mark.parametrize(
    ("pad", "end"), [(0, 5), (7, 5), (7, 7)], ids=["none in the prompt", "in the prompt", "the end token"]
)
def test_padding_is_found_by_its_token(pad, end):
    ids = IDS.clone()
    ids[0, :3] = 7
    mine, theirs = pair()
    options = dict(max_new_tokens=8, pad_token_id=pad, eos_token_id=end)
    assert mine.generate(ids, **options).tolist() == theirs.generate(ids, **options).tolist()


def test_a_text_from_nothing_begins_with_bos():
    mine, theirs = pair()
    assert mine.generate(max_new_tokens=8).tolist() == theirs.generate(max_new_tokens=8).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", ["max_new_tokens", "max_length", "neither"])
def test_embeddings_as_prompt(way, length):
    mine, theirs = pair()
    embedded = theirs.model.embed_tokens(IDS).detach()
    options = {**WAYS[way], **({} if length == "neither" else {length: 14})}
    torch.manual_seed(1)
    a = mine.generate(inputs_embeds=embedded, attention_mask=PADDED, **options)
    torch.manual_seed(1)
    b = theirs.generate(inputs_embeds=embedded, attention_mask=PADDED, **options)
    assert a.tolist() == b.tolist()
    torch.manual_seed(1)
    a = mine.generate(IDS, inputs_embeds=embedded, attention_mask=PADDED, max_new_tokens=5)
    assert a.tolist() == theirs.generate(IDS, inputs_embeds=embedded, attention_mask=PADDED, max_new_tokens=5).tolist()


def test_positions_of_the_prompt():
    positions = torch.arange(9)[None] * 2
    assert_same(*both(dict(max_new_tokens=8, position_ids=positions.expand(2, -1))))


@pytest.mark.parametrize("mask", [None, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("given", ["the whole text", "the new tokens"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_that_holds_the_beginning(cache, given, mask):
    mine, theirs = pair()
    more = torch.randint(6, 97, (2, 4), generator=torch.Generator().manual_seed(5))
    keep = torch.ones_like(IDS) if mask is None else mask
    results = []
    for model, dynamic, static in (
        (mine, DynamicCache, StaticCache),
        (theirs, transformers.DynamicCache, transformers.StaticCache),
    ):
        held = dynamic(config=model.config) if cache == "dynamic" else static(config=model.config, max_cache_len=40)
        begun = model.generate(IDS, attention_mask=keep, past_key_values=held, max_new_tokens=6, eos_token_id=None)
        text = torch.cat((begun, more), 1)
        whole = torch.cat((keep, torch.ones(2, 10, dtype=torch.long)), 1)
        ids = text if given == "the whole text" else text[:, held.get_seq_length() :]
        results.append(model.generate(ids, attention_mask=whole, past_key_values=held, max_new_tokens=6).tolist())
        assert held.get_seq_length() == 9 + 6 + 4 + 6 - 1
    assert results[0] == results[1]


def test_the_filled_cache_is_returned():
    mine, reference = both(dict(max_new_tokens=6, num_beams=3, return_dict_in_generate=True))
    assert mine.past_key_values.get_seq_length() == reference.past_key_values.get_seq_length() == 14
    for layer in range(2):
        torch.testing.assert_close(
            mine.past_key_values.keys(layer), reference.past_key_values.layers[layer].keys, rtol=1e-5, atol=1e-5
        )


@pytest.fixture(scope="module")
def twenty_tokens(default_pair):
    """A prompt with what transformers adds to it on the default model."""
    torch.set_num_threads(1)
    ours, theirs = default_pair
    ids = torch.tensor([ours.tokenizer.encode("Plants create energy through a process known as")])
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=None)
    return ids, options, theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("cache", CACHES)
def test_the_default_model(default_pair, twenty_tokens, cache):
    ids, options, expected = twenty_tokens
    mine = default_pair[0].model.generate(ids, **options, **CACHES[cache])
    assert mine.tolist() == expected.tolist()
    assert mine.shape[1] == ids.shape[1] + 20

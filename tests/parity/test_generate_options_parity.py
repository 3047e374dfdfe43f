"""Each option that changes scores or ends rows, alone and together, gives transformers' numbers."""

import itertools

import pytest
import tokenizers
import torch
import transformers

from tests.parity.generate_pairs import IDS, PADDED, assert_same, both, pair
from workbench.generation import (
    GenerationConfig,
    StopStringCriteria,
    TextIteratorStreamer,
    TextStreamer,
    compute_transition_scores,
)

EVERYTHING = dict(return_dict_in_generate=True, output_scores=True, output_logits=True, max_new_tokens=8)
CHANGES = {
    "repetition_penalty": dict(repetition_penalty=1.8),
    "repetition_penalty below 1": dict(repetition_penalty=0.6),
    "no_repeat_ngram_size 1": dict(no_repeat_ngram_size=1),
    "no_repeat_ngram_size 2": dict(no_repeat_ngram_size=2),
    "bad_words_ids": dict(bad_words_ids=[[n] for n in range(5, 50)] + [[60, 61], [70, 71, 72]]),
    "sequence_bias": dict(sequence_bias={(20,): 3.0, (30, 31): -4.0, (31, 20): 6.0}),
    "sequence_bias as lists": dict(sequence_bias=[[[20], 3.0], [[30, 31], -4.0]]),
    "suppress_tokens": dict(suppress_tokens=list(range(5, 60))),
    "begin_suppress_tokens": dict(begin_suppress_tokens=list(range(5, 80))),
    "forced_eos_token_id": dict(forced_eos_token_id=5),
    "forced_eos_token_id list": dict(forced_eos_token_id=[5, 6]),
    "exponential_decay_length_penalty": dict(exponential_decay_length_penalty=(2, 1.5)),
    "remove_invalid_values": dict(remove_invalid_values=True, suppress_tokens=[7, 8]),
    "renormalize_logits": dict(renormalize_logits=True, repetition_penalty=1.3),
    "min_new_tokens": dict(min_new_tokens=4, eos_token_id=list(range(1, 60))),
}
DRAWS = {
    "temperature": dict(temperature=0.4, top_k=0),
    "temperature as a whole number": dict(temperature=2.0),
    "top_k": dict(top_k=4),
    "top_k of everything": dict(top_k=1000),
    "top_k None": dict(top_k=None),
    "top_p": dict(top_p=0.6, top_k=0),
    "top_p 0": dict(top_p=0.0, top_k=0),
    "min_p": dict(min_p=0.2, top_k=0),
    "typical_p": dict(typical_p=0.5, top_k=0),
    "epsilon_cutoff": dict(epsilon_cutoff=0.02, top_k=0),
    "eta_cutoff": dict(eta_cutoff=0.03, top_k=0),
    "top_h": dict(top_h=0.4, top_k=0),
    "all": dict(
        temperature=1.5, top_k=40, top_p=0.95, min_p=0.01, typical_p=0.95, epsilon_cutoff=1e-3, eta_cutoff=1e-3
    ),
}
STRATEGIES = {"greedy": {}, "beams": dict(num_beams=3), "drawn": dict(do_sample=True, temperature=1.3)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CHANGES)
def test_scores_changed_alone(name, strategy):
    assert_same(*both({**EVERYTHING, **STRATEGIES[strategy], **CHANGES[name]}, mask=PADDED))


@pytest.mark.parametrize("beams", [1, 3], ids=["one", "beams"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_narrowed_alone(name, beams):
    assert_same(*both({**EVERYTHING, "do_sample": True, "num_beams": beams, **DRAWS[name]}))


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(list(CHANGES)[:6:2], 2)), ids=str)
def test_scores_changed_by_two(first, second):
    options = {**CHANGES[first], **CHANGES[second]}
    assert_same(*both({**EVERYTHING, "do_sample": True, "top_p": 0.9, **options}, mask=PADDED))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_together(strategy):
    options = dict(
        repetition_penalty=1.4,
        no_repeat_ngram_size=3,
        bad_words_ids=[[9], [10, 11]],
        sequence_bias={(12,): 2.0},
        suppress_tokens=[13, 14],
        begin_suppress_tokens=[15],
        min_new_tokens=3,
        eos_token_id=[5, 40, 41, 42],
        exponential_decay_length_penalty=(5, 1.2),
        renormalize_logits=True,
    )
    assert_same(*both({**EVERYTHING, **STRATEGIES[strategy], **options, "max_new_tokens": 16}, mask=PADDED))


def test_a_forced_first_token():
    ids = torch.tensor([[1], [1]])
    assert_same(*both({**EVERYTHING, "forced_bos_token_id": 33, "begin_suppress_tokens": [40]}, ids=ids))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_allowed_tokens(strategy):
    def allowed(prompt, text):
        return list(range(10 + 20 * prompt, 25 + 20 * prompt)) if len(text) % 2 else [5, 50, 60, 61]

    assert_same(*both({**EVERYTHING, **STRATEGIES[strategy], "prefix_allowed_tokens_fn": allowed}))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_no_allowed_token_is_left_the_allowed_ones_go_first(strategy):
    options = dict(prefix_allowed_tokens_fn=lambda prompt, text: [50, 51], bad_words_ids=[[50], [51]])
    assert_same(*both({**EVERYTHING, **STRATEGIES[strategy], **options}))


class Halved(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, ::2] = scores[:, ::2] / 2 - input_ids.shape[1]
        return scores


class AfterSixteen(transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids == 16).any(1) | torch.tensor([input_ids.shape[1] > 14, False]).repeat(len(input_ids) // 2)


@pytest.mark.parametrize("ends", [None, 5], ids=["no end token", "end token"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_callers_own_processors_and_criteria(strategy, ends):
    given = dict(
        logits_processor=transformers.LogitsProcessorList([Halved()]),
        stopping_criteria=transformers.StoppingCriteriaList([AfterSixteen()]),
    )
    options = {**EVERYTHING, **STRATEGIES[strategy], **given, "eos_token_id": ends, "pad_token_id": 0}
    mine, reference = both({**options, "max_new_tokens": 12})
    if strategy == "beams" and ends is None:  # transformers fills with -1 there, whatever pad_token_id is
        reference.sequences = reference.sequences.masked_fill(reference.sequences == -1, 0)
    assert_same(mine, reference)


# Stop strings ---------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz 12345"
PIECES = ["ab", "bc", "abc", "st", "op", "stop", "opera", "las", "topper", " st", "ppe", "é"]


@pytest.fixture(scope="module")
def tokenizer():
    """97 tokens: single letters, and pieces with other letters behind them."""
    texts = [*LETTERS, *(f"{piece}{end}" for end in ("", "s", "1", "2 ", "ta", "é") for piece in PIECES)][:97]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({text: i for i, text in enumerate(texts)}, []))
    made.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


STOPS = {
    "one token": "stop",
    "part of a token": "pera",
    "across tokens": "1s",
    "across more": "sab",
    "several": ["1a", "2 o", "topp", "c1"],
    "a letter": "o",
    "another alphabet": "éa",
    "never": "zebra",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", STOPS)
def test_stop_strings(name, strategy, tokenizer):
    options = dict(max_new_tokens=20, stop_strings=STOPS[name], tokenizer=tokenizer, pad_token_id=0, eos_token_id=5)
    assert_same(*both({**options, **STRATEGIES[strategy]}))


@pytest.mark.parametrize("name", STOPS)
def test_stop_strings_of_random_texts(name, tokenizer):
    ids = torch.randint(0, 97, (400, 12), generator=torch.Generator().manual_seed(1))
    mine = StopStringCriteria(tokenizer, STOPS[name])(ids)
    assert mine.tolist() == transformers.StopStringCriteria(tokenizer, STOPS[name])(ids, None).tolist()
    assert bool(mine.any()) == (name != "never")


# Streamers, scores and the config -------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_prompt", [False, True])
@pytest.mark.parametrize("kind", ["printed", "iterated"])
def test_streamed_text(kind, skip_prompt, tokenizer, capsys):
    texts = []
    for model, printer, iterator in (
        (pair()[0], TextStreamer, TextIteratorStreamer),
        (pair()[1], transformers.TextStreamer, transformers.TextIteratorStreamer),
    ):
        streamer = (printer if kind == "printed" else iterator)(tokenizer, skip_prompt=skip_prompt)
        model.generate(IDS[:1], attention_mask=IDS[:1] * 0 + 1, streamer=streamer, max_new_tokens=30)
        texts.append(capsys.readouterr().out if kind == "printed" else list(streamer))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_transition_scores(strategy, normalize):
    mine, theirs = both({**EVERYTHING, **STRATEGIES[strategy], "eos_token_id": list(range(1, 40))})
    origins = getattr(mine, "beam_indices", None)
    found = compute_transition_scores(mine.sequences, mine.scores, origins, normalize)
    expected = pair()[1].compute_transition_scores(
        theirs.sequences, theirs.scores, theirs.get("beam_indices"), normalize_logits=normalize
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_models_own_generation_config_is_the_default(tmp_path):
    values = dict(do_sample=True, temperature=0.7, top_k=12, max_new_tokens=7, eos_token_id=[5, 6], pad_token_id=0)
    transformers.GenerationConfig(**values).save_pretrained(tmp_path)
    mine, theirs = pair("mha")
    before = mine.stored_generation_config, theirs.generation_config
    try:
        mine.generation_config = GenerationConfig.from_pretrained(tmp_path)
        theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
        for options in ({}, dict(temperature=1.9), dict(do_sample=False), dict(max_length=20), dict(eos_token_id=None)):
            assert_same(*both(options, "mha"))
        config = dict(num_beams=2, top_k=5)
        ours, reference = GenerationConfig(**config), transformers.GenerationConfig(**config)
        assert_same(*both({}, "mha", ours={"generation_config": ours}, theirs={"generation_config": reference}))
    finally:
        mine.generation_config, theirs.generation_config = before


def test_a_saved_config_is_read_by_transformers(tmp_path):
    values = dict(do_sample=True, top_p=0.9, stop_strings=["a"], eos_token_id=[2, 3], sequence_bias={(1, 2): 3.0})
    GenerationConfig(**values).save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    for name, value in values.items():
        expected = [[[1, 2], 3.0]] if name == "sequence_bias" else value
        assert getattr(theirs, name) == expected
    read = GenerationConfig.from_pretrained(tmp_path)
    assert (read.do_sample, read.top_p, read.eos_token_id, read.min_p) == (True, 0.9, [2, 3], None)


@pytest.mark.parametrize("planted", ["temperature forgotten", "penalty of padding", "wrong row", "late end"])
def test_the_comparison_notices_a_planted_bug(planted, monkeypatch):
    from workbench.generation import processors, reader, stopping, warpers

    options = {**EVERYTHING, "do_sample": True, "temperature": 2.0, "repetition_penalty": 1.5}
    if planted == "temperature forgotten":
        monkeypatch.setattr(warpers.TemperatureLogitsWarper, "__call__", lambda self, ids, scores: scores)
    elif planted == "penalty of padding":
        made = processors.RepetitionPenaltyLogitsProcessor.__init__
        monkeypatch.setattr(
            processors.RepetitionPenaltyLogitsProcessor, "__init__", lambda self, penalty, _: made(self, penalty)
        )
    elif planted == "wrong row":
        options = {**EVERYTHING, "num_beams": 3}
        monkeypatch.setattr(reader.Reader, "follow", lambda self, rows: None)
    else:
        options = {**EVERYTHING, "eos_token_id": list(range(1, 60))}
        monkeypatch.setattr(stopping.EosTokenCriteria, "__call__", lambda self, ids, scores: ids[:, -2] < 60)
    with pytest.raises(AssertionError):
        assert_same(*both(options, mask=PADDED))

"""What `generate` refuses, and in which words; a refused call runs nothing and changes nothing."""

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache, StaticCache
from workbench.generation import GenerationConfig, StopStringCriteria, TextIteratorStreamer, TextStreamer, generate
from workbench.generation.processors import LogitsProcessorList
from workbench.generation.stopping import StoppingCriteriaList

IDS = torch.randint(1, 97, (2, 7), generator=torch.Generator().manual_seed(3))
WHOLE = r"a whole number of at least"
VALUES = [
    ("max_new_tokens", (0, -3, 2.0, "5", True), rf"it must be {WHOLE} 1"),
    ("max_length", (0, 9.5, "9"), rf"it must be {WHOLE} 1"),
    ("min_new_tokens", (-1, 1.5), rf"it must be {WHOLE} 0"),
    ("min_length", (-1, "a"), rf"it must be {WHOLE} 0"),
    ("num_beams", (0, 1.5, True), rf"it must be {WHOLE} 1"),
    ("num_return_sequences", (0, "2"), rf"it must be {WHOLE} 1"),
    ("no_repeat_ngram_size", (-1, 2.5), rf"it must be {WHOLE} 0"),
    ("max_cache_len", (0, "9"), rf"it must be {WHOLE} 1"),
    ("pad_token_id", (-1, 1.5, [3]), rf"it must be {WHOLE} 0"),
    ("bos_token_id", (-1, "a"), rf"it must be {WHOLE} 0"),
    ("forced_bos_token_id", (-1, 1.5), rf"it must be {WHOLE} 0"),
    ("eos_token_id", (1.5, "a", [], [1, "b"], True), "it must be a whole number, or a list of them"),
    ("forced_eos_token_id", ("a", []), "it must be a whole number, or a list of them"),
    ("do_sample", (1, "yes"), "it must be True or False"),
    ("use_cache", (1, "no"), "it must be True or False"),
    ("renormalize_logits", (0,), "it must be True or False"),
    ("remove_invalid_values", ("x",), "it must be True or False"),
    ("return_dict_in_generate", (1,), "it must be True or False"),
    ("output_scores", (1,), "it must be True or False"),
    ("output_logits", (1,), "it must be True or False"),
    ("output_attentions", (1,), "it must be True or False"),
    ("output_hidden_states", (1,), "it must be True or False"),
    ("temperature", (-0.5, float("nan"), float("inf"), "1"), r"it must be 0 \(greedy\) or a positive number"),
    ("top_k", (-1, 2.5), r"it must be 0 \(all tokens\) or a positive whole number"),
    ("top_p", (-0.1, 2.0, float("nan")), r"it must be a number in \[0, 1\]"),
    ("min_p", (-0.1, 1.1), r"it must be a number in \[0, 1\]"),
    ("typical_p", (0.0, 1.1), r"it must be a number in \(0, 1\], where 1 keeps all tokens"),
    ("top_h", (0.0, 2), r"it must be a number in \(0, 1\], where 1 keeps all tokens"),
    ("epsilon_cutoff", (-0.1, 1.0), r"it must be a number in \[0, 1\), where 0 keeps all tokens"),
    ("eta_cutoff", (-0.1, 1.0), r"it must be a number in \[0, 1\), where 0 keeps all tokens"),
    ("repetition_penalty", (0.0, -1, "a"), "it must be a positive number"),
    ("max_time", (0, "1"), "it must be a positive number"),
    ("length_penalty", ("a", float("nan")), "it must be a finite number"),
    ("early_stopping", ("always", 1.5), 'it must be True, False or "never"'),
    ("stop_strings", ("", [], [""], 5, ["a", 3]), "it must be a text that is not empty, or a list of them"),
    ("bad_words_ids", ([], [[]], [5], 5, [[-1]]), "it must be a list of lists of token ids, none of them empty"),
    ("sequence_bias", ({}, {(1,): "a"}, [[1, 2]], {(): 1.0}), r"it must be \{\(token ids, …\): bias\}"),
    ("suppress_tokens", (5, [1.5]), "it must be a list of whole numbers of at least 0"),
    ("begin_suppress_tokens", ("a",), "it must be a list of whole numbers of at least 0"),
    ("exponential_decay_length_penalty", (5, (1,), ("a", 2)), "it must be a pair of a whole number and a number"),
    (
        "cache_implementation",
        ("quantum", 5),
        r"it must be one of dynamic, static, sliding, sink, quantized, offloaded, .*none, or None for dynamic",
    ),
]


@pytest.mark.parametrize(("name", "values", "allowed"), VALUES, ids=[name for name, *_ in VALUES])
def test_a_value_that_is_not_allowed_is_named(name, values, allowed):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} is .*; {allowed}"):
            generate(tiny_model(), IDS, **{name: value})
        with pytest.raises(ValueError, match=rf"^{name} is .*; {allowed}"):
            GenerationConfig(**{name: value})


def used_cache():
    cache = DynamicCache()
    with torch.no_grad():
        tiny_model()(IDS, past_key_values=cache)
    return cache


COMBINATIONS = {
    "empty prompt": ({"inputs": IDS[:, :0]}, r"input_ids has shape \(2, 0\); expected \(batch, positions\), one"),
    "1-D prompt": ({"inputs": IDS[0]}, r"input_ids has shape \(7,\); expected \(batch, positions\)"),
    "prompt of floats": ({"inputs": IDS.float()}, r"input_ids holds torch.float32; token ids are torch.int64"),
    "list as prompt": ({"inputs": [[1, 2]]}, r"input_ids is a list; a tensor of shape \(batch, positions\) is needed"),
    "two prompts": ({"input_ids": IDS}, r"inputs and input_ids are the same thing and both are given"),
    "unknown token": ({"inputs": IDS + 97}, r"input_ids holds \d+; token ids of this model lie in 0 … 96"),
    "mask of another size": (
        {"attention_mask": torch.ones(2, 6)},
        r"attention_mask has shape \(2, 6\), input_ids \(2, 7\); they must agree",
    ),
    "mask of four dimensions": (
        {"attention_mask": torch.ones(2, 1, 7, 7)},
        r"attention_mask has shape \(2, 1, 7, 7\); expected \(batch, positions\)",
    ),
    "list as mask": ({"attention_mask": [[1] * 7] * 2}, r"attention_mask is a list; a tensor of shape"),
    "mask of other numbers": (
        {"attention_mask": torch.full((2, 7), 2)},
        r"attention_mask holds other values than 0 \(padding\) and 1 \(token\)",
    ),
    "right padding": (
        {"attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])},
        r"a row ends in padding: pad on the left, so that every row's last position is a real token",
    ),
    "positions of another size": (
        {"position_ids": torch.arange(5)[None]},
        r"position_ids has shape \(1, 5\) and torch.int64; expected whole numbers of shape \(2, 7\)",
    ),
    "embeddings of another rank": (
        {"inputs": None, "inputs_embeds": torch.zeros(2, 32)},
        r"inputs_embeds has shape \(2, 32\); expected \(batch, positions, hidden_size\)",
    ),
    "embeddings of other tokens": (
        {"inputs_embeds": torch.zeros(2, 5, 32)},
        r"input_ids has shape \(2, 7\) beside inputs_embeds of \(2, 5, 32\); they must be of the same tokens",
    ),
    "prompt longer than the text": (
        {"max_length": 7},
        r"input_ids has 7 positions, but max_length is 7, prompt included\. Raise max_length, or give max_new_tokens",
    ),
    "min above max": (
        {"max_new_tokens": 3, "min_new_tokens": 4},
        r"min_new_tokens is 4: a text of 11 tokens, but it ends at 10\. Lower it, or raise max_new_tokens",
    ),
    "min_length above max_length": (
        {"max_length": 12, "min_length": 13},
        r"min_length is 13: a text of 13 tokens, but it ends at 12",
    ),
    "several greedy texts": (
        {"num_return_sequences": 2},
        r"num_return_sequences is 2, but without sampling or beams there is one text a prompt",
    ),
    "more texts than beams": (
        {"num_return_sequences": 3, "num_beams": 2},
        r"num_return_sequences is 3 with num_beams=2; it can be 2 at most",
    ),
    "sampling at temperature 0": (
        {"do_sample": True, "temperature": 0.0},
        r"temperature is 0 with do_sample=True; leave do_sample out for the most likely token",
    ),
    "stop strings without a tokenizer": (
        {"stop_strings": ["a"]},
        r"stop_strings is given without a tokenizer; give tokenizer= too",
    ),
    "a tokenizer that is none": (
        {"stop_strings": ["a"], "tokenizer": 5},
        r"tokenizer is a int without decode\(\); stop_strings needs the model's tokenizer",
    ),
    "seed": ({"do_sample": True, "seed": 1.5}, r"seed is 1\.5; it must be a whole number, or None"),
    "used cache": (
        {"past_key_values": used_cache},
        r"past_key_values already holds 7 positions, and the text has 7: there is nothing to read",
    ),
    "another library's cache": (
        {"past_key_values": dict},
        r"past_key_values is a builtins\.dict; a workbench KV cache is needed",
    ),
    "cache and its name": (
        {"past_key_values": DynamicCache, "cache_implementation": "static"},
        r"past_key_values and cache_implementation='static' are both given",
    ),
    "cache without caching": (
        {"past_key_values": DynamicCache, "use_cache": False},
        r"past_key_values is given with use_cache=False",
    ),
    "cache by name without caching": (
        {"use_cache": False, "cache_implementation": "sliding"},
        r"cache_implementation='sliding' is given with use_cache=False; leave one of them out",
    ),
    "cache options without caching": (
        {"use_cache": False, "cache_config": {"dtype": "bfloat16"}},
        r"cache_config=\{'dtype': 'bfloat16'\} is given with use_cache=False; leave one of them out",
    ),
    "cache of a config without caching": (
        {"use_cache": False, "generation_config": GenerationConfig(cache_implementation="sliding")},
        r"cache_implementation='sliding' is given with use_cache=False; leave one of them out",
    ),
    "cache too short": (
        {"past_key_values": lambda: StaticCache(tiny_config(), 10), "max_new_tokens": 5},
        r"past_key_values has room for max_cache_len=10 positions, but the text may need 11",
    ),
    "cache too narrow": (
        {"past_key_values": lambda: StaticCache(tiny_config(), 64, max_batch_size=3), "num_beams": 2},
        r"past_key_values has room for max_batch_size=3 rows, but 2 prompts with 2 texts each need 4",
    ),
    "no end token to favour": (
        {"exponential_decay_length_penalty": (1, 2.0), "eos_token_id": None},
        r"exponential_decay_length_penalty favours end tokens, but there is no eos_token_id",
    ),
    "bias on an unknown token": ({"sequence_bias": {(97,): 1.0}}, r"sequence_bias names token 97; the last one is 96"),
    "bad word of unknown tokens": ({"bad_words_ids": [[97]]}, r"bad_words_ids names token 97; the last one is 96"),
    "forced unknown token": ({"forced_eos_token_id": 97}, r"forced_eos_token_id is 97; token ids of this model lie in"),
    "processor that is none": ({"logits_processor": [5]}, r"logits_processor holds 5, which is not callable"),
    "criterion that is none": ({"stopping_criteria": ["a"]}, r"stopping_criteria holds 'a', which is not callable"),
    "processor of another shape": (
        {"logits_processor": [lambda ids, scores: scores[:, :5]]},
        r"the logits processor function returned shape \(2, 5\); expected scores of shape \(2, 97\)",
    ),
    "processor without a result": (
        {"logits_processor": [lambda ids, scores: None]},
        r"the logits processor function returned a NoneType; expected scores",
    ),
    "criterion of another shape": (
        {"stopping_criteria": [lambda ids, scores: torch.zeros(5, dtype=torch.bool)]},
        r"the stopping criterion function returned \(5,\) of torch\.bool; expected a boolean",
    ),
    "criterion without a result": (
        {"stopping_criteria": [lambda ids, scores: None]},
        r"the stopping criterion function returned None; expected a boolean",
    ),
    "nothing allowed": (
        {"prefix_allowed_tokens_fn": lambda row, text: []},
        r"prefix_allowed_tokens_fn allowed no token after prompt 0",
    ),
    "allowed that is none": ({"prefix_allowed_tokens_fn": 5}, r"prefix_allowed_tokens_fn is 5; it must be callable"),
    "streamer that is none": ({"streamer": 5}, r"streamer is a int; it needs put\(ids\) and end\(\)"),
    "streamer with beams": (
        {"streamer": lambda: TextStreamer(Letters()), "num_beams": 2},
        r"streamer is given with num_beams above 1",
    ),
    "streamer of two rows": (
        {"streamer": lambda: TextStreamer(Letters())},
        r"TextStreamer shows one text, but 2 rows are generated",
    ),
    "config that is none": ({"generation_config": {"top_k": 5}}, r"generation_config is a dict; a GenerationConfig"),
    "misspelled": ({"max_tokens": 5}, r"'max_tokens' is no option of generate\. Did you mean max_new_tokens"),
    "misspelled argument": ({"atention_mask": None}, r"'atention_mask' is no option .* mean attention_mask"),
    "like nothing": ({"zzz": 5}, r"'zzz' is no option of generate\. It has attention_mask, bad_words_ids, "),
    "not computed here": ({"penalty_alpha": 0.6}, r"penalty_alpha is an option of transformers that generate"),
}  # fmt: skip


class Letters:
    def decode(self, ids, **options):
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_cannot_be_generated_is_refused(name):
    options, message = COMBINATIONS[name]
    made = ("past_key_values", "streamer")
    options = {key: value() if key in made and callable(value) else value for key, value in options.items()}
    cache = options.get("past_key_values")
    length = getattr(cache, "length", 0)
    with pytest.raises((ValueError, TypeError), match=message):
        generate(tiny_model(), **{"inputs": IDS, **options})
    assert getattr(cache, "length", 0) == length


def test_no_prompt_and_no_bos():
    with pytest.raises(ValueError, match="there is no prompt and no bos_token_id to begin with; give input_ids"):
        generate(tiny_model(bos_token_id=None))


def test_no_caching_goes_before_the_cache_of_the_models_own_config():
    model = tiny_model()
    plain = generate(model, IDS, max_new_tokens=3)
    assert torch.equal(generate(model, IDS, max_new_tokens=3, use_cache=False, cache_implementation="none"), plain)
    model.stored_generation_config = GenerationConfig(cache_implementation="quantized", cache_config={"bits": 2})
    assert torch.equal(generate(model, IDS, max_new_tokens=3, use_cache=False), plain)
    model.stored_generation_config = GenerationConfig(use_cache=False)
    with pytest.raises(ValueError, match=r"cache_implementation='sliding' is given with use_cache=False"):
        generate(model, IDS, max_new_tokens=3, cache_implementation="sliding")


def test_a_stop_string_that_is_none():
    with pytest.raises(ValueError, match="stop_strings is ''; it must be a text that is not empty"):
        StopStringCriteria(Letters(), "")


def test_lists_of_callables_can_be_called():
    halved = LogitsProcessorList([lambda ids, scores: scores / 2, lambda ids, scores: scores + 1])
    assert halved(IDS, torch.ones(2, 3)).tolist() == [[1.5] * 3] * 2
    either = StoppingCriteriaList([lambda ids, scores: False, lambda ids, scores: ids[:, 0] == IDS[0, 0]])
    assert either(IDS, None).tolist() == [True, False]


def test_a_waiting_thread_is_let_go_by_an_error():
    streamer = TextIteratorStreamer(Letters(), timeout=5)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(tiny_model(), IDS[:1], streamer=streamer, max_new_tokens=0)
    assert list(streamer) == [""]


def test_values_that_change_nothing_of_options_that_do_not_exist_are_taken():
    ids = torch.tensor([[6, 7, 8]])
    model = tiny_model()
    off = dict(disable_compile=True, guidance_scale=1.0, num_beam_groups=1, low_memory=False)
    assert torch.equal(model.generate(ids, max_new_tokens=3, **off), model.generate(ids, max_new_tokens=3))
    with pytest.raises(TypeError, match="guidance_scale is an option of transformers that generate does not have"):
        model.generate(ids, max_new_tokens=3, guidance_scale=1.5)

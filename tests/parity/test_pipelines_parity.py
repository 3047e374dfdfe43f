"""Pipelines give what transformers' pipelines give on the same folder: texts identical, scores within 1e-5."""

import re

import pytest
import torch
import transformers

from tests.compat.tiny_folders import tiny_folder
from workbench.compat.pipelines import pipeline
from workbench.generation.config import GenerationConfig

TOLERANCE = 1e-5
TEXT = "hello world, it's a test of 12 words: hello."
TEXTS = ["hello world", "a", "hello hello hello world, this is the longest one of the three texts"]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello?"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "well, "}]


def same(ours, theirs):
    """Equal structures; floats within the tolerance, ints and texts exactly."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(theirs, str | int | None):
        assert ours == theirs
    else:
        assert float(ours) == pytest.approx(float(theirs), abs=TOLERANCE, rel=TOLERANCE)


def both(task, folder, **options):
    theirs = transformers.pipeline(task, model=str(folder), device="cpu", **options)
    return pipeline(task, model=str(folder), device="cpu", **options), theirs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders by class, vocabulary and changes, made once."""
    made = {}

    def make(kind, vocabulary="byte", tokenizer=None, **changes):
        key = repr((kind, vocabulary, tokenizer, changes))
        if key not in made:
            made[key] = tiny_folder(tmp_path_factory.mktemp("tiny"), kind, vocabulary, tokenizer, **changes)
        return made[key]

    return make


# Text generation ------------------------------------------------------------------------------------------------------

GREEDY = {"do_sample": False, "max_new_tokens": 12}
GENERATION = {
    "text": (TEXT, {}),
    "list": (TEXTS, {}),
    "tuple-free list of one": ([TEXT], {}),
    "batch with left padding": (TEXTS, {"batch_size": 3}),
    "batch that does not fill": (TEXTS, {"batch_size": 2}),
    "new text": (TEXT, {"return_full_text": False}),
    "return_text": (TEXT, {"return_text": True}),
    "tensors": (TEXT, {"return_tensors": True}),
    "tensors of a batch": (TEXTS, {"return_tensors": True, "batch_size": 3}),
    "beams": (TEXT, {"num_beams": 3, "num_return_sequences": 3}),
    "beams of a batch": (TEXTS, {"num_beams": 2, "num_return_sequences": 2, "batch_size": 3}),
    "prefix": (TEXT, {"prefix": "once: "}),
    "prefix and max_length": ("hello", {"prefix": "world ", "max_length": 20, "max_new_tokens": None}),
    "hole": (TEXT, {"handle_long_generation": "hole"}),
    "special tokens": ("<|im_start|>hello", {"skip_special_tokens": False, "add_special_tokens": True}),
    "truncation": (TEXT, {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 5}}),
    "chat": (CHAT, {}),
    "chats": ([CHAT, CHAT[1:]], {}),
    "chats in a batch": ([CHAT, CHAT[1:]], {"batch_size": 2}),
    "chat, new text": (CHAT, {"return_full_text": False}),
    "chat that goes on": (PREFILLED, {}),
    "chat told not to go on": (PREFILLED, {"continue_final_message": False}),
    "min_new_tokens": (TEXT, {"min_new_tokens": 12}),
    "penalties": (TEXT, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
    "static cache": (TEXT, {"cache_implementation": "static"}),
    "scores": (TEXT, {"return_dict_in_generate": True, "output_scores": True}),
}


@pytest.mark.parametrize("case", GENERATION)
def test_text_generation(case, folder):
    inputs, options = GENERATION[case]
    limits = {"tokenizer": {"model_max_length": 40}} if case == "hole" else {}
    ours, theirs = both("text-generation", folder("LlamaForCausalLM", **limits))
    options = {name: value for name, value in {**GREEDY, **options}.items() if value is not None}
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("case", ["text", "list", "batch with left padding", "chat", "tensors", "beams"])
def test_text_generation_with_a_sentencepiece_vocabulary(case, folder):
    """Identical but for the space that transformers loses between prompt and new text."""
    inputs, options = GENERATION[case]
    ours, theirs = both("text-generation", folder("LlamaForCausalLM", "sentencepiece"))
    mine, reference = ours(inputs, **GREEDY, **options), theirs(inputs, **GREEDY, **options)
    same(without_spaces(mine), without_spaces(reference))


def without_spaces(value):
    if isinstance(value, str):
        return value.replace(" ", "")
    if isinstance(value, dict):
        return {key: without_spaces(one) for key, one in value.items()}
    return [without_spaces(one) for one in value] if isinstance(value, list) else value


def test_the_stop_sequence_ends_the_text(folder):
    ours, theirs = both("text-generation", folder("LlamaForCausalLM"))
    free = theirs(TEXT, do_sample=False, max_new_tokens=30, return_full_text=False)[0]["generated_text"]
    stop = re.search(r"[ -~]{2}", free[4:]).group()  # other characters may be parts of tokens
    options = {"do_sample": False, "max_new_tokens": 30, "stop_sequence": stop}
    mine = ours(TEXT, **options)
    same(mine, theirs(TEXT, **options))
    assert mine[0]["generated_text"].endswith(stop)
    assert len(mine[0]["generated_text"]) < len(TEXT + free)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "top_k": 5}, {"num_return_sequences": 3}], ids=str)
def test_drawn_texts_and_the_defaults_that_draw_them(options, folder):
    """Without options 256 tokens are drawn with temperature 0.7; the same seed draws the same ones."""
    ours, theirs = both("text-generation", folder("LlamaForCausalLM", eos_token_id=None))
    torch.manual_seed(5)
    mine = ours("hello", return_tensors=True, **options)
    torch.manual_seed(5)
    same(mine, theirs("hello", return_tensors=True, **options))
    assert len(mine[0]["generated_token_ids"]) == 257
    assert len(set(mine[0]["generated_token_ids"])) > 20


def test_the_checkpoints_generation_config_goes_before_the_defaults(folder, tmp_path):
    source = tiny_folder(tmp_path / "model")
    transformers.GenerationConfig(max_length=30, do_sample=False, eos_token_id=2).save_pretrained(source)
    ours, theirs = both("text-generation", source)
    mine = ours("hello", return_tensors=True)
    same(mine, theirs("hello", return_tensors=True))
    assert len(mine[0]["generated_token_ids"]) == 30


def test_options_of_the_pipeline_and_a_generation_config_of_the_call(folder):
    ours, theirs = both("text-generation", folder("LlamaForCausalLM"), max_new_tokens=7, do_sample=False)
    same(ours(TEXT), theirs(TEXT))
    same(ours(TEXT, max_new_tokens=9), theirs(TEXT, max_new_tokens=9))
    options = {"max_new_tokens": 4, "do_sample": False}
    mine = ours(TEXT, generation_config=GenerationConfig(**options))
    same(mine, theirs(TEXT, generation_config=transformers.GenerationConfig(**options)))


def test_generators_of_texts_and_of_messages(folder):
    ours, theirs = both("text-generation", folder("LlamaForCausalLM"))
    mine, reference = ours((text for text in TEXTS), **GREEDY), theirs((text for text in TEXTS), **GREEDY)
    same(list(mine), list(reference))
    same(ours((message for message in CHAT), **GREEDY), theirs((message for message in CHAT), **GREEDY))
    same(list(ours((chat for chat in [CHAT, PREFILLED]), **GREEDY)),
         list(theirs((chat for chat in [CHAT, PREFILLED]), **GREEDY)))  # fmt: skip


# Text classification --------------------------------------------------------------------------------------------------

PAIR = {"text": "hello", "text_pair": "world"}
CLASSIFICATION = {
    "text": (TEXT, {}),
    "list": (TEXTS, {}),
    "batch": (TEXTS, {"batch_size": 2}),
    "top_k 1": (TEXT, {"top_k": 1}),
    "top_k 2 of a list": (TEXTS, {"top_k": 2}),
    "all labels": (TEXT, {"top_k": None}),
    "pair": (PAIR, {}),
    "pairs": ([PAIR, {"text": "a", "text_pair": "hello hello"}], {"top_k": None, "batch_size": 2}),
    "older pair": ([[["hello", "world"]]], {}),
    "sigmoid": (TEXT, {"function_to_apply": "sigmoid", "top_k": None}),
    "softmax": (TEXT, {"function_to_apply": "softmax", "top_k": None}),
    "none": (TEXT, {"function_to_apply": "none", "top_k": None}),
    "truncation": (TEXT, {"truncation": True, "max_length": 3, "top_k": None}),
}
LABELS = {0: "BAD", 1: "FAIR", 2: "GOOD"}
PROBLEMS = {
    "single": {"id2label": LABELS, "problem_type": "single_label_classification"},
    "multi": {"id2label": LABELS, "problem_type": "multi_label_classification"},
    "regression": {"id2label": LABELS, "problem_type": "regression"},
    "unsaid": {"id2label": LABELS},
    "one label": {"id2label": {0: "SCORE"}},
}


@pytest.mark.parametrize("case", CLASSIFICATION)
def test_text_classification(case, folder):
    inputs, options = CLASSIFICATION[case]
    ours, theirs = both("text-classification", folder("LlamaForSequenceClassification", **PROBLEMS["unsaid"]))
    same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_function_follows_the_problem_type(problem, folder):
    ours, theirs = both("sentiment-analysis", folder("LlamaForSequenceClassification", **PROBLEMS[problem]))
    same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))


def test_top_k_of_the_pipeline(folder):
    ours, theirs = both("text-classification", folder("LlamaForSequenceClassification", id2label=LABELS), top_k=2)
    same(ours(TEXT), theirs(TEXT))
    same(ours(TEXTS), theirs(TEXTS))


# Token classification -------------------------------------------------------------------------------------------------

TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}
STRATEGIES = ["none", "simple", "first", "average", "max"]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("vocabulary", ["byte", "sentencepiece"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_classification(strategy, vocabulary, folder):
    ours, theirs = both("token-classification", folder("LlamaForTokenClassification", vocabulary, id2label=TAGS))
    for options in ({}, {"ignore_labels": []}, {"ignore_labels": ["PER", "B-LOC"]}):
        for inputs in (TEXT, TEXTS, "ünï→cödé hello"):
            mine = ours(inputs, aggregation_strategy=strategy, **options)
            same(mine, theirs(inputs, aggregation_strategy=strategy, **options))
    assert mine


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unknown_token_is_a_word_and_is_shown_as_in_the_text(strategy, folder):
    named = {"unk_token": "<tool>"}
    ours, theirs = both("ner", folder("LlamaForTokenClassification", "byte", named, id2label=TAGS))
    options = {"aggregation_strategy": strategy, "ignore_labels": []}
    text = "hello<tool>world, <tool> <tool>a"
    same(ours(text, **options), theirs(text, **options))


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [0, 3, 7])
def test_token_classification_of_long_texts_in_parts(strategy, stride, folder):
    source = folder("LlamaForTokenClassification", "sentencepiece", {"model_max_length": 12}, id2label=TAGS)
    ours, theirs = both("ner", source)
    options = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": []}
    for batch_size in (1, 4):
        same(ours(TEXT * 2, batch_size=batch_size, **options), theirs(TEXT * 2, **options))
    same(ours(TEXTS, **options), theirs(TEXTS, **options))
    cut = ours(TEXT * 2, aggregation_strategy=strategy)
    same(cut, theirs(TEXT * 2, aggregation_strategy=strategy))


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_classification_of_words(strategy, folder):
    ours, theirs = both("token-classification", folder("LlamaForTokenClassification", "sentencepiece", id2label=TAGS))
    options = {"aggregation_strategy": strategy, "is_split_into_words": True, "ignore_labels": []}
    words = ["hello", "world", "or", "held"]
    same(ours(words, **options), theirs(words, **options))
    same(ours([words, words[:2]], **options), theirs([words, words[:2]], **options))
    same(ours(words, delimiter="--", **options), theirs(words, delimiter="--", **options))


def test_a_batch_of_unequal_texts_is_labelled_as_each_alone(folder):
    """transformers counts `index` with the padding of the batch; here it is the token's position in its text."""
    ours, theirs = both("ner", folder("LlamaForTokenClassification", id2label=TAGS))
    same(ours(TEXTS, batch_size=3, ignore_labels=[]), theirs(TEXTS, ignore_labels=[]))


# Feature extraction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForCausalLM"])
def test_feature_extraction(kind, folder):
    ours, theirs = both("feature-extraction", folder(kind))
    same(ours(TEXT), theirs(TEXT))
    same(ours(TEXTS), theirs(TEXTS))
    mine, reference = ours(TEXT, return_tensors=True), theirs(TEXT, return_tensors=True)
    assert mine.shape == reference.shape == (1, 26, 32)
    torch.testing.assert_close(mine, reference, atol=TOLERANCE, rtol=TOLERANCE)
    same(ours(TEXT, truncation=True, tokenize_kwargs={"max_length": 4}),
         theirs(TEXT, truncation=True, tokenize_kwargs={"max_length": 4}))  # fmt: skip


def test_features_of_a_batch_are_those_of_each_text_alone(folder):
    """transformers keeps the padding of the batch in them; here they do not depend on the neighbours."""
    ours, theirs = both("feature-extraction", folder("LlamaModel"))
    same(ours(TEXTS, batch_size=3), theirs(TEXTS))


# Question answering ---------------------------------------------------------------------------------------------------

CONTEXT = "hello world, it's a test: the world is old, and hello is a word. A world more, 12 of them."
QUESTION = "or what?"
ANSWERS = {
    "one": {},
    "three": {"top_k": 3},
    "not aligned": {"top_k": 4, "align_to_words": False},
    "short answers": {"top_k": 5, "max_answer_len": 2},
    "parts": {"top_k": 3, "max_seq_len": 40, "doc_stride": 5},
    "parts that share nothing": {"top_k": 3, "max_seq_len": 30, "doc_stride": 0},
    "cut question": {"top_k": 2, "max_question_len": 3},
    "impossible": {"top_k": 4, "handle_impossible_answer": True},
    "impossible, every token": {
        "top_k": 90,
        "max_answer_len": 1,
        "handle_impossible_answer": True,
        "align_to_words": False,
    },
}


def expected_answers(folder, side, top_k=1, align_to_words=True, max_answer_len=15, max_seq_len=384, doc_stride=128,
                     max_question_len=64, handle_impossible_answer=False):  # fmt: skip
    """What the documentation says, in plain loops on transformers' model and tokenizer: transformers 5 itself has no
    question-answering pipeline any more."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    question = tokenizer.decode(tokenizer(QUESTION, add_special_tokens=False)["input_ids"][:max_question_len])
    texts = (question, CONTEXT) if side == "right" else (CONTEXT, question)
    encoding = tokenizer(*texts, truncation="only_second" if side == "right" else "only_first", max_length=max_seq_len,
                         stride=doc_stride, return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    answers, nothing = {}, 1.0
    for part, ids in enumerate(encoding["input_ids"]):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        inside = [index for index, which in enumerate(encoding.sequence_ids(part)) if which == (side == "right")]
        counted = sorted({0, *inside}) if handle_impossible_answer else inside
        begin = dict(zip(counted, output.start_logits[0, counted].softmax(-1).tolist(), strict=True))
        end = dict(zip(counted, output.end_logits[0, counted].softmax(-1).tolist(), strict=True))
        if handle_impossible_answer:
            nothing = min(nothing, begin[0] * end[0])
            inside = [index for index in inside if index]
        spans = [(begin[i] * end[j], i, j) for i in inside for j in inside if i <= j < i + max_answer_len]
        for score, i, j in sorted(spans, reverse=True)[: 2 * top_k + 10 if align_to_words else top_k]:
            first, last = encoding["offset_mapping"][part][i][0], encoding["offset_mapping"][part][j][1]
            while align_to_words and CONTEXT[first] == " ":
                first += 1
            while align_to_words and CONTEXT[last - 1] == " ":
                last -= 1
            while align_to_words and first and (CONTEXT[first - 1] + CONTEXT[first]).isalnum():
                first -= 1
            while align_to_words and last < len(CONTEXT) and (CONTEXT[last - 1] + CONTEXT[last]).isalnum():
                last += 1
            text = CONTEXT[first:last]
            answer = answers.setdefault(text.lower(), {"score": 0, "start": first, "end": last, "answer": text})
            answer["score"] += score
    found = [answer for text, answer in answers.items() if text]
    found += [{"score": nothing, "start": 0, "end": 0, "answer": ""}] * handle_impossible_answer
    return sorted(found, key=lambda answer: -answer["score"])[:top_k]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("vocabulary", ["byte", "sentencepiece"])
@pytest.mark.parametrize("case", ANSWERS)
def test_question_answering(case, vocabulary, side, folder):
    source = folder("LlamaForQuestionAnswering", vocabulary, {"padding_side": side})
    pipe = pipeline("question-answering", str(source), device="cpu")
    expected = expected_answers(source, side, **ANSWERS[case])
    for batch_size in (1, 3):
        found = pipe(question=QUESTION, context=CONTEXT, batch_size=batch_size, **ANSWERS[case])
        same(found, expected if len(expected) > 1 else expected[0])
    assert all(CONTEXT[answer["start"] : answer["end"]] == answer["answer"] for answer in expected)

"""`pipeline`: what it accepts, what it returns, what it refuses. The numbers are in tests/parity."""

import json

import pytest
import torch

import workbench
from tests.compat.tiny_folders import tiny_folder
from workbench.compat.pipelines import TASKS, TextGenerationPipeline, pipeline
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.tokenizer import LlamaTokenizer

TEXT = "hello world"
CHAT = [{"role": "user", "content": "hello?"}]
GREEDY = {"do_sample": False, "max_new_tokens": 4}
KINDS = {
    "text-generation": "LlamaForCausalLM",
    "text-classification": "LlamaForSequenceClassification",
    "token-classification": "LlamaForTokenClassification",
    "question-answering": "LlamaForQuestionAnswering",
    "feature-extraction": "LlamaModel",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {task: tiny_folder(tmp_path_factory.mktemp("tiny"), kind) for task, kind in KINDS.items()}


@pytest.fixture(scope="module")
def pipes(folders):
    return {task: pipeline(task, str(folder), device="cpu") for task, folder in folders.items()}


# What a model may be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KINDS)
def test_folders_paths_and_live_models_give_the_same(task, folders, pipes):
    inputs = {"question": "hello?", "context": "a hello world"} if task == "question-answering" else TEXT
    options = GREEDY if task == "text-generation" else {}
    expected = pipes[task](inputs, **options)
    assert pipeline(task, folders[task], device=-1)(inputs, **options) == expected
    live = type(pipes[task].model).from_pretrained(folders[task])
    tokenizer = LlamaTokenizer.from_pretrained(folders[task])
    assert pipeline(task, model=live, tokenizer=tokenizer, device="cpu")(inputs, **options) == expected
    assert pipeline(model=folders[task], device="cpu").task == task
    assert pipeline(model=live, tokenizer=str(folders[task]), device="cpu")(inputs, **options) == expected
    assert isinstance(pipes[task], TASKS[task])
    assert not pipes[task].model.training


def test_a_gguf_file(tmp_path):
    from tests.checkpoints.conftest import small_model, write_gguf

    file = write_gguf(tmp_path / "tiny.gguf", small_model())
    pipe = pipeline("text-generation", str(file), device="cpu")
    assert pipe(TEXT, **GREEDY)[0]["generated_text"].startswith(TEXT)
    assert pipeline(model=file, device="cpu").task == "text-generation"


def test_the_aliases_and_the_public_names():
    assert workbench.pipeline is pipeline
    for kind in TASKS.values():
        assert getattr(workbench, kind.__name__) is kind


def test_the_default_device_and_numbers_of_devices(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in (None, 0, -1, "cpu", torch.device("cpu")):
        assert pipeline("text-generation", folders["text-generation"], device=device).device == torch.device("cpu")


def test_a_number_is_a_cuda_device_where_there_is_cuda(monkeypatch):
    from workbench.compat.pipelines import base

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *shape, device: asked.append(device))
    assert base.resolved_device(1) == torch.device("cuda:1")
    assert base.resolved_device(None) == torch.device("cuda:0")
    assert base.resolved_device(-1) == torch.device("cpu")
    assert asked == [torch.device("cuda:1"), torch.device("cuda:0")]


@pytest.mark.parametrize("spelling", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": torch.bfloat16},
                                      {"model_kwargs": {"dtype": torch.bfloat16}}], ids=str)  # fmt: skip
def test_the_data_type(spelling, folders):
    pipe = pipeline("text-classification", folders["text-classification"], device="cpu", **spelling)
    assert pipe.dtype == torch.bfloat16
    assert pipe(TEXT)[0]["score"] == pytest.approx(0.5, abs=0.5)
    assert pipeline("text-classification", folders["text-classification"], device="cpu").dtype == torch.float32


def test_a_device_map_places_the_model(folders):
    pipe = pipeline("text-generation", folders["text-generation"], device_map="cpu")
    assert pipe.device == torch.device("cpu")
    assert pipe(TEXT, **GREEDY)
    pipe.model.hf_device_map = {"": "cpu"}
    with pytest.raises(ValueError, match="device was given, but device_map has already placed the model's layers"):
        TextGenerationPipeline(pipe.model, pipe.tokenizer, device="cpu")


def test_what_was_loaded_is_saved_and_loads_again(pipes, tmp_path):
    expected = pipes["text-generation"](TEXT, **GREEDY)
    pipes["text-generation"].save_pretrained(tmp_path / "saved")
    assert pipeline("text-generation", tmp_path / "saved", device="cpu")(TEXT, **GREEDY) == expected


# Inputs ---------------------------------------------------------------------------------------------------------------


def test_a_generator_is_read_while_its_results_are_taken(pipes):
    for batch_size in (1, 2):
        read = []

        def texts(read=read):
            for index in range(6):
                read.append(index)
                yield f"hello {index}"

        results = pipes["text-classification"](texts(), batch_size=batch_size)
        assert read == [0]  # the first, which shows what the inputs are
        for taken in range(1, 6):
            next(results)
            assert len(read) == -(-taken // batch_size) * batch_size
        assert len(list(results)) == 1


class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return f"hello {index}"


@pytest.mark.parametrize("kind", [lambda texts: Dataset(), lambda texts: dict.fromkeys(texts).keys(), iter],
                         ids=["dataset", "keys", "iterator"])  # fmt: skip
def test_datasets_and_other_iterables(kind, pipes):
    texts = [f"hello {index}" for index in range(3)]
    expected = pipes["text-classification"](texts)
    results = pipes["text-classification"](kind(texts))
    assert next(results) == expected[0]
    assert list(results) == expected[1:]


@pytest.mark.parametrize("task", KINDS)
def test_no_inputs_give_no_results(task, pipes):
    assert pipes[task]([]) == []
    assert list(pipes[task](iter([]))) == []


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_results_are_json(task, pipes):
    inputs = {"question": "hello?", "context": "a hello world"} if task == "question-answering" else TEXT
    options = {"ignore_labels": []} if task == "token-classification" else {}
    assert json.dumps(pipes[task](inputs, **options))


def test_question_and_context_in_every_form(pipes):
    pipe = pipes["question-answering"]
    questions, context = ["hello?", "what?"], "a hello world, and more of it"
    expected = [pipe(question=question, context=context) for question in questions]
    pairs = [{"question": question, "context": context} for question in questions]
    assert pipe(pairs[0]) == expected[0]
    assert pipe(pairs) == list(pipe(iter(pairs))) == expected
    assert [one["answer"] for one in pipe(pairs, batch_size=2)] == [one["answer"] for one in expected]
    assert pipe(question=questions, context=context) == pipe(question=questions, context=[context] * 2) == expected
    several = pipe(question=questions[0], context=context, top_k=3)
    assert [answer["score"] for answer in several] == sorted((answer["score"] for answer in several), reverse=True)
    assert several[0] == expected[0] | {"score": several[0]["score"]}
    assert all(context[answer["start"] : answer["end"]] == answer["answer"] for answer in several)


def test_the_prompt_and_the_new_text_do_not_run_together(tmp_path):
    """A SentencePiece decoder takes the space from the start of a text, also where a prompt stands before it."""
    pipe = pipeline("text-generation", tiny_folder(tmp_path / "m", vocabulary="sentencepiece"), device="cpu")
    ids = pipe.tokenizer("hello world")["input_ids"]
    head = torch.zeros_like(pipe.model.lm_head.weight)
    with torch.no_grad():  # a model that always says "▁world"
        head[ids[-1]] = 1
        pipe.model.lm_head.weight.copy_(head)
        pipe.model.model.norm.weight.zero_()
        pipe.model.model.norm.weight[0] = 1
        pipe.model.model.embed_tokens.weight[:, 0] = 100
    new = pipe("hello", return_full_text=False, **GREEDY)[0]["generated_text"]
    assert new == " world world world world"
    assert pipe("hello", **GREEDY)[0]["generated_text"] == "hello" + new


def test_the_tokenizer_of_a_generation_pipeline_pads_on_the_left(folders):
    pipe = pipeline("text-generation", folders["text-generation"], device="cpu")
    right = LlamaTokenizer.from_pretrained(folders["text-generation"], padding_side="right")
    other = pipeline("text-generation", pipe.model, tokenizer=right, device="cpu")
    assert right.padding_side == "left"
    texts = ["hello world, hello", "a", "hello"]
    assert other(texts, batch_size=3, **GREEDY) == pipe(texts, **GREEDY)


def test_a_batch_needs_a_padding_token_only_where_rows_differ(pipes):
    pipe = pipes["text-generation"]
    kept, pipe.tokenizer.pad_token = pipe.tokenizer.pad_token, None
    try:
        assert len(pipe(["hello", "hello"], batch_size=2, **GREEDY)) == 2
        with pytest.raises(
            ValueError, match="batch_size puts 2 rows of unequal length together, but .* no padding token"
        ):
            pipe(["hello", "a b c"], batch_size=2, **GREEDY)
    finally:
        pipe.tokenizer.pad_token = kept


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"task": "translation"},
            ValueError,
            "task is 'translation'; allowed are feature-extraction, ner, question-ans",
        ),
        ({"task": 3, "model": "x"}, TypeError, "task is a int"),
        ({}, ValueError, "Neither task nor model was given"),
        ({"task": "ner"}, ValueError, "model was not given, and the default model has not learnt token-classification"),
        ({"task": "text-generation", "tokenizer": "x"}, ValueError, "tokenizer was given without model"),
        ({"task": "text-generation", "model": "/nowhere/at/all"}, FileNotFoundError, "nowhere"),
        ({"task": "text-generation", "model": 3}, TypeError, "model is a int, which the task 'text-generation' cannot"),
        ({"task": "ner", "feature_extractor": 1}, TypeError, "feature_extractor cannot be used"),
    ],
    ids=str,
)
def test_a_pipeline_that_cannot_be_made(arguments, error, match):
    with pytest.raises(error, match=match):
        pipeline(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"device": "tpu9"}, ValueError, "device is 'tpu9', which torch cannot use here"),
        ({"device": 1.5}, TypeError, "device is 1.5; a number, a name"),
        ({"device": True}, TypeError, "device is True"),
        ({"device": "cpu", "device_map": "auto"}, ValueError, "device and device_map were both given"),
        ({"dtype": "float7"}, ValueError, "dtype"),
        ({"dtype": torch.float32, "model_kwargs": {"dtype": torch.float16}}, ValueError, "dtype is given twice"),
        ({"model_kwargs": 3}, TypeError, "model_kwargs is a int"),
        ({"batch_size": 0}, ValueError, "batch_size is 0; it must be at least 1"),
        ({"batch_size": "2"}, TypeError, "batch_size is '2'"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ({"wrong_option": 0}, TypeError, "wrong_option"),
        ({"return_full_text": 1}, TypeError, "return_full_text is 1; True or False"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(arguments, error, match, folders):
    with pytest.raises(error, match=match):
        pipeline("text-generation", folders["text-generation"], **arguments)(TEXT)


def test_a_live_model_needs_its_tokenizer_and_the_right_class(pipes):
    live = pipes["text-generation"].model
    with pytest.raises(
        TypeError, match="tokenizer is None; a model that is given as an object needs its tokenizer too"
    ):
        pipeline("text-generation", live)
    with pytest.raises(TypeError, match="a LlamaForCausalLM, which the task 'ner' cannot read|'token-classification'"):
        pipeline("ner", live, tokenizer=pipes["text-generation"].tokenizer)


CASES = {
    "text-generation": [
        (3, {}, TypeError, "inputs is a int"),
        ([3], {}, TypeError, "text_inputs holds a int"),
        ([["a"]], {}, TypeError, "text_inputs holds a list"),
        (TEXT, {"return_full_text": True, "return_tensors": True}, ValueError, "return_full_text and return_tensors"),
        (TEXT, {"handle_long_generation": "cut"}, ValueError, "handle_long_generation is 'cut'; allowed are 'hole'"),
        (TEXT, {"prefix": 3}, TypeError, "prefix is a int"),
        (TEXT, {"generation_config": {}}, TypeError, "generation_config is a dict"),
        (TEXT, {"continue_final_message": 3}, TypeError, "continue_final_message is 3"),
        (TEXT, {"skip_special_tokens": "no"}, TypeError, "skip_special_tokens is 'no'"),
        (TEXT, {"tokenizer_encode_kwargs": 3}, TypeError, "tokenizer_encode_kwargs is a int"),
        (TEXT, {"stop_sequence": 3}, ValueError, "stop_strings"),
        (TEXT, {"num_workers": -1}, ValueError, "num_workers is -1"),
    ],
    "text-classification": [
        (3, {}, TypeError, "inputs is a int"),
        ([3], {}, TypeError, "text is a int"),
        ([["a", "b"]], {}, ValueError, "inputs holds a list of lists"),
        ({"text": "a", "other": "b"}, {}, ValueError, "inputs holds a dictionary of text, other"),
        ({"text_pair": "a"}, {}, ValueError, "inputs holds a dictionary of text_pair"),
        ({"text": "a", "text_pair": 3}, {}, TypeError, "text_pair is a int"),
        (TEXT, {"top_k": 0}, ValueError, "top_k is 0"),
        (TEXT, {"top_k": "all"}, TypeError, "top_k is 'all'"),
        (TEXT, {"function_to_apply": "exp"}, ValueError, "function_to_apply is 'exp'; allowed are 'sigmoid'"),
        (TEXT, {"wrong": 1}, TypeError, "wrong"),
    ],
    "token-classification": [
        (3, {}, TypeError, "inputs is a int"),
        ([3], {}, TypeError, "inputs is a int"),
        (TEXT, {"aggregation_strategy": "best"}, ValueError, "aggregation_strategy is 'best'; allowed are 'none'"),
        (TEXT, {"ignore_labels": "O"}, TypeError, "ignore_labels is 'O'; a list"),
        (TEXT, {"stride": 2}, ValueError, "stride needs an aggregation_strategy other than 'none'"),
        (TEXT, {"stride": -1, "aggregation_strategy": "max"}, ValueError, "stride is -1"),
        (TEXT, {"stride": 10**40, "aggregation_strategy": "max"}, ValueError, "less than tokenizer.model_max_length"),
        (TEXT, {"is_split_into_words": True}, TypeError, "inputs holds a str .* is a list of its words"),
        ([3], {"is_split_into_words": True}, TypeError, "inputs holds a list"),
        (TEXT, {"delimiter": 3}, TypeError, "delimiter is a int"),
        (TEXT, {"wrong": 1}, TypeError, "token-classification has no option 'wrong'; it has aggregation_strategy"),
    ],
    "question-answering": [
        (3, {}, TypeError, "inputs is a int"),
        (TEXT, {}, ValueError, "inputs holds 'hello world'; each is"),
        ({"question": "a"}, {}, ValueError, "inputs holds the keys question"),
        ({"question": "a", "context": 3}, {}, TypeError, "context is a int"),
        ({"question": "a", "context": " "}, {}, ValueError, "context is empty"),
        (None, {"question": "a"}, ValueError, "context is missing"),
        (None, {"question": ["a"], "context": ["b", "c"]}, ValueError, "1 texts in question and 2 in context"),
        (None, {"question": "a", "context": ["b"]}, TypeError, "context is a list; one question needs one context"),
        ({"question": "a", "context": "b"}, {"question": "a"}, ValueError, "inputs was given together with question"),
        ({"question": "a", "context": "b"}, {"top_k": 0}, ValueError, "top_k is 0"),
        ({"question": "a", "context": "b"}, {"max_answer_len": 0}, ValueError, "max_answer_len is 0"),
        ({"question": "a", "context": "b"}, {"max_question_len": 0}, ValueError, "max_question_len is 0"),
        ({"question": "a", "context": "b"}, {"max_seq_len": 1}, ValueError, "max_seq_len is 1, of which .* take 1"),
        ({"question": "a", "context": "b"}, {"doc_stride": 400}, ValueError, "383 tokens .* doc_stride, which is 400"),
        ({"question": "a", "context": "b"}, {"align_to_words": 1}, TypeError, "align_to_words is 1"),
        ({"question": "a", "context": "b"}, {"padding": "some"}, ValueError, "padding is 'some'"),
        ({"question": "a", "context": "b"}, {"wrong": 1}, TypeError, "question-answering has no option 'wrong'"),
    ],
    "feature-extraction": [
        (3, {}, TypeError, "inputs is a int"),
        ([3], {}, TypeError, "inputs is a int"),
        (TEXT, {"return_tensors": "pt"}, TypeError, "return_tensors is 'pt'"),
        (TEXT, {"tokenize_kwargs": 3}, TypeError, "tokenize_kwargs is a int"),
        (TEXT, {"truncation": True, "tokenize_kwargs": {"truncation": True}}, ValueError, "truncation is given twice"),
        (TEXT, {"wrong": 1}, TypeError, "feature-extraction has no option 'wrong'"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "inputs", "options", "error", "match"),
    [
        pytest.param(task, *case, id=f"{task} {case[0]!r:.20} {case[1]}")
        for task, cases in CASES.items()
        for case in cases
    ],
)
def test_inputs_and_options_that_cannot_be_used(task, inputs, options, error, match, pipes):
    with pytest.raises(error, match=match):
        pipes[task](inputs, **options)


def test_wrong_options_are_named_before_a_live_model_is_touched(pipes):
    model = LlamaForCausalLM(pipes["text-generation"].model.config).train()
    with pytest.raises(TypeError, match="return_text is 3"):
        pipeline("text-generation", model, tokenizer=pipes["text-generation"].tokenizer, return_text=3)
    assert model.training
    assert isinstance(model.model, LlamaModel)

"""`pipeline`: from a task's name to a function from texts to results, as in `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.checkpoints.load import default_model
from workbench.compat import auto
from workbench.compat.pipelines.base import Pipeline, check_text, resolved_device
from workbench.compat.pipelines.feature_extraction import FeatureExtractionPipeline
from workbench.compat.pipelines.question_answering import QuestionAnsweringPipeline
from workbench.compat.pipelines.text_classification import TextClassificationPipeline
from workbench.compat.pipelines.text_generation import TextGenerationPipeline
from workbench.compat.pipelines.token_classification import TokenClassificationPipeline

__all__ = [
    "FeatureExtractionPipeline",
    "Pipeline",
    "QuestionAnsweringPipeline",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TokenClassificationPipeline",
    "pipeline",
]

TASKS: dict[str, type[Pipeline]] = {
    "feature-extraction": FeatureExtractionPipeline,
    "question-answering": QuestionAnsweringPipeline,
    "text-classification": TextClassificationPipeline,
    "text-generation": TextGenerationPipeline,
    "token-classification": TokenClassificationPipeline,
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}
MODELS: dict[str, Any] = {
    "feature-extraction": auto.AutoModel,
    "question-answering": auto.AutoModelForQuestionAnswering,
    "text-classification": auto.AutoModelForSequenceClassification,
    "text-generation": auto.AutoModelForCausalLM,
    "token-classification": auto.AutoModelForTokenClassification,
}
WITHOUT_MODEL = ("text-generation", "feature-extraction")  # tasks that the default model was trained for
# Arguments of transformers' pipeline for models that see or hear, or that bring their own code.
UNSUPPORTED = ("feature_extractor", "image_processor", "video_processor", "processor", "pipeline_class",
               "trust_remote_code", "code_revision", "assistant_model", "assistant_tokenizer")  # fmt: skip


def pipeline(
    task: str | None = None,
    model: Any = None,
    config: Any = None,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    dtype: str | torch.dtype = "auto",
    torch_dtype: str | torch.dtype | None = None,
    batch_size: int | None = None,
    use_fast: bool = True,
    local_files_only: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """A pipeline for a task.

        pipe = pipeline("text-generation", model="models/tiny-llama", device=0)
        pipe("Plants create energy through a process known as")

    Args:
        task: `"text-generation"`, `"text-classification"` (also `"sentiment-analysis"`), `"token-classification"` (also
            `"ner"`), `"question-answering"` or `"feature-extraction"`. `None` takes what the model was saved for.
        model: a folder in Hugging Face format, a .gguf file, a Hub id, or a live model of this package. `None` is the
            default model, for text-generation and feature-extraction.
        config: a LlamaConfig instead of the checkpoint's.
        tokenizer: a live tokenizer, or where to read it; needed for a live model, otherwise the model's own.
        revision, token, local_files_only: for the Hub: branch, tag or commit; access token; whether to stay offline.
        device: see `Pipeline`; a number n ≥ 0 is CUDA device n where there is CUDA, else the CPU.
        device_map: how to spread the model over devices, instead of `device`.
        dtype: data type of the weights; `"auto"` for the checkpoint's own. torch_dtype is its older name.
        batch_size: texts that go through the model together.
        use_fast: taken for compatibility; there is one kind of tokenizer.
        model_kwargs: further arguments of the model's `from_pretrained`, such as quantization_config.
        **options: defaults of the task's options, see the pipeline's class.

    Raises:
        ValueError: for an unknown task, naming the tasks, and for arguments that cannot be used together.
        TypeError: for arguments of a wrong type.
        CheckpointError: (a `ValueError`) or `FileNotFoundError`, if the model cannot be loaded.
    """
    unsupported = [name for name in UNSUPPORTED if options.pop(name, None) is not None]
    if unsupported:
        raise TypeError(f"{', '.join(unsupported)} cannot be used with the pipelines here. Leave it out.")
    if task is None and model is None:
        raise ValueError(f"Neither task nor model was given. Give a task: {_tasks()}.")
    name = _task_of_model(model, revision, token) if task is None else _checked_task(task)
    if isinstance(model, str | Path) or model is None:
        if model is None:
            model = _default(name, tokenizer)
        if device_map is None:
            resolved_device(device)  # a device that is not there is named before anything is loaded
        hub = {"revision": revision, "token": token, "local_files_only": local_files_only}
        tokenizer = _tokenizer(model if tokenizer is None else tokenizer, hub)
        arguments = _model_arguments(model_kwargs, dtype, torch_dtype, device, device_map, config)
        model = MODELS[name].from_pretrained(model, **hub, **arguments)
    elif isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer(tokenizer, {"revision": revision, "token": token})
    return TASKS[name](model, tokenizer, task=name, device=device, batch_size=batch_size, **options)


def _checked_task(task: Any) -> str:
    check_text("task", task)
    name = ALIASES.get(task, task)
    if name not in TASKS:
        raise ValueError(f"task is {task!r}; allowed are {_tasks()}.")
    return str(name)


def _tasks() -> str:
    return ", ".join(sorted([*TASKS, *ALIASES]))


def _task_of_model(model: Any, revision: str | None, token: str | bool | None) -> str:
    """The task that a model was saved for: the class it names in its config, or its own."""
    if isinstance(model, str | Path):
        config = auto.AutoConfig.from_pretrained(model, revision=revision, token=token)
        classes = config.architectures or ["LlamaForCausalLM"]  # a GGUF file names none
    else:
        classes = [kind.__name__ for kind in type(model).__mro__]
    for name, kind in TASKS.items():
        if set(kind.needs) & set(classes):
            return name
    raise ValueError(f"The task cannot be told from the model, a {classes[0]}. Give a task: {_tasks()}.")


def _default(task: str, tokenizer: Any) -> Path:
    if task not in WITHOUT_MODEL:
        raise ValueError(
            f"model was not given, and the default model has not learnt {task}. Give a folder or a Hub id of one that "
            "has."
        )
    if tokenizer is not None:
        raise ValueError("tokenizer was given without model; the default model has its own. Give both, or neither.")
    return default_model()


def _model_arguments(
    model_kwargs: dict[str, Any] | None,
    dtype: str | torch.dtype,
    torch_dtype: str | torch.dtype | None,
    device: Any,
    device_map: Any,
    config: Any,
) -> dict[str, Any]:
    if model_kwargs is not None and not isinstance(model_kwargs, dict):
        raise TypeError(f"model_kwargs is a {type(model_kwargs).__name__}; a dictionary is needed.")
    arguments = dict(model_kwargs or {})
    given: dict[str, Any] = {"device_map": device_map, "config": config}
    given["dtype"] = torch_dtype if isinstance(dtype, str) and dtype == "auto" and torch_dtype is not None else dtype
    if isinstance(given["dtype"], str) and given["dtype"] == "auto" and {"dtype", "torch_dtype"} & set(arguments):
        del given["dtype"]
    for name, value in given.items():
        if value is None:
            continue
        if name in arguments:
            raise ValueError(f"{name} is given twice: as an argument and in model_kwargs. Give it once.")
        arguments[name] = value
    if device is not None and arguments.get("device_map") is not None:
        raise ValueError("device and device_map were both given; give one of them.")
    return arguments


def _tokenizer(source: Any, hub: dict[str, Any]) -> Any:
    return auto.AutoTokenizer.from_pretrained(source, **hub) if isinstance(source, str | Path) else source

"""The text-generation pipeline: prompts and chats, continued."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.compat.pipelines.base import Pipeline, Row, check_choice, check_flag, check_text, is_message
from workbench.generation.config import GenerationConfig

# What counts where neither the call nor the checkpoint's generation config says otherwise; those of transformers 5.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
SAMPLING = ("temperature",)  # the ones of DEFAULTS that mean nothing without do_sample
TOKENIZER_OPTIONS = ("add_special_tokens", "padding", "truncation", "max_length")


@dataclasses.dataclass(frozen=True)
class _Settings:
    prefix: str
    hole: bool
    continue_final_message: bool | None
    chat: dict[str, Any]  # tools and documents, for the template
    encode: dict[str, Any]  # of the tokenizer's call
    generate: dict[str, Any]
    form: str  # "full", "new" or "tensors"
    decode: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Prompt:
    text: str | None
    chat: list[dict[str, Any]] | None
    continued: bool  # whether the last message of the chat goes on


class TextGenerationPipeline(Pipeline):
    """Continues texts, and answers chats.

        pipe = pipeline("text-generation", "models/tiny-llama")
        pipe("Plants create energy through a process known as", max_new_tokens=20)
        [{'generated_text': 'Plants create energy through a process known as photosynthesis …'}]

    Unless the call or the model's generation config says otherwise, 256 tokens are drawn with temperature 0.7. Batches
    are padded on the left.
    """

    needs = ("LlamaForCausalLM",)
    _takes_chats = True

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        if tokenizer.padding_side == "right":
            tokenizer.padding_side = "left"  # new tokens go where padding would be

    def __call__(self, text_inputs: Any, **options: Any) -> Any:
        """The prompts with their continuations.

        Args:
            text_inputs: a text, or a chat (a list of messages, each `{"role": …, "content": …}`), or several in a list
                or iterator.
            return_full_text: False for the new text only. Of a chat the full text is the list of messages with the
                answer appended.
            return_tensors: True for `generated_token_ids`, the ids of prompt and continuation with the padding of
                the batch, instead of a text.
            return_text: True for the text (the default); not together with the other two.
            clean_up_tokenization_spaces, skip_special_tokens: of decoding; special tokens are left out by default.
            prefix: text before every prompt, which is not part of the result.
            handle_long_generation: `"hole"` cuts the start of a prompt that would leave no room for the new tokens
                within `tokenizer.model_max_length`.
            stop_sequence: text, or several, after which a continuation ends; it is kept.
            continue_final_message: whether the last message of a chat goes on instead of an answer to it; by default
                if it is the assistant's.
            tools, documents: for the chat template.
            add_special_tokens, padding, truncation, max_length, tokenizer_encode_kwargs: of the tokenizer; max_length
                also counts for generate.
            batch_size: prompts that go through the model together.
            **options: of `model.generate`: max_new_tokens, do_sample, temperature, num_return_sequences, streamer, ….

        Returns:
            A list of dictionaries with `generated_text` (or `generated_token_ids`), one for each returned sequence; of
            several prompts, a list of such lists.

        Raises:
            ValueError, TypeError: naming the argument that cannot be used.
        """
        return self._call(text_inputs, options)

    def _merged(self, options: dict[str, Any]) -> dict[str, Any]:
        """A generation_config of the call replaces generation options of the pipeline; other options stay."""
        kept = self._options
        if options.get("generation_config") is not None:
            fields = {field.name for field in dataclasses.fields(GenerationConfig)} | {"generation_config"}
            kept = {name: value for name, value in kept.items() if name not in fields}
        return {**kept, **options}

    def _settings(self, options: dict[str, Any]) -> _Settings:
        rest = dict(options)
        form = _form(rest)
        encode = {name: rest.pop(name) for name in TOKENIZER_OPTIONS if rest.get(name) is not None}
        if "max_length" in encode:
            rest["max_length"] = encode["max_length"]
        encode.update(_dictionary("tokenizer_encode_kwargs", rest.pop("tokenizer_encode_kwargs", None)))
        decode = {"skip_special_tokens": True}
        for name in ("skip_special_tokens", "clean_up_tokenization_spaces"):
            if (value := rest.pop(name, None)) is not None:
                check_flag(name, value)
                decode[name] = value
        prefix = rest.pop("prefix", None)
        if prefix is not None:
            check_text("prefix", prefix)
        long = rest.pop("handle_long_generation", None)
        if long is not None:
            check_choice("handle_long_generation", long, ["hole"])
        going_on = rest.pop("continue_final_message", None)
        if going_on is not None:
            check_flag("continue_final_message", going_on)
        chat: dict[str, Any] = {name: rest.pop(name) for name in ("tools", "documents") if name in rest}
        if (stop := rest.pop("stop_sequence", None)) is not None:
            rest |= {"stop_strings": [stop] if isinstance(stop, str) else stop}
        if "stop_strings" in rest:
            rest.setdefault("tokenizer", self.tokenizer)
        generate = self._generate_options(rest, self._prefix_length(prefix, encode))
        return _Settings(prefix or "", long == "hole", going_on, chat, encode, generate, form, decode)

    def _prefix_length(self, prefix: str | None, encode: dict[str, Any]) -> int:
        if not prefix:
            return 0
        added = bool(encode.get("add_special_tokens", False))
        return len(self.tokenizer(prefix, add_special_tokens=added)["input_ids"])

    def _set_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The generation options that somebody has set: the checkpoint, then a generation_config, then the call."""
        of_model: Any = self.model.stored_generation_config
        config = options.get("generation_config")
        if config is not None and not isinstance(config, GenerationConfig):
            raise TypeError(f"generation_config is a {type(config).__name__}; a GenerationConfig is needed.")
        merged = {} if of_model is None else of_model.to_diff_dict()
        return {**merged, **(config.to_diff_dict() if config is not None else {}), **options}

    def _generate_options(self, options: dict[str, Any], prefix_length: int) -> dict[str, Any]:
        known = self._set_options(options)
        added = {name: value for name, value in DEFAULTS.items() if name not in known}
        if "max_length" in known:
            added.pop("max_new_tokens", None)
        if self.tokenizer.pad_token_id is not None and "pad_token_id" not in known:
            added["pad_token_id"] = self.tokenizer.pad_token_id
        if not {**known, **added}.get("do_sample"):
            added = {name: value for name, value in added.items() if name not in SAMPLING}
        # A total length has to include the prefix; a number of new tokens does not.
        for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if prefix_length and total in known and new not in {**known, **added}:
                options = {**options, total: known[total] + prefix_length}
        config = options.get("generation_config")
        if config is None:
            return {**options, **added}
        config = copy.deepcopy(config)
        config.update(**added)
        return {**options, "generation_config": config}

    # Prompts --------------------------------------------------------------------------------------------------------

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or (isinstance(inputs, list | tuple) and bool(inputs) and is_message(inputs[0]))

    def _rows(self, item: Any, settings: _Settings) -> list[Row]:
        if isinstance(item, str):
            prompt = _Prompt(item, None, False)
            encoding = self.tokenizer(settings.prefix + item, **settings.encode)
        elif isinstance(item, list | tuple) and item and all(is_message(message) for message in item):
            continued = settings.continue_final_message
            if continued is None:
                continued = item[-1]["role"] == "assistant"
            prompt = _Prompt(None, list(item), continued)
            encoding = self._encoded_chat(prompt, settings)
        else:
            raise TypeError(
                f"text_inputs holds a {type(item).__name__} ({item!r:.60}); a text, or a chat whose messages are "
                '{"role": ..., "content": ...}, is needed.'
            )
        ids, mask = list(encoding["input_ids"]), list(encoding["attention_mask"])
        if settings.hole:
            ids, mask = self._with_hole(ids, mask, settings)
        return [Row(ids, mask, prompt)]

    def _encoded_chat(self, prompt: _Prompt, settings: _Settings) -> Any:
        options = {name: value for name, value in settings.encode.items() if name != "add_special_tokens"}
        return self.tokenizer.apply_chat_template(
            prompt.chat,
            add_generation_prompt=not prompt.continued,
            continue_final_message=prompt.continued,
            return_dict=True,
            **settings.chat,
            **options,
        )

    def _with_hole(self, ids: list[int], mask: list[int], settings: _Settings) -> tuple[list[int], list[int]]:
        """The end of a prompt that is too long, so that the new tokens fit."""
        known = self._set_options(settings.generate)
        new = known.get("max_new_tokens")
        new = known["max_length"] - len(ids) if new is None else new
        limit = self.tokenizer.model_max_length
        if new < 0 or (len(ids) + new > limit and new >= limit):
            raise ValueError(
                f"handle_long_generation='hole' finds no room: {new} new tokens are wanted of a text of {len(ids)}, "
                f"and tokenizer.model_max_length is {limit}. Lower max_new_tokens."
            )
        keep = min(len(ids), limit - new)
        return ids[-keep:], mask[-keep:]

    # Model and result -----------------------------------------------------------------------------------------------

    def _run(self, rows: list[Row], settings: _Settings) -> list[Any]:
        model: Any = self.model
        tensors = self._tensors(rows)
        width = tensors["input_ids"].shape[1]
        if width == 0:  # an empty prompt: generate begins with the token that begins a text
            tensors = {}
        output = model.generate(**tensors, **settings.generate)
        sequences = (output if isinstance(output, Tensor) else output["sequences"]).cpu()
        each = len(sequences) // len(rows)
        extra = {} if isinstance(output, Tensor) else _extra(output, len(sequences))
        parts = [slice(index * each, (index + 1) * each) for index in range(len(rows))]
        return [(width, sequences[part], {name: value[part] for name, value in extra.items()}) for part in parts]

    def _result(self, rows: list[Row], outputs: list[Any], settings: _Settings) -> list[dict[str, Any]]:
        width, sequences, extra = outputs[0]
        records = []
        for index, ids in enumerate(sequences.tolist()):
            record: dict[str, Any] = {"generated_token_ids": ids}
            if settings.form != "tensors":
                new = self._new_text(rows[0], ids[width:], settings)
                record = {"generated_text": new if settings.form == "new" else _full(rows[0].about, new)}
                record |= {name: value[index].tolist() for name, value in extra.items()}
            records.append(record)
        return records

    def _new_text(self, row: Row, ids: list[int], settings: _Settings) -> str:
        """The text of the new tokens. After a prompt it keeps the space that a SentencePiece vocabulary's decoding
        takes from the start of a text, so that prompt and new text do not run together.
        """
        decode = self.tokenizer.decode
        if row.about.chat is None and row.input_ids:
            before = decode(row.input_ids, **settings.decode)
            whole: str = decode(row.input_ids + ids, **settings.decode)
            if whole.startswith(before):
                return whole[len(before) :]
        return str(decode(ids, **settings.decode))


def _full(prompt: _Prompt, new: str) -> Any:
    if prompt.chat is None:
        return (prompt.text or "") + new
    if not prompt.continued:
        return [*prompt.chat, {"role": "assistant", "content": new}]
    last = prompt.chat[-1]
    return [*prompt.chat[:-1], {"role": last["role"], "content": last["content"] + new}]


def _form(options: dict[str, Any]) -> str:
    """Takes the three options that say what is returned."""
    names = ("return_full_text", "return_tensors", "return_text")
    given = {name: value for name in names if (value := options.pop(name, None)) is not None}
    for name, value in given.items():
        check_flag(name, value)
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} were given together; give one of {', '.join(names)}.")
    if given.get("return_tensors") or given.get("return_text") is False:
        return "tensors"
    return "new" if given.get("return_full_text") is False else "full"


def _dictionary(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{name} is a {type(value).__name__}; a dictionary is needed.")
    return value or {}


def _extra(output: Any, count: int) -> dict[str, Tensor]:
    """What `return_dict_in_generate=True` gives besides the ids, as tensors that begin with the sequences."""
    found = {}
    for name in output:
        value = output[name]
        if isinstance(value, tuple) and value and isinstance(value[0], Tensor) and len(value[0]) == count:
            value = torch.stack(value, dim=1)
        if name != "sequences" and isinstance(value, Tensor) and len(value) == count:
            found[name] = value.cpu()
    return found

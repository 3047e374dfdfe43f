"""GenerationConfig: how `generate` goes on, read from and written to Hugging Face's `generation_config.json`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.cache import cache_options
from workbench.generation.options import CHECKS, check

FILE = "generation_config.json"
DEFAULT_NEW_TOKENS = 20
# What an option means that nobody has set.
DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "use_cache": True,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
}
# Those where `None` means this too; None for top_k, say, switches it off.
NEVER_NONE = ("do_sample", "num_beams", "num_return_sequences", "early_stopping", "length_penalty", "use_cache")
# Options of transformers that are not computed here, with the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (0.4,),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "assistant_lookbehind": (10,),
    "assistant_model": (),
    "compile_config": (),
    "constraints": (),
    "continuous_batching_config": (),
    "custom_generate": (),
    "decoder_start_token_id": (),
    "disable_compile": (True, False),
    "diversity_penalty": (0.0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "force_words_ids": (),
    "guidance_scale": (1, 1.0),
    "is_assistant": (False,),
    "low_memory": (False,),
    "max_matching_ngram_size": (),
    "negative_prompt_attention_mask": (),
    "negative_prompt_ids": (),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "prefill_chunk_size": (),
    "prompt_lookup_num_tokens": (),
    "speculation_type": (),
    "synced_gpus": (False,),
    "target_lookbehind": (10,),
    "token_healing": (False,),
    "trust_remote_code": (True, False),
    "use_mtp": (False,),
    "watermarking_config": (),
}
METADATA = ("transformers_version", "_from_model_config", "_commit_hash")


@dataclasses.dataclass(init=False)
class GenerationConfig:
    """The options of `generate`, by the names and meanings of `transformers`; `None` is an option nobody has set.

    Args:
        max_length, max_new_tokens: most tokens of the text, prompt included, or after the prompt; the latter goes
            first, and with neither 20 tokens are added.
        min_length, min_new_tokens: no end token before as many.
        early_stopping: when beams stop: True as soon as as many texts as beams have ended; False (default) when no
            better one is likely; `"never"` when none is possible.
        max_time: seconds after which no further token is begun.
        stop_strings: text, or several, that ends a row once it holds it; needs `tokenizer`.
        do_sample: draw tokens instead of taking the most likely one.
        num_beams: beams of the beam search; 1 (default) searches none.
        use_cache: False recomputes the whole text for every token.
        cache_implementation: one of `workbench.cache.CACHES`, default `"dynamic"`; `"none"` is as `use_cache=False`.
        cache_config: options of that cache, such as `{"window": 512}` or `{"bits": 4}`, also by the names of
            `transformers` (`nbits`, `q_group_size`, `residual_length`; what backend it names makes no difference here).
        max_cache_len: room of a static cache, if more than this call needs.
        compile: reads each new token with `torch.compile` over a static cache. Default False, because it does not pay:
            one token of the default model took 69 ms instead of 54 on one CPU core, after 11 s of compiling.
        temperature, top_k, top_p, min_p, top_h, typical_p, epsilon_cutoff, eta_cutoff: how draws are narrowed; see
            `workbench.generation.warpers`. Default temperature 1, top_k 50 (0 or None: all tokens), the others off.
        repetition_penalty, no_repeat_ngram_size, bad_words_ids, sequence_bias, suppress_tokens, begin_suppress_tokens,
        forced_bos_token_id, forced_eos_token_id, exponential_decay_length_penalty, remove_invalid_values,
        renormalize_logits: how scores are changed; see `workbench.generation.processors`. Default off.
        length_penalty: a beam's score is its log-probability divided by its number of new tokens to this power.
        num_return_sequences: texts a prompt; with sampling or beams only.
        output_scores, output_logits, output_attentions, output_hidden_states: keep those of every step; they are part
            of the result of `return_dict_in_generate=True`.
        pad_token_id, bos_token_id, eos_token_id: what fills ended rows, what begins a text without a prompt, and what
            ends a row (one id or several).

    Raises:
        TypeError: for an option that does not exist, naming those that are spelled alike.
        ValueError: for a value that is not allowed.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    early_stopping: bool | str | None = None
    max_time: float | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None
    cache_config: dict[str, Any] | None = None
    compile: bool | None = None
    max_cache_len: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: Any = None
    renormalize_logits: bool | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    remove_invalid_values: bool | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    num_return_sequences: int | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __init__(self, **options: Any) -> None:
        check_names(options, "GenerationConfig")
        for name, value in options.items():
            if name in OPTIONS:
                setattr(self, name, value)
        self.validate()

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string()}"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a row; a negative id, which older files write for none, is none."""
        ends = self.eos_token_id
        several = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        return tuple(one for one in several if one >= 0)

    def validate(self) -> None:
        """Checks every value that is set.

        Raises:
            ValueError: naming the option, what it is and what is allowed.
        """
        for name in CHECKS:
            if getattr(self, name) is not None:
                check(name, getattr(self, name))

    def resolved(self, **options: Any) -> GenerationConfig:
        """A copy with `options` set and with `transformers`' defaults for what nobody has set, checked as a whole.

        Raises:
            ValueError: for a value that is not allowed, or two that contradict each other.
        """
        result = dataclasses.replace(self)
        for name, value in DEFAULTS.items():
            if getattr(result, name) is None:
                setattr(result, name, value)
        for name, value in options.items():
            setattr(result, name, DEFAULTS[name] if value is None and name in NEVER_NONE else value)
        result.validate()
        result._check_combinations()
        return result

    def _check_combinations(self) -> None:
        count, beams = self.num_return_sequences or 1, self.num_beams or 1
        if self.do_sample and self.temperature == 0:
            raise ValueError("temperature is 0 with do_sample=True; leave do_sample out for the most likely token.")
        if count > 1 and beams == 1 and not self.do_sample:
            raise ValueError(
                f"num_return_sequences is {count}, but without sampling or beams there is one text a prompt. Give "
                f"do_sample=True, or num_beams={count} or more."
            )
        cache_options(self.cache_implementation, self.cache_config or {})
        if self.compile and self.cache_implementation not in (None, "static"):
            raise ValueError(
                f"compile is True with cache_implementation={self.cache_implementation!r}; it needs a static cache. "
                "Leave one of them out."
            )
        if 1 < beams < count:
            raise ValueError(f"num_return_sequences is {count} with num_beams={beams}; it can be {beams} at most.")

    def update(self, **options: Any) -> dict[str, Any]:
        """Sets options and returns those that are none; after an error all are as they were."""
        known = {name: value for name, value in options.items() if name in OPTIONS}
        dataclasses.replace(self, **known)  # raises before anything is changed
        for name, value in known.items():
            setattr(self, name, value)
        return {name: value for name, value in options.items() if name not in known}

    @classmethod
    def from_dict(cls, values: dict[str, Any], **options: Any) -> GenerationConfig:
        """A config from the contents of a `generation_config.json`; what is no option of it is left out.

        Warns if an option is left out that would have changed the text.

        Raises:
            ValueError: for a value that is not allowed.
        """
        lost = sorted(n for n, v in values.items() if n in UNSUPPORTED and v is not None and v not in UNSUPPORTED[n])
        if lost:
            warnings.warn(f"{FILE} sets {', '.join(lost)}, which generate does not compute here.", stacklevel=2)
        known = {name: value for name, value in values.items() if name in OPTIONS}
        for name in ("pad_token_id", "bos_token_id"):
            if known.get(name) == -1:  # how older files spell "none"
                known[name] = None
        return cls(**{**known, **options})

    @classmethod
    def from_model_config(cls, config: Any) -> GenerationConfig:
        """The tokens with a meaning of a model's config."""
        return cls(**{name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")})

    @classmethod
    def of_model(cls, model: Any) -> GenerationConfig:
        """A model's own one, else one from its config; the model stays as it is."""
        own: GenerationConfig | None = getattr(model, "stored_generation_config", None)
        return cls.from_model_config(model.config) if own is None else own

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], config_file_name: str = FILE, **options: Any
    ) -> GenerationConfig:
        """Reads a folder's `generation_config.json`; `options` go first.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: naming the file, if it is not JSON, no object, or holds a value that is not allowed.
        """
        file = Path(folder) / config_file_name
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {config_file_name}; give a folder in Hugging Face format.")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not valid JSON ({error}). Download the file again.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{file} holds a {type(values).__name__}, but a JSON object is expected.")
        try:
            return cls.from_dict(values, **options)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str], config_file_name: str = FILE) -> None:
        """Writes what is set to a folder, which is made if there is none; `transformers` reads it too.

        Raises:
            ValueError: for a value that is not allowed; nothing is written.
        """
        self.validate()
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / config_file_name).write_text(self.to_json_string() + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Every option, set or not."""
        return dataclasses.asdict(self)

    def to_diff_dict(self) -> dict[str, Any]:
        """The options that are set."""
        return {name: value for name, value in self.to_dict().items() if value is not None}

    def to_json_string(self) -> str:
        """The options that are set, as JSON."""
        values = self.to_diff_dict()
        if isinstance(values.get("sequence_bias"), dict):  # keys of JSON are texts; the other spelling is a list
            values["sequence_bias"] = [[list(ids), bias] for ids, bias in values["sequence_bias"].items()]
        return json.dumps(values, indent=2, sort_keys=True)


OPTIONS = tuple(field.name for field in dataclasses.fields(GenerationConfig))


def check_names(options: Mapping[str, Any], where: str, others: Iterable[str] = ()) -> None:
    """Raises `TypeError` for names that are no options; `others` are what `where` takes besides them."""
    known = (*OPTIONS, *others)
    for name in options:
        if name in UNSUPPORTED:
            if options[name] is None or options[name] in UNSUPPORTED[name]:
                continue  # the value that changes nothing
            raise TypeError(f"{name} is an option of transformers that {where} does not have here. Leave it out.")
        if name not in known and name not in METADATA:
            alike = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {' or '.join(alike)}?" if alike else f" It has {', '.join(sorted(known))}."
            raise TypeError(f"{name!r} is no option of {where}.{hint}")

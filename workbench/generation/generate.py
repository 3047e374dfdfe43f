"""Batched generation without a record: the plain function behind `model.generate`."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache import KVCache, make_cache
from workbench.generation.beams import BeamOptions, beam_search
from workbench.generation.config import DEFAULT_NEW_TOKENS, UNSUPPORTED, GenerationConfig, check_names
from workbench.generation.loop import Kept, Task, choose_and_read
from workbench.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from workbench.generation.prompts import Prompts, find_prompts
from workbench.generation.reader import Reader, Step
from workbench.generation.rules import find_criteria, find_processors
from workbench.generation.streamers import Streamer

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
ARGUMENTS = (
    "inputs",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "input_ids",
    "attention_mask",
    "position_ids",
    "inputs_embeds",
    "past_key_values",
    "streamer",
    "tokenizer",
    "seed",
)


def generate(
    model: Any,
    inputs: Int[Tensor, "batch pos"] | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Callable[..., Tensor]] | None = None,
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    *,
    input_ids: Int[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    position_ids: Int[Tensor, "batch pos"] | None = None,
    inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
    past_key_values: KVCache | None = None,
    streamer: Streamer | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    **options: Any,
) -> Int[Tensor, "text pos"] | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
    """Continues each row of a batch until every row has ended: names, defaults and results are those of `transformers`.

    Without `max_new_tokens` or `max_length` 20 tokens are added at most.

    Args:
        model: a `LlamaForCausalLM`; its `generation_config`, if it has one, holds the defaults.
        inputs: the prompts, also as `input_ids`; without any, one that is the bos token.
        generation_config: options; those given one by one go first.
        logits_processor: callables (ids, scores) → scores, run after those that options ask for and before those that
            narrow a draw. One of a type that an option asks for replaces it.
        stopping_criteria: callables (ids, scores) → booleans, one a row, besides those that options ask for.
        prefix_allowed_tokens_fn: (number of the prompt, its text so far) → the only token ids that may come next.
        attention_mask: 0 at padding, which has to be on the left. Default: padding tokens are padding, unless they are
            end tokens too.
        position_ids: rotary positions of the prompts.
        inputs_embeds: embeddings of the prompts; without `input_ids` only new tokens are returned.
        past_key_values: a cache to fill. It may hold the beginning of the texts; after an error it is as it was.
        streamer: is given the prompts and each token; not with beams.
        tokenizer: what `stop_strings` are looked for with.
        seed: of the draw; `None` draws from PyTorch's global generator.
        options: those of `GenerationConfig`.

    Returns:
        The prompts with their continuations, rows that ended early filled with `pad_token_id`; with
        `return_dict_in_generate=True` an object that holds them as `sequences`.

    Raises:
        TypeError: for an option that does not exist, or a value of another type.
        ValueError: for a value, a shape or a combination that is not allowed; it names the option.
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"streamer is a {type(streamer).__name__}; it needs put(ids) and end(), as a TextStreamer has.")
    try:
        call = _Call(model, generation_config, options)
        call.find_cache(past_key_values)
        call.find_prompts(inputs, input_ids, inputs_embeds, attention_mask, position_ids)
        call.find_task(logits_processor, stopping_criteria, prefix_allowed_tokens_fn, streamer, tokenizer, seed)
        result: Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput = call.run()
        return result
    finally:  # whoever waits for text in another thread must not wait for ever after an error
        if streamer is not None:
            streamer.end()


class _Call:
    """One call of `generate`: its options, made from what it, the config given and the model's own say."""

    def __init__(self, model: Any, given: GenerationConfig | None, options: dict[str, Any]) -> None:
        check_names(options, "generate", ARGUMENTS)
        if options.get("disable_compile"):
            options["compile"] = False
        options = {name: value for name, value in options.items() if name not in UNSUPPORTED}  # they change nothing
        if given is not None and not isinstance(given, GenerationConfig):
            raise TypeError(f"generation_config is a {type(given).__name__}; a GenerationConfig is needed.")
        self.model = model
        own = GenerationConfig.of_model(model)
        config = given.to_diff_dict() if given is not None else {}
        self.options = GenerationConfig(**{**own.to_diff_dict(), **config}).resolved(**options)
        self.asked = {**config, **options}  # by this call, not by the model's own config
        self.beams, self.returned = self.options.num_beams or 1, self.options.num_return_sequences or 1
        self.copies = max(self.beams, self.returned)
        self.cache: KVCache | None = None
        _warn_of_ignored(self.options, options)

    def find_cache(self, given: Any) -> None:
        """Takes the caller's cache, if it is one and nothing contradicts it."""
        if given is None:
            self._refuse_unused_cache()
            return
        if not (hasattr(given, "positions") and hasattr(given, "update")):
            raise TypeError(
                f"past_key_values is a {type(given).__module__}.{type(given).__qualname__}; a workbench KV cache is "
                "needed, for example workbench.DynamicCache()."
            )
        if not self.options.use_cache:
            raise ValueError("past_key_values is given with use_cache=False; leave one of them out.")
        for name in ("cache_implementation", "cache_config"):
            if (value := getattr(self.options, name)) is not None:
                raise ValueError(f"past_key_values and {name}={value!r} are both given; give one of them.")
        self.cache = given

    def _refuse_unused_cache(self) -> None:
        for name in ("cache_implementation", "cache_config"):
            value = self.asked.get(name)
            if not self.options.use_cache and value is not None and value != "none":
                raise ValueError(f"{name}={value!r} is given with use_cache=False; leave one of them out.")

    def find_prompts(self, inputs: Any, ids: Any, embeds: Any, mask: Any, positions: Any) -> None:
        """Takes the prompts, and makes sure that the cache has room for what may follow them."""
        options, config = self.options, self.model.config
        self.prompts = find_prompts(self.model, options, inputs, ids, embeds, mask, positions, self.cache)
        self.max_length, min_length = _lengths(options, self.prompts, config.max_position_embeddings)
        self.options = options = dataclasses.replace(options, min_length=min_length)
        room = self.prompts.hidden + self.max_length - 1
        if self.cache is not None:
            _check_room(self.cache, room, len(self.prompts.ids), self.copies)
        elif options.use_cache or self.prompts.embeds is not None:  # embeddings are read once, so they are remembered
            name = options.cache_implementation or ("static" if options.compile else None)
            name = None if name == "none" and self.prompts.embeds is not None else name
            size = max(room, options.max_cache_len or 1)
            self.cache = make_cache(name, config, size, **(options.cache_config or {}))

    def find_task(
        self, processors: Any, criteria: Any, allowed: Any, streamer: Streamer | None, tokenizer: Any, seed: Any
    ) -> None:
        """Takes what chooses tokens, ends rows and listens."""
        options, prompts = self.options, self.prompts
        if self.beams > 1 and streamer is not None:
            raise ValueError("streamer is given with num_beams above 1; beams have no text to show before the end.")
        prompt, vocab, ends = prompts.ids.shape[1], self.model.config.vocab_size, options.eos_token_ids
        padding = None if prompts.mask is None else prompts.mask.argmax(1)
        if padding is not None:
            padding = padding.repeat_interleave(self.copies).to(prompts.ids.device)
        self.task = Task(
            find_processors(options, processors, allowed, prompt, self.max_length, padding, vocab),
            find_criteria(options, criteria, self.max_length, tokenizer, time.time()),
            ends,
            options.pad_token_id if options.pad_token_id is not None or not ends else ends[0],
            bool(options.do_sample),
            _generator(seed, prompts.ids.device),
            streamer,
            Kept(*_kept(options)),
        )

    @torch.no_grad()
    def run(self) -> Any:
        """The texts; after an error a cache that was given is as it was."""
        p, task = self.prompts, self.task
        keep = {f"output_{name}": True for name in ("attentions", "hidden_states") if name in task.kept.steps}
        compiled = bool(self.options.compile)
        reader = Reader(self.model, self.cache, len(p.ids), p.hidden, p.mask, p.positions, p.embeds, keep, compiled)
        rows = p.ids.repeat_interleave(self.copies, 0)
        try:
            if task.streamer is not None:
                task.streamer.put(rows.cpu())
            first = reader.read_prompts(p.ids, self.copies)
            return (self._plain if self.beams == 1 else self._beams)(reader, rows, first)
        except BaseException:
            reader.restore()
            raise

    def _plain(self, reader: Reader, rows: Tensor, first: Step) -> Any:
        ids = choose_and_read(reader, rows, first, self.task)
        if not self.options.return_dict_in_generate:
            return ids
        kept = self.task.kept.outputs(ids.shape[1] - rows.shape[1])
        return GenerateDecoderOnlyOutput(sequences=ids, past_key_values=reader.cache, **kept)

    def _beams(self, reader: Reader, rows: Tensor, first: Step) -> Any:
        o = self.options
        options = BeamOptions(self.beams, self.max_length, o.early_stopping or False, float(o.length_penalty or 0))
        ids, scores, origins, steps = beam_search(reader, rows, first, self.task, options, self.returned)
        if not o.return_dict_in_generate:
            return ids
        return GenerateBeamDecoderOnlyOutput(
            sequences=ids,
            sequences_scores=scores if o.output_scores else None,
            beam_indices=origins,
            past_key_values=reader.cache,
            **self.task.kept.outputs(steps),
        )


def _warn_of_ignored(options: GenerationConfig, given: dict[str, Any]) -> None:
    """Options of this call that have no effect."""
    for names, switch, on in (
        (SAMPLING, "do_sample=True", options.do_sample),
        (BEAMS, "num_beams above 1", (options.num_beams or 1) > 1),
        (OUTPUTS, "return_dict_in_generate=True", options.return_dict_in_generate),
    ):
        lost = [name for name in names if given.get(name)]
        if lost and not on:
            warnings.warn(f"{', '.join(lost)} counts with {switch} only and is ignored.", stacklevel=5)


def _kept(options: GenerationConfig) -> list[str]:
    if not options.return_dict_in_generate:
        return []
    return [name.removeprefix("output_") for name in OUTPUTS if getattr(options, name)]


def _generator(seed: Any, device: torch.device) -> torch.Generator | None:
    if seed is None:
        return None
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed is {seed!r}; it must be a whole number, or None.")
    return torch.Generator(device).manual_seed(seed)


def _lengths(options: GenerationConfig, prompts: Prompts, trained: int) -> tuple[int, int]:
    """The longest and the shortest text, in tokens of the result."""
    prompt = prompts.ids.shape[1]
    embedded = 0 if prompts.embeds is None or prompt else prompts.embeds.shape[1]
    if options.max_new_tokens is not None:
        longest = prompt + options.max_new_tokens
    elif options.max_length is not None:
        longest = options.max_length - embedded
    else:
        longest = min(prompt + DEFAULT_NEW_TOKENS, trained)
    if prompt >= longest:
        raise ValueError(
            f"input_ids has {prompt + embedded} positions, but max_length is {longest + embedded}, prompt included. "
            "Raise max_length, or give max_new_tokens."
        )
    if options.min_new_tokens is not None:
        shortest, name, value = prompt + options.min_new_tokens, "min_new_tokens", options.min_new_tokens
    else:
        value = options.min_length or 0
        shortest, name = max(value - embedded, 0), "min_length"
    if shortest > longest:
        raise ValueError(
            f"{name} is {value}: a text of {shortest} tokens, but it ends at {longest}. Lower it, or raise "
            "max_new_tokens or max_length."
        )
    return longest, shortest


def _check_room(cache: KVCache, positions: int, prompts: int, copies: int) -> None:
    """Raises `ValueError` if a cache of a fixed size is too small for what may come."""
    has, rows = getattr(cache, "max_cache_len", None), getattr(cache, "max_batch_size", None)
    if has is not None and has < positions:
        raise ValueError(
            f"past_key_values has room for max_cache_len={has} positions, but the text may need {positions}. Make it "
            "larger, or lower max_new_tokens."
        )
    if rows is not None and rows < prompts * copies:
        raise ValueError(
            f"past_key_values has room for max_batch_size={rows} rows, but {prompts} prompts with {copies} texts each "
            f"need {prompts * copies}. Make it larger."
        )

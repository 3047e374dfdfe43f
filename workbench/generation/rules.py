"""From options to the processors that change scores and the criteria that end rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workbench.generation import processors as p
from workbench.generation import warpers as w
from workbench.generation.config import GenerationConfig
from workbench.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)


def find_processors(
    options: GenerationConfig,
    given: Any,
    allowed: Callable[..., Any] | None,
    prompt: int,
    max_length: int,
    padding: Int[Tensor, " row"] | None,
    vocab: int,
) -> p.LogitsProcessorList:
    """The processors of a call, in the order of `transformers`.

    Args:
        given: the caller's own.
        allowed: `prefix_allowed_tokens_fn`.
        prompt: length of the prompts.
        padding: how many first positions of each row are padding.
        vocab: number of tokens.

    Raises:
        TypeError: if one of the caller's is not callable.
        ValueError: if end tokens are needed and there are none.
    """
    made: list[Any] = _changing_scores(options, prompt, padding)
    if allowed is not None:
        made.append(p.PrefixConstrainedLogitsProcessor(allowed, options.num_beams or 1))
    made += _forcing_tokens(options, prompt, max_length, vocab)
    made = _merged("logits_processor", made, given)
    if options.do_sample:
        made += _narrowing_draws(options)
    if options.renormalize_logits:
        made.append(p.LogitNormalization())
    return p.LogitsProcessorList(made)


def find_criteria(
    options: GenerationConfig, given: Any, max_length: int, tokenizer: Any, began: float
) -> StoppingCriteriaList:
    """The criteria of a call that began at `began`, by `time.time()`.

    Raises:
        TypeError: if one of the caller's is not callable.
        ValueError: for stop strings without a tokenizer.
    """
    made: list[Any] = [MaxLengthCriteria(max_length)]
    if options.max_time is not None:
        made.append(MaxTimeCriteria(options.max_time, began))
    if options.stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings is given without a tokenizer; give tokenizer= too, the model's own.")
        made.append(StopStringCriteria(tokenizer, options.stop_strings))
    if options.eos_token_ids:
        made.append(EosTokenCriteria(options.eos_token_ids))
    return StoppingCriteriaList(_merged("stopping_criteria", made, given))


def _merged(name: str, made: list[Any], given: Any) -> list[Any]:
    """The caller's behind ours; one of the same type takes the place of ours."""
    own = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for one in own:
        if not callable(one):
            raise TypeError(f"{name} holds {one!r}, which is not callable; give functions, or a list of them.")
    types = {type(one): one for one in own}
    merged = [types.get(type(one), one) for one in made]
    return merged + [one for one in own if not any(one is other for other in merged)]


def _changing_scores(o: GenerationConfig, prompt: int, padding: Tensor | None) -> list[Any]:
    made: list[Any] = []
    if o.sequence_bias is not None:
        made.append(p.SequenceBiasLogitsProcessor(o.sequence_bias))
    if o.repetition_penalty not in (None, 1):
        made.append(p.RepetitionPenaltyLogitsProcessor(o.repetition_penalty, padding))
    if o.no_repeat_ngram_size:
        made.append(p.NoRepeatNGramLogitsProcessor(o.no_repeat_ngram_size))
    if o.bad_words_ids is not None:
        made.append(p.NoBadWordsLogitsProcessor(o.bad_words_ids, o.eos_token_ids))
    if o.min_length and o.eos_token_ids:
        made.append(p.MinLengthLogitsProcessor(o.min_length, o.eos_token_ids))
    return made


def _forcing_tokens(o: GenerationConfig, prompt: int, max_length: int, vocab: int) -> list[Any]:
    made: list[Any] = []
    if o.forced_bos_token_id is not None:
        _check_token("forced_bos_token_id", o.forced_bos_token_id, vocab)
        made.append(p.ForcedBOSTokenLogitsProcessor(o.forced_bos_token_id))
    if o.forced_eos_token_id is not None:
        ends = o.forced_eos_token_id
        for one in [ends] if isinstance(ends, int) else ends:
            _check_token("forced_eos_token_id", one, vocab)
        made.append(p.ForcedEOSTokenLogitsProcessor(max_length, ends))
    if o.remove_invalid_values:
        made.append(p.InfNanRemoveLogitsProcessor())
    if o.exponential_decay_length_penalty is not None:
        if not o.eos_token_ids:
            raise ValueError("exponential_decay_length_penalty favours end tokens, but there is no eos_token_id.")
        made.append(p.ExponentialDecayLengthPenalty(o.exponential_decay_length_penalty, o.eos_token_ids, prompt))
    if o.suppress_tokens is not None:
        made.append(p.SuppressTokensLogitsProcessor(o.suppress_tokens))
    if o.begin_suppress_tokens is not None:
        begin = prompt if prompt > 1 or o.forced_bos_token_id is None else prompt + 1
        made.append(p.SuppressTokensAtBeginLogitsProcessor(o.begin_suppress_tokens, begin))
    return made


def _narrowing_draws(o: GenerationConfig) -> list[Any]:
    """Temperature first. Beams keep a token more than there are end tokens, to have something to go on with."""
    keep = 1 if (o.num_beams or 1) == 1 else len(o.eos_token_ids) + 1 if o.eos_token_ids else 2
    made: list[Any] = []
    if o.temperature not in (None, 1):
        made.append(w.TemperatureLogitsWarper(o.temperature))
    if o.top_h is not None:
        made.append(w.TopHLogitsWarper(o.top_h))
    if o.top_k:
        made.append(w.TopKLogitsWarper(o.top_k, keep))
    if o.top_p is not None and o.top_p < 1:
        made.append(w.TopPLogitsWarper(o.top_p, keep))
    if o.min_p is not None:
        made.append(w.MinPLogitsWarper(o.min_p, keep))
    if o.typical_p is not None and o.typical_p < 1:
        made.append(w.TypicalLogitsWarper(o.typical_p, keep))
    if o.epsilon_cutoff:
        made.append(w.EpsilonLogitsWarper(o.epsilon_cutoff, keep))
    if o.eta_cutoff:
        made.append(w.EtaLogitsWarper(o.eta_cutoff, keep))
    return made


def _check_token(name: str, token: int, vocab: int) -> None:
    if not 0 <= token < vocab:
        raise ValueError(f"{name} is {token}; token ids of this model lie in 0 … {vocab - 1}.")

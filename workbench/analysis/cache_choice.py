"""Which caches an analysis is about: names, names with options, or cache objects, each with a label of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.cache import CACHES, KVCache, cache_options, make_cache
from workbench.config import LlamaConfig
from workbench.model.inputs import check_token_ids

NONE = "none"
CacheSpec = str | tuple[str, Mapping[str, Any]] | Mapping[str, Any] | KVCache


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenCache:
    """A cache that was asked for.

    Attributes:
        label: its name, with what tells it from others of that name.
        name: as `make_cache` takes it; `"none"` for reading everything again.
        options: those that were given.
        given: the caller's own object, if it is one.
        room: how many positions it is for.
    """

    label: str
    name: str
    options: Mapping[str, Any]
    given: KVCache | None
    config: LlamaConfig
    room: int

    def make(self, **changes: Any) -> KVCache | None:
        """An empty cache, or the caller's own, emptied; `None` for no cache. `changes` are options that differ."""
        if self.given is not None:
            self.given.reset()
            return self.given
        if self.name == NONE:
            return None
        options = {"max_cache_len": self.room, **self.options, **changes}
        return make_cache(self.name, self.config, **options)


def choose_caches(caches: Any, config: LlamaConfig, room: int) -> list[ChosenCache]:
    """The caches that are meant, each made once to see whether it can be.

    Args:
        caches: names, (name, options), {"name": name, option: value} or caches of one's own, which are emptied.
        config: of the model.
        room: how many positions each of them will get.

    Raises:
        TypeError: for anything else.
        ValueError: for an unknown name or option, an object that is there twice, a cache with too little room.
    """
    if isinstance(caches, str | Mapping) or not isinstance(caches, Iterable):
        raise TypeError(
            f"caches is {caches!r}; a list is needed, of names ({_names()}), (name, options) or caches: "
            'caches=["dynamic", ("quantized", {"bits": 4})].'
        )
    chosen = [_choose(item, config, room) for item in caches]
    for i, one in enumerate(chosen):
        if one.given is not None and any(one.given is other.given for other in chosen[:i]):
            raise ValueError(f"caches holds the same {one.name} cache twice; each reads the text by itself: make two.")
    return _labelled(chosen, [described(one.make(), one) for one in chosen])


def _choose(item: Any, config: LlamaConfig, room: int) -> ChosenCache:
    options: Mapping[str, Any] = {}
    name = item
    if isinstance(item, Mapping):
        options = {key: value for key, value in item.items() if key != "name"}
        name = item.get("name")
    elif isinstance(item, Sequence) and not isinstance(item, str):
        if len(item) != 2 or not isinstance(item[1], Mapping):
            raise TypeError(f'caches holds {item!r}; a name with options is a pair: ("quantized", {{"bits": 4}}).')
        name, options = item
    elif hasattr(item, "positions") and hasattr(item, "update"):
        return ChosenCache("", getattr(item, "name", "") or type(item).__name__, {}, item, config, room)
    if not isinstance(name, str):
        raise TypeError(
            f'caches holds {item!r}; names ({_names()}), (name, options), {{"name": name, …}} or caches are needed.'
        )
    if name not in CACHES:
        raise ValueError(f"there is no cache {name!r}; there are {_names()}.")
    if name == NONE and options:
        raise ValueError(f'"none" keeps nothing and has no options; got {", ".join(options)}.')
    given = dict(options)
    own_room = {"max_cache_len": given.pop("max_cache_len")} if name == "static" and "max_cache_len" in given else {}
    kind, known = cache_options(name, given)
    return ChosenCache("", kind, {**known, **own_room}, None, config, room)


def _names() -> str:
    return ", ".join(CACHES)


def described(cache: KVCache | None, chosen: ChosenCache) -> dict[str, Any]:
    """The options that a cache has, also those that it was not given.

    Raises:
        ValueError: if it has too little room.
    """
    has = getattr(cache, "max_cache_len", None)
    if isinstance(has, int) and has < chosen.room:
        raise ValueError(
            f"the {chosen.name} cache has room for max_cache_len={has} positions; {chosen.room} will be read. Make it "
            "larger, leave max_cache_len out, or shorten the text."
        )
    found: dict[str, Any] = getattr(cache, "options", dict)()
    return {key: value for key, value in found.items() if key not in ("config", "max_cache_len")}


def _labelled(chosen: list[ChosenCache], options: list[dict[str, Any]]) -> list[ChosenCache]:
    """Names; of several of a name, with the options that differ; of equal ones, with a number."""
    labels: list[str] = []
    for one, own in zip(chosen, options, strict=True):
        others = [o for other, o in zip(chosen, options, strict=True) if other.name == one.name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in others)]
        label = " ".join([one.name, *(_option(key, own[key]) for key in differing)])
        count = sum(before == label or before.startswith(f"{label} (") for before in labels)
        labels.append(f"{label} ({count + 1})" if count else label)
    return [dataclasses.replace(one, label=label) for one, label in zip(chosen, labels, strict=True)]


def _option(key: str, value: Any) -> str:
    value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return f"{value} bit" if key == "bits" else f"{key.replace('_', ' ')} {value}"


# ----------------------------------------------------------------------------------------------------- model and text


def with_tokenizer(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """The model and tokenizer, also of what `load()` returned or a session."""
    if not isinstance(model, torch.nn.Module) and hasattr(model, "model"):
        return model.model, tokenizer or getattr(model, "tokenizer", None)
    return model, tokenizer


def one_text(model: Any, tokenizer: Any, prompt: Any, name: str = "prompt") -> Int[Tensor, "1 pos"]:
    """The token ids of a text, or ids as given: a list, (pos) or (1, pos).

    Raises:
        TypeError: for anything else.
        ValueError: for a text without tokenizer, an empty one, several rows, ids that the model does not know.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                f"{name} is a text, and there is no tokenizer to make tokens of it. Give tokenizer=…, what "
                "workbench.load() returned as the model, or token ids."
            )
        prompt = tokenizer.encode(prompt)
    if not isinstance(prompt, Tensor | list | tuple):
        raise TypeError(f"{name} is a {type(prompt).__name__}; a text or token ids are needed.")
    ids = prompt if isinstance(prompt, Tensor) else torch.tensor(prompt)
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.numel() == 0:
        raise ValueError(f"{name} is empty; one token at least is needed.")
    if ids.dim() != 2 or len(ids) != 1:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; one text is needed, (positions) or (1, positions).")
    known = model.config.vocab_size
    return check_token_ids(ids, known).long().to(model.device)

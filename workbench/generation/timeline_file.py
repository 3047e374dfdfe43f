"""Timelines in a file: safetensors, with a manifest that says what they are of.

Tensors: `nodes.*` has one row a node (tokens, parents, sources, numbers), `hidden` the final hidden state of each, and
`logits` the full logits of those that were held. The manifest (JSON in the file's metadata) holds versions, a hash of
the model's configuration and weights, sampler, cache, edits as JSON, and the text of each token.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.generation.sampling import Sampler
from workbench.generation.timeline_engine import Engine
from workbench.generation.timeline_reader import CacheChoice, EditChoice, PathReader
from workbench.generation.timeline_tree import SOURCES, Node, Tree
from workbench.instrument.edits import edits_from_json
from workbench.instrument.files import model_hash
from workbench.model import LlamaForCausalLM

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "workbench-timeline"
VERSION = 1
PHASES = ("prefill", "decode")
NUMBERS = ("logprob", "entropy", "ms")  # float64, so that Python's numbers come back; nan is None
COUNTS = ("position", "token", "positions_computed", "cache_bytes")
MAYBE = ("parent", "rank")  # −1 is None
TOPS = ("top_ids", "top_logprobs", "top_logits")


def table(nodes: Iterable[Node], tokenizer: Any, current: set[int]) -> pd.DataFrame:
    """One row a node; without a tokenizer no text."""
    import pandas as pd

    rows = [
        dataclasses.asdict(node) | {"surprisal": node.surprisal, "current": node.index in current} for node in nodes
    ]
    fields = [field.name for field in dataclasses.fields(Node)]
    frame = pd.DataFrame(rows, columns=[*fields, "surprisal", "current"]).set_index("index")
    if tokenizer is not None:
        frame.insert(0, "text", tokenizer.pieces(frame.token.tolist()))
    frame.insert(list(frame.columns).index("logprob") + 1, "surprisal", frame.pop("surprisal"))
    return frame.astype({"parent": "Int64", "rank": "Int64"})


# ------------------------------------------------------------------------------------------------------------- writing


def save(engine: Engine, sampler: Sampler, tokenizer: Any, target: str | os.PathLike[str]) -> None:
    """Writes a timeline; a file that is there is replaced when all is written.

    Args:
        tokenizer: names tokens, or `Texts`, or `None`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no nodes, or its edits are functions.
    """
    path, reader, store = Path(target), engine.reader, engine.store
    nodes = engine.tree.nodes
    _check_saving(path, engine)
    held = {**store.full, **store.fixed}
    regimes = sorted(set(store.regimes.values()))
    tensors = _columns(nodes)
    tensors["nodes.regime"] = torch.tensor([regimes.index(store.regimes[node.index]) for node in nodes])
    tensors["hidden"] = torch.stack([store.hidden[node.index] for node in nodes])
    if held:
        tensors["logits"] = torch.stack(list(held.values()))
        tensors["logits.nodes"] = torch.tensor(list(held))
        tensors["logits.fixed"] = torch.tensor([index in store.fixed for index in held])
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "workbench": importlib.metadata.version("llama-workbench"),
        "torch": torch.__version__,
        **(engine.made_with if reader.model is None else made_with(reader.model)),
        "current": None if engine.current is None else engine.current.index,
        "positions_computed": engine.positions_computed,
        "logits_budget": store.budget,
        "sampler": dataclasses.asdict(sampler),
        "caches": sorted({node.cache for node in nodes}),
        "cache": reader.choice.name,
        "cache_config": json.loads(reader.choice.text),
        "edits": [edits.text for edits in reader.edit_sets],
        "edit_set": reader.edit_set,
        "regimes": regimes,
        "texts": _texts(nodes, tokenizer),
    }
    tensors["nodes.cache"] = torch.tensor([manifest["caches"].index(node.cache) for node in nodes])
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"manifest": json.dumps(manifest)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_saving(path: Path, engine: Engine) -> None:
    if not engine.tree.nodes:
        raise ValueError("this timeline is empty. Read a prompt before saving.")
    if engine.reader.edits.text is None:
        raise ValueError(
            "the edits of this timeline are functions or given by point, and a file holds only a list of ready-made "
            "ones (workbench.edits). Take them back with use(edits=()) before saving, or give ready-made ones."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}. Make it, or give a path in another one.")


def made_with(model: LlamaForCausalLM) -> dict[str, Any]:
    """What a file says of the model."""
    return {"model": model_hash(model), "config": json.loads(json.dumps(model.config.to_dict(), default=str))}


def _columns(nodes: list[Node]) -> dict[str, Tensor]:
    found = {f"nodes.{name}": torch.tensor([getattr(node, name) for node in nodes]) for name in COUNTS}
    for name in MAYBE:
        values = [getattr(node, name) for node in nodes]
        found[f"nodes.{name}"] = torch.tensor([-1 if value is None else value for value in values])
    for name in NUMBERS:
        values = [getattr(node, name) for node in nodes]
        found[f"nodes.{name}"] = torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)
    width = max(len(node.top_ids) for node in nodes)
    for name in TOPS:
        dtype, fill = (torch.int64, -1) if name == "top_ids" else (torch.float64, math.nan)
        rows = [[*getattr(node, name)] + [fill] * (width - len(node.top_ids)) for node in nodes]
        found[f"nodes.{name}"] = torch.tensor(rows, dtype=dtype).view(len(nodes), width)
    found["nodes.source"] = torch.tensor([SOURCES.index(node.source) for node in nodes])
    found["nodes.phase"] = torch.tensor([PHASES.index(node.phase) for node in nodes])
    return found


def _texts(nodes: list[Node], tokenizer: Any) -> dict[str, str]:
    """The text of every token that is in a node or among its most likely ones."""
    if tokenizer is None:
        return {}
    if isinstance(tokenizer, Texts):
        return tokenizer.texts
    known = len(tokenizer)  # a model may have more outputs than its tokenizer has tokens
    ids = sorted({i for node in nodes for i in (node.token, *node.top_ids) if i < known})
    return {str(i): text for i, text in zip(ids, tokenizer.pieces(ids), strict=True)}


# ------------------------------------------------------------------------------------------------------------- reading


class Texts:
    """The part of a tokenizer that a file holds: names of the tokens that occur in it."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; its number where that is not known."""
        return [self.texts.get(str(i), f"<{i}>") for i in ids]


def load(target: str | os.PathLike[str], model: LlamaForCausalLM | None) -> tuple[Engine, Sampler, Texts | None]:
    """What `save` wrote, checked; no texts if it was saved without a tokenizer.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is damaged, no timeline, or one of another model.
    """
    path = Path(target)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. Give one that timeline.save(path) wrote.")
    if model is not None and not isinstance(model, LlamaForCausalLM):
        raise TypeError(
            f"model is a {type(model).__name__}; give the LlamaForCausalLM that the timeline was made with."
        )
    try:
        with safe_open(path, "pt") as file:
            manifest = _manifest(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if model is not None:
            _check_model(path, manifest, model)
        engine = _engine(manifest, tensors, model)
        texts = Texts(manifest["texts"]) if manifest["texts"] else None
        return engine, Sampler(**manifest["sampler"]), texts
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}. Save the timeline again.") from error
    except (KeyError, IndexError, TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{path}: its manifest does not fit its tensors ({error!r}). Save the timeline again."
        ) from error


def _manifest(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    manifest = json.loads(metadata["manifest"]) if "manifest" in metadata else None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{path} is a safetensors file, but no timeline: it has no manifest.")
    if manifest["format"] != FORMAT or manifest.get("version") != VERSION:
        raise ValueError(
            f"{path} has format {manifest['format']!r}, version {manifest.get('version')!r}; this is read: {FORMAT!r}, "
            f"version {VERSION}. Save the timeline again, or use the release that wrote it."
        )
    return manifest


def _check_model(path: Path, manifest: dict[str, Any], model: LlamaForCausalLM) -> None:
    found = made_with(model)
    if found["model"] != manifest["model"]:
        raise ValueError(
            f"{path} was made with {_named(manifest)}; this model is {_named(found)}. Open it with that model, or "
            "without one: Timeline.load(path)."
        )


def _named(made: dict[str, Any]) -> str:
    config = made["config"]
    return (
        f"model {made['model'][:12]} ({config['num_hidden_layers']} layers, hidden {config['hidden_size']:,}, "
        f"vocabulary {config['vocab_size']:,})"
    )


def _engine(manifest: dict[str, Any], tensors: dict[str, Tensor], model: LlamaForCausalLM | None) -> Engine:
    nodes = _nodes(manifest, tensors)
    if model is None:
        choice = CacheChoice(manifest["cache"], manifest["cache_config"])
    else:
        choice = CacheChoice.of(manifest["cache"], manifest["cache_config"], model.config)
    reader = PathReader(model, choice, EditChoice())
    # Functions are not in a file: whatever such edits gave is not what any later ones give.
    sets, at = [EditChoice(text=text) for text in manifest["edits"]], manifest["edit_set"]
    assert 0 <= at < len(sets)
    if sets[at].text is not None:
        sets[at] = EditChoice.of(edits_from_json(sets[at].text), model)
    reader.edit_sets, reader.edit_set = sets, at
    engine = Engine(reader, Tree(nodes), manifest["logits_budget"])
    engine.made_with = {"model": manifest["model"], "config": manifest["config"]}
    engine.positions_computed = manifest["positions_computed"]
    engine.current = None if manifest["current"] is None else engine.tree.node(manifest["current"])
    regimes = [manifest["regimes"][i] for i in tensors["nodes.regime"].tolist()]
    for node, hidden, regime in zip(nodes, tensors["hidden"], regimes, strict=True):
        engine.store.put(node.index, hidden, None, regime)
    rows = [tensors.get(name, torch.empty(0)) for name in ("logits", "logits.nodes", "logits.fixed")]
    for logits, at, fixed in zip(rows[0], rows[1].tolist(), rows[2].tolist(), strict=True):
        engine.store.put(at, engine.store.hidden[at], logits.clone(), regimes[at], fixed)
    return engine


def _nodes(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> list[Node]:
    names = (*COUNTS, *MAYBE, *NUMBERS, *TOPS, "source", "phase", "cache")
    columns = {name: tensors[f"nodes.{name}"].tolist() for name in names}
    nodes: list[Node] = []
    for index, row in enumerate(zip(*columns.values(), strict=True)):
        fields = dict(zip(columns, row, strict=True))
        count = sum(i >= 0 for i in fields["top_ids"])
        fields |= {name: tuple(fields[name][:count]) for name in TOPS}
        fields |= {name: None if fields[name] == -1 else fields[name] for name in MAYBE}
        fields |= {name: None if math.isnan(fields[name]) else fields[name] for name in ("logprob", "entropy")}
        fields |= {"source": SOURCES[fields["source"]], "phase": PHASES[fields["phase"]]}
        node = Node(index=index, **{**fields, "cache": manifest["caches"][fields["cache"]]})
        before = None if node.parent is None else nodes[node.parent]
        assert node.position == (0 if before is None else before.position + 1), "a node is not behind its parent"
        assert 0 <= node.token < manifest["config"]["vocab_size"], "a token is outside the vocabulary"
        nodes.append(node)
    assert len(tensors["hidden"]) == len(nodes) > 0, "there are not as many hidden states as nodes"
    return nodes

"""How points are written: our names, patterns, ranges of layers, and the names of TransformerLens and transformers."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from workbench.instrument.points import POINTS, Located, Point, base_of, layer_index
from workbench.model import LlamaForCausalLM, LlamaModel

Found = tuple[Point, Sequence[int] | None]  # `None`: the layers that the caller chose

_LAYER = re.compile(r"(?:model\.)?(?:layers|blocks|h)\.([^.]+)\.(.+)")
_WHOLE_LAYER = re.compile(r"(?:model\.)?layers\.(-?\d+)")
_OUTPUT = re.compile(r"(hidden_states|attentions|past_key_values)\[(-?\d+)\]")
_ALIASES = {alias: point for point in POINTS.values() for alias in point.aliases}
_NORMALIZED = re.compile(r"(ln1\.|ln2\.|ln_final\.)?hook_normalized")


def resolve(
    model: LlamaForCausalLM | LlamaModel, names: Iterable[str], layers: int | Iterable[int] | None = None
) -> list[Located]:
    """The modules behind point names.

    Args:
        names: `"resid_post"` means that point in every layer, `"layers.3.resid_post"` in one, `"layers.2:6.resid_post"`
            in some, `"resid_*"` or `"layers.*.q*"` every point of that pattern. The names of TransformerLens
            (`"blocks.3.hook_resid_post"`) and of transformers (`"hidden_states[3]"`, `"model.layers.3.mlp"`) are
            understood where they mean one of ours.
        layers: restricts names without a layer to this one or these; negative numbers count from the end.

    Raises:
        TypeError: for layers that are no whole numbers.
        ValueError: for an unknown point (naming the nearest ones), one that may mean several of ours (naming them), a
            layer the model does not have, no point at all, or `logits` of a model without a head.
    """
    base = base_of(model)
    modules = list(base.layers)
    count = len(modules)
    chosen = range(count) if layers is None else [layer_index(i, count) for i in whole_numbers("layers", layers)]
    if layers is not None and not chosen:
        raise ValueError("layers is empty, so no hook point was named. Leave it out for all of them.")
    if isinstance(names, str):
        names = [names]
    found: dict[str, Located] = {}
    for name in names:
        for point, of_layers in read_name(name, count):
            if not point.per_layer:
                root = model if point.name == "logits" else base
                if not hasattr(root, point.path):
                    raise ValueError("'logits' is not a point of LlamaModel: it has no language-model head.")
                found[point.name] = Located(point.name, _module(root, point.path), point)
                continue
            for i in chosen if of_layers is None else of_layers:
                full = f"layers.{i}.{point.name}"
                found[full] = Located(full, _module(modules[i], point.path), point, i)
    if not found:
        raise ValueError(f"no hook point was named. Points are {', '.join(POINTS)}.")
    return list(found.values())


def whole_numbers(what: str, given: Any) -> tuple[int, ...]:
    """One number or several: Python's, NumPy's or those of a tensor.

    Raises:
        TypeError: if `given`, the argument `what`, is something else.
    """
    try:
        if isinstance(given, str):
            raise TypeError
        alone = getattr(given, "ndim", None) == 0 or not isinstance(given, Iterable)
        return tuple(_whole(number) for number in ([given] if alone else given))
    except TypeError:
        raise TypeError(f"{what} is {given!r}; a whole number or several are needed.") from None


def _whole(number: Any) -> int:
    if isinstance(number, bool) or "bool" in str(getattr(number, "dtype", "")):
        raise TypeError
    return operator.index(number)


def _module(root: nn.Module, path: str) -> nn.Module:
    """`root.get_submodule(path)`, which takes four times as long; a capture of one token's forward does 91 of them."""
    for part in path.split("."):
        found = root._modules[part]
        assert found is not None
        root = found
    return root


def read_name(name: str, count: int) -> list[Found]:
    """The points that a name means, in a model of `count` layers.

    Raises:
        TypeError: if the name is no text.
        ValueError: if it means none, or may mean several.
    """
    if not isinstance(name, str):
        raise TypeError(f"a hook point is named by a text such as 'resid_post' or 'layers.3.q'; got {name!r}.")
    if output := _OUTPUT.fullmatch(name):
        return [_of_output(name, output[1], int(output[2]), count)]
    if whole := _WHOLE_LAYER.fullmatch(name):
        return [(POINTS["resid_post"], [layer_index(int(whole[1]), count)])]
    if (inside := _LAYER.fullmatch(name)) and inside[1].strip("-0123456789:*") == "":
        found = [(point, _layers(inside[1], name, count)) for point in _points(inside[2], name)]
        if any(not point.per_layer for point, _ in found):
            raise ValueError(
                f"{name!r} is no hook point: {found[0][0].name} is not inside a layer. Write its name alone."
            )
        return list(found)
    if "." in name and name.removeprefix("model.") not in _ALIASES and not _NORMALIZED.fullmatch(name):
        raise ValueError(
            f"{name!r} is no hook point; a point of one layer is written 'layers.3.resid_post', of several "
            "'layers.2:6.resid_post'."
        )
    return [(point, None) for point in _points(name.removeprefix("model."), name)]


def _points(short: str, name: str) -> list[Point]:
    if short in POINTS:
        return [POINTS[short]]
    if short in _ALIASES:
        return [_ALIASES[short]]
    if any(sign in short for sign in "*?["):
        found = [point for point in POINTS.values() if fnmatchcase(point.name, short)]
        in_layer = [point for point in found if point.per_layer]
        if found:
            return in_layer if short != name else found
    if _NORMALIZED.fullmatch(short):
        raise ValueError(
            f"{name!r} may mean attn_norm, mlp_norm or final_norm, which here are after the gain (in TransformerLens "
            "before it). Write the one that is meant."
        )
    known = [*POINTS, *_ALIASES]
    near = difflib.get_close_matches(short, known, n=3, cutoff=0.5) or list(POINTS)
    raise ValueError(f"{name!r} is no hook point; did you mean {', '.join(near)}?")


def _of_output(name: str, kind: str, index: int, count: int) -> Found:
    """An entry of what a model of transformers returns."""
    if kind == "past_key_values":
        raise ValueError(
            f"{name!r} may mean layers.{index}.k_cached or layers.{index}.v_cached: keys or values. Write the one that "
            "is meant."
        )
    if kind == "attentions":
        return POINTS["pattern"], [layer_index(index, count)]
    if index in (-1, count):
        raise ValueError(
            f"{name!r} may mean final_norm (what it is in transformers: the last one is after the final norm) or "
            f"layers.{count - 1}.resid_post (the residual stream, which the others are). Write the one that is meant."
        )
    if not -count - 1 <= index < count:
        raise ValueError(f"{name!r} does not exist; this model has hidden_states[0] … hidden_states[{count}].")
    index %= count + 1
    return (POINTS["embed"], None) if index == 0 else (POINTS["resid_post"], [index - 1])


def _layers(text: str, name: str, count: int) -> list[int]:
    """`3`, `-1`, `*` or a slice such as `2:6`."""
    if text == "*":
        return list(range(count))
    try:
        if ":" not in text:
            return [layer_index(int(text), count)]
        found = list(range(count))[slice(*(int(part) if part else None for part in text.split(":")))]
    except ValueError as error:
        if "does not exist" in str(error):
            raise
        raise ValueError(f"{name!r}: {text!r} is no layer; write a number, a range such as 2:6, or *.") from None
    if not found:
        raise ValueError(f"{name!r} means no layer; this model has layers 0 … {count - 1}.")
    return found

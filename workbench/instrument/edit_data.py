"""`Edit`: one ready-made intervention as data, and its JSON."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_CHOSEN = ("layers", "heads", "neurons", "positions")
KINDS = {  # which fields each kind has
    "zero": _CHOSEN,
    "mean": (*_CHOSEN, "values"),
    "add": (*_CHOSEN, "values", "factor"),
    "scale": (*_CHOSEN, "factor"),
    "patch": (*_CHOSEN, "values"),
    "knock_out": ("layers", "heads", "queries", "keys", "edges"),
    "swap_kv": ("layers", "heads"),
}
POINTS_OF = {"knock_out": ("mask",), "swap_kv": ("k_rot", "v")}  # of kinds that have no choice
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16)}
DTYPES["bfloat16"] = torch.bfloat16

Indices = tuple[int, ...]
Positions = tuple[int, ...] | slice  # absolute positions; slice(5, None) for 5 and every later one


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """One intervention, made by `zero`, `mean`, `add`, `scale`, `patch`, `knock_out` or `swap_kv`, which explain it.

    Attributes:
        kind: the name of the function that made it.
        points: the hook points it changes.
        layers: restricts points named without a layer; `None` for all.
        heads: query heads, or key/value heads where the point has those; `None` for all. Of `swap_kv` the two heads.
        neurons: of the MLP; `None` for all.
        positions: absolute positions; `None` for all. Of `patch` the position of each row of its values.
        values: layer → what replaces or is added, under `None` for all layers; of the chosen heads and neurons only.
        factor: what is multiplied by.
        queries, keys: of `knock_out`; `None` for all.
        edges: of `knock_out`, pairs (query position, key position) instead of `queries` and `keys`.

    Raises:
        TypeError, ValueError: for what no model could do.
    """

    kind: str
    points: tuple[str, ...]
    layers: Indices | None = None
    heads: Indices | None = None
    neurons: Indices | None = None
    positions: Positions | None = None
    values: Mapping[int | None, Tensor] | None = None
    factor: float = 1.0
    queries: Positions | None = None
    keys: Positions | None = None
    edges: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of edit; kinds are {', '.join(KINDS)}.")
        if not self.points or not all(isinstance(point, str) for point in self.points):
            raise TypeError(f"{self.kind}: hook points are named by texts such as 'resid_post'; got {self.points!r}.")
        fixed = POINTS_OF.get(self.kind, self.points)
        if self.points != fixed:
            raise ValueError(f"{self.kind} is at {' and '.join(fixed)}; got {', '.join(self.points)}.")
        for field in dataclasses.fields(self)[2:]:
            if getattr(self, field.name) != field.default and field.name not in KINDS[self.kind]:
                raise ValueError(f"{self.kind} has no {field.name}; it has {', '.join(KINDS[self.kind])}.")
        if not math.isfinite(self.factor):
            raise ValueError(f"{self.kind}: the factor is {self.factor}; a finite number is needed.")
        _check_values(self)
        if self.kind == "knock_out":
            _check_edges(self)
        if self.kind == "swap_kv" and (self.heads is None or len(self.heads) != 2):
            raise ValueError(f"swap_kv: two key/value heads are needed; got {self.heads}.")

    def __repr__(self) -> str:
        shown = {} if self.kind in ("knock_out", "swap_kv") else {"": " + ".join(map(repr, self.points))}
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value is not None and (field.name != "factor" or self.kind in ("add", "scale")):
                shown["scale" if (self.kind, field.name) == ("add", "factor") else field.name] = _short(value)
        return f"{self.kind}({', '.join(f'{name}={text}' if name else text for name, text in shown.items())})"

    def value(self, layer: int | None) -> Tensor | None:
        """What replaces or is added in a layer."""
        values = self.values or {}
        return values.get(layer, values.get(None))

    def to_json(self) -> str:
        """The edit as a JSON object. Tensors are base64 of their bytes, so that every bit comes back."""
        return json.dumps(_written(self))


def edits_to_json(edits: Iterable[Edit]) -> str:
    """Several edits as one JSON list."""
    return json.dumps([_written(edit) for edit in edits])


def edits_from_json(text: str) -> list[Edit]:
    """The edits of `Edit.to_json` or `edits_to_json`, equal to the last bit; tensors on the CPU.

    Raises:
        ValueError: if the text is no JSON of edits; it says where.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"edits are read from JSON, and this is none: {error}.") from None
    edits = []
    for i, one in enumerate(found if isinstance(found, list) else [found]):
        try:
            edits.append(_read(one))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"edit {i} of the JSON cannot be read: {error}") from None
    return edits


def indices(what: str, value: Any) -> Indices | None:
    """Whole numbers from one, several, or `None` for all."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or _is_scalar(value):
        value = [value]
    found = tuple(whole(what, one) for one in value)
    if not found:
        raise ValueError(f"{what} is empty: nothing would be edited. Leave it out for all.")
    if len(set(found)) < len(found):
        twice = next(one for i, one in enumerate(found) if one in found[:i])
        raise ValueError(f"{what} names {twice} twice.")
    return found


def positions_of(what: str, value: Any) -> Positions | None:
    """Absolute positions from one, several, a slice, or `None` for all."""
    if isinstance(value, slice):
        start, step = value.start or 0, 1 if value.step is None else value.step
        if min(start, step - 1, 0 if value.stop is None else value.stop) < 0 or (value.stop is None and step != 1):
            raise ValueError(f"{what} is {value}; a slice of absolute positions is slice(5, 9) or slice(5, None).")
        if value.stop is None:
            return slice(start, None)
        value = range(start, value.stop, step)
    found = indices(what, value)
    if found is not None and min(found) < 0:
        raise ValueError(
            f"{what} holds {min(found)}; positions are absolute, 0 is the first token of the text. The end of a text "
            "is not known while it grows."
        )
    return found


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0


def whole(what: str, value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool):
        raise TypeError(f"{what} holds {value!r}; whole numbers are needed.")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} holds {value!r}; whole numbers are needed.") from None


def _check_values(edit: Edit) -> None:
    for value in (edit.values or {}).values():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES.values() or not value.numel():
            found = (
                f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise TypeError(f"{edit.kind}: values are tensors of {', '.join(DTYPES)} that are not empty; got {found}.")
    if edit.values is not None and not edit.values:
        raise ValueError(f"{edit.kind}: values is empty.")
    if edit.kind in ("add", "patch") and edit.values is None:
        raise ValueError(f"{edit.kind}: values are needed.")
    if edit.kind == "patch" and not isinstance(edit.positions, tuple):
        raise ValueError("patch: the position of each row of its values is needed.")


def _check_edges(edit: Edit) -> None:
    if edit.edges is None:
        if edit.queries is None and edit.keys is None:
            raise ValueError("knock_out: give edges=[(query, key), …], or queries, keys or both.")
        first = 0 if edit.keys is None else edit.keys.start if isinstance(edit.keys, slice) else min(edit.keys)
        if isinstance(edit.queries, tuple) and first > max(edit.queries):
            raise ValueError(
                f"knock_out: no query of {_short(edit.queries)} sees a key of {_short(edit.keys)}: later keys are "
                "masked anyway."
            )
        return
    if edit.queries is not None or edit.keys is not None:
        raise ValueError("knock_out: give edges, or queries and keys; not both.")
    if not edit.edges:
        raise ValueError("knock_out: edges is empty: nothing would be edited.")
    for query, key in edit.edges:
        if not 0 <= key <= query:
            raise ValueError(
                f"knock_out: edge ({query}, {key}) does not exist: a pair is (query position, key position), both "
                "absolute, and a query sees no later key."
            )


def _short(value: Any) -> str:
    if isinstance(value, slice):
        return f"slice({value.start}, None)"
    if isinstance(value, tuple):
        more = f", … {len(value) - 6} more" if len(value) > 8 else ""
        return f"[{', '.join(map(str, value[:6] if more else value))}{more}]"
    if isinstance(value, Mapping):
        tensor = next(iter(value.values()))
        many = f" in {len(value)} layers" if len(value) > 1 else ""
        return f"<{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}{many}>"
    return repr(value)


# ---------------------------------------------------------------------------------------------------------------- JSON


def _written(edit: Edit) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(edit):
        value = getattr(edit, field.name)
        if value is None:
            continue
        if isinstance(value, slice):
            value = {"from": value.start}
        if isinstance(value, Mapping) and field.name == "values":
            value = [{"layer": layer, **_bytes_of(tensor)} for layer, tensor in value.items()]
        found[field.name] = value
    return found


def _bytes_of(tensor: Tensor) -> dict[str, Any]:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    name = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": name, "shape": list(tensor.shape), "data": base64.b64encode(raw).decode()}


def _read(found: Any) -> Edit:
    if not isinstance(found, dict):
        raise TypeError(f"an object is needed; got {found!r}.")
    known = [field.name for field in dataclasses.fields(Edit)]
    unknown = [name for name in found if name not in known]
    missing = [name for name in ("kind", "points") if name not in found]
    if unknown or missing:
        problem = f"{unknown[0]!r} is not known" if unknown else f"{missing[0]!r} is missing"
        raise ValueError(f"{problem}; an edit has {', '.join(known)}.")
    fields = {name: _READ[name](value) if name in _READ else value for name, value in found.items()}
    return Edit(**fields)


def _listed(what: str) -> Callable[[Any], Indices | None]:
    def read(value: Any) -> Indices | None:
        if not isinstance(value, list):
            raise TypeError(f"{what} is {value!r}; a list of whole numbers is needed.")
        return indices(what, value)

    return read


def _placed(what: str) -> Callable[[Any], Positions | None]:
    def read(value: Any) -> Positions | None:
        if isinstance(value, dict) and list(value) == ["from"]:
            return positions_of(what, slice(whole(what, value["from"]), None))
        if not isinstance(value, list):
            raise TypeError(f'{what} is {value!r}; a list of positions or {{"from": 5}} is needed.')
        return positions_of(what, value)

    return read


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"points is {value!r}; a list of names is needed.")
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise TypeError("edges is not a list of pairs [query, key].")
    return tuple((whole("edges", query), whole("edges", key)) for query, key in value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"factor is {value!r}; a number is needed.")
    return float(value)


def _tensors(value: Any) -> dict[int | None, Tensor]:
    if not isinstance(value, list):
        raise TypeError("values is not a list of tensors.")
    for one in value:
        if not isinstance(one, dict) or not {"layer", "dtype", "shape", "data"} <= one.keys():
            raise TypeError(f"a tensor has layer, dtype, shape and data; got {one!r}.")
    return {one["layer"] if one["layer"] is None else whole("layer", one["layer"]): _tensor(one) for one in value}


def _tensor(found: Any) -> Tensor:
    if found["dtype"] not in DTYPES:
        raise ValueError(f"a tensor has dtype {found['dtype']!r}; allowed are {', '.join(DTYPES)}.")
    dtype, shape = DTYPES[found["dtype"]], [whole("shape", size) for size in found["shape"]]
    try:
        raw = base64.b64decode(found["data"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"the data of a tensor is no base64: {error}.") from None
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 1 or len(raw) != expected:
        raise ValueError(f"a tensor of {found['dtype']} {shape} takes {expected} bytes, but its data has {len(raw)}.")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)


_READ: dict[str, Callable[[Any], Any]] = {
    "points": _names,
    "layers": _listed("layers"),
    "heads": _listed("heads"),
    "neurons": _listed("neurons"),
    "positions": _placed("positions"),
    "values": _tensors,
    "factor": _number,
    "queries": _placed("queries"),
    "keys": _placed("keys"),
    "edges": _pairs,
}

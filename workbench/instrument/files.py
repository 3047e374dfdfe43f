"""Captures in a file: safetensors, with a manifest that says what they are of.

Tensors are named `layers.3.q_rot#0`, one for each captured forward. What follows from others pointwise is written as
numbers; `scores` and `pattern` stay what they are computed from. The manifest (JSON in the file's metadata) holds the
format's version, a hash of the model's configuration and weights, versions, dtype, the forwards with their tokens,
positions and masks, and which heads were kept. What is read later is read from the file that was opened, also where
another one has taken its place since; one that was written over is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from workbench.instrument.activations import Activations, Span
from workbench.instrument.mask_part import MaskPart
from workbench.instrument.points import execution_order, point_of
from workbench.instrument.recipes import AttentionRecipe, Rows
from workbench.instrument.series import Part
from workbench.model.mask import Mask
from workbench.model.mask_rules import rules_as_data, rules_from_data

FORMAT = "workbench-activations"
VERSION = 1


def model_hash(model: nn.Module) -> str:
    """SHA-256 over a model's configuration and every weight."""
    config: Any = model.config
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(acts: Activations, path: Path) -> None:
    """Writes a capture; a file that is there is replaced when all is written.

    Raises:
        ValueError: if there is nothing to write.
    """
    if not len(acts):
        raise ValueError("this capture is empty: no forward ran in its block. Run one before saving.")
    tensors: dict[str, Tensor] = {}
    model, known = acts.model() if acts.model is not None else None, acts.manifest or {}
    names = sorted((*acts, *acts.hidden), key=execution_order)  # what something is computed from comes before it
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "workbench": importlib.metadata.version("llama-workbench"),
        "torch": torch.__version__,
        "model": known.get("model") if model is None else model_hash(model),
        "config": known.get("config") if model is None else model.config.to_dict(),
        "layers": acts.layer_count,
        "scaling": list(acts.scaling.items()),
        "dtype": sorted({str(acts.series(name).parts[0].dtype).removeprefix("torch.") for name in acts}),
        "heads": acts.heads,
        "kv_heads": acts.kv_heads,
        "hidden": sorted(acts.hidden),
        "spans": [_span_data(i, span, tensors) for i, span in enumerate(acts.spans)],
        "points": {name: _point_data(acts, name, tensors) for name in names},
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"manifest": json.dumps(manifest, default=str)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Activations:
    """Opens a capture; its tensors are read when they are looked at.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is damaged, or no capture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}. Give one that acts.save(path) wrote.")
    try:
        file = File(path)
        metadata = file.tensors.metadata() or {}
        if "manifest" not in metadata:
            raise ValueError(f"{path} is a safetensors file, but no capture: it has no manifest.")
        manifest = json.loads(metadata["manifest"])
        if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
            raise ValueError(
                f"{path} has format {manifest.get('format')!r}, version {manifest.get('version')!r}; this is read: "
                f"{FORMAT!r}, version {VERSION}. Capture again, or use the release that wrote it."
            )
        acts = Activations()
        acts.manifest, acts.layer_count = manifest, manifest.get("layers")
        acts.scaling = {layer: float(scale) for layer, scale in manifest.get("scaling", ())}
        acts.heads, acts.kv_heads = _tuple(manifest["heads"]), _tuple(manifest["kv_heads"])
        acts.spans.extend(_span(data, file.tensors) for data in manifest["spans"])
        for name, parts in manifest["points"].items():
            for data in parts:
                part = _part(acts, name, data, file)
                positions = file.tensors.get_tensor(data["positions"])
                acts.append(name, part, data["step"], positions, name in manifest["hidden"])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}. Save the capture again.") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: its manifest does not fit its tensors ({error!r}). Save the capture again."
        ) from error
    return acts


def to_bytes(acts: Activations) -> bytes:
    """What `save` would write."""
    with tempfile.TemporaryDirectory() as folder:
        save(acts, path := Path(folder) / "capture.safetensors")
        return path.read_bytes()


def from_bytes(data: bytes) -> Activations:
    """The capture that `to_bytes` was given, in memory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "capture.safetensors"
        path.write_bytes(data)
        acts = load(path)
        for name in (*acts, *acts.hidden):
            series = acts.series(name)
            series.parts = [p.read(0, p.shape[p.axis]) if isinstance(p, InFile) else p for p in series.parts]
            series.nbytes = sum(part.nbytes for part in series.parts)
    return acts


class File:
    """An open file of tensors. It stays what it was when another one takes its place."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.tensors: Any = safe_open(path, "pt")
        self._was = os.stat(path)

    def check(self) -> None:
        """Raises `ValueError` if other bytes were written into it."""
        try:
            now = os.stat(self.path)
        except OSError:
            return  # taken away; what is open stays
        same = (now.st_mtime_ns, now.st_size) == (self._was.st_mtime_ns, self._was.st_size)
        if os.path.samestat(now, self._was) and not same:
            raise ValueError(f"{self.path} was written over since this capture was loaded from it. Load it again.")

    def __deepcopy__(self, memo: dict[int, Any]) -> File:
        return self


@dataclasses.dataclass(frozen=True)
class InFile:
    """A tensor of a capture's file, of which only what is looked at is read."""

    file: File
    key: str
    shape: torch.Size
    dtype: torch.dtype
    axis: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.shape.numel() * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Tensor:
        """Rows of it."""
        self.file.check()
        part = self.file.tensors.get_slice(self.key)
        rows: Tensor = part[(*(slice(None),) * self.axis, slice(start, stop))]
        return rows


# --- forwards and masks ---------------------------------------------------------------------------------------------


def _span_data(index: int, span: Span, tensors: dict[str, Tensor]) -> dict[str, Any]:
    data: dict[str, Any] = {"start": span.start, "count": span.count, "masked": span.masked, "lossy": span.lossy}
    data["other_keys"] = list(span.other_keys)
    data |= {"mask": None, "tokens": None}
    if span.tokens is not None:
        data["tokens"] = f"tokens#{index}"
        tensors[data["tokens"]] = span.tokens.clone()
    if span.mask is not None:
        data["mask"] = _mask_data(f"mask#{index}", span.mask, tensors)
    return data


def _span(data: dict[str, Any], file: Any) -> Span:
    tokens = None if data["tokens"] is None else file.get_tensor(data["tokens"])
    mask = None if data["mask"] is None else _mask(data["mask"], file)
    lossy, other_keys = data.get("lossy", False), tuple(data.get("other_keys", ()))
    return Span(data["start"], data["count"], data["masked"], mask, tokens, lossy, other_keys)


def _mask_data(key: str, mask: Mask, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Rules as data, with their tensors put apart."""
    rules = []
    for i, entry in enumerate(rules_as_data(mask.rules, lists=False)):
        held = {n: v for n, v in entry.items() if isinstance(v, Tensor)}
        plain = {n: v for n, v in entry.items() if n not in held}
        rules.append({**plain, "tensors": {n: f"{key}.{i}.{n}" for n in held}})
        tensors.update({f"{key}.{i}.{n}": v.clone() for n, v in held.items()})
    for name, value in (("q_pos", mask.q_pos), ("k_pos", mask.k_pos), ("bias", mask.extra)):
        if value is not None:
            tensors[f"{key}.{name}"] = value.clone()
    return {"key": key, "rules": rules, "bias": mask.extra is not None}


def _mask(data: dict[str, Any], file: Any) -> Mask:
    key, rules = data["key"], []
    for entry in data["rules"]:
        held = {n: file.get_tensor(k) for n, k in entry["tensors"].items()}
        rules += rules_from_data([{n: v for n, v in entry.items() if n != "tensors"} | held])
    bias = file.get_tensor(f"{key}.bias") if data["bias"] else None
    return Mask(rules, file.get_tensor(f"{key}.q_pos"), file.get_tensor(f"{key}.k_pos"), bias)


# --- points ---------------------------------------------------------------------------------------------------------


def _point_data(acts: Activations, name: str, tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    series, found = acts.series(name), []
    apart = len(series.parts) == len(series.sizes)
    for i, step in enumerate(series.steps):
        key = f"{name}#{i}"
        data: dict[str, Any] = {"step": step, "positions": f"{key}.positions"}
        tensors[data["positions"]] = series.positions[i].clone()
        part = series.parts[i] if apart else None
        if isinstance(part, AttentionRecipe) and (attention := _attention_data(acts, part, key, tensors)):
            data["attention"] = attention
        elif isinstance(part, MaskPart):
            data["mask"] = _mask_data(key, part.mask, tensors)
            data["rows"] = part.rows
        else:
            data["tensor"] = key
            tensors[key] = series.of(i).detach().contiguous().clone()
        found.append(data)
    return found


def _attention_data(
    acts: Activations, part: AttentionRecipe, key: str, tensors: dict[str, Tensor]
) -> dict[str, Any] | None:
    """What it is computed from; `None` if that is held by another capture, which this one was extended by."""
    if acts.name_of(part.queries.series) is None or acts.name_of(part.keys.series) is None:
        return None
    places = {}
    for field in ("queries", "keys"):
        rows: Rows = getattr(part, field)
        places[field] = [acts.name_of(rows.series), rows.start, rows.stop]
    mask = _mask_data(key, part.mask, tensors)
    numbers = {"scale": part.scale, "rows": part.rows, "heads": part.heads, "softmax": part.softmax}
    return {**places, **numbers, "mask": mask}


def _part(acts: Activations, name: str, data: dict[str, Any], file: File) -> Part:
    if "mask" in data:
        return MaskPart(_mask(data["mask"], file.tensors), _tuple(data["rows"]))
    if "attention" in data:
        given = data["attention"]
        queries, keys = (Rows(acts.or_empty(n), start, stop) for n, start, stop in (given["queries"], given["keys"]))
        heads = None if given["heads"] is None else tuple((int(a), int(b)) for a, b in given["heads"])
        mask = _mask(given["mask"], file.tensors)
        return AttentionRecipe(queries, keys, mask, given["scale"], _tuple(given["rows"]), heads, given["softmax"])
    whole = file.tensors.get_slice(data["tensor"])
    dtype = file.tensors.get_slice(data["tensor"])[0:0].dtype
    return InFile(file, data["tensor"], torch.Size(whole.get_shape()), dtype, point_of(name).position_axis)


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)

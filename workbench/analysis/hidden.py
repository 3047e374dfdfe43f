"""Hidden states at a glance: norms, angles, principal components, outlier dimensions, what attention and MLP add.

All functions take a capture and share four arguments: `layers` and `positions` choose states as in `logit_lens`, `row`
is of the batch, and `keep` says for each position of the text whether it counts, such as a row of the attention mask,
so that padding is left out. In results, layer −1 is the embedding, and layer i the state after layer i.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.arguments import whole
from workbench.analysis.stream import EMBED, Layer, Positions, Stream, choose_positions, residual_stream, take
from workbench.instrument import Activations


def residual_norms(
    acts: Activations,
    kind: Literal["l2", "rms"] = "l2",
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    row: int = 0,
    keep: Any = None,
) -> pd.DataFrame:
    """Length of each residual state, `sqrt(Σ x²)`, or its root mean square, `sqrt(mean(x²))`.

    Returns:
        Layers × positions.

    Raises:
        KeyError, ValueError: as `residual_stream`; ValueError for another kind.
    """
    if kind not in ("l2", "rms"):
        raise ValueError(f"kind is {kind!r}; allowed are 'l2' and 'rms'.")
    stream = residual_stream(acts, layers, positions, row, keep)
    rows = []
    for name in stream.names:  # one state at a time: all of them at once would be copied
        state = take(acts, name, stream.rows, row).float()
        norms = torch.linalg.vector_norm(state, dim=-1)
        rows.append(norms if kind == "l2" else norms / state.shape[-1] ** 0.5)
    columns = pd.Index(stream.positions.tolist(), name="position")
    return pd.DataFrame(torch.stack(rows).cpu().numpy(), pd.Index(stream.layers, name="layer"), columns)


def cosine_similarity(
    acts: Activations,
    *,
    layer: Layer | None = None,
    position: int | None = None,
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    row: int = 0,
    keep: Any = None,
) -> pd.DataFrame:
    """Cosines of the angles between residual states: of all positions at one layer, or of all layers at one position.

    Args:
        layer: the state whose positions to compare; or
        position: the position whose layers to compare. Exactly one of them.

    Returns:
        Positions × positions, or layers × layers; NaN for a state that is all zeros, which has no direction.

    Raises:
        KeyError, ValueError: as `residual_stream`; ValueError for both or neither of layer and position.
    """
    if (layer is None) == (position is None):
        given = "neither" if layer is None else "both"
        raise ValueError(
            f"exactly one of layer and position is needed; {given} was given. layer= compares the positions at a "
            "layer, position= the layers at a position."
        )
    if layer is not None:
        stream = residual_stream(acts, [layer], positions, row, keep)
        vectors, labels = stream.states()[0], pd.Index(stream.positions.tolist(), name="position")
    else:
        stream = residual_stream(acts, layers, whole(position, "position"), row, keep)
        vectors, labels = stream.states()[:, 0], pd.Index(stream.layers, name="layer")
    wide = vectors.double()
    unit = wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return pd.DataFrame((unit @ unit.T).clamp(-1.0, 1.0).cpu().numpy(), labels, labels)


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Residual states in a few principal components of all of them.

    Attributes:
        coordinates: (layer, pos, component): projections of the (centred) states.
        explained: of each component, its share of the whole variance; of the mean square where not centred.
        components: (component, d_model), of length 1; the number of largest magnitude in each is positive.
        centre: (d_model,) what was subtracted from every state: their mean, or zeros.
        layers, positions: what the first two axes of `coordinates` say.
    """

    coordinates: npt.NDArray[np.float32]
    explained: npt.NDArray[np.float64]
    components: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    layers: tuple[int, ...]
    positions: tuple[int, ...]

    def to_pandas(self) -> pd.DataFrame:
        """One row a state: `layer`, `position`, and a column `pc1`, `pc2`, … a component."""
        index = pd.MultiIndex.from_product([self.layers, self.positions], names=["layer", "position"])
        count = self.coordinates.shape[2]
        names = [f"pc{i + 1}" for i in range(count)]
        return pd.DataFrame(self.coordinates.reshape(-1, count), index, names).reset_index()


def pca_trajectories(
    acts: Activations,
    n: int = 2,
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    row: int = 0,
    keep: Any = None,
    centred: bool = True,
    unit: bool = False,
) -> Trajectories:
    """Principal components of the residual states of all chosen layers and positions together.

    A singular value decomposition in float64 of the matrix whose rows are the states (Pearson 1901; of its triangular
    factor, which has the same right singular vectors and is found layer by layer). Each token then is a path through
    the layers. States grow from layer to layer and a first token is often hundreds of times as long as others: `unit`
    and `keep` keep such lengths from being all that is seen.

    Args:
        n: how many components.
        centred: subtract the mean over all layers and positions first.
        unit: divide each state by its root mean square first, as the norms of the model do.

    Raises:
        KeyError, ValueError: as `residual_stream`; ValueError for more components than there are.
    """
    stream = residual_stream(acts, layers, positions, row, keep)
    states = _States(stream, unit)
    count, width = len(stream.names) * len(stream.rows), states.width
    if not 1 <= n <= min(count, width):
        raise ValueError(f"n is {n}; {count} states of {width} numbers have 1 … {min(count, width)} components.")
    centre = torch.stack([x.sum(0) for x in states]).sum(0) / count
    centre = centre if centred else torch.zeros_like(centre)
    values, components = torch.linalg.svd(_triangle(x - centre for x in states), full_matrices=False)[1:]
    components = components[:n]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    total = values.square().sum()
    return Trajectories(
        coordinates=np.stack([_floats((x - centre) @ components.T) for x in states]),
        explained=(values[:n].square() / total).cpu().numpy(),
        components=_floats(components),
        centre=_floats(centre),
        layers=stream.layers,
        positions=tuple(stream.positions.tolist()),
    )


@dataclasses.dataclass(frozen=True)
class _States:
    """The states of a stream in float64, one layer after the other; each divided by its root mean square if `unit`."""

    stream: Stream
    unit: bool

    def __iter__(self) -> Iterator[Float[Tensor, "pos d_model"]]:
        for name in self.stream.names:
            x = take(self.stream.acts, name, self.stream.rows, self.stream.row).double()
            size = x.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
            yield x / size if self.unit else x

    @property
    def width(self) -> int:
        """How many numbers a state has."""
        return int(self.stream.states(slice(0, 1)).shape[-1])


def _triangle(parts: Iterable[Float[Tensor, "row d_model"]]) -> Float[Tensor, "some d_model"]:
    """The triangular factor of all rows: of those of some parts, put above the rows of the next, and so on."""
    kept: list[Tensor] = []
    for part in parts:
        kept.append(part)
        if sum(map(len, kept)) >= 2 * part.shape[1]:  # with fewer rows it would cost more than it saves
            kept = [torch.linalg.qr(torch.cat(kept), mode="r").R]
    triangle: Tensor = torch.linalg.qr(torch.cat(kept), mode="r").R
    return triangle


def outlier_dimensions(
    acts: Activations,
    threshold: float = 6.0,
    layer_share: float = 0.25,
    state_share: float = 0.06,
    relative: bool = True,
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    row: int = 0,
    keep: Any = None,
) -> pd.DataFrame:
    """Dimensions of the residual stream that are far larger than the others, layer after layer.

    The criterion of Dettmers et al. 2022 (arXiv 2208.07339): a magnitude of at least 6 somewhere in at least 25 % of
    the layers, and in at least 6 % of all states. They measured hidden states of similar size; here a magnitude is
    counted in multiples of its state's root mean square, unless `relative` is off. (Kovaleva et al. 2021, arXiv
    2105.06990, found the same dimensions by their weights.) With `state_share=0` dimensions are found that are large at
    a single token, such as the first (massive activations: Sun et al. 2024, arXiv 2402.17762).

    Args:
        threshold: the least magnitude.
        layer_share: in how many of the layers, as a share, it has to be reached at some position.
        state_share: in how many of all states (layers × positions) it has to be reached.
        relative: divide magnitudes by the root mean square of their state.
        layers: default all that were captured but the embedding.

    Returns:
        One row a dimension, the most frequent first: `dimension`, `layers` and `states` (shares), `largest` (magnitude
        as in the stream), `ratio` (largest multiple of a root mean square).

    Raises:
        KeyError, ValueError: as `residual_stream`.
    """
    stream = residual_stream(acts, layers, positions, row, keep)
    pairs = list(zip(stream.layers, stream.names, strict=True))
    if layers is None and len(pairs) > 1:
        pairs = [pair for pair in pairs if pair[0] != EMBED]
    counts, largest, ratio = [], [], []
    for _, name in pairs:
        sizes = take(acts, name, stream.rows, row).float().abs()
        multiples = sizes / sizes.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        counts.append(((multiples if relative else sizes) >= threshold).sum(0))
        largest.append(sizes.amax(0))
        ratio.append(multiples.amax(0))
    reached = torch.stack(counts).cpu().numpy()  # (layer, d_model): in how many states
    frame = pd.DataFrame(
        {
            "dimension": np.arange(reached.shape[1]),
            "layers": (reached > 0).sum(0) / len(reached),
            "states": reached.sum(0) / (len(reached) * len(stream.rows)),
            "largest": _floats(torch.stack(largest).amax(0)),
            "ratio": _floats(torch.stack(ratio).amax(0)),
        }
    )
    found = frame[(frame["layers"] >= layer_share) & (frame["states"] >= state_share) & (frame["layers"] > 0)]
    return found.sort_values(["states", "ratio"], ascending=False, kind="stable").reset_index(drop=True)


def component_sizes(acts: Activations, positions: Positions = None, row: int = 0, keep: Any = None) -> pd.DataFrame:
    """How much attention and the MLP of each layer add to the residual stream.

    Args:
        acts: a capture of `attn_out` and `mlp_out`.

    Returns:
        One row a layer and position: `layer`, `position`, `attn` and `mlp` (lengths, `sqrt(Σ x²)`), and `attn_share` =
        attn / (attn + mlp), NaN where nothing is added.

    Raises:
        KeyError: if there is no layer of which both were captured.
        ValueError: as `residual_stream`.
    """
    layers = [i for i in acts.layers if ("attn_out", i) in acts and ("mlp_out", i) in acts]
    if not layers:
        raise KeyError(
            "component sizes need 'attn_out' and 'mlp_out' of the same layer; captured are "
            f"{', '.join(acts) or 'no points'}."
        )
    rows, where = choose_positions(acts, f"layers.{layers[0]}.attn_out", positions, keep)
    frames = []
    for i in layers:
        attn, mlp = (
            torch.linalg.vector_norm(take(acts, f"layers.{i}.{point}", rows, row).float(), dim=-1).cpu().numpy()
            for point in ("attn_out", "mlp_out")
        )
        frames.append(pd.DataFrame({"layer": i, "position": where.numpy(), "attn": attn, "mlp": mlp}))
    frame = pd.concat(frames, ignore_index=True)
    frame["attn_share"] = frame["attn"] / (frame["attn"] + frame["mlp"])
    return frame


def _floats(x: Float[Tensor, "*axes"]) -> npt.NDArray[np.float32]:
    return x.cpu().numpy().astype(np.float32)

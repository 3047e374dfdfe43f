"""What quantizing a model saved and cost: bytes, and how far its predictions are from the model's in floats."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.checkpoints.errors import CheckpointError
from workbench.model import LlamaForCausalLM
from workbench.model.quantized import QuantizedWeight

CHUNK = 128  # positions whose logits are compared at once: 2 × 128 × 49,152 × 4 bytes = 50 MB
KINDS = ("embedding", "attention", "mlp", "norm", "output")
# Written for this package; free for any use. Narration, explanation, a date, numbers and speech.
TEXT = """\
The ferry left the harbour at seven, an hour late, with eleven passengers and a crate of oranges. Nobody complained.
The captain, who had made the crossing for thirty years, said that the wind would turn before noon and that it was
better to wait for it than to fight it. She was right. By ten the sea lay flat and grey, and the islands came up one
after the other: first the long one with the lighthouse, then the three small ones that the fishermen call the sisters.

A lighthouse works in a simple way. A lamp stands in the middle of a ring of lenses, and the ring turns. Each lens
gathers the light into a narrow beam, so that a ship far away sees a short flash, then darkness, then a flash again. The
time between two flashes is different for every lighthouse, and a sailor who counts the seconds knows which one it is.
In 1823 Augustin Fresnel showed that a lens can be cut into rings and keep its power while losing most of its weight.

"How much are the oranges?" asked a boy at the rail. He had 4 coins in his hand, and he counted them twice: 1, 2, 3, 4.
"They are not for sale," said the captain, "but if you help to carry the crate, you may keep two of them."
The boy thought about this. He was ten years old and the crate was larger than he was. Then he put the coins back into
his pocket, rolled up his sleeves, and asked whether his sister could help as well, since that would make four oranges.
"""


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """A model compared with a reference on the same tokens; `print` it, or take `to_pandas()`.

    Attributes:
        bytes: weights of the model, each in memory once; `reference_bytes` those of the reference.
        bytes_by_kind: embedding, attention, mlp, norm, output → (the model's, the reference's); 0 for a tied output.
        positions: tokens that were predicted.
        perplexity: exp of the mean negative log-probability, in nats, of the next token; `reference_perplexity` too.
        mean_kl, max_kl: KL(reference ‖ model) of the next token's distribution, in nats, over positions.
        top1_agreement: share of positions at which both predict the same token.
    """

    bytes: int
    reference_bytes: int
    bytes_by_kind: dict[str, tuple[int, int]]
    positions: int
    perplexity: float
    reference_perplexity: float
    mean_kl: float
    max_kl: float
    top1_agreement: float

    def to_pandas(self) -> pd.DataFrame:
        """One row a kind of weight and one for all: bytes of both, and the ratio."""
        rows = {**self.bytes_by_kind, "all": (self.bytes, self.reference_bytes)}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["bytes", "reference_bytes"])
        frame["ratio"] = frame["reference_bytes"] / frame["bytes"].where(frame["bytes"] > 0)
        return frame

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e6:.1f} MB instead of {self.reference_bytes / 1e6:.1f} MB "
            f"({self.reference_bytes / max(self.bytes, 1):.2f} times smaller)\n"
            f"perplexity {self.perplexity:.3f} instead of {self.reference_perplexity:.3f}, {self.positions} tokens\n"
            f"KL divergence {self.mean_kl:.5f} nats on average, {self.max_kl:.4f} at most; "
            f"same most likely token at {self.top1_agreement:.1%} of positions"
        )


@torch.no_grad()
def quantization_report(
    model: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: Any = None,
    text: str | None = None,
    *,
    ids: Int[Tensor, "1 pos"] | None = None,
) -> QuantizationReport:
    """Compares a quantized model with the same one in floats.

    Args:
        model: the quantized one.
        reference: in floats; on any device.
        tokenizer: of both; needed unless `ids` are given.
        text: what to predict; by default a fixed one of some 400 tokens, so that reports can be compared.
        ids: the tokens instead, one row of at least two.

    Raises:
        CheckpointError: (a `ValueError`) if the models have other vocabularies, or there is not exactly one of text and
            ids.
    """
    if model.config.vocab_size != reference.config.vocab_size:
        raise CheckpointError(
            f"the models know {model.config.vocab_size} and {reference.config.vocab_size} tokens; compare a quantized "
            "model with the one it was made of."
        )
    tokens = _tokens(tokenizer, text, ids)
    own, other, kl, same = _predictions(model, reference, tokens)
    by_kind, reference_by_kind = _bytes_by_kind(model), _bytes_by_kind(reference)
    return QuantizationReport(
        bytes=sum(by_kind.values()),
        reference_bytes=sum(reference_by_kind.values()),
        bytes_by_kind={kind: (by_kind[kind], reference_by_kind[kind]) for kind in KINDS},
        positions=len(own),
        perplexity=math.exp(-own.mean()),
        reference_perplexity=math.exp(-other.mean()),
        mean_kl=kl.mean().item(),
        max_kl=kl.max().item(),
        top1_agreement=same.float().mean().item(),
    )


def _tokens(tokenizer: Any, text: str | None, ids: Tensor | None) -> Tensor:
    if ids is not None:
        if text is not None or ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
            raise CheckpointError(
                f"ids has shape {tuple(ids.shape)}{' and text is given too' if text is not None else ''}; give either "
                "a text and a tokenizer, or ids of shape (1, positions) with two positions at least."
            )
        return ids
    if tokenizer is None:
        raise CheckpointError("neither a tokenizer nor ids are given; the text has to become tokens.")
    found = torch.tensor([tokenizer.encode(TEXT if text is None else text)])
    if found.shape[1] < 2:
        raise CheckpointError(f"the text has {found.shape[1]} tokens; two are needed at least, to predict one.")
    return found


def _predictions(model: LlamaForCausalLM, reference: LlamaForCausalLM, tokens: Tensor) -> tuple[Tensor, ...]:
    """`_compare` of all positions, in chunks."""
    states: list[Any] = [m.model(tokens.to(m.device), use_cache=False) for m in (model, reference)]
    own, other = (state.last_hidden_state[0] for state in states)
    compared = [
        _compare(
            model.lm_head(own[start : start + CHUNK]).float(),
            reference.lm_head(other[start : start + CHUNK]).float().to(model.device),
            tokens[0, start + 1 : start + 1 + CHUNK].to(model.device),
        )
        for start in range(0, tokens.shape[1], CHUNK)
    ]
    return tuple(torch.cat(parts) for parts in zip(*compared, strict=True))


def _compare(
    logits: Float[Tensor, "pos vocab"], expected: Float[Tensor, "pos vocab"], targets: Int[Tensor, " known"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each position whose next token is known: its log-probability under both, the KL divergence, the same top-1."""
    own, other = logits[: len(targets)].log_softmax(-1), expected[: len(targets)].log_softmax(-1)
    rows = torch.arange(len(targets), device=own.device)
    kl = (other.exp() * (other - own)).sum(-1).clamp(min=0)
    return own[rows, targets], other[rows, targets], kl, own.argmax(-1) == other.argmax(-1)


def _bytes_by_kind(model: LlamaForCausalLM) -> dict[str, int]:
    sizes, seen = dict.fromkeys(KINDS, 0), set()
    for name, module in model.named_modules():
        own = module._buffers if isinstance(module, QuantizedWeight) else {}
        for tensor in (*module._parameters.values(), *own.values()):
            if tensor is not None and tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                sizes[_kind(name)] += tensor.nbytes
    return sizes


def _kind(name: str) -> str:
    for part, kind in (("embed_tokens", "embedding"), ("self_attn", "attention"), ("mlp", "mlp"), ("norm", "norm")):
        if part in name:
            return kind
    return "output"

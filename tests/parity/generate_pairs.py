"""Pairs of equal tiny models for the comparisons of `generate`, and the comparison itself."""

import functools

import torch
import transformers

from tests.conftest import tiny_config
from workbench.model import LlamaForCausalLM

RELATIVE = 1e-5
IDS = torch.randint(6, 97, (2, 9), generator=torch.Generator().manual_seed(3))  # 0: padding; 1 to 5: ends
PADDED = torch.ones_like(IDS)
PADDED[0, :4] = 0


@functools.cache
def pair(kind="gqa", **changes):
    """Our model and transformers', with the same weights. Not to be changed: tests share them."""
    torch.manual_seed(11)
    config = tiny_config(kind, **{"num_hidden_layers": 2, "eos_token_id": 5, **changes})
    values = config.to_dict()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{k: v for k, v in values.items() if k not in ("architectures", "model_type")})
    ).eval()
    theirs.set_attn_implementation(config.attn_implementation)
    ours = LlamaForCausalLM(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def both(options, kind="gqa", ids=IDS, mask=None, seed=7, ours=None, theirs=None, **changes):
    """Both models' result of the same call. `ours` and `theirs` are options of one side only."""
    mine, reference = pair(kind, **changes)
    torch.manual_seed(seed)
    a = mine.generate(ids, attention_mask=mask, **{**options, **(ours or {})})
    torch.manual_seed(seed)
    mask = torch.ones_like(ids) if mask is None and ids is not None else mask
    b = reference.generate(ids, attention_mask=mask, **{**options, **(theirs or {})})
    return a, b


def assert_same(mine, reference):
    """Equal texts; where more was asked for, equal numbers."""
    if isinstance(mine, torch.Tensor):
        assert mine.tolist() == reference.tolist()
        return
    assert mine.sequences.tolist() == reference.sequences.tolist()
    given = [key for key in reference if key != "past_key_values"]
    assert [key for key in mine if key != "past_key_values"] == given
    for key in set(given) - {"sequences"}:
        _assert_close(mine[key], reference[key], key)


def _assert_close(mine, reference, what):
    if isinstance(reference, tuple):
        assert len(mine) == len(reference), what
        for i, (a, b) in enumerate(zip(mine, reference, strict=True)):
            _assert_close(a, b, f"{what}[{i}]")
        return
    assert mine.shape == reference.shape, what
    assert mine.dtype == reference.dtype, what
    finite = reference.isfinite()
    assert torch.equal(finite, mine.isfinite()), what
    if finite.any():
        scale = reference[finite].abs().max().item()
        error = (mine[finite] - reference[finite]).abs().max().item()
        assert error <= RELATIVE * scale, f"{what}: {error / max(scale, 1e-30):.2e} relative"

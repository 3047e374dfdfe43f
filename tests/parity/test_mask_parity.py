"""The squares that are printed stand where transformers' own eager attention is not zero."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import byte_level_metadata
from tests.parity.test_model_parity import pair
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.compat.mask_visualizer import AttentionMaskVisualizer

TEXTS = ["abcde", "1 x?"]  # six and five tokens, <|im_start|> among them
OWN = torch.tril(torch.ones(6, 6)).bool() & ~torch.tril(torch.ones(6, 6), -4).bool()
MASKS = {
    "unpadded": (TEXTS[:1], None),
    "padded on the left": (TEXTS, None),
    "right": (["abcde", "fghij"], torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])),
    "holes": (["abcde", "fghij"], torch.tensor([[1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1]])),
    "own": (["abcde", "fghij"], torch.zeros(1, 1, 6, 6).masked_fill(~OWN, torch.finfo(torch.float32).min)),
    "own, a row each": (
        ["abcde", "fghij"],
        torch.zeros(2, 1, 6, 6).masked_fill(~torch.stack([OWN, OWN.T.contiguous()])[:, None], -torch.inf),
    ),
}


def make_tokenizer():
    return tokenizer_from_gguf(byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True}))


def printed(text, rows, length):
    """(rows, length, length): True where the printed text has ■."""
    lines = [line.split()[-length:] for line in text.splitlines() if line[:2].strip().isdigit()]
    assert {sign for line in lines for sign in line} <= {"■", "⬚"}
    return torch.tensor([[sign == "■" for sign in line] for line in lines]).view(rows, length, length)


def assert_same(shown, attentions):
    """A query that may attend to nothing is left out: transformers spreads its weight evenly, here it is zero."""
    busy = shown.any(-1)
    for layer, pattern in enumerate(attentions):
        theirs = (pattern > 0).permute(0, 2, 3, 1)[busy]  # (busy queries, keys, heads)
        assert torch.equal(theirs, shown[busy][..., None].expand_as(theirs)), f"layer {layer}"


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_squares_are_where_transformers_attends(kind, name, capsys):
    ours, theirs = pair(kind, vocab_size=280)
    texts, given_mask = MASKS[name]
    tokenizer = make_tokenizer()
    encoding = tokenizer(texts, padding=True, return_tensors="pt")
    mask = encoding.attention_mask if given_mask is None else given_mask
    reference = theirs(encoding.input_ids, attention_mask=mask, output_attentions=True)
    AttentionMaskVisualizer(ours, tokenizer)(texts, attention_mask=given_mask)
    shown = printed(capsys.readouterr().out, *encoding.input_ids.shape)
    assert_same(shown, reference.attentions)
    # The comparison can fail: the mask upside down, and the labels one token further on, as without the first token.
    for wrong in (~shown, shown.roll(1, 2)):
        with pytest.raises(AssertionError, match="layer 0"):
            assert_same(wrong, reference.attentions)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=2, max_size=2))
@torch.no_grad()
def test_any_padding(rows):
    ours, theirs = pair("gqa", vocab_size=280)
    tokenizer = make_tokenizer()
    ids = tokenizer(["abcde", "fghij"], return_tensors="pt").input_ids
    mask = torch.tensor(rows).long()
    reference = theirs(ids, attention_mask=mask, output_attentions=True)
    applied = AttentionMaskVisualizer(ours, tokenizer).mask(["abcde", "fghij"], attention_mask=mask)
    assert_same(applied.allowed().expand(2, 6, 6), reference.attentions)

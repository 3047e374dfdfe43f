"""Masks against transformers: the squares that are printed, and windows as Mistral computes them."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import byte_level_metadata
from tests.conftest import tiny_config
from tests.parity.test_model_parity import close, pair
from workbench.cache import DynamicCache
from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
from workbench.compat.mask_visualizer import AttentionMaskVisualizer
from workbench.model import LlamaForCausalLM
from workbench.model.mask import build_mask, causal, padding, window

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


# --- windows ---------------------------------------------------------------------------------------------------------


def mistral_pair(kind, n, implementation):
    """Our model, and a Mistral with the same weights and a sliding window of n."""
    config = tiny_config(kind, attn_implementation=implementation)
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "max_position_embeddings", "initializer_range", "pad_token_id", "rms_norm_eps")
    values = {name: getattr(config, name) for name in (*shared, *more)}
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**values, sliding_window=n)).eval()
    theirs.set_attn_implementation("eager")
    ours = LlamaForCausalLM(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


IDS = torch.randint(1, 97, (2, 13), generator=torch.Generator().manual_seed(2))
KEEP = torch.tensor([[0] * 5 + [1] * 8, [1] * 13])


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("n", [1, 4, 12, 40])
@pytest.mark.parametrize("keep", [None, KEEP], ids=["unpadded", "padded on the left"])
@torch.no_grad()
def test_a_window_is_mistral_s(keep, n, implementation):
    ours, theirs = mistral_pair("gqa", n, implementation)
    rules = [causal(), window(n), *([] if keep is None else [padding(keep)])]
    real = torch.ones_like(IDS).bool() if keep is None else keep.bool()
    mine, reference = ours(IDS, attention_mask=rules), theirs(IDS, attention_mask=keep, output_attentions=True)
    close(mine.logits[real], reference.logits[real], "logits")
    if n < 12:  # a window of one more is another one
        wider = ours(IDS, attention_mask=[causal(), window(n + 1), *rules[2:]]).logits
        with pytest.raises(AssertionError, match="logits"):
            close(wider[real], reference.logits[real], "logits")
    positions = torch.arange(13)
    mask = build_mask([causal(), window(n), *rules[2:]], positions, positions, 2, 4)
    assert_same(mask.allowed().expand(2, 13, 13), reference.attentions)


@torch.no_grad()
def test_a_window_is_mistral_s_in_chunks_and_decode_steps():
    ours, theirs = mistral_pair("gqa", 4, "sdpa")
    expected = theirs(IDS).logits
    my_cache, their_cache = DynamicCache(), transformers.DynamicCache(config=theirs.config)  # theirs forgets old keys
    for start, end in ((0, 6), (6, 11), (11, 12), (12, 13)):
        mine = ours(IDS[:, start:end], attention_mask=[causal(), window(4)], past_key_values=my_cache).logits
        reference = theirs(IDS[:, start:end], past_key_values=their_cache).logits
        close(mine, reference, f"logits from {start}")
        close(mine, expected[:, start:end], f"logits of one pass from {start}")

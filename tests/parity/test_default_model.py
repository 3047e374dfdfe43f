"""The real model: SmolLM2-135M-Instruct from its GGUF file, against transformers' own loading of the same file."""

import pytest
import torch

PROMPTS = {
    "fact": "The capital of France is",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "list": "1, 2, 3, 4, 5,",
    "chat": "<|im_start|>user\nWrite one sentence about the sea.<|im_end|>\n<|im_start|>assistant\n",
}
LONG = " ".join(f"On day {i} the ship sailed {i * i} miles and met {i % 7} whales." for i in range(60))


@pytest.fixture(autouse=True)
def _two_threads(_repeatable):
    torch.set_num_threads(2)


@pytest.mark.parametrize("name", PROMPTS)
@torch.no_grad()
def test_logits(default_pair, name):
    ours, theirs = default_pair
    ids = torch.tensor([ours.tokenizer.encode(PROMPTS[name])])
    assert (ours.model(ids).logits - theirs(ids).logits).abs().max() <= 2e-3


@torch.no_grad()
def test_logits_and_hidden_states_of_a_long_text(default_pair):
    ours, theirs = default_pair
    ids = torch.tensor([ours.tokenizer.encode(LONG)])
    assert ids.shape[1] > 900
    mine, reference = ours.model(ids, output_hidden_states=True), theirs(ids, output_hidden_states=True)
    assert (mine.logits - reference.logits).abs().max() <= 2e-3
    for i, (a, b) in enumerate(zip(mine.hidden_states, reference.hidden_states, strict=True)):
        # Relative to the largest entry: a few dimensions of this model are a thousand times larger than the rest.
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), f"hidden_states[{i}]"


@pytest.mark.parametrize("name", PROMPTS)
def test_forty_greedy_tokens(default_pair, name):
    ours, theirs = default_pair
    ids = torch.tensor([ours.tokenizer.encode(PROMPTS[name])])
    # The mask is given because token 2 is in a chat: without one, both would take it for padding.
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 40, "eos_token_id": -1, "pad_token_id": 2}
    expected = theirs.generate(ids, do_sample=False, **options)
    mine = ours.model.generate(ids, **options)
    assert mine.shape[1] == ids.shape[1] + 40
    assert mine.tolist() == expected.tolist()


@torch.no_grad()
def test_a_planted_bug_is_noticed(default_pair):
    """One rotary position too far in one layer moves the logits past the tolerance."""
    ours, theirs = default_pair
    ids = torch.tensor([ours.tokenizer.encode(PROMPTS["fact"])])
    attention = ours.model.model.layers[7].self_attn
    handle = attention.hook_k_rot.register_forward_hook(lambda module, args, out: out.roll(1, dims=1))
    try:
        assert (ours.model(ids).logits - theirs(ids).logits).abs().max() > 2e-3
    finally:
        handle.remove()

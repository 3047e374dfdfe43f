"""Which forwards a capture takes: those of its own thread, and what it knows of the text they read."""

import threading

import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import Cancelled, cancellable, capture

IDS = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_another_thread_s_forwards_are_neither_captured_nor_stopped():
    """The page runs its model while a cell captures from it: neither may end up in the other's tensors."""
    model = tiny_model()
    with capture(model, "q_rot", layers=[0]) as acts, cancellable(model, lambda: True):
        thread = threading.Thread(target=lambda: torch.no_grad()(model)(IDS))
        thread.start()
        thread.join()
        assert len(acts) == 0
        with pytest.raises(Cancelled):
            model(IDS)
    with capture(model, "q_rot", layers=[0]) as acts:
        thread = threading.Thread(target=lambda: torch.no_grad()(model)(IDS))
        model(IDS[:, :3])
        thread.start()
        thread.join()
    assert acts["q_rot", 0].shape[1] == 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("forwards", "expected"),
    [
        (lambda m, c: [m(IDS, past_key_values=c)], True),
        (lambda m, c: [m(IDS[:, :5], past_key_values=c), m(input_ids=IDS[:, 5:], past_key_values=c)], True),
        (lambda m, c: [m(IDS, torch.ones_like(IDS))], True),
        (lambda m, c: [m(IDS), m(IDS)], False),
        (lambda m, c: [m(IDS, attention_mask=torch.ones_like(IDS).index_fill(1, torch.tensor([0]), 0))], False),
        (lambda m, c: [m(IDS, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool).tril())], False),
    ],
    ids=["one pass", "chunks", "a mask of ones", "two texts", "padding", "4-D mask"],
)
def test_a_capture_knows_whether_it_is_one_text(forwards, expected):
    model = tiny_model()
    with capture(model, "q_rot") as acts:
        forwards(model, DynamicCache())
    assert acts.is_one_text == expected


@torch.no_grad()
def test_a_capture_that_begins_later_is_not_one_text():
    model, cache = tiny_model(), DynamicCache()
    model(IDS[:, :5], past_key_values=cache)
    with capture(model, "q_rot") as acts:
        model(IDS[:, 5:], past_key_values=cache)
    assert not acts.is_one_text
    assert (acts.spans[0].start, acts.spans[0].count) == (5, IDS.shape[1] - 5)

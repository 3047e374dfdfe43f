import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import Cancelled, cancellable, capture

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("stop_at", [0, 1, 2], ids=lambda i: f"before layer {i}")
@torch.no_grad()
def test_a_cancelled_forward_stops_before_the_next_layer(stop_at):
    model, begun = tiny_model(), []
    with (
        capture(model, "resid_post", "logits") as acts,
        cancellable(model, lambda: len(begun) == stop_at, begun.append),
        pytest.raises(Cancelled),
    ):
        model(IDS)
    assert begun == list(range(stop_at))
    assert len(acts) == len(acts.spans) == 0, "what did not end is not captured"
    assert hooks(model) == 0


@pytest.mark.parametrize("of", ["with head", "base"])
@torch.no_grad()
def test_a_forward_that_is_not_stopped_is_unchanged_and_every_layer_is_told(of):
    model = tiny_model()
    target, begun = (model if of == "with head" else model.model), []
    plain = target(IDS)[0]
    with cancellable(target, lambda: False, begun.append):
        assert torch.equal(target(IDS)[0], plain)
    assert begun == [0, 1, 2]
    assert hooks(model) == 0


@torch.no_grad()
def test_hooks_of_cancellable_are_removed_after_another_exception():
    model = tiny_model()
    with pytest.raises(ZeroDivisionError), cancellable(model, lambda: 1 / 0):
        model(IDS)
    assert hooks(model) == 0


@pytest.mark.parametrize("start", [0, 6], ids=["prefill", "later chunk"])
@pytest.mark.parametrize("stop_at", [0, 1, 2], ids=lambda i: f"before layer {i}")
@torch.no_grad()
def test_after_a_cancel_the_cache_gives_the_same_results(stop_at, start):
    model, cache, begun = tiny_model(), DynamicCache(), []
    whole = model(IDS).logits
    if start:
        model(IDS[:, :start], past_key_values=cache)
    with cancellable(model, lambda: len(begun) == stop_at, begun.append), pytest.raises(Cancelled):
        model(IDS[:, start:], past_key_values=cache)
    assert cache.length == start
    again = model(IDS[:, start:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, start:], rtol=1e-4, atol=1e-5)

"""After any number of captures, edits, errors and cancels a model is as it was: no hook, the same bits, no memory."""

import gc

import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import Cancelled, CaptureBudgetError, EditError, cancellable, capture, edit, edits
from workbench.instrument.selfcheck import selfcheck

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def capture_everything(model, turn):
    with capture(model, "*") as acts:
        model(IDS)
    assert acts["pattern", turn % 3].shape == (2, 4, 12, 12)


def capture_steps(model, turn):
    cache = DynamicCache()
    with capture(model, "*", positions=slice(-2, None)) as acts:
        for start, end in ((0, 7), (7, 8), (8, 12)):
            model(IDS[:, start:end], past_key_values=cache)
    assert acts["q", 0].shape[1] == 5


def capture_stored(model, turn):
    with capture(model, "*", derive=False, dtype=torch.bfloat16):
        model(IDS)


def cancel(model, turn):
    begun = []
    with (
        capture(model, "*"),
        cancellable(model, lambda: len(begun) == turn % 3, begun.append),
        pytest.raises(Cancelled),
    ):
        model(IDS)


def fail_in_a_forward(model, turn):
    with capture(model, "*"), pytest.raises(ValueError, match="attention_mask has shape"):
        model(IDS, attention_mask=torch.ones(1, 1))


def fail_in_the_block(model, turn):
    def interrupted():
        with capture(model, "pattern"):
            model(IDS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def fail_in_a_hook(model, turn):
    def burst(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture(model, "*"), edit(model, {"layers.1.z": burst}):
        model(IDS)


def refuse(model, turn):
    with capture(model, "*", budget=1000), pytest.raises(CaptureBudgetError):
        model(IDS)


def edit_something(model, turn):
    what = [edits.zero("z", heads=turn % 4, layers=1), edits.knock_out(edges=[(9, 3)]), edits.scale("act", 2.0)]
    with edit(model, what), capture(model, "*"):
        model(IDS)


def edit_without_effect(model, turn):
    with pytest.raises(EditError), edit(model, edits.zero("z", positions=40)):
        model(IDS)


def edit_wrongly(model, turn):
    with pytest.raises(EditError), edit(model, {"q": lambda x: x[:, :1]}):
        model(IDS)


def generate(model, turn):
    with capture(model, "resid_post", "pattern"), edit(model, {"resid_post": lambda x: x * 1.01}):
        model.generate(
            IDS, max_new_tokens=3, num_beams=1 + turn % 2, do_sample=False, pad_token_id=0, eos_token_id=None
        )


def with_gradients(model, turn):
    with torch.enable_grad():
        with capture(model, "resid_post", gradients=True) as acts:
            out = model(IDS)
        out.logits.sum().backward()
        assert acts.grad(("resid_post", 1)).shape == (2, 12, 32)
    model.zero_grad(set_to_none=True)


def check(model, turn):
    assert selfcheck(model, verbose=False).passed


WAYS = [
    capture_everything,
    capture_steps,
    capture_stored,
    cancel,
    fail_in_a_forward,
    fail_in_the_block,
    fail_in_a_hook,
    refuse,
    edit_something,
    edit_without_effect,
    edit_wrongly,
    generate,
    with_gradients,
    check,
]


def live_bytes():
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return sum(s.nbytes() for s in {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}.values())


@torch.no_grad()
def test_200_in_a_row_leave_no_hook_no_change_and_no_memory():
    model = tiny_model()
    plain = model(IDS).logits
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for way in WAYS:  # what is made once and kept, such as copies of functions
        way(model, 0)
    held = live_bytes()
    for turn in range(200):
        WAYS[turn % len(WAYS)](model, turn)
        assert hooks(model) == 0, WAYS[turn % len(WAYS)].__name__
        assert torch.equal(model(IDS).logits, plain), WAYS[turn % len(WAYS)].__name__
    assert live_bytes() == held
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@torch.no_grad()
def test_each_alone_leaves_nothing(way):
    model = tiny_model()
    plain = model(IDS).logits
    way(model, 0)
    held = live_bytes()
    way(model, 1)
    assert hooks(model) == 0
    assert torch.equal(model(IDS).logits, plain)
    assert live_bytes() == held

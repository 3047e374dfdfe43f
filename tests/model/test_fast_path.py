import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, resolve
from workbench.model import fast_path, llama
from workbench.model.linear import Linear

IDS = torch.randint(1, 97, (2, 9), generator=torch.Generator().manual_seed(5))
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
CONFIGS = {
    "mha": ("mha", {}),
    "gqa": ("gqa", {}),
    "mqa": ("mqa", {}),
    "bias": ("gqa", {"attention_bias": True, "mlp_bias": True}),
    "head_dim": ("gqa", {"head_dim": 16}),
    "gelu": ("gqa", {"hidden_act": "gelu"}),
    "flex_attention": ("gqa", {"attn_implementation": "flex_attention"}),
}


@pytest.fixture
def taken(monkeypatch):
    """One entry for each layer that ran without modules."""
    return counted(monkeypatch, "run_layer")


@pytest.fixture
def watched(monkeypatch):
    """One entry for each layer that called hook points alone."""
    return counted(monkeypatch, "run_watched_layer")


def counted(monkeypatch, name):
    layers, real = [], getattr(fast_path, name)
    monkeypatch.setattr(fast_path, name, lambda *a: layers.append(1) or real(*a))
    return layers


def by_modules(monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr(llama, "fast_layers", lambda *a: None)
        return run()


@pytest.mark.parametrize(("kind", "changes"), CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("mask", [None, PADDED], ids=["plain", "padded"])
@torch.no_grad()
def test_every_bit_is_what_the_modules_compute(kind, changes, mask, taken, monkeypatch):
    model = tiny_model(kind, **changes)

    def run():
        cache, parts = DynamicCache(), []
        for start, end in ((0, 4), (4, 8), (8, 9)):
            seen = None if mask is None else mask[:, :end]
            out = model(IDS[:, start:end], attention_mask=seen, past_key_values=cache, output_hidden_states=True)
            parts += [out.logits, *out.hidden_states]
        one = model(IDS[:1, :1])
        return [*parts, one.logits, *(cache.keys(i) for i in range(3)), *(cache.values(i) for i in range(3))]

    expected = by_modules(monkeypatch, run)
    assert taken == []
    actual = run()
    assert len(taken) == 4 * 3
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


class Passes(nn.Module):
    """A layer that does nothing."""

    def forward(self, x, rope, mask, cache=None, patterns=None):
        return x


def in_bfloat16(model):
    model.bfloat16()


NOT_TAKEN = {
    "a hook on a layer": lambda m: m.model.layers[1].register_forward_hook(lambda *a: None),
    "a hook on attention": lambda m: m.model.layers[0].self_attn.register_forward_hook(lambda *a: None),
    "a pre-hook on a projection": lambda m: m.model.layers[2].mlp.up_proj.register_forward_pre_hook(lambda *a: None),
    "a forward put over one": lambda m: setattr(m.model.layers[0].mlp, "forward", lambda x: x * 0),
    "another module": lambda m: setattr(m.model.layers[0], "mlp", nn.Identity()),
    "a wrapped layer": lambda m: m.model.layers.insert(0, type("Mine", (llama.LlamaDecoderLayer,), {})(m.config, 0)),
    "another layer type": lambda m: m.model.layers.append(Passes()),
    "another projection": lambda m: setattr(m.model.layers[1].self_attn, "o_proj", nn.Sequential(nn.Linear(32, 32))),
    "a weight laid elsewhere": lambda m: setattr(m.model.layers[1].mlp.up_proj.weight, "data", torch.randn(48, 32)),
    "eager attention": lambda m: m.set_attn_implementation("eager"),
    "training": lambda m: m.train(),
}


@pytest.mark.parametrize("warm", [False, True], ids=["at once", "after a forward"])
@pytest.mark.parametrize("change", NOT_TAKEN.values(), ids=NOT_TAKEN.keys())
@torch.no_grad()
def test_what_the_modules_mean_more_by_goes_to_the_modules(change, warm, taken, monkeypatch):
    model = tiny_model()
    if warm:
        model(IDS)
        assert len(taken) == 3
        taken.clear()
    change(model)
    actual = model(IDS).logits
    assert taken == []
    assert torch.equal(actual, by_modules(monkeypatch, lambda: model(IDS).logits))


WATCHED = [name for name, point in POINTS.items() if point.per_layer]


@pytest.mark.parametrize(("kind", "changes"), CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("mask", [None, PADDED], ids=["plain", "padded"])
@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
@torch.no_grad()
def test_a_layer_whose_points_are_hooked_shows_the_tensors_of_the_modules(
    kind, changes, mask, cached, watched, taken, monkeypatch
):
    model = tiny_model(kind, **changes)

    def run():
        shown, cache = {}, DynamicCache() if cached else None
        items = resolve(model, WATCHED, layers=[1])
        handles = []
        for item in items:

            def see(module, args, out, name=item.point.name):
                shown[name] = out

            handles.append(item.module.register_forward_hook(see))
        out = model(IDS, attention_mask=mask, past_key_values=cache, use_cache=cached)
        for handle in handles:
            handle.remove()
        return {**shown, "mask": shown["mask"].allowed(), "logits": out.logits}

    expected = by_modules(monkeypatch, run)
    assert (taken, watched) == ([], [])
    actual = run()
    assert (len(taken), len(watched)) == (2, 1), "the other layers have nobody to show anything to"
    assert actual.keys() == expected.keys() == {*WATCHED, "logits"}
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("name", WATCHED)
@torch.no_grad()
def test_every_point_alone_sends_its_layer_to_the_watched_path_and_is_called_once(name, watched, taken):
    model, calls = tiny_model(), []
    module = resolve(model, [name], layers=[2])[0].module
    handle = module.register_forward_pre_hook(lambda *a: calls.append(1))
    model(IDS)
    assert (len(taken), len(watched), len(calls)) == (2, 1, 1)
    handle.remove()
    model(IDS)
    assert (len(taken), len(watched), len(calls)) == (5, 1, 1)


@torch.no_grad()
def test_what_a_hook_was_shown_is_never_changed_in_place():
    model, shown = tiny_model(), []
    for item in resolve(model, [name for name in WATCHED if name != "mask"]):
        item.module.register_forward_hook(lambda module, args, out: shown.append((out, out.clone())))
    model(IDS)
    assert len(shown) == 3 * (len(WATCHED) - 1)
    assert all(torch.equal(kept, copy) for kept, copy in shown)


@torch.no_grad()
def test_what_a_hook_returns_goes_on(watched):
    model = tiny_model()
    plain = model(IDS).logits
    for name in WATCHED:
        if name in ("mask", "scores"):
            continue
        module = resolve(model, [name], layers=[1])[0].module
        handle = module.register_forward_hook(lambda module, args, out: out * 1.5)
        assert not torch.allclose(model(IDS).logits, plain), name
        handle.remove()
    assert len(watched) == len(WATCHED) - 2
    assert torch.equal(model(IDS).logits, plain)


CHANGES = {
    "another eps": lambda m: setattr(m.model.layers[1].input_layernorm, "variance_epsilon", 0.5),
    "another scaling": lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.01),
    "another activation": lambda m: setattr(m.model.layers[1].mlp, "act_fn", torch.relu),
    "a weight written": lambda m: m.model.layers[1].self_attn.k_proj.weight.mul_(2),
    "a gain written": lambda m: m.model.layers[1].input_layernorm.weight.mul_(2),
    "another gain": lambda m: setattr(m.model.layers[1].input_layernorm, "weight", nn.Parameter(torch.rand(32))),
    "another layer": lambda m: m.model.layers.__setitem__(0, copy.deepcopy(m.model.layers[2])),
    "a layer less": lambda m: m.model.layers.__delitem__(2),
    "layers exchanged": lambda m: setattr(m.model, "layers", nn.ModuleList([m.model.layers[i] for i in (2, 0, 1)])),
    "a state dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "bfloat16": in_bfloat16,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@torch.no_grad()
def test_what_is_changed_is_computed_with_at_once(change, taken, monkeypatch):
    model = tiny_model()
    before = model(IDS).logits
    taken.clear()
    change(model)
    actual = model(IDS, use_cache=False).logits
    assert len(taken) == len(model.model.layers)
    assert torch.equal(actual, by_modules(monkeypatch, lambda: model(IDS, use_cache=False).logits))
    assert not torch.equal(actual, before)


def test_gradients_come_from_the_modules(taken):
    model = tiny_model()
    model(IDS, labels=IDS).loss.backward()
    assert taken == []
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_a_global_hook_sees_every_module(taken):
    model, seen = tiny_model(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module)))
    try:
        model(IDS)
    finally:
        handle.remove()
    assert taken == []
    assert seen.count(llama.LlamaMLP) == 3


@torch.no_grad()
def test_a_copy_is_itself(taken):
    model = tiny_model()
    expected = model(IDS).logits
    other = copy.deepcopy(model)
    other.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(other(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_a_model_that_is_gone_is_not_kept():
    model = tiny_model()
    model(IDS)
    watched = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
    assert model.model in fast_path._MADE
    del model
    gc.collect()
    assert watched() is None


@torch.no_grad()
@pytest.mark.parametrize("kind", [llama.LlamaMLP, llama.LlamaAttention, Linear, llama.LlamaRMSNorm])
def test_a_forward_put_into_a_class_is_called(kind, taken, monkeypatch):
    model = tiny_model()
    before, real = model(IDS).logits, kind.forward
    taken.clear()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, *a, **k: double(real(self, *a, **k)))
        assert not torch.allclose(model(IDS).logits, before)
        assert taken == []
    assert torch.equal(model(IDS).logits, before)


def double(out):
    return (out[0] * 2, out[1]) if isinstance(out, tuple) else out * 2


@torch.no_grad()
def test_autocast_reaches_every_product():
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(IDS).logits.dtype == torch.bfloat16
        assert model(IDS[:1, :1]).logits.dtype == torch.bfloat16
        assert model.generate(IDS, max_new_tokens=4).shape == (2, 13)


@torch.no_grad()
def test_operations_are_counted():
    model = tiny_model()
    with FlopCounterMode(display=False) as counter:
        model(IDS)
    assert counter.get_total_flops() > 2 * 18 * 3 * 32 * 48 * 3


@pytest.mark.parametrize("leave", [lambda m: m.to(torch.bfloat16), lambda m: m.train()], ids=["moved", "training"])
def test_weights_that_are_left_are_not_kept(leave):
    model = tiny_model()
    with torch.no_grad():
        model(IDS)
    assert model.model in fast_path._MADE
    leave(model)
    assert model.model not in fast_path._MADE


@torch.no_grad()
def test_a_hook_on_a_layer_sees_the_residual_stream():
    model = tiny_model()
    states = model(IDS, output_hidden_states=True).hidden_states
    seen = []
    model.model.layers[1].register_forward_hook(lambda module, args, out: seen.append(out) or out + 1)
    moved = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(seen[0], states[2])
    assert torch.equal(moved[2], states[2] + 1)


@torch.no_grad()
def test_a_config_of_fewer_layers_uses_the_first():
    model = tiny_model()
    states = model(IDS, output_hidden_states=True).hidden_states
    model.config.num_hidden_layers = 2
    short = model(IDS, output_hidden_states=True).hidden_states
    assert len(short) == 3
    torch.testing.assert_close(short[2], model.model.norm(states[2]))

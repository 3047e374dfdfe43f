"""Weights of 4 and 8 bits: codes, kernels and layers, against the same in plain Python and floats."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import tiny_model
from workbench.model import packing
from workbench.model.joined import joined, pack, project
from workbench.model.quantized import QuantizedEmbedding, QuantizedLinear

ROUNDING = 2**-8  # relative, of a bfloat16
# rows, columns, group: whole blocks of rows, half a block, other groups.
INT4 = [(128, 64, 32), (192, 576, 64), (64, 256, 128), (128, 512, 256), (80, 64, 32), (16, 96, 32)]
INT8 = [(64, 64), (97, 32), (5, 48), (33, 40), (16, 7)]  # the last two are no widths for the kernel


def plain(codes, scales):
    """The weight that codes and scales mean, value by value."""
    group = codes.shape[1] // scales.shape[0]
    weight = torch.empty(codes.shape)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            scale, zero = scales[column // group, row].tolist()
            weight[row, column] = (int(codes[row, column]) - 8) * scale + zero
    return weight


def error(actual, expected):
    return ((actual.float() - expected).abs().max() / expected.abs().max()).item()


def codes_of(rows, columns, group):
    scales = torch.rand(columns // group, rows, 2).bfloat16() - 0.3
    return torch.randint(0, 16, (rows, columns), dtype=torch.uint8), scales


@pytest.mark.parametrize(("rows", "columns", "group"), INT4)
def test_a_4_bit_layer_computes_with_the_weight_that_its_codes_mean(rows, columns, group):
    codes, scales = codes_of(rows, columns, group)
    expected = plain(codes, scales)
    layer = QuantizedLinear(columns, rows, 4, group).set_codes(codes, scales)
    assert torch.equal(layer.dequantize(), expected.bfloat16().float())
    for count in (1, 5, packing.INT4_ROWS_TO_UNPACK, packing.INT4_ROWS_TO_UNPACK + 3):
        x = torch.randn(count, columns).bfloat16()
        assert error(layer(x), x.float() @ expected.T) < 2 * ROUNDING, count


@pytest.mark.parametrize(("rows", "columns"), INT8)
def test_an_8_bit_layer_computes_with_the_weight_that_its_codes_mean(rows, columns):
    codes, scales = torch.randint(-127, 128, (rows, columns), dtype=torch.int8), torch.rand(rows).bfloat16()
    expected = torch.tensor([[int(c) * float(scales[r]) for c in codes[r]] for r in range(rows)])
    layer = QuantizedLinear(columns, rows, 8).set_codes(codes, scales)
    assert torch.equal(layer.dequantize(), expected)
    for count in (1, 5, packing.INT8_ROWS_TO_UNPACK, packing.INT8_ROWS_TO_UNPACK + 3):
        x = torch.randn(count, columns).bfloat16()
        assert error(layer(x), x.float() @ expected.T) < 2 * ROUNDING, count


@pytest.mark.parametrize("offset", [1, 2, 8, 16, 32])
def test_memory_that_begins_anywhere(offset):
    """Files are read where they lie, and the last positions of a batch begin anywhere."""
    codes, scales = torch.randint(-127, 128, (64, 128), dtype=torch.int8), torch.rand(64).bfloat16()
    shifted = torch.empty(codes.numel() + 64, dtype=torch.int8)[offset : offset + codes.numel()].view(64, 128)
    x = torch.randn(5 * 128 + 64).bfloat16()[offset : offset + 5 * 128].view(5, 128)
    expected = QuantizedLinear(128, 64, 8).set_codes(codes, scales)(x.clone())
    assert (
        error(QuantizedLinear(128, 64, 8).set_codes(shifted.copy_(codes), scales)(x), expected.float()) < 2 * ROUNDING
    )
    layer = QuantizedLinear(128, 64, 8)
    layer.set_stored("codes", shifted)
    layer.set_stored("scales", scales)
    assert torch.equal(layer(x), expected)
    four = QuantizedLinear(64, 64, 4, 32).set_weight(torch.randn(64, 64))
    x = torch.randn(3 * 64 + 64).bfloat16()[offset : offset + 3 * 64].view(3, 64)
    assert torch.equal(four(x), four(x.clone()))


def test_many_rows_are_unpacked_in_parts(monkeypatch):
    layer = QuantizedLinear(64, 96, 8).set_weight(torch.randn(96, 64))
    x = torch.randn(40, 64).bfloat16()
    whole = layer(x)
    monkeypatch.setattr(packing, "CHUNK", 64 * 7)
    assert len(list(packing.split_rows(layer.codes, 64, packing.CHUNK))) == 14
    assert torch.equal(layer(x), whole)


@pytest.mark.parametrize(("rows", "columns", "group"), INT4)
def test_packing_loses_nothing(rows, columns, group):
    codes, _ = codes_of(rows, columns, group)
    packed = packing.pack_int4(codes)
    assert packed.nbytes == codes.numel() // 2
    assert torch.equal(packing.unpack_int4(packed), codes)
    halves = packing.two_a_byte(codes)
    assert halves[0, 0] == codes[0, 0] + 16 * codes[0, 1]
    assert torch.equal(packing.one_a_byte(halves), codes)


@pytest.mark.parametrize("group", packing.GROUP_SIZES)
def test_rounding_to_4_bits_is_better_than_the_whole_range(group):
    weight = torch.randn(48, 512)
    codes, scales = packing.round_to_int4(weight, group)
    groups = weight.view(48, -1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    whole = ((((groups - low) / step).round() * step + low).view_as(weight) - weight).square().mean()
    found = (plain(codes, scales) - weight).square().mean()
    assert found < 0.95 * whole
    assert scales.dtype == torch.bfloat16


def test_rounding_finds_codes_that_are_there():
    codes, scales = codes_of(32, 64, 32)
    scales[..., 0] = scales[..., 0].abs() + 0.01
    codes[:, ::32], codes[:, 1::32] = 0, 15  # every group uses its whole range
    weight = plain(codes, scales)
    again, _ = packing.round_to_int4(weight, 32)
    assert torch.equal(again, codes)


@pytest.mark.parametrize("value", [0.0, 0.37, -2.0])
def test_constant_rows_keep_their_value(value):
    weight = torch.full((16, 64), value)
    for layer in (QuantizedLinear(64, 16, 4, 32), QuantizedLinear(64, 16, 8)):
        assert torch.allclose(layer.set_weight(weight).dequantize(), weight, rtol=ROUNDING)


def test_rounding_to_8_bits_is_within_half_a_step_and_never_clips():
    weight = torch.randn(300, 64) * torch.logspace(-6, 3, 300)[:, None]
    codes, scales = packing.round_to_int8(weight)
    assert codes.int().abs().amax(1).unique().tolist() in ([127], [126, 127])
    steps = scales.float()[:, None]
    assert ((codes.float() * steps - weight).abs() <= steps * 0.5001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_of_any_shape_and_dtype_and_the_bias(bits, dtype):
    linear = nn.Linear(64, 48).to(dtype)
    layer = QuantizedLinear(64, 48, bits, 32 if bits == 4 else 0, bias=linear.bias).set_weight(linear.weight)
    x = torch.randn(2, 3, 64).to(dtype)
    with torch.no_grad():
        out = layer(x)
        expected = F.linear(x.float(), layer.dequantize(), linear.bias.float())
    assert (out.dtype, out.shape) == (dtype, (2, 3, 48))
    assert error(out, expected) < 2 * ROUNDING
    assert layer(x[0, 0][None]).shape == (1, 48)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_of_the_input_is_that_of_the_weight_in_floats(bits):
    layer = QuantizedLinear(64, 48, bits, 32 if bits == 4 else 0).set_weight(torch.randn(48, 64))
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    F.linear(reference, layer.dequantize()).square().sum().backward()
    assert torch.allclose(x.grad, reference.grad, rtol=1e-5)
    assert not list(layer.parameters())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_joined_layers_give_what_each_gives(bits, bias):
    sizes = (128, 64, 64)
    plain_layers = [nn.Linear(64, size, bias=bias) for size in sizes]
    layers = [
        QuantizedLinear(64, linear.out_features, bits, 32 if bits == 4 else 0, bias=linear.bias).set_weight(
            linear.weight
        )
        for linear in plain_layers
    ]
    for rows in (1, 100):
        x = torch.randn(1, rows, 64)
        with torch.no_grad():
            expected = [layer(x) for layer in layers]
            pack(layers)
            assert joined(layers) is not None
            for actual, single, alone in zip(project(x, layers), layers, expected, strict=True):
                assert torch.equal(actual, alone)
                assert torch.equal(single(x), alone)
    storages = {layer.codes.untyped_storage().data_ptr() for layer in layers}
    assert len(storages) == 1
    assert sum(layer.codes.nbytes for layer in layers) == layers[0].codes.untyped_storage().nbytes()


def test_joined_layers_give_gradients_of_the_input_too():
    layers = [QuantizedLinear(64, 64, 4, 32).set_weight(torch.randn(64, 64)) for _ in range(2)]
    pack(layers)
    x = torch.randn(1, 2, 64, requires_grad=True)
    sum(part.sum() for part in project(x, layers)).backward()
    expected = sum(layer.dequantize().sum(0) for layer in layers)
    assert torch.allclose(x.grad, expected.expand_as(x), rtol=1e-4, atol=1e-4)


def test_layers_that_cannot_be_joined_are_called_singly():
    x = torch.randn(1, 2, 64)
    fitting = QuantizedLinear(64, 64, 4, 32).set_weight(torch.randn(64, 64))
    for other in (
        QuantizedLinear(64, 64, 8).set_weight(torch.randn(64, 64)),
        QuantizedLinear(64, 64, 4, 64).set_weight(torch.randn(64, 64)),
        nn.Linear(64, 64),
        QuantizedLinear(64, 16, 4, 32).set_weight(torch.randn(16, 64)),
    ):
        pair = [other, fitting] if getattr(other, "out_features", 0) == 16 else [fitting, other]
        pack(pair)
        assert joined(pair) is None
        with torch.no_grad():
            assert all(torch.equal(a, layer(x)) for a, layer in zip(project(x, pair), pair, strict=True))


def test_replacing_or_hooking_one_of_joined_layers_is_seen():
    layers = [QuantizedLinear(64, 64, 4, 32).set_weight(torch.randn(64, 64)) for _ in range(3)]
    pack(layers)
    x = torch.randn(1, 2, 64)
    calls = []
    handle = layers[1].register_forward_hook(lambda module, args, out: calls.append(out))
    project(x, layers)
    assert len(calls) == 1
    handle.remove()
    layers[1].set_weight(torch.randn(64, 64))
    assert torch.equal(project(x, layers)[1], layers[1](x))
    assert joined([layers[2], layers[0]]) is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same_and_share_nothing(copied):
    layers = nn.ModuleList(QuantizedLinear(64, 64, 4, 32).set_weight(torch.randn(64, 64)) for _ in range(2))
    pack(layers)
    x = torch.randn(1, 1, 64)
    expected = project(x, layers)
    other = copied(layers)
    assert all(torch.equal(a, b) for a, b in zip(project(x, other), expected, strict=True))
    other[0].codes.zero_()
    assert all(torch.equal(a, b) for a, b in zip(project(x, layers), expected, strict=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_state_dict_and_back(bits):
    layers = nn.ModuleList(
        QuantizedLinear(64, 128, bits, 32 if bits == 4 else 0).set_weight(torch.randn(128, 64)) for _ in range(2)
    )
    codes = packing.unpack_int4(layers[0].codes) if bits == 4 else layers[0].codes
    pack(layers)
    state = layers.state_dict()
    assert torch.equal(state["0.codes"], packing.two_a_byte(codes) if bits == 4 else codes)
    others = nn.ModuleList(
        QuantizedLinear(64, 128, bits, 32 if bits == 4 else 0).set_weight(torch.zeros(128, 64)) for _ in range(2)
    )
    pack(others)
    others.load_state_dict(state, strict=True)
    x = torch.randn(1, 1, 64)
    assert all(torch.equal(a, b) for a, b in zip(project(x, others), project(x, layers), strict=True))
    with pytest.raises(RuntimeError, match=r"codes is torch.float32 instead of torch"):
        others.load_state_dict({**state, "0.codes": state["0.codes"].float()})
    with pytest.raises(RuntimeError, match=r"Missing key.*0.codes"):
        others.load_state_dict({"0.weight": torch.zeros(128, 64)})
    with pytest.raises(ValueError, match=r"scales is torch.float32 of shape .*; in . bits it is torch.bfloat16"):
        others[0].set_stored("scales", state["0.scales"].float())


def test_moving_changes_no_weight():
    layer = QuantizedLinear(64, 64, 4, 32, bias=nn.Parameter(torch.randn(64))).set_weight(torch.randn(64, 64))
    before = layer.dequantize()
    for moved in (layer.half(), layer.double(), layer.to(torch.bfloat16), layer.to("cpu")):
        assert torch.equal(moved.dequantize(), before)
        assert moved.scales.dtype == torch.bfloat16
    assert layer.bias.dtype == torch.bfloat16


def test_moving_away_from_the_cpu_is_refused_before_anything_is_moved():
    model = tiny_model()
    model.model.layers[2].mlp.up_proj = QuantizedLinear(32, 48, 8).set_weight(torch.randn(48, 32))
    with pytest.raises(RuntimeError, match=r"packed for the CPU and cannot be moved to 'meta'. Load it there"):
        model.to("meta")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_an_embedding_and_the_output_that_shares_its_memory():
    weight = torch.randn(97, 32)
    embedding = QuantizedEmbedding(97, 32, torch.float32).set_weight(weight)
    ids = torch.tensor([[0, 96, 5]])
    assert torch.equal(embedding(ids), embedding.dequantize()[ids])
    assert (embedding(ids) - weight[ids]).abs().max() <= weight.abs().max() / 127
    head = embedding.as_output()
    assert head.codes is embedding.codes
    assert head.scales is embedding.scales
    x = torch.randn(4, 32)
    assert error(head(x), x.bfloat16().float() @ embedding.dequantize().T) < 2 * ROUNDING
    assert embedding.bfloat16()(ids).dtype == torch.bfloat16


def test_there_is_no_weight_to_change_by_mistake():
    layer = QuantizedLinear(64, 64, 4, 32)
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match=r"packed into 4 bits. dequantize\(\) makes floats of it"):
        layer.weight.data.zero_()
    with pytest.raises(AttributeError, match="has no attribute 'wieght'"):
        _ = layer.wieght


def test_a_planted_bug_is_noticed():
    codes, scales = codes_of(64, 64, 32)
    expected = plain(codes, scales)
    x = torch.randn(3, 64).bfloat16()
    reference = x.float() @ expected.T
    swapped = packing.one_a_byte(codes[:, ::2] << 4 | codes[:, 1::2])
    for broken in (
        (swapped, scales),
        (codes, scales.flip(-1)),
        (codes, scales.flip(0)),
        (codes, scales - torch.tensor([0.0, 8.0]) * scales[..., :1]),  # the minimum instead of the value of code 8
    ):
        assert error(QuantizedLinear(64, 64, 4, 32).set_codes(broken[0], broken[1].bfloat16())(x), reference) > 0.1


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_scales_put_in_place_are_read_at_once(bits):
    parts = [QuantizedLinear(64, 64, bits, 32 if bits == 4 else 0) for _ in range(2)]
    for part in parts:
        part.set_weight(torch.randn(64, 64))
    pack(parts)
    x = torch.randn(1, 3, 64)
    before = project(x, parts)[0]
    parts[0].scales = parts[0].scales * 2
    after = project(x, parts)[0]
    assert torch.equal(after, parts[0](x))
    assert not torch.allclose(after, before)

"""What every cache refuses, in which words; a cache that refused something is as it was."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.cache.caches import IDS, MAKE, assert_equal, contents
from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache, QuantizedCache, StaticCache, load_cache, make_cache

pytestmark = pytest.mark.filterwarnings("ignore:an offloaded cache")
KIND = pytest.mark.parametrize("kind", MAKE)


def filled(kind, length=10):
    cache = MAKE[kind]()
    with torch.no_grad():
        tiny_model()(IDS[:, :length], past_key_values=cache)
    return cache


@KIND
@pytest.mark.parametrize("length", [1.5, True, "a", None, torch.tensor(1.5)], ids=str)
def test_a_length_to_crop_to_is_a_whole_number(kind, length):
    cache = filled(kind)
    before = contents(cache)
    message = r"crop\(.*\): length must be a whole number: how many positions to keep, or, if negative, to forget"
    with pytest.raises(ValueError, match=message):
        cache.crop(length)
    with pytest.raises(ValueError, match=message):
        cache.can_crop(length)
    assert_equal(contents(cache), before)


@KIND
@pytest.mark.parametrize("length", [np.int64(9), torch.tensor(9)], ids=["numpy", "torch"])
def test_whole_numbers_of_other_libraries_are_taken(kind, length):
    cache = filled(kind)
    assert cache.can_crop(length)
    cache.crop(length)
    assert cache.length == 9
    assert type(cache.length) is int


@KIND
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [0, 1],
            TypeError,
            r"rows is a list; a tensor of row numbers is needed, for example torch\.tensor\(\[1, 0\]\)",
        ),
        (torch.tensor([5]), ValueError, r"rows holds 5; this cache has the rows 0 … 1"),
        (torch.tensor([0, -1]), ValueError, r"rows holds -1; this cache has the rows 0 … 1"),
        (
            torch.tensor([], dtype=torch.long),
            ValueError,
            r"rows has shape \(0,\) and torch\.int64; expected one or more",
        ),
        (torch.tensor([[0, 1]]), ValueError, r"rows has shape \(1, 2\) and torch\.int64; expected one or more"),
        (torch.tensor([0.0]), ValueError, r"torch\.float32; expected one or more whole numbers of shape \(batch,\)"),
    ],
    ids=["list", "too large", "negative", "none", "two axes", "float"],
)
def test_rows_that_are_not_there_are_refused(kind, rows, error, message):
    cache = filled(kind)
    before = contents(cache)
    with pytest.raises(error, match=message):
        cache.reorder(rows)
    assert_equal(contents(cache), before)
    assert cache.batch_size == 2


@KIND
def test_an_empty_cache_has_no_rows_to_reorder(kind):
    for cache in (MAKE[kind](), filled(kind)):
        cache.crop(0)
        cache.reorder(torch.tensor([3, 3, 3]))
        cache.batch_repeat_interleave(2)
        assert (cache.length, cache.batch_size, cache.layers) == (0, 0, 0)


@KIND
@torch.no_grad()
def test_cropped_to_nothing_it_takes_another_batch_and_another_data_type(kind):
    cache, fresh = filled(kind), MAKE[kind]()
    cache.crop(0)
    assert (cache.length, cache.batch_size, cache.layers) == (0, 0, 0)
    model = tiny_model()
    for a, b in ((0, 3), (3, 4), (4, 20)):
        found = model(IDS[:1, a:b], past_key_values=cache).logits
        assert torch.equal(found, model(IDS[:1, a:b], past_key_values=fresh).logits)
    assert_equal(contents(cache), contents(fresh))
    cache.crop(3 if cache.can_crop(3) else 20)
    cache.crop(-cache.length if cache.can_crop(0) else 20)
    if not cache.length:
        tiny_model().bfloat16()(torch.cat((IDS, IDS)), past_key_values=cache)
        assert (cache.batch_size, cache.keys(0).dtype) == (4, torch.bfloat16)


@KIND
def test_a_folder_that_is_not_there_is_named(kind, tmp_path):
    message = r"there is no folder .*nowhere to write cache\.safetensors to\. Make it first, or give another path"
    with pytest.raises(FileNotFoundError, match=message):
        filled(kind).save(tmp_path / "nowhere" / "cache.safetensors")


@pytest.mark.parametrize("bits", [4.0, True, "4", 3, None, [4]], ids=str)
def test_bits_are_one_of_three_whole_numbers(bits):
    with pytest.raises(ValueError, match=r"bits is .*; allowed are 8, 4, 2\."):
        QuantizedCache(bits)


BAD_MANIFESTS = {
    "version": ("x", [1], None, True, 1.5, 0),
    "kind": (["dynamic"], {}, None, 5),
    "options": ([1], None, "x", {"dtype": 5}),
    "numbers": ([], None, 5, {"computed": 5}),
    "length": ("x",),
    "positions": (5,),
    "shape": (None,),
}


@pytest.mark.parametrize("kind", ["dynamic", "sink", "quantized", "static"])
@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_damaged_manifest_is_said_to_be_one(kind, name, tmp_path):
    path = tmp_path / "cache.safetensors"
    filled(kind).save(path)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    without = {key: value for key, value in manifest.items() if key != name}
    for changed in (without, *({**manifest, name: value} for value in BAD_MANIFESTS[name])):
        save_file(tensors, path, metadata={"manifest": json.dumps(changed)})
        with pytest.raises(ValueError, match=r"cache\.safetensors is damaged: .*\. Save the cache again"):
            load_cache(path)
    later = {key: value for key, value in manifest.items() if key != "workbench"}
    save_file(tensors, path, metadata={"manifest": json.dumps({**later, "version": 2})})
    with pytest.raises(ValueError, match=r"was written by workbench of an unknown version, as version 2"):
        load_cache(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda device, path: StaticCache(tiny_config(), 9, 1, device=device),
        lambda device, path: make_cache("static", tiny_config(), 9, max_batch_size=1, device=device),
        lambda device, path: load_cache(path, device),
    ],
    ids=["static", "by name", "file"],
)
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nope", r"device is 'nope', which torch cannot use here \(.+\)\. Use 'cpu'"),
        (1.5, r"device is 1\.5, which torch cannot use here \(.+\)\. Use 'cpu'"),
        ("cuda:99", r"device is 'cuda:99', which torch cannot use here \(.+\)\. Use 'cpu'"),
    ],
    ids=["nope", "number", "cuda:99"],
)
def test_a_device_that_is_not_there_is_named(make, device, message, tmp_path):
    path = tmp_path / "cache.safetensors"
    filled("dynamic").save(path)
    with pytest.raises(ValueError, match=message):
        make(device, path)
    assert isinstance(load_cache(path), DynamicCache)

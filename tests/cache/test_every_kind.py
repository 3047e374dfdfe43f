"""What holds for every cache: copies, files, positions, half-done forwards, storage in another data type."""

import itertools
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.cache.caches import IDS, MAKE, assert_equal, contents, piece, rules_of
from tests.conftest import tiny_config, tiny_model
from workbench.cache import CACHES, DynamicCache, SinkCache, SlidingCache, StaticCache, load_cache, make_cache
from workbench.cache.kinds import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:an offloaded cache")
KIND = pytest.mark.parametrize("kind", MAKE)
MORE = torch.randint(1, 97, (2, 20), generator=torch.Generator().manual_seed(9))


def filled(kind, model, length=25):
    cache = MAKE[kind]()
    model(IDS[:, :length], past_key_values=cache)
    for i in range(length, length + 3):
        model(IDS[:, i : i + 1], past_key_values=cache)
    return cache


@KIND
@torch.no_grad()
def test_positions_describe_what_update_returns(kind):
    model, seen = tiny_model(), []
    model.model.hook_mask.register_forward_hook(lambda module, args, mask: seen.append(mask.k_pos))
    cache, at = MAKE[kind](), 0
    for count in (1, 1, 9, 1, 4, 1, 12, 1, 1):
        announced = cache.positions(0, count)
        model(IDS[:, at : at + count], past_key_values=cache)
        at += count
        assert torch.equal(seen[-1], announced)
        for layer in range(3):
            positions, (keys, values) = cache.positions(layer), (cache.keys(layer), cache.values(layer))
            assert keys.shape == values.shape == (2, 2, len(positions), 8)
            assert positions.max() == at - 1
            assert torch.equal(positions, cache.positions(0))
        assert (cache.length, cache.layers, cache.batch_size, cache.get_seq_length(1)) == (at, 3, 2, at)
    assert cache.positions(9).tolist() == [], "a layer that has been given nothing"


@KIND
@torch.no_grad()
def test_a_clone_goes_its_own_way(kind):
    model = tiny_model()
    cache = filled(kind, model)
    before, size = contents(cache), cache.nbytes
    clone = cache.clone()
    assert type(clone) is type(cache)
    assert clone.nbytes == size
    assert_equal(contents(clone), before)
    expected = model(MORE, past_key_values=cache).logits
    assert_equal(contents(clone), before)
    assert torch.equal(model(MORE, past_key_values=clone).logits, expected)
    clone.reset()
    assert (clone.length, cache.length) == (0, 48)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(MAKE, MAKE)))
@torch.no_grad()
def test_any_kind_into_any_kind(source, target):
    model = tiny_model()
    theirs, mine = filled(source, model), MAKE[target]()
    model(MORE[:1], past_key_values=mine)
    old, before = contents(mine), contents(theirs)
    seen_next = range(28) if mine.window is None else {*range(mine.sinks), *range(29 - mine.window, 28)}
    if not set(seen_next) <= set(theirs.positions(0).tolist()):
        with pytest.raises(ValueError, match=rf"needs \d+ positions that the {theirs.name} cache no longer holds"):
            mine.copy_from(theirs)
        assert_equal(contents(mine), old)
        assert_equal(contents(theirs), before)
        return
    mine.copy_from(theirs)
    assert (mine.length, mine.batch_size, mine.layers) == (28, 2, 3)
    assert_equal(contents(theirs), before)
    if mine.exact or source == target:
        given = {(i, int(p)): j for i, (_, _, pos) in enumerate(before) for j, p in enumerate(pos)}
        for i, (keys, values, positions) in enumerate(contents(mine)):
            for j, p in enumerate(positions.tolist()):
                if p >= 0:
                    assert torch.equal(keys[:, :, j], before[i][0][:, :, given[i, p]])
                    assert torch.equal(values[:, :, j], before[i][1][:, :, given[i, p]])
    model(MORE, past_key_values=mine)
    if theirs.exact and mine.exact:
        whole = model(torch.cat((IDS[:, :28], MORE), 1), attention_mask=rules_of(theirs), use_cache=False)
        if mine.window == theirs.window:
            mine.crop(28)
            found = model(MORE, past_key_values=mine).logits
            torch.testing.assert_close(found, whole.logits[:, 28:], rtol=1e-4, atol=1e-4)


@KIND
@torch.no_grad()
def test_a_file_gives_it_back_as_it_was(kind, tmp_path):
    model = tiny_model()
    cache = filled(kind, model)
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    loaded = load_cache(path)
    assert type(loaded) is type(cache)
    assert loaded.options().keys() == cache.options().keys()
    assert_equal(contents(loaded), contents(cache))
    assert [loaded.can_crop(n) for n in range(29)] == [cache.can_crop(n) for n in range(29)]
    assert torch.equal(model(MORE, past_key_values=loaded).logits, model(MORE, past_key_values=cache).logits)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
    assert (manifest["kind"], manifest["length"]) == (cache.name, 28)
    assert sorted(p for p in manifest["positions"] if p >= 0)[-1] == 27
    assert [f.name for f in tmp_path.iterdir()] == ["cache.safetensors"]


@torch.no_grad()
def test_files_that_hold_no_cache_are_refused(tmp_path):
    path = tmp_path / "cache.safetensors"
    with pytest.raises(ValueError, match=r"this cache is empty: nothing was read into it"):
        DynamicCache().save(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*cache\.safetensors"):
        load_cache(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"is no safetensors file with a manifest"):
        load_cache(path)
    save_file({"0.keys": piece(3)}, path)
    with pytest.raises(ValueError, match=r"holds no KV cache; give a file that cache\.save\(path\) wrote"):
        load_cache(path)
    filled("sink", tiny_model()).save(path)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(tensors=tensors, **changes):
        save_file(tensors, path, metadata={"manifest": json.dumps({**manifest, **changes})})

    write(version=9)
    with pytest.raises(ValueError, match=r"as version 9 and kind 'sink'; this one reads version 1 of dynamic, static"):
        load_cache(path)
    write(kind="magic")
    with pytest.raises(ValueError, match=r"kind 'magic'"):
        load_cache(path)
    write(length=29)
    with pytest.raises(ValueError, match=r"is damaged: its tensors are not those that the manifest describes"):
        load_cache(path)
    for changes in ({"options": {"window": 0, "sinks": 3}}, {"options": {"size": 3}}, {"numbers": {}}):
        write(**changes)
        with pytest.raises(ValueError, match=r"is damaged: .*\. Save the cache again"):
            load_cache(path)
    write({n: t for n, t in tensors.items() if n != "1.values"})
    with pytest.raises(ValueError, match=r"is damaged"):
        load_cache(path)


STORED = {
    "dynamic": lambda dtype: DynamicCache(dtype=dtype),
    "static": lambda dtype: StaticCache(tiny_config(), 64, dtype=dtype),
    "sliding": lambda dtype: SlidingCache(7, dtype=dtype),
    "sink": lambda dtype: SinkCache(6, 3, dtype=dtype),
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_storage_in_another_data_type(kind, dtype):
    exact, cache = STORED[kind](None), STORED[kind](dtype)
    for count in (9, 1, 1, 12, 1):
        k, v = piece(count), piece(count)
        plain = exact.update(0, k, v)
        found = cache.update(0, k, v)
        for a, b in zip(found, plain, strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b.to(dtype).float()), "also the new ones, so that chunks make no difference"
        assert torch.equal(cache.keys(0), exact.keys(0).to(dtype).float())
    assert (exact.exact, cache.exact) == (True, False)
    assert cache.nbytes < exact.nbytes
    assert STORED[kind](torch.float32).exact
    cache.reset()
    assert cache.update(0, *[piece(3).half()] * 2)[0].dtype == torch.float16, "of another model, after a reset"
    model = tiny_model()
    whole, chunks = STORED[kind](dtype), STORED[kind](dtype)
    expected = model(IDS, past_key_values=whole).logits
    found = [model(IDS[:, a:b], past_key_values=chunks).logits for a, b in ((0, 11), (11, 12), (12, 30), (30, 40))]
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-2, atol=1e-2)


def test_a_wider_storage_is_exact():
    cache = DynamicCache(dtype=torch.float32)
    k = piece(4).bfloat16()
    keys, _ = cache.update(0, k, k)
    assert cache.exact
    assert keys.dtype == torch.bfloat16
    assert torch.equal(keys, k)
    half = DynamicCache(dtype=torch.float16)
    half.update(0, k, k)
    assert not half.exact, "bfloat16 reaches further than float16"
    with pytest.raises(ValueError, match=r"do not continue a cache of torch\.bfloat16"):
        cache.update(0, piece(1), piece(1))


def test_every_kind_by_its_name():
    config = tiny_config()
    for name, kind in KINDS.items():
        assert type(make_cache(name, config, 9)) is kind
        assert kind.name == name
    assert make_cache("none", config) is None
    assert type(make_cache(None, config)) is DynamicCache
    assert type(make_cache("sliding_window", config)) is SlidingCache
    assert make_cache("offloaded_static", config).name == "offloaded"
    assert (
        make_cache("sliding", config).window,
        make_cache("sink", config).window,
        make_cache("sink", config).sinks,
    ) == (512, 508, 4)
    cache = make_cache("quantized", config, nbits=2, q_group_size=8, residual_length=5, backend="hqq", axis_key=1)
    assert cache.options() == {"bits": 2, "group_size": 8, "residual_length": 5}
    assert make_cache("sink", config, window=9, sinks=2, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("quantum", {}, rf"cache_implementation is 'quantum'; allowed are {', '.join(CACHES)}, or None for dynamic"),
        ("sliding", {"bits": 4}, r"a sliding cache has no option 'bits'; it has window, dtype"),
        ("dynamic", {"window": 4}, r"a dynamic cache has no option 'window'; it has dtype"),
        (None, {"window": 4}, r"a dynamic cache has no option 'window'"),
        ("none", {"window": 4}, r"cache_implementation 'none' keeps nothing and has no options; got window"),
        ("sliding", {"window": 0}, r"window is 0"),
        ("sink", {"dtype": "int8"}, r"dtype is torch\.int8; keys and values are stored in"),
        ("dynamic", {"dtype": "tiny"}, r"dtype is 'tiny'"),
        ("static", {}, r"a static cache needs max_cache_len"),
    ],
    ids=str,
)
def test_what_is_no_kind_or_option_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_cache(name, tiny_config(), **options)


def test_the_command_line_offers_the_same_names():
    from workbench.cli import options

    assert options.CACHES == CACHES

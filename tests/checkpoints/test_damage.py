"""A damaged file either loads or is refused in words: no other exception, no hang, no more memory than 4 × its size.

At least 500 mutations of each kind of file: GGUF (2 vocabularies × 250), safetensors, index and config (with values
and bytes changed).

Memory is limited, not measured: the address space may grow by so much and no further while a file is read, so that
whoever asks for more gets an error that is none of ours.
"""

import contextlib
import json
import resource
import signal
import sys
import tracemalloc
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import (
    raw_gguf,
    raw_string,
    sentencepiece_metadata,
    small_model,
    vocabulary_size,
    write_folder,
    write_gguf,
)
from workbench import LlamaForCausalLM
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.load import load
from workbench.config import ConfigError
from workbench.tokenizer import TokenizerError

REFUSED = (CheckpointError, ConfigError, TokenizerError)
BYTES = st.integers(0, 255)
SLACK = 64_000_000  # bytes: allocators take address space in large pieces, whatever the file
SECONDS = 10
FIXTURE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
# What stands in a header or config in the place of a number, a text or a list.
VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**32, 2**62, 2**63, 2**64, 10**40, 1e308, -1e308, 0.5, 1e-320]),
    st.sampled_from([None, True, False, "", "F32", "F16", "I64", "llama", "../x", "\ud800".encode("utf-8", "replace")]),
    st.lists(st.sampled_from([0, 1, 32, 273, 2**40, 2**62, -1, "x", None]), max_size=4),
    st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "factor", "0", "a"]), st.integers(-1, 9), max_size=3),
    st.integers(),
    st.text(max_size=5),
).map(lambda value: value.decode() if isinstance(value, bytes) else value)


@contextlib.contextmanager
def limited(size):
    """At most `4 * size` bytes and a constant more, and at most ten seconds."""

    def stop(*args):
        raise TimeoutError(f"still reading after {SECONDS} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * size + SLACK, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def load_or_refuse(path):
    """A file by `load`; a folder by `from_pretrained`, which reads more of what is in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.is_file():
            with limited(path.stat().st_size), contextlib.suppress(*REFUSED):
                assert not any(value.is_meta for value in load(path).model.parameters())
        else:
            size = sum(file.stat().st_size for file in path.iterdir())
            with limited(size), contextlib.suppress(*REFUSED):
                model = LlamaForCausalLM.from_pretrained(path)
                assert not any(value.is_meta for value in model.parameters())


def damaged(data, positions, values):
    changed = bytearray(data)
    for position, value in zip(positions, values, strict=False):
        changed[position % len(changed)] = value
    return bytes(changed)


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """What a first load imports is not the file's doing."""
    load(write_folder(tmp_path_factory.mktemp("warm"), small_model()))


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the size of this process from /proc")
pytestmark = linux


def test_the_limit_notices_a_large_allocation():
    # More than earlier tests may have freed: memory that the process holds already is not counted.
    with pytest.raises((MemoryError, RuntimeError)), limited(1000):
        torch.empty(10 * SLACK)
    with limited(SLACK):
        torch.ones(SLACK // 2)


# GGUF files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def gguf_bytes(request, tmp_path_factory):
    vocabulary = sentencepiece_metadata() if request.param == "sentencepiece" else None
    size = vocabulary_size(vocabulary)
    path = tmp_path_factory.mktemp("damage") / "tiny.gguf"
    write_gguf(path, small_model(num_hidden_layers=1, vocab_size=size), vocabulary=vocabulary)
    return path.read_bytes()


@given(st.lists(st.integers(0, 1300), min_size=1, max_size=3), st.lists(BYTES, min_size=3, max_size=3), st.booleans())
@settings(max_examples=150, **FIXTURE)
def test_gguf(gguf_bytes, tmp_path, positions, values, at_the_end):
    header = len(gguf_bytes) - 20_000  # the vocabulary's end and the tensor table are before the weights
    places = [header - position if at_the_end else position for position in positions]
    (tmp_path / "damaged.gguf").write_bytes(damaged(gguf_bytes, places, values))
    load_or_refuse(tmp_path / "damaged.gguf")


@given(st.integers(0, 10**6), st.sampled_from([2**16, 2**31 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]))
@settings(max_examples=70, **FIXTURE)
def test_gguf_with_huge_numbers(gguf_bytes, tmp_path, position, number):
    at = position % (len(gguf_bytes) - 8)
    (tmp_path / "damaged.gguf").write_bytes(gguf_bytes[:at] + number.to_bytes(8, "little") + gguf_bytes[at + 8 :])
    load_or_refuse(tmp_path / "damaged.gguf")


@given(st.integers(0, 10**6))
@settings(max_examples=30, **FIXTURE)
def test_gguf_cut_short(gguf_bytes, tmp_path, length):
    (tmp_path / "damaged.gguf").write_bytes(gguf_bytes[: length % len(gguf_bytes)])
    load_or_refuse(tmp_path / "damaged.gguf")


# Folders --------------------------------------------------------------------------------------------------------------


def fresh_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    if not folder.is_dir():
        write_folder(folder, small_model(num_hidden_layers=1), shards=2)
        (folder / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": [1, 2], "top_k": 5}')
    return folder


@contextlib.contextmanager
def replaced(file):
    original = file.read_bytes()
    try:
        yield original
    finally:
        file.write_bytes(original)


SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json", "generation_config.json"])
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=3), st.lists(BYTES, min_size=3, max_size=3))
@settings(max_examples=150, **FIXTURE)
def test_bytes_of_a_folder(tmp_path, name, positions, values):
    folder = fresh_folder(tmp_path)
    with replaced(folder / name) as original:
        (folder / name).write_bytes(damaged(original, positions, values))
        load_or_refuse(folder)


def rewritten(values, path, value):
    """The JSON values with the one at `path`, a list of choices, put in place of what was there."""
    keys = list(values) if isinstance(values, dict) else range(len(values))
    key = list(keys)[path[0] % len(keys)]
    if len(path) > 1 and isinstance(values[key], dict | list) and values[key]:
        rewritten(values[key], path[1:], value)
    elif path[-1] % 7 == 0:
        del values[key]
    else:
        values[key] = value
    return values


@given(st.lists(st.integers(0, 99), min_size=1, max_size=3), VALUES)
@settings(max_examples=350, **FIXTURE)
def test_values_of_a_safetensors_header(tmp_path, path, value):
    folder = fresh_folder(tmp_path)
    with replaced(folder / SHARD) as original:
        length = int.from_bytes(original[:8], "little")
        header = json.dumps(rewritten(json.loads(original[8 : 8 + length]), path, value)).encode()
        (folder / SHARD).write_bytes(len(header).to_bytes(8, "little") + header + original[8 + length :])
        load_or_refuse(folder)


@pytest.mark.parametrize("name", [INDEX, "config.json", "generation_config.json"])
@given(st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=2), VALUES), min_size=1, max_size=2))
@settings(max_examples=120, **FIXTURE)
def test_values_of_json_files(tmp_path, name, changes):
    folder = fresh_folder(tmp_path)
    with replaced(folder / name) as original:
        values = json.loads(original)
        for path, value in changes:
            values = rewritten(values, path, value) if values else values
        (folder / name).write_text(json.dumps(values))
        load_or_refuse(folder)


@pytest.mark.parametrize("name", [SHARD, INDEX, "config.json"])
def test_deep_nesting(tmp_path, name):
    folder = fresh_folder(tmp_path)
    text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text if name == SHARD else text)
    load_or_refuse(folder)


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["UINT8", "BOOL", "FLOAT32", "strings"])
def test_a_file_that_is_one_large_array(tmp_path, kind):
    """Texts of a few letters take up to six times as much in Python; longer ones, as here, do not."""
    count = 500_000
    number, width = {"UINT8": (0, 1), "BOOL": (7, 1), "FLOAT32": (6, 4), "strings": (8, 0)}[kind]
    data = (
        raw_string("a text of thirty letters.....!") * count
        if kind == "strings"
        else bytes(range(1, 1 + width)) * count
    )
    pairs = raw_string("x") + (9).to_bytes(4, "little") + number.to_bytes(4, "little") + count.to_bytes(8, "little")
    (tmp_path / "large.gguf").write_bytes(raw_gguf(pairs + data, n_pairs=1))
    size = (tmp_path / "large.gguf").stat().st_size
    tracemalloc.start()
    try:
        file = GGUFFile(tmp_path / "large.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(file.metadata["x"]) == count
    assert peak <= 4 * size, f"{peak / size:.1f} times the file"

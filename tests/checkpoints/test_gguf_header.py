"""The GGUF header parser: what it reads, and that a wrong size is an error before anything is allocated."""

import struct
import tracemalloc
from array import array

import gguf
import numpy as np
import pytest

from tests.checkpoints.conftest import raw_gguf, raw_string, small_model, write_gguf
from workbench.checkpoints import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.load import default_model

HUGE = 1 << 62


def tensor_entry(name="t", dims=(4,), kind=0, offset=0):
    return raw_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def pair(key, kind, value):
    return raw_string(key) + struct.pack("<I", kind) + value


def plain(value):
    """Arrays of numbers as lists."""
    if isinstance(value, array):
        return value.tolist()
    return [plain(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def opened(tmp_path):
    def opened(data):
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return GGUFFile(path)

    return opened


def test_same_as_the_gguf_package(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", small_model(), "Q8_0", **{"general.languages": ["en", "de"]})
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert ours.version == 3
    their_metadata = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert {key: plain(value) for key, value in ours.metadata.items()} == their_metadata
    assert len(ours.tensors) == len(theirs.tensors) > 10
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.type, info.offset, info.nbytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert np.array_equal(ours.blocks(tensor.name), np.asarray(tensor.data).view(np.uint8).reshape(-1))


def test_default_model():
    file = GGUFFile(default_model())
    assert file.metadata["tokenizer.ggml.pre"] == "smollm"
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert len(file.tensors) == 272


def test_every_value_type(opened):
    pairs = [
        (pair("u8", 0, b"\xff"), 255),
        (pair("i8", 1, b"\xff"), -1),
        (pair("u16", 2, b"\xff\xff"), 65535),
        (pair("i16", 3, b"\xff\xff"), -1),
        (pair("u32", 4, b"\1\0\0\0"), 1),
        (pair("i32", 5, b"\xff" * 4), -1),
        (pair("f32", 6, struct.pack("<f", 0.5)), 0.5),
        (pair("bool", 7, b"\1"), True),
        (pair("text", 8, raw_string("é")), "é"),
        (pair("list", 9, struct.pack("<IQ", 5, 2) + b"\xff" * 8), [-1, -1]),
        (pair("texts", 9, struct.pack("<IQ", 8, 2) + raw_string("a") + raw_string("")), ["a", ""]),
        (pair("lists", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 7, 1) + b"\0"), [[False]]),
        (pair("u64", 10, b"\xff" * 8), 2**64 - 1),
        (pair("i64", 11, b"\xff" * 8), -1),
        (pair("f64", 12, struct.pack("<d", 0.1)), 0.1),
    ]
    file = opened(raw_gguf(b"".join(data for data, _ in pairs), len(pairs), version=2))
    assert [plain(value) for value in file.metadata.values()] == [value for _, value in pairs]
    assert isinstance(file.metadata["list"], array)


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", small_model())
    before = path.read_bytes()
    GGUFFile(path).blocks("output_norm.weight")[:] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes, too few for the header"),
        (b"GGUF\3\0\0\0", "has 8 bytes, too few"),
        (raw_gguf(magic=b"PK\3\4"), r"starts with b'PK\\x03\\x04', but a GGUF file starts with b'GGUF'"),
        (raw_gguf(version=1), "version 1 GGUF file; little-endian files of version 2 and 3"),
        (raw_gguf(version=3 << 24), "big-endian GGUF file"),
        (raw_gguf(n_tensors=HUGE), f"a table of {HUGE} tensors would take at least"),
        (raw_gguf(n_pairs=HUGE), f"{HUGE} metadata entries would take at least"),
        (raw_gguf(struct.pack("<Q", HUGE), 1), "a metadata key would take at least"),
        (raw_gguf(pair("a", 8, struct.pack("<Q", HUGE)), 1), "a would take at least"),
        (raw_gguf(pair("a", 9, struct.pack("<IQ", 4, HUGE)), 1), "a would take at least"),
        (raw_gguf(pair("a", 9, struct.pack("<IQ", 8, HUGE)), 1), "a, an array of .* would take at least"),
        (
            raw_gguf(pair("a", 9, struct.pack("<IQ", 8, 2) + raw_string("x") + struct.pack("<Q", 999)), 1),
            "a would take",
        ),
        (raw_gguf(pair("a", 9, struct.pack("<IQ", 9, 1) * 9), 1), "nests too deep"),
        (raw_gguf(pair("a", 99, b""), 1), "a has the value type 99, which does not exist"),
        (raw_gguf(pair("a", 8, raw_string(b"\xff")), 1), "a holds text that is not UTF-8"),
        (raw_gguf(pair("a", 0, b"\0") * 2, 2), "the metadata key 'a' appears twice"),
        (raw_gguf(pair("general.alignment", 4, b"\7\0\0\0"), 1), "general.alignment is 7; it must be a multiple of 8"),
        (raw_gguf(tensors=tensor_entry() * 2, n_tensors=2), "the tensor 't' appears twice"),
        (raw_gguf(tensors=tensor_entry(dims=(1,) * 5), n_tensors=1), "t has 5 dimensions; 1 to 4 are allowed"),
        (raw_gguf(tensors=tensor_entry(dims=(0, 3)), n_tensors=1), r"t has the shape \[3, 0\]"),
        (
            raw_gguf(tensors=tensor_entry(dims=(33,), kind=8), n_tensors=1),
            "rows of 33 values, not a multiple of the 32",
        ),
        (raw_gguf(tensors=tensor_entry(offset=5), n_tensors=1), "t starts at 5, not a multiple of the alignment 32"),
        (raw_gguf(tensors=tensor_entry(dims=(HUGE, HUGE)), n_tensors=1), "is truncated: t .F32"),
        (raw_gguf(tensors=tensor_entry(offset=HUGE), n_tensors=1), "is truncated: t .F32"),
        (
            raw_gguf(tensors=tensor_entry(dims=(256,), kind=10), n_tensors=1),
            "t is stored as Q2_K; supported are F32, F16",
        ),
        (raw_gguf(tensors=tensor_entry(kind=4242), n_tensors=1), r"t is stored as unknown \(4242\)"),
    ],
)
def test_malformed(opened, data, message):
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message):
        opened(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "something was allocated for a size that the file does not have"


def test_every_truncation_of_a_file_is_an_error(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", small_model(num_hidden_layers=1)).read_bytes()
    used = max(info.offset + info.nbytes for info in GGUFFile(tmp_path / "m.gguf").tensors.values())
    cuts = [*range(0, 400), *range(400, used, 997), used - 1]
    path = tmp_path / "cut.gguf"
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            GGUFFile(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="There is no file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(CheckpointError, match="is a folder, not a GGUF file"):
        GGUFFile(tmp_path)

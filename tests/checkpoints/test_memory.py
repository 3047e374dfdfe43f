"""Weights are never held twice: peak memory of loading, measured in a process of its own."""

import subprocess
import sys

import pytest

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from workbench.checkpoints.load import load

MEASURE = """
import re, sys, torch
from workbench.checkpoints.load import load

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

torch.set_num_threads(1)
load(sys.argv[2])  # what a first load imports is not the weights
before = peak()
model = load(sys.argv[1], dtype=sys.argv[3]).model
loaded = peak()
total = sum(float(value.sum()) for value in model.parameters())  # every page has been in memory once
print(loaded - before, peak() - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    write_folder(root / "tiny", small_model())
    large = small_model(
        hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_key_value_heads=16, num_hidden_layers=4
    )
    write_folder(root / "large", large)
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize(
    ("dtype", "after_load", "after_use"),
    [
        ("auto", 0.1, 1.15),  # mapped: nothing is read until it is used
        ("bfloat16", 1.6, 1.6),  # the file's pages, which the system can drop at any time, and a half-sized copy
    ],
)
def test_peak_of_a_folder(folders, dtype, after_load, after_use):
    size = (folders / "large" / "model.safetensors").stat().st_size
    assert size > 190_000_000
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, folders / "large", folders / "tiny", dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, used = (int(value) / size for value in result.stdout.split())
    assert loaded < after_load
    assert used < after_use
    assert used > 0.4  # the measure sees the weights at all


def mapped(name):
    """Address ranges of this process that map the file."""
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if name in line]
    return [(int(start, 16), int(end, 16)) for start, end in spans]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the mappings from /proc")
def test_weights_lie_in_the_file(folders):
    model = load(folders / "large").model
    spans = mapped("large/model.safetensors")
    for name, value in model.named_parameters():
        assert any(start <= value.data_ptr() < end for start, end in spans), name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the mappings from /proc")
@pytest.mark.parametrize(("kind", "stays"), [("F32", True), ("Q8_0", False)])
def test_a_gguf_file_stays_mapped_only_if_its_weights_are_used_in_place(tmp_path, kind, stays):
    loaded = load(write_gguf(tmp_path / f"{kind}-mapped.gguf", small_model(), kind))
    assert bool(mapped(f"{kind}-mapped.gguf")) == stays
    assert loaded.model.config.vocab_size

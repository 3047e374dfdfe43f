"""Weights are held twice only where projections of one input are laid side by side: peak memory of loading, measured in
a process of its own.

In a file that the `safetensors` package wrote, gate and up are neighbours, queries, keys and values are not: these are
copied, a quarter of this model (with 16 query and 16 key/value heads; less with fewer), and the system counts the pages
of the file that were read for it. In a folder saved here all are neighbours, and nothing is copied.
"""

import subprocess
import sys

import pytest

from tests.checkpoints.conftest import small_model, write_folder, write_gguf, write_tokenizer
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
    large.save_pretrained(root / "ours")
    write_tokenizer(root / "ours")
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
@pytest.mark.parametrize(
    ("name", "dtype", "after_load", "after_use"),
    [
        ("ours", "auto", 0.1, 1.15),  # mapped: nothing is read until it is used
        ("large", "auto", 0.55, 1.4),  # a quarter is read and copied
        # The file's pages, which the system can drop at any time, a half-sized copy, and one layer of it twice for a
        # moment: its projections are laid side by side. 1.0 + 0.5 + 0.09 of the file, and the allocator's own share.
        ("large", "bfloat16", 1.7, 1.7),
    ],
)
def test_peak_of_a_folder(folders, name, dtype, after_load, after_use):
    size = (folders / name / "model.safetensors").stat().st_size
    assert size > 190_000_000
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, folders / name, folders / "tiny", dtype],
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
        copied = name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
        assert any(start <= value.data_ptr() < end for start, end in spans) != copied, name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the mappings from /proc")
@pytest.mark.parametrize(("kind", "stays"), [("F32", True), ("Q8_0", False)])
def test_a_gguf_file_stays_mapped_only_if_its_weights_are_used_in_place(tmp_path, kind, stays):
    loaded = load(write_gguf(tmp_path / f"{kind}-mapped.gguf", small_model(), kind))
    assert bool(mapped(f"{kind}-mapped.gguf")) == stays
    assert loaded.model.config.vocab_size

"""Attention on demand: pictures of heads from captured queries and keys, beside the same from whole T × T patterns.

x is speed relative to the first row of a table. Memory is what the process took at its peak above what it held before,
as Linux counts it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import torch
import torch.nn.functional as F
from side_by_side import finish, interleave, table

import workbench as wb
from workbench.analysis.attention import AttentionMap
from workbench.analysis.heads import find_heads, head_metrics

TEXT = " ".join(f"On day {i} the ship sailed {i * i} miles and met {i % 7} whales." for i in range(100))
EVERY = slice(None)


def random_capture(length: int, heads: int = 9, kv_heads: int = 3, width: int = 64) -> wb.Activations:
    """One layer of the default model's sizes; the time does not depend on the numbers."""
    generator, acts = torch.Generator().manual_seed(0), wb.Activations()
    for name, count in (("q_rot", heads), ("k_rot", kv_heads)):
        acts.append(f"layers.0.{name}", torch.randn(1, length, count, width, generator=generator))
    return acts


def naive_patterns(acts: wb.Activations, layer: int, heads: slice = EVERY, rows: slice = EVERY) -> torch.Tensor:
    """(head, q, k) as anybody would write it: all scores, a mask, a softmax."""
    q, k = acts["q_rot", layer][0].transpose(0, 1), acts["k_rot", layer][0].transpose(0, 1)
    k = k.repeat_interleave(len(q) // len(k), 0)
    scores = q[heads, rows] @ k[heads].transpose(1, 2) / q.shape[-1] ** 0.5
    forbidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)[rows]
    return scores.masked_fill(forbidden, -torch.inf).softmax(-1)


def naive_thumbnails(acts: wb.Activations, layers: int) -> list[torch.Tensor]:
    return [F.max_pool2d(naive_patterns(acts, layer), 8) for layer in range(layers)]


def peak_megabytes(subject) -> float:
    """How far the process's memory rises above where it is now."""
    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier subjects took, else it is used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    subject()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def at_8192() -> tuple[dict, dict]:
    acts = random_capture(8192)
    attention, part = AttentionMap(acts), slice(4000, 4256)
    pictures = {
        "whole T × T, then pooled": lambda: F.max_pool2d(naive_patterns(acts, 0, slice(4, 5)), 32),
        "tile, 256² maxima": lambda: attention.tile(0, 4, EVERY, EVERY),
        "tile, 256² means": lambda: attention.tile(0, 4, EVERY, EVERY, reduce="mean"),
    }
    windows = {
        "256 whole rows, then cut": lambda: naive_patterns(acts, 0, slice(4, 5), part)[:, :, 2000:2256],
        "tile, 256² window": lambda: attention.tile(0, 4, part, slice(2000, 2256)),
        "one row": lambda: attention.row(0, 4, 8000),
    }
    return pictures, windows


@torch.no_grad()
def captured_text(length: int) -> wb.Activations:
    loaded = wb.load(progress=False)
    ids = torch.tensor([loaded.tokenizer.encode(TEXT)[:length]])
    with wb.capture(loaded.model, "q_rot", "k_rot") as acts:
        loaded.model(ids, logits_to_keep=1)
    return acts


@torch.no_grad()
def captured_by_tiny_model(length: int) -> wb.Activations:
    config = wb.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=length,
    )
    model = wb.LlamaForCausalLM(config).eval()
    with wb.capture(model, "q_rot", "k_rot") as acts:
        model(torch.randint(0, 64, (1, length)), logits_to_keep=1)
    return acts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    results = {}
    pictures, windows = at_8192()
    text, long = captured_text(512), captured_by_tiny_model(32_768)
    of_text, of_long = AttentionMap(text), AttentionMap(long)
    layers = len(of_text.layers)
    subjects = {
        "picture of a head at 8,192 tokens": pictures,
        "window at 8,192 tokens": windows,
        "270 thumbnails at 512 tokens": {
            "whole T × T, then pooled": lambda: naive_thumbnails(text, layers),
            "thumbnails": lambda: list(of_text.thumbnails()),
        },
        "270 heads at 512 tokens": {
            "all metrics": lambda: head_metrics(of_text),
            "find_heads": lambda: find_heads(of_text, lambda q, k: k == q - 1),
            "rollout of one position": lambda: of_text.rollout_row(511),
        },
        "32,768 tokens, tiny model": {
            "tile, 256² maxima": lambda: of_long.tile(0, 1, EVERY, EVERY),
            "tile, 256² window": lambda: of_long.tile(0, 1, slice(-256, None), slice(0, 256)),
            "one row": lambda: of_long.row(0, 1, 32_767),
        },
    }
    for title, rows in subjects.items():
        results[title] = interleave(rows, options.rounds)
        table(title, results[title])
    print("\npeak memory above what was held before")
    for title, rows in subjects.items():
        megabytes = {name: peak_megabytes(subject) for name, subject in rows.items()}
        results[f"{title}, MB"] = megabytes
        for name, value in megabytes.items():
            print(f"  {title + ': ' + name:<64} {value:>8.1f} MB")
    finish(results)


if __name__ == "__main__":
    main()

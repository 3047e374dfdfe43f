"""KV caches beside those of transformers: bytes, milliseconds a token, and how far the predictions move.

Every row reads the same prompt and then the same tokens, one a forward, all rows in turn at each token, so that times
can be compared. × is time relative to transformers' DynamicCache. KL is of the next token's distribution, exact ‖ this,
in nats, mean and largest over the tokens; exact is the same library's own dynamic cache. Bytes are what a cache holds
at the end; the rows "short" keep fewer recent positions, for no more bytes than theirs. The sliding caches differ while
they read the prompt: that of transformers lets its queries see all of it. transformers' QuantizedCache needs
optimum-quanto or hqq, which .venv-peers has (`make bench` makes it).
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from bench_model import TEXT, their_model
from side_by_side import finish

import workbench as wb
from workbench.cache import make_cache

transformers.logging.set_verbosity_error()
WINDOW = 512
RECENT = 0  # positions kept as they are, at which our quantized caches take no more bytes than theirs
TEXTS = {"a counting text": TEXT, "our README": (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")}


class Row:
    """One model and cache; `exact` is the row whose predictions these ones should be."""

    def __init__(self, model, cache, exact=None):
        self.model, self.cache, self.exact = model, cache, exact
        self.ms, self.kl = [], []
        self.logprobs = None

    def read(self, ids):
        began = time.perf_counter()
        out = self.model(ids, past_key_values=self.cache, logits_to_keep=1)
        self.ms.append((time.perf_counter() - began) * 1e3)
        self.logprobs = out.logits[0, -1].float().log_softmax(-1)

    def compare(self):
        if self.exact is not None:
            p = self.exact.logprobs
            self.kl.append(float((p.exp() * (p - self.logprobs)).sum()))


def ours(model, room):
    config = model.config
    exact = Row(model, wb.DynamicCache())
    rows = {"workbench dynamic": exact}
    for label, name, options in (
        ("workbench static", "static", {"max_cache_len": room}),
        (f"workbench sliding {WINDOW}", "sliding", {"window": WINDOW}),
        ("workbench quantized 8 bit", "quantized", {"bits": 8}),
        ("workbench quantized 4 bit", "quantized", {"bits": 4}),
        ("workbench quantized 2 bit", "quantized", {"bits": 2}),
        *(
            (f"workbench quantized {bits} bit, short", "quantized", {"bits": bits, "residual_length": RECENT})
            for bits in (8, 4, 2)
        ),
    ):
        rows[label] = Row(model, make_cache(name, config, **options), exact)
    return rows


def theirs(model, room):
    exact = Row(model, transformers.DynamicCache())
    windowed = copy.deepcopy(model.config)
    windowed.sliding_window, windowed.layer_types = WINDOW, ["sliding_attention"] * windowed.num_hidden_layers
    rows = {
        "transformers dynamic": exact,
        "transformers static": Row(model, transformers.StaticCache(model.config, max_cache_len=room), exact),
        f"transformers dynamic sliding {WINDOW}": Row(model, transformers.DynamicCache(config=windowed), exact),
        f"transformers static sliding {WINDOW}": Row(
            model, transformers.StaticCache(windowed, max_cache_len=room), exact
        ),
    }
    for backend, bits in (("hqq", 8), ("hqq", 4), ("quanto", 4), ("hqq", 2), ("quanto", 2)):
        options = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
        try:
            cache = transformers.QuantizedCache(backend, model.config, nbits=bits, **options)
        except ImportError as missing:
            print(f"without {backend}: {str(missing).splitlines()[0]}")
            continue
        rows[f"transformers {backend} {bits} bit"] = Row(model, cache, exact)
    return rows


def nbytes(thing, seen):
    """Bytes of all tensors within a cache, each storage once."""
    if isinstance(thing, torch.Tensor):
        if hasattr(thing, "__tensor_flatten__"):
            return sum(nbytes(getattr(thing, name), seen) for name in thing.__tensor_flatten__()[0])
        storage = thing.untyped_storage()
        new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() if new else 0
    if isinstance(thing, dict | list | tuple):
        return sum(nbytes(item, seen) for item in (thing.values() if isinstance(thing, dict) else thing))
    return 0


def held(cache):
    if hasattr(cache, "nbytes"):
        return cache.nbytes
    seen: set[int] = set()
    return sum(nbytes(vars(layer), seen) for layer in cache.layers)


def compare(name, rows, ids, prompt):
    print(f"\n{name}: {prompt} tokens, then {ids.shape[1] - prompt}")
    print(f"  {'':<34}{'MB':>8}{'ms':>9}{'×':>7}{'mean KL':>12}{'largest':>12}")
    for row in rows.values():
        row.read(ids[:, :prompt])
        row.ms.clear()
    for at in range(prompt, ids.shape[1]):
        for row in rows.values():
            row.read(ids[:, at : at + 1])
        for row in rows.values():
            row.compare()
    first, results = statistics.median(rows["transformers dynamic"].ms), {}
    for label, row in rows.items():
        ms, size = statistics.median(row.ms), held(row.cache) / 1e6
        mean, most = (statistics.mean(row.kl), max(row.kl)) if row.kl else (0.0, 0.0)
        results[label] = {"MB": size, "ms": ms, "kl": mean}
        print(f"  {label:<34}{size:>8.1f}{ms:>9.1f}{first / ms:>7.2f}{mean:>12.2e}{most:>12.2e}")
    return {f"{name}: {label}": values for label, values in results.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded, reference = wb.load(progress=False), their_model()
    room, results = options.prompt + options.tokens, {}
    for name, text in TEXTS.items():
        ids = torch.tensor([loaded.tokenizer.encode(text)])[:, :room]
        rows = {**theirs(reference, room), **ours(loaded.model, room)}
        results |= compare(name, rows, ids, min(options.prompt, ids.shape[1] - options.tokens))
    finish(results)


if __name__ == "__main__":
    main()

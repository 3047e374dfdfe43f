"""What it costs to look: captures beside our plain forward, and beside the peers that show the same.

× is time relative to the first row of a table. Peers run where .venv-peers has them (`make bench` makes it):
transformers with eager attention and outputs, TransformerLens' bridge, nnsight; all on the same weights of the default
model. Peak is the most memory taken over what was there before, read from the system. "every point" are all of the
table's, logits too.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from bench_model import TEXT, their_model
from side_by_side import finish, interleave

import workbench as wb
from workbench.analysis.lens import lens_step
from workbench.model import llama

transformers.logging.set_verbosity_error()
RESIDUALS = ("embed", "resid_post", "q_rot", "k_rot")


def ours(model, ids):
    def look(*points, **options):
        with wb.capture(model, *points, **options) as acts:
            model(ids)
        return acts

    return {
        "plain": lambda: model(ids),
        "residuals, q, k": lambda: look(*RESIDUALS),
        "every point": lambda: look("*"),
        "every point, nothing derived": lambda: look("*", derive=False),
    }


def theirs(reference, ids, tokenizer):
    """Hidden states and attention weights of every layer, by each peer."""
    eager = transformers.AutoModelForCausalLM.from_config(reference.config, attn_implementation="eager").eval()
    eager.load_state_dict(reference.state_dict(), assign=True)
    subjects = {
        "transformers sdpa": lambda: reference(ids),
        "transformers eager, all outputs": lambda: eager(ids, output_hidden_states=True, output_attentions=True),
    }
    try:
        subjects |= transformer_lens(eager, ids, tokenizer) | nnsight(eager, ids)
    except ImportError as missing:
        print(f"without {missing.name}: run scripts/peers.sh and this with .venv-peers/bin/python")
    return subjects


def transformer_lens(eager, ids, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:  # it wants a name that it can look up
        eager.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        named = transformers.AutoTokenizer.from_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, hf_model=eager, tokenizer=named)

    def wanted(name):
        return name.endswith(("hook_resid_post", "hook_pattern"))

    return {
        "TransformerLens, resid_post + pattern": lambda: bridge.run_with_cache(ids, names_filter=wanted),
        "TransformerLens, everything": lambda: bridge.run_with_cache(ids),
    }


def nnsight(eager, ids):
    from nnsight import NNsight

    wrapped = NNsight(eager)

    def trace():
        kept = []
        with wrapped.trace(ids):
            for layer in wrapped.model.layers:
                kept.append(layer.self_attn.output[1].save())
                kept.append(layer.output.save())
        return kept

    return {"nnsight, the same": trace}


def step(model, ids):
    """One token after `ids`, and everything about it: states, all rows of attention, the lens of all layers."""
    cache, last = wb.DynamicCache(), ids[:, -1:]
    with wb.capture(model, "k_rot") as before:
        model(ids, past_key_values=cache, logits_to_keep=1)

    def plain():
        model(last, past_key_values=cache, logits_to_keep=1)
        cache.crop(ids.shape[1])

    def everything():
        with wb.capture(model, *RESIDUALS) as acts:
            model.model(last, past_key_values=cache)  # the lens computes the head of all states, the last one too
        rows = [
            torch.softmax(_scores(acts["q_rot", i], cache.keys(i)), -1) for i in range(model.config.num_hidden_layers)
        ]
        states = torch.stack([acts["embed"], *(acts["resid_post", i] for i in range(model.config.num_hidden_layers))])
        found = lens_step(model, states[:, 0, -1])
        cache.crop(ids.shape[1])
        return rows, found

    assert before.length == ids.shape[1]
    return {"plain step": plain, "step with states, rows and lens": everything}


def _scores(q, keys):
    batch, _, heads, width = q.shape
    grouped = q.transpose(1, 2).reshape(batch, keys.shape[1], -1, width)
    return (grouped @ keys.transpose(2, 3)).reshape(batch, heads, -1) * width**-0.5


def no_hook(model, ids):
    """Our forward beside the same layers called without looking whether anybody listens."""
    with torch.no_grad():
        model(ids)
    layers = llama.fast_layers(model.model, llama.STRUCTURE, ids.device)
    looked_up = llama.fast_layers

    def blind():
        llama.fast_layers = lambda *arguments: layers
        try:
            model(ids, logits_to_keep=1)
        finally:
            llama.fast_layers = looked_up

    return {"without looking for hooks": blind, "no active hook": lambda: model(ids, logits_to_keep=1)}


def peak(subject):
    """MiB that a call takes at most, over what was there before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # begins the record of the peak anew
    before = _memory("VmRSS")
    kept = subject()
    most = _memory("VmHWM")
    del kept
    gc.collect()
    return (most - before) / 1024


def _memory(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(title, subjects, rounds, results):
    medians = interleave(subjects, rounds)
    peaks = {name: peak(subject) for name, subject in subjects.items()}
    first = next(iter(medians.values()))
    print(f"\n{title:<40} {'ms':>10} {'×':>7} {'peak MiB':>9}")
    for name, ms in medians.items():
        print(f"  {name:<38} {ms:>10.1f} {ms / first:>7.3f} {peaks[name]:>9.0f}", flush=True)
    results[title] = medians
    results[f"{title}, peak MiB"] = peaks


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = wb.load(progress=False)
    model, ids = loaded.model, torch.tensor([loaded.tokenizer.encode(TEXT)])
    results: dict[str, dict[str, float]] = {}

    measure("one token at 512", step(model, ids[:, :512]), options.rounds * 5, results)
    measure("one token, nobody looks", no_hook(model, ids[:, :1]), options.rounds * 10, results)
    for length in options.lengths:
        rounds = options.rounds if length < 2048 else max(5, options.rounds // 2)
        subjects = ours(model, ids[:, :length])
        if length > 1024:
            subjects = {name: subjects[name] for name in ("plain", "residuals, q, k")}
        measure(f"capture at {length}", subjects, rounds, results)
        measure(f"nobody looks at {length}", no_hook(model, ids[:, :length]), rounds, results)
    if not options.no_peers:
        reference = their_model()
        for length in options.lengths:
            subjects = theirs(reference, ids[:, :length], loaded.tokenizer)
            if length > 1024:
                subjects.pop("TransformerLens, everything", None)  # some 15 GB
            ours_too = {f"workbench: {n}": s for n, s in ours(model, ids[:, :length]).items() if "derived" not in n}
            measure(f"peers at {length}", subjects | ours_too, 3 if length < 2048 else 1, results)
    finish(results)


if __name__ == "__main__":
    main()

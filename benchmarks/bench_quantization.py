"""Decode and prefill of the default model in 4 and 8 bits, beside transformers and our floats; bytes and quality.

x is speed relative to transformers with SDPA in fp32. int4 are the GGUF file's own blocks, with an 8-bit output.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import torch
import transformers
from bench_model import TEXT, their_model
from side_by_side import finish, interleave, table

import workbench as wb

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def our_models():
    return {
        "workbench fp32": wb.load(progress=False).model,
        "workbench bf16": wb.load(dtype="bfloat16", progress=False).model,
        "workbench int8": wb.load(quantization="int8", progress=False).model,
        "workbench int8, bf16 stream": wb.load(quantization="int8", dtype="bfloat16", progress=False).model,
        "workbench int4": wb.load(quantization="int4", progress=False).model,
        "workbench int4, bf16 stream": wb.load(quantization="int4", dtype="bfloat16", progress=False).model,
    }


def decode(models, theirs, ids):
    """One token after `ids`; each call makes its cache one longer."""
    reference, last = transformers.DynamicCache(), ids[:, :1]
    theirs(ids, past_key_values=reference, logits_to_keep=1)
    subjects = {"transformers sdpa fp32": lambda: theirs(last, past_key_values=reference, logits_to_keep=1)}
    for name, model in models.items():
        cache = wb.DynamicCache()
        model(ids, past_key_values=cache, logits_to_keep=1)
        subjects[name] = lambda model=model, cache=cache: model(last, past_key_values=cache, logits_to_keep=1)
    return subjects


def prefill(models, theirs, ids):
    subjects = {"transformers sdpa fp32": lambda: theirs(ids, logits_to_keep=1)}
    return subjects | {name: lambda model=model: model(ids, logits_to_keep=1) for name, model in models.items()}


def quality(models, tokenizer):
    """Bytes, and predictions on the text that comes with the package, against our fp32."""
    reference, results = models["workbench fp32"], {}
    print(f"\n{'quality':<30} {'MB':>7} {'perplexity':>11} {'mean KL':>9} {'max KL':>8} {'same top-1':>11}")
    for name, model in models.items():
        found = wb.quantization_report(model, reference, tokenizer)
        results[f"quality {name}"] = {
            "MB": found.bytes / 1e6,
            "perplexity": found.perplexity,
            "mean_kl_1e6": found.mean_kl * 1e6,
            "top1_percent": found.top1_agreement * 100,
        }
        print(
            f"  {name:<28} {found.bytes / 1e6:>7.1f} {found.perplexity:>11.3f} {found.mean_kl:>9.5f} "
            f"{found.max_kl:>8.4f} {found.top1_agreement:>11.1%}"
        )
    return results


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    tokenizer, theirs, models = wb.load(progress=False).tokenizer, their_model(), our_models()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    results = {"decode at 64": interleave(decode(models, theirs, ids[:, :64]), options.rounds * 10)}
    table("decode one token at 64", results["decode at 64"])
    for length in (32, 128, 512):
        results[f"prefill {length}"] = interleave(prefill(models, theirs, ids[:, :length]), options.rounds)
        table(f"prefill {length}", results[f"prefill {length}"])
    finish(results | quality(models, tokenizer))


if __name__ == "__main__":
    main()

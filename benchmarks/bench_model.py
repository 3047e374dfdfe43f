"""Load, prefill, decode and capture of the default model, beside transformers on the same GGUF file.

x is speed relative to the first row of a table: transformers with SDPA in fp32, or, for capture, our own plain forward.
"""

from __future__ import annotations

import argparse
import os

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import torch
import transformers
from side_by_side import finish, interleave, table

import workbench as wb
from workbench.checkpoints.load import default_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TEXT = " ".join(f"On day {i} the ship sailed {i * i} miles and met {i % 7} whales." for i in range(400))


def their_model():
    path = default_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


def prefill(ours, theirs, ids):
    return {
        "transformers sdpa": lambda: theirs(ids, logits_to_keep=1),
        "workbench sdpa": lambda: ours(ids, logits_to_keep=1),
    }


def decode(ours, theirs, ids):
    """One token after `ids`; each call makes its cache one longer."""
    mine, reference = wb.DynamicCache(), transformers.DynamicCache()
    ours(ids, past_key_values=mine, logits_to_keep=1)
    theirs(ids, past_key_values=reference, logits_to_keep=1)
    last = ids[:, :1]
    return {
        "transformers sdpa": lambda: theirs(last, past_key_values=reference, logits_to_keep=1),
        "workbench sdpa": lambda: ours(last, past_key_values=mine, logits_to_keep=1),
    }


def capture(ours, ids):
    def captured(*points):
        with wb.capture(ours, *points):
            ours(ids, logits_to_keep=1)

    return {
        "plain": lambda: ours(ids, logits_to_keep=1),
        "embed, resid_post, q_rot, k_rot": lambda: captured("embed", "resid_post", "q_rot", "k_rot"),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    results = {"load": interleave({"transformers": their_model, "workbench": lambda: wb.load(progress=False)}, 2)}
    table("load the default GGUF, tokenizer included in ours", results["load"])
    theirs, loaded = their_model(), wb.load(progress=False)
    ours, ids = loaded.model, torch.tensor([loaded.tokenizer.encode(TEXT)])
    for length in (64, 512, 2048):
        rounds = max(3, options.rounds if length < 2048 else options.rounds // 2)
        for title, subjects in {
            f"prefill {length}": prefill(ours, theirs, ids[:, :length]),
            f"capture {length}": capture(ours, ids[:, :length]),
        }.items():
            results[title] = interleave(subjects, rounds)
            table(title, results[title])
    results["decode at 64"] = interleave(decode(ours, theirs, ids[:, :64]), options.rounds * 10)
    table("decode one token at 64", results["decode at 64"])
    finish(results)


if __name__ == "__main__":
    main()

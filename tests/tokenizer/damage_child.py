"""Reads the folders it is told on its input, with little memory left; says of each what became of it.

A process of its own, because an allocation that fails inside a Rust library, and a crash there, end the process.
"""

import contextlib
import resource
import sys
from pathlib import Path

from workbench.tokenizer import LlamaTokenizer, TokenizerError

TEXT = "hello  <s> world<tool> é 🙂 \n\t1234567 ▁the quick"


def use(folder):
    tokenizer = LlamaTokenizer.from_folder(folder)
    with contextlib.suppress(TokenizerError):  # of what loads, each use works or is refused in words
        ids = tokenizer(TEXT, "pair", return_offsets_mapping=True).input_ids
        tokenizer.decode(ids, skip_special_tokens=True)
        tokenizer.pieces(ids)
    repr(tokenizer)


def main():
    use(Path(sys.argv[1]))  # before the limit: what is imported and started once
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            use(Path(line.strip()))
            answer = "loaded"
        except TokenizerError as error:
            answer = "refused" if str(error) else "refused without a word"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)


if __name__ == "__main__":
    main()

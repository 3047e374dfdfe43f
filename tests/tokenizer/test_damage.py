"""500 damaged files of each kind load or are refused in words: no crash, no hang, no memory past 4 times the file."""

import json
import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import write_tokenizer
from tests.tokenizer.test_sentencepiece import train
from workbench.tokenizer import LlamaTokenizer

ROOT = Path(__file__).parents[2]
SLACK = 32 << 20  # bytes besides 4 times the file
SECONDS = 30
KINDS = {
    "tokenizer.json": "spaces",
    "tokenizer.json of bytes": "bytes",
    "tokenizer_config.json": "spaces",
    "tokenizer.model": "model",
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# Anywhere in the file: hypothesis itself prefers small numbers, and so the first bytes.
PLACE = st.integers(0, (1 << 32) - 1).map(lambda number: (number * 2654435761 % (1 << 32)) / (1 << 32))
NASTY = [b"\xff\xff\xff\xff\x0f", b"[" * 500, b"9" * 30, b"1e999"]
ONE_BYTE = st.tuples(st.just("set"), PLACE, st.binary(min_size=1, max_size=1))
MORE_BYTES = st.tuples(
    st.sampled_from(["set", "cut", "insert", "repeat", "end"]),
    PLACE,
    st.binary(min_size=1, max_size=6) | st.sampled_from(NASTY),
)
BYTE_CHANGES = ONE_BYTE.map(lambda change: [change]) | st.lists(MORE_BYTES, min_size=1, max_size=4)
TREE_CHANGES = st.lists(st.tuples(st.lists(st.integers(0, 50), min_size=1, max_size=6), JSON), min_size=1, max_size=3)


class Child:
    """The process of damage_child.py, started again if it dies."""

    def __init__(self, folder, size):
        command = [sys.executable, "-m", "tests.tokenizer.damage_child", str(folder), str(4 * size + SLACK)]
        quiet = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **quiet, "RUST_BACKTRACE": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.answer(120) == "ready"

    def answer(self, seconds=SECONDS):
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return f"no answer for {seconds} s"
        return self.process.stdout.readline().strip() or f"the process ended with {self.process.wait()}"

    def ask(self, folder):
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return self.answer()


def changed_bytes(data, changes):
    for kind, place, value in changes:
        at = int(place * len(data))
        if kind == "set":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "cut":
            data = data[:at] + data[at + 10 * len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "repeat":
            data = data[:at] + data[at : at + 40] * 2 + data[at + 40 :]
        else:
            data = data[:at]
    return data


def changed_tree(tree, changes):
    tree = json.loads(json.dumps(tree))
    for path, value in changes:
        node = tree
        for depth, step in enumerate(path):
            if not isinstance(node, dict | list) or not node:
                break
            key = list(node)[step % len(node)] if isinstance(node, dict) else step % len(node)
            if depth == len(path) - 1 or not isinstance(node[key], dict | list):
                node[key] = value
                break
            node = node[key]
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def write_folder(folder, kind):
    folder.mkdir()
    if kind == "model":
        train(folder / "tokenizer.model")
    elif kind == "bytes":
        write_tokenizer(folder)
    else:
        train(folder / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_folder(folder)
        tokenizer.chat_template = {"default": "{{ messages }}"}
        tokenizer.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["<x>"]})
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.model").unlink()
        (folder / "chat_template.jinja").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {str(len(tokenizer)): {"content": "<y>", "special": True, "lstrip": False}}
        config["chat_template"] = [{"name": "default", "template": "x"}]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits a process's memory, which needs Linux")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    folder, name = tmp_path / "folder", kind.split(" ")[0]
    write_folder(folder, KINDS[kind])
    data = (folder / name).read_bytes()
    child = Child(folder, len(data))
    answers = Counter()
    tree = json.loads(data) if name.endswith(".json") else None
    changes = BYTE_CHANGES.map(lambda c: changed_bytes(data, c))
    if tree is not None:
        changes |= TREE_CHANGES.map(lambda c: changed_tree(tree, c))

    @given(changes)
    @settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def damaged(content):
        nonlocal child
        (folder / name).write_bytes(content)
        answer = child.ask(folder)
        if answer not in ("loaded", "refused"):
            child.process.kill()
            (folder / name).write_bytes(data)
            child = Child(folder, len(data))
            raise AssertionError(answer)
        answers[answer] += 1

    try:
        damaged()
    finally:
        child.process.kill()
    assert answers.total() >= 500
    assert min(answers["loaded"], answers["refused"]) >= 5, "the damage is all of one kind"

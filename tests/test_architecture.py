"""Who may import whom. A new package has to be put into the order here, on purpose."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "workbench"
# Each part may import those named behind it, besides itself.
ALLOWED = {
    "config": set(),
    "tokenizer": set(),
    "cache": {"config"},
    "model": {"config", "cache"},
    "instrument": {"config", "cache", "model"},
    "generation": {"config", "cache", "model", "instrument"},
    "checkpoints": {"config", "tokenizer", "model"},
    "analysis": {"config", "cache", "model", "instrument", "generation"},
    "session": {"config", "tokenizer", "cache", "model", "instrument", "generation", "checkpoints", "analysis"},
    "views": {"analysis", "generation"},
    "widgets": set(),
    "panels": {"session", "analysis", "views", "widgets", "generation", "instrument", "checkpoints"},
    "compat": {
        "config",
        "tokenizer",
        "cache",
        "model",
        "instrument",
        "generation",
        "checkpoints",
        "analysis",
        "session",
        "views",
        "widgets",
        "panels",
    },
    "utils": {"compat"},
    "interop": {"config", "tokenizer", "model", "checkpoints"},
    "server": set(),
    "cli": {"panels", "compat", "generation", "checkpoints"},
}
# `model.generate` is where users look for it, so the model reaches up for it when it is called.
DEFERRED = {
    ("checkpoints", "generation"),
    ("config", "checkpoints"),
    ("model", "checkpoints"),
    ("model", "generation"),
    ("tokenizer", "checkpoints"),
}
THIRD_PARTY = {"views": {"numpy"}, "widgets": {"anywidget", "traitlets", "numpy"}}
EVERYWHERE_BUT = {"torch": {"views", "widgets", "panels", "config", "cli"}, "transformers": set(ALLOWED)}


def imports(path):
    """(top-level module or workbench part, whether at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" if node.module == "workbench" else node.module for a in node.names]
        for name in names:
            yield name, node in tree.body


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part != "__init__":
            yield pytest.param(part, path, id=path.relative_to(PACKAGE).as_posix())


def wrong_imports(part, path):
    found = []
    for name, top_level in imports(path):
        head, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if head == "workbench":
            if target != part and target not in ALLOWED[part] and (top_level or (part, target) not in DEFERRED):
                found.append(name)
        elif part in EVERYWHERE_BUT.get(head, ()) or (
            part in THIRD_PARTY and head not in THIRD_PARTY[part] and head not in __import__("sys").stdlib_module_names
        ):
            found.append(name)
    return found


@pytest.mark.parametrize(("part", "path"), list(files()))
def test_imports_point_downwards(part, path):
    assert wrong_imports(part, path) == []


def test_the_check_notices_a_wrong_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from workbench.panels import Workbench\nimport torch\nimport pandas\nimport transformers.models\n")
    assert wrong_imports("views", bad) == ["workbench.panels", "torch", "pandas", "transformers.models"]
    assert wrong_imports("session", bad) == ["workbench.panels", "transformers.models"]


def test_forward_hooks_are_registered_in_instrument_only():
    offenders = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "register_forward" in path.read_text(encoding="utf-8") and path.parent.name != "instrument"
    ]
    assert offenders == []

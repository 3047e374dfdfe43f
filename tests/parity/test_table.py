"""docs/parity.md lists the comparisons that there are."""

import importlib.util

import pytest

from tests.test_architecture import PACKAGE

SCRIPT = PACKAGE.parent / "scripts" / "parity_table.py"


def script():
    spec = importlib.util.spec_from_file_location("parity_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_true(request):
    page = script()
    found = page.count(request.session.items)
    files = {file.name for file in page.FOLDER.glob("test_*.py")}
    if {file for file, _ in found} != files or request.config.option.keyword or request.config.option.markexpr:
        pytest.skip("only a part of tests/parity was collected")
    assert page.TABLE.read_text(encoding="utf-8") == page.table(found), "run python scripts/parity_table.py"

import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.ui.lab import BROWSER_ARGS, Notebook, Server, find_browser

ROOT = Path(__file__).parents[2]
SHOTS = Path(__file__).parent / "shots"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("notebooks")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, root)
    server = Server(root, tmp_path_factory.mktemp("jupyter"))
    server.root = root
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture
def notebook(server, browser, request):
    """Opens notebooks; afterwards asserts that the page logged no error and asked no other host for anything."""
    SHOTS.mkdir(exist_ok=True)
    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    refused = []
    # Only http(s) can reach another host: blob: and data: are made by the page itself.
    context.route(
        re.compile(rf"^https?://(?!{re.escape(server.url[7:])})"), lambda r: (refused.append(r.request.url), r.abort())
    )
    notebook = Notebook(context.new_page(), server)
    yield notebook
    notebook.page.screenshot(path=SHOTS / f"{request.node.name}-last.png")
    errors = list(notebook.console)  # before the kernel goes: while it does, ipykernel may mix two messages' frames
    notebook.close()
    context.close()
    assert errors == []
    assert refused == []
    others = [url for url in notebook.requests if not url.startswith((server.url, "blob:", "data:", "about:"))]
    assert others == []

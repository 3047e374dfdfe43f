"""`workbench lab`, which `make lab` runs: the printed address opens the quickstart, on this machine only."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/lab/tree/notebooks/00_quickstart\.ipynb\?token=\w{20,}")


@pytest.fixture
def address(tmp_path):
    """Starts the command as a user would and yields the address it prints."""
    log = tmp_path / "log"
    places = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
        "IPYTHONDIR",
    )
    env = {**os.environ, **{name: str(tmp_path / name) for name in places}}
    command = [sys.executable, "-m", "workbench.cli", "lab", "--no-browser", "--port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while not (found := ADDRESS.search(log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    yield found.group()
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_the_printed_address_opens_the_quickstart_and_the_token_is_needed(address, browser):
    page = browser.new_page()
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(address)
    page.get_by_role("heading", name="Quickstart").wait_for(timeout=60_000)
    page.wait_for_timeout(3000)  # what JupyterLab asks for news and updates comes after the notebook
    page.close()
    assert hosts <= {address.split("/")[2], ""}
    without = address.split("/lab")[0] + "/api/contents"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(without, timeout=10)

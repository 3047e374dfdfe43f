import sys
from pathlib import Path

import pytest

from workbench.cli import lab_command, main


def test_lab_listens_on_loopback_only_and_asks_no_host_for_news():
    command = lab_command(None, 8890, no_browser=True, as_root=False)
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    for option in ("--ServerApp.ip=127.0.0.1", "--ServerApp.port=8890", "--no-browser", "--LabApp.news_url=None"):
        assert option in command
    assert not any("token" in option for option in command)  # Jupyter makes one
    assert "--allow-root" not in command
    assert "--allow-root" in lab_command(None, 8888, no_browser=False, as_root=True)


def test_the_address_that_is_printed_leads_to_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = lab_command(Path("notes/my first.ipynb"), 8888, no_browser=True, as_root=False)
    assert f"--ServerApp.root_dir={tmp_path}" in inside
    assert "--LabApp.default_url=/lab/tree/notes/my%20first.ipynb" in inside
    outside = lab_command(tmp_path.parent / "other.ipynb", 8888, no_browser=True, as_root=False)
    assert f"--ServerApp.root_dir={tmp_path.parent}" in outside
    assert "--LabApp.default_url=/lab/tree/other.ipynb" in outside


def test_a_missing_notebook_is_said_before_anything_starts(capsys):
    assert main(["lab", "nowhere.ipynb"]) == 1
    assert "there is no notebook nowhere.ipynb" in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "lab" in capsys.readouterr().err

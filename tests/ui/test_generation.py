"""The generation panel in a real JupyterLab: a click and the keyboard branch, the other panels follow."""

import pytest

from tests.ui.conftest import SHOTS
from tests.ui.lab import write_notebook

pytestmark = pytest.mark.browser

CELL = """\
import workbench as wb
session = wb.Session(wb.load())
session.run("The capital of France is", max_new_tokens=4)
page = wb.Workbench(session)
page"""


def test_a_click_and_enter_branch_and_the_strip_follows(notebook, server):
    write_notebook(server.root / "generation.ipynb", [CELL])
    page = notebook.open("generation.ipynb").run_all().page
    panel = page.get_by_test_id("wb-generation")
    rows = panel.get_by_test_id("wb-candidates").locator("tbody tr")
    tokens = page.get_by_test_id("wb-tokens").get_by_role("option")
    branches = panel.get_by_test_id("wb-generation-branches").get_by_role("button")

    def after(words):
        page.wait_for_function(
            "words => document.querySelector('[data-testid=wb-generation-after]').textContent === words", arg=words
        )

    after("after ⏎ · position 8")
    page.set_viewport_size({"width": 1680, "height": 1320})

    tokens.nth(4).click()
    after("after ␣is · position 4")
    assert rows.count() == 20
    assert rows.nth(0).locator("td").nth(1).text_content() == "● ␣Paris"
    page.keyboard.press("Escape")
    light = SHOTS / "generation-light.png"
    page.wait_for_timeout(300)
    page.screenshot(path=light)

    second = rows.nth(1).locator("td").nth(1).text_content()
    rows.nth(1).click()
    after(f"after {second} · position 5")
    notebook.wait_kernel("session.current.length", "6")
    assert tokens.count() == 6
    assert tokens.nth(5).text_content() == second
    assert tokens.nth(5).get_attribute("aria-selected") == "true"

    # The keyboard goes on where the click was: the first row of the next candidates.
    third = rows.nth(2).locator("td").nth(1).text_content()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    after(f"after {third} · position 6")
    notebook.wait_kernel("[node.source for node in session.current.nodes[5:]]", "['forced', 'forced']")
    assert tokens.nth(6).text_content() == third

    tokens.nth(4).click()
    after("after ␣is · position 4")
    assert branches.count() == 2
    assert [branches.nth(i).get_attribute("aria-current") for i in range(2)] == [None, "true"]
    panel.get_by_label("Temperature").fill("1.5")
    panel.get_by_label("Top-k").fill("3")
    page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=wb-candidates] tbody tr')[3].textContent.includes('never')"
    )
    assert notebook.kernel("session.sampler") == "Sampler(temperature=0.0, top_k=0, top_p=1.0, seed=0)"
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / "generation-branches.png")
    panel.get_by_role("button", name="Use").click()
    notebook.wait_kernel("session.sampler", "Sampler(temperature=1.5, top_k=3, top_p=1.0, seed=0)")
    page.wait_for_function(
        "() => document.querySelector('[data-testid=wb-run-bar] input[title*=greedy]').value === '1.5'"
    )

    branches.nth(0).click()
    notebook.wait_kernel("(session.current.length, session.cursor.query)", "(9, 4)")
    page.wait_for_function("() => document.querySelectorAll('[data-testid=wb-tokens] [role=option]').length === 9")
    assert tokens.nth(5).text_content() == "␣Paris"

    notebook.theme("JupyterLab Dark")
    page.wait_for_function("() => document.querySelector('[data-testid=wb-generation]').dataset.theme === 'dark'")
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    page.mouse.move(2, 2)
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / "generation-dark.png")

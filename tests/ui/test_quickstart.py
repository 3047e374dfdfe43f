"""The quickstart in a real JupyterLab. Each test opens it anew, runs every cell, and then does what a user would."""

import statistics

import pytest

from tests.ui.conftest import SHOTS

pytestmark = pytest.mark.browser

STOP_AND_TIME = """() => new Promise((resolve, reject) => {
  const words = document.querySelector('[data-testid=wb-status]');
  const began = performance.now();
  const seen = () => words.textContent.startsWith('Stopped') && resolve(performance.now() - began);
  new MutationObserver(seen).observe(words, {subtree: true, childList: true, characterData: true});
  setTimeout(() => reject(new Error('not stopped after 10 s: ' + words.textContent)), 10000);
  [...document.querySelectorAll('[data-testid=wb-run-bar] button')].find(b => b.textContent.includes('Stop')).click();
})"""
PIXEL = """([canvas, box]) => {
  const outer = canvas.getBoundingClientRect(), ratio = canvas.width / outer.width;
  const x = Math.round((box.x + box.width - 4 - outer.x) * ratio), y = Math.round((box.y + 4 - outer.y) * ratio);
  return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];
}"""


class Page:
    """The workbench on the page, in the words of its user."""

    def __init__(self, notebook):
        self.notebook, page = notebook, notebook.page
        self.prompt = page.get_by_role("textbox", name="Prompt")
        self.new_tokens = page.get_by_label("New tokens")
        self.status = page.get_by_test_id("wb-status")
        self.tokens = page.get_by_test_id("wb-tokens").get_by_role("option")
        self.lens, self.attention = page.get_by_test_id("wb-matrix").nth(0), page.get_by_test_id("wb-matrix").nth(1)

    def button(self, name):
        return self.notebook.page.get_by_test_id("wb-run-bar").get_by_role("button", name=name)

    def run(self, prompt, new_tokens):
        self.prompt.fill(prompt)
        self.new_tokens.fill(str(new_tokens))
        self.button("Run").click()

    def wait_status(self, words, seconds=60):
        self.notebook.page.wait_for_function(
            "words => document.querySelector('[data-testid=wb-status]').textContent.startsWith(words)",
            arg=words,
            timeout=seconds * 1000,
        )

    def wait_tokens(self, count):
        self.notebook.page.wait_for_function(
            "count => document.querySelectorAll('[data-testid=wb-tokens] [role=option]').length === count", arg=count
        )

    def canvas(self, matrix):
        return matrix.get_by_test_id("wb-matrix-canvas")

    def cell(self, matrix, row, column):
        """The cell's rectangle on the page, scrolled into view."""
        canvas = self.canvas(matrix)
        canvas.scroll_into_view_if_needed()
        return canvas.evaluate("(canvas, [row, column]) => canvas.wbCellRect(row, column)", [row, column])

    def click_cell(self, matrix, row, column):
        box = self.cell(matrix, row, column)
        self.notebook.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def pixel(self, matrix, row, column):
        """The colour of a cell near its upper right corner, where no text is."""
        box = self.cell(matrix, row, column)
        return self.canvas(matrix).evaluate(f"(canvas, box) => ({PIXEL})([canvas, box])", box)


@pytest.fixture
def page(notebook):
    notebook.open("00_quickstart.ipynb").run_all()
    return Page(notebook)


def test_prompt_run_step_click_and_the_cursor_both_ways(page):
    kernel = page.notebook.kernel
    page.run("The capital of France is", 0)
    page.wait_status("Done")
    page.wait_tokens(5)
    for count in (6, 7, 8):
        page.button("Step").click()
        page.wait_tokens(count)
        page.wait_status("Done")
    assert kernel("session.tokenizer.decode(session.current.token_ids)").startswith("'The capital of France is Paris")
    assert page.tokens.nth(5).text_content() == "␣Paris"

    page.tokens.nth(3).click()
    page.notebook.wait_kernel("session.cursor.query", "3")
    assert page.tokens.nth(3).get_attribute("aria-selected") == "true"

    page.click_cell(page.lens, 4, 2)  # the fifth row from the top is layer 25
    page.notebook.wait_kernel("(session.cursor.layer, session.cursor.query)", "(25, 2)")
    page.notebook.page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=wb-matrix]')[1].textContent.includes('layer 25, head')"
    )
    page.click_cell(page.attention, 6, 4)
    page.notebook.wait_kernel("(session.cursor.query, session.cursor.key, session.cursor.layer)", "(6, 4, 25)")

    page.notebook.execute("session.cursor.query = 1; session.cursor.head = 2")
    page.notebook.page.wait_for_function(
        """() => document.querySelectorAll('[role=option]')[1].getAttribute('aria-selected') === 'true'
             && document.querySelectorAll('[data-testid=wb-matrix]')[1].textContent.includes('layer 25, head 2')"""
    )


def test_stop_ends_a_long_run_at_once_and_keeps_what_is_there(page):
    times = []
    for first in ("Once", "Twice", "Thrice"):
        page.run(f"{first} upon a time", 3000)
        page.notebook.page.wait_for_function(
            """first => { const tokens = document.querySelectorAll('[role=option]');
                 return first.startsWith(tokens[0].textContent) && tokens.length > 12 }""",
            arg=first,
        )
        times.append(page.notebook.page.evaluate(STOP_AND_TIME))
        length = int(page.notebook.kernel("session.current.length"))
        assert length > 12
        assert page.notebook.kernel("session.current.cache.length") == str(length)
        page.wait_tokens(length)
        page.button("Step").click()
        page.wait_tokens(length + 1)
        page.wait_status("Done")
    print("Stop → stopped:", [f"{ms:.0f} ms" for ms in times])
    assert statistics.median(times) <= 200


def test_the_picture_is_the_kernel_s_numbers(page):
    """Darker in the light theme means more weight: the drawn order of one row is the order of its weights."""
    page.run("one two one two one two", 0)
    page.wait_status("Done")
    page.wait_tokens(6)
    page.notebook.execute("session.cursor.move(layer=12, head=4)")
    page.notebook.page.wait_for_function(
        "() => document.querySelectorAll('[data-testid=wb-matrix]')[1].textContent.includes('layer 12, head 4')"
    )
    weights = eval(page.notebook.kernel("session.attention.row(12, 4, 5).tolist()"))
    keys = range(1, 6)  # the first key has its own place outside the scale
    light = {k: sum(page.pixel(page.attention, 5, k)[:3]) for k in keys}
    by_weight = sorted(keys, key=lambda k: -weights[k])
    assert [light[k] for k in by_weight] == sorted(light.values())
    assert len(set(light.values())) >= 3
    masked = page.pixel(page.attention, 0, 3)
    assert max(masked[:3]) - min(masked[:3]) < 12  # grey


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("   ", "Error · The prompt is empty. Type some text, then run."),
        ("word " * 9000, "Error · The prompt has 9,"),
    ],
    ids=["empty", "too long"],
)
def test_a_refused_prompt_is_explained_and_the_session_goes_on(page, prompt, words):
    before = page.notebook.kernel("session.current.token_ids")
    page.run(prompt, 2)
    page.wait_status(words)
    assert page.notebook.kernel("session.current.token_ids") == before
    page.run("Fine again", 2)
    page.wait_status("Done")
    page.notebook.wait_kernel("session.current.prompt", "'Fine again'")


def test_a_number_out_of_range_is_refused_before_anything_runs(page):
    before = page.notebook.kernel("session.cursor.run")
    page.notebook.page.get_by_test_id("wb-run-bar").get_by_label("Temperature").fill("-1")
    page.run("Hello", 2)
    problem = page.notebook.page.get_by_test_id("wb-run-bar").get_by_role("alert")
    problem.wait_for()
    assert "Temperature" in problem.text_content()
    assert page.notebook.kernel("session.cursor.run") == before


def test_hostile_text_stays_text(page):
    prompt = "<img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script> \u202eevil\u200b"
    page.run(prompt, 1)
    page.wait_status("Done")
    page.notebook.wait_kernel("session.current.prompt", repr(prompt))
    page.wait_tokens(int(page.notebook.kernel("session.current.length")))
    shown = "".join(page.tokens.all_text_contents())
    assert "<script" in shown.replace("␣", " ").replace(" ", "") or "script" in shown
    assert "\u202e" not in shown
    assert (
        page.notebook.page.evaluate(
            "document.querySelectorAll('[data-testid^=wb-] img, [data-testid^=wb-] script').length"
        )
        == 0
    )
    assert "owned" not in page.notebook.page.title()


def test_an_exception_inside_a_hook_is_shown_and_the_session_goes_on(page):
    page.notebook.execute(
        "def fail(module, args): raise RuntimeError('planted')\n"
        "handle = session.model.model.layers[3].register_forward_pre_hook(fail)"
    )
    length = page.notebook.kernel("session.current.length")
    page.button("Step").click()
    page.wait_status("Error · RuntimeError: planted")
    assert page.notebook.kernel("session.current.length") == length
    page.notebook.execute("handle.remove()")
    page.button("Step").click()
    page.wait_status("Done")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_screenshots(page, theme):
    page.notebook.theme(f"JupyterLab {theme}")
    page.wait_tokens(15)
    page.notebook.page.set_viewport_size({"width": 1680, "height": 1320})
    page.notebook.page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
    page.notebook.page.wait_for_timeout(500)
    page.notebook.page.screenshot(path=SHOTS / f"quickstart-{theme.lower()}.png")
    drawn = [int(value) for value in page.notebook.page.evaluate(
        "() => [...document.querySelectorAll('[data-drawn]')].map(node => node.dataset.drawn)")]  # fmt: skip
    assert len(drawn) == 5
    assert min(drawn) >= 1

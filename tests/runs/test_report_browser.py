"""How the report behaves in a real browser."""

import re
from pathlib import Path

import pytest
from helpers.run_directories import HOSTILE, lines, make_run, rich_run, three_runs

from sslkit.runs.report import write

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return rich_run(tmp_path_factory.mktemp("rich"))


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Open a page; afterwards nothing may have been complained of or asked for."""
    contexts, complaints, requests = [], [], []

    def call(path, width=1440, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(path).as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in requests) == len(contexts)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_a_phone_and_a_desk(rich, visit, width, scheme):
    page = visit(rich / "report.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() == f"{rich.name} – sslkit report"


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_dark_mode_changes_colours_and_print_goes_back_to_white(rich, visit):
    read = "getComputedStyle(document.querySelector(%r)).%s"
    seen = {}
    for scheme in ("light", "dark"):
        page = visit(rich / "report.html", scheme=scheme)
        seen[scheme] = [page.evaluate(read % where) for where in [("html", "backgroundColor"), (".plot text", "fill")]]
    assert brightness(seen["light"][0]) > 700 > 100 > brightness(seen["dark"][0])
    assert brightness(seen["light"][1]) < 150 < 600 < brightness(seen["dark"][1])
    page.emulate_media(media="print")
    assert brightness(page.evaluate(read % ("html", "backgroundColor"))) == 765
    assert page.evaluate(read % ("nav", "display")) == "none"


def column(page, number):
    return page.locator(f"#table tbody tr > :nth-child({number})").all_inner_texts()


def test_tables_sort_by_click_and_by_keyboard(tmp_path, visit):
    runs = three_runs(tmp_path)
    lines(runs[2] / "evaluations.jsonl", [])
    page = visit(write(runs, tmp_path / "out.html"))
    heading = page.locator("#table th", has_text="last epoch")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, 2) == ["a", "b", "c"]
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    # What has no figure stays last in either order.
    assert column(page, 2) == ["b", "a", "c"]
    name = page.locator("#table th", has_text="run").first
    name.locator("button").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Space")
    assert column(page, 2) == ["c", "b", "a"]
    assert heading.get_attribute("aria-sort") == "none"


def test_charts_are_read_by_pointer_and_by_keyboard(tmp_path, visit):
    page = visit(write([make_run(tmp_path / "run", (0.2, 0.9, 0.8))]))
    chart = page.locator(".chart").first
    plot, reading = chart.locator(".plot"), chart.locator(".reading")
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] - 5, "y": box["height"] / 2})
    assert reading.inner_text() == "linear top-1, epoch 2: 80.0 %"
    page.mouse.move(0, 0)
    assert reading.inner_text() == ""
    plot.focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "End", "Escape"):
        page.keyboard.press(key)
        said.append(reading.inner_text())
    assert said == [
        "linear top-1, epoch 0: 20.0 %",
        "linear top-1, epoch 1: 90.0 %",
        "linear top-1, epoch 2: 80.0 %",
        "",
    ]


def test_the_embedding_shows_thumbnails_and_reaches_every_point_by_keyboard(rich, visit):
    page = visit(rich / "report.html")
    stage, tip = page.locator(".stage"), page.locator(".tip")
    reading = page.locator(".explorer .reading")
    assert tip.is_hidden()
    box = stage.bounding_box()
    # The first point of t-SNE lies rightmost, in the middle.
    stage.hover(position={"x": 0.96 * box["width"], "y": 0.5 * box["height"]})
    assert reading.inner_text() == f"{HOSTILE[0]}, image 1 of 12"
    assert tip.locator(".what").inner_text() == HOSTILE[0]
    assert "data:image/jpeg" in tip.locator(".thumb").evaluate("e => getComputedStyle(e).backgroundImage")
    assert tip.locator(".thumb").evaluate("e => e.style.backgroundPosition") == "0px 0px"
    # The fourth has the largest y, and lies on top.
    stage.hover(position={"x": 0.5 * box["width"], "y": 0.04 * box["height"]})
    assert reading.inner_text() == f"{HOSTILE[3]}, image 4 of 12"
    page.locator("select.map").select_option("pca")
    assert tip.is_hidden()
    stage.focus()
    reached = set()
    page.keyboard.press("Home")
    for key in [k for k in ("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowUp") for _ in range(12)] * 2:
        page.keyboard.press(key)
        reached.add(int(re.search(r"image (\d+) of", reading.inner_text())[1]))
    assert reached == set(range(1, 13))
    page.locator("select.class").select_option("4")
    stage.focus()
    page.keyboard.press("End")
    assert reading.inner_text() == f"{HOSTILE[4]}, image 12 of 12"


def test_defaults_are_shown_on_request(tmp_path, visit):
    page = visit(write([make_run(tmp_path / "run")]))
    default = page.locator("#settings tr", has_text="method.temperature")
    assert default.is_hidden()
    assert page.locator("#settings tr", has_text="epochs").is_visible()
    page.locator("input.defaults").check()
    assert default.is_visible()
    page.locator("input.defaults").uncheck()
    page.emulate_media(media="print")
    assert default.is_visible()


def test_without_scripts_everything_can_still_be_read(tmp_path, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write([make_run(tmp_path / "run")]).as_uri())
    assert page.locator("#settings tr", has_text="method.temperature").is_visible()
    assert page.locator(".plot svg").first.is_visible()
    context.close()

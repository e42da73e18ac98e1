"""The report in a real browser: two widths, two schemes, sorting, filtering, and no error."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_run import build, study
from test_report import steady

from loadtest.report import page

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((element) => !element.parentElement.closest(".scroll, pre, svg") && element.id !== "tip")
    .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map((element) => element.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("runs") / "made", study(), steady)
    page.write(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


def filters(shown: Any, table: Any) -> None:
    """The field above a table is reached by the keyboard; paper shows what it hides."""
    lines = table.locator("tbody")
    field = shown.get_by_label("Filter the lines of 28 px")
    field.focus()
    shown.keyboard.type("onnx JAX")
    assert lines.filter(visible=True).count() == 1
    assert "JAX/Flax" in lines.filter(visible=True).inner_text()
    assert shown.get_by_role("status").filter(has_text="1 of 7 lines").is_visible()
    shown.emulate_media(media="print")
    assert lines.filter(visible=True).count() == 7
    assert not field.is_visible()
    shown.emulate_media(media="screen")
    field.fill("")
    assert lines.filter(visible=True).count() == 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_shows_it_without_errors_at_any_width(run: Path, browser: Any, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: said.extend([request.url] * (not request.url.startswith(("file:", "data:")))))
    shown.goto((run / "report.html").as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert shown.evaluate(TOO_WIDE) == []
    paper = shown.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")

    assert shown.locator("#answer figure#latency").is_visible()
    table = shown.locator("#deployments table").first
    assert not table.is_visible(), "wide tables are folded"
    shown.locator("#deployments details.wide > summary").first.click()
    for _ in range(2):
        table.locator("button.sort").nth(1).click()
    values = [float(cell.get_attribute("data-value")) for cell in table.locator("tbody tr td:nth-child(2)").all()]
    assert values == sorted(values, reverse=True)
    assert len(values) == 7
    filters(shown, table)
    point = shown.locator('#latency [aria-roledescription="point"]').first
    point.scroll_into_view_if_needed()
    point.hover()
    assert re.search(r"PyTorch TorchScript, 28 px: median 0.900.ms \[", shown.locator("#tip").inner_text())
    assert said == []
    context.close()


def test_without_script_every_table_is_whole_and_nothing_is_offered_that_does_not_work(run: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto((run / "report.html").as_uri())
    assert shown.locator("input, button").count() == 0
    assert shown.locator("#deployments tbody").count() == 14
    context.close()

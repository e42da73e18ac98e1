"""The cost of the report of a large run: seconds, memory, bytes, and the first paint in a browser."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from loadtest.benchmark.bench import Line, run
from loadtest.benchmark.large import SAMPLES
from medserve import plugins, process
from medserve.errors import CannotRun

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def measure(folder: Path, scale: float) -> Iterator[Line]:
    """Make the run in `folder`, write its report in a process of its own, open it in a browser."""
    if folder.exists():
        raise CannotRun(f"{folder}: exists; give --out the name of a new folder")
    rows = round(SAMPLES * scale)
    run("loadtest.benchmark.large", "run", str(folder), "--rows", str(rows))
    results = len(list(folder.glob("results/*/*/result.json")))
    began = time.perf_counter()
    child = process.start(["-m", "loadtest", "report", str(folder)], stdout=subprocess.DEVNULL)
    # Of this child alone: the peak of all children includes that of the one that made the run.
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if child.returncode:
        raise CannotRun(f"the report of {folder} failed: {process.describe_exit(child.returncode)}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    page = folder / "report.html"
    note = f"{results:,} records, {rows:,} samples"
    yield Line(part="report", name="time", value=seconds, unit="s", high=60, note=note)
    yield Line(part="report", name="peak memory", value=peak / 1e9, unit="GB", high=2, note=note)
    yield Line(part="report", name="page", value=page.stat().st_size / 1e6, unit="MB", high=10)
    try:
        yield Line(part="report", name="first paint", value=first_paint(page), unit="s", high=2, note="Chromium")
    except CannotRun as error:
        yield Line(part="report", name="first paint", note=str(error))


def first_paint(page: Path) -> float:
    """Seconds from opening a page to the first thing that Chromium draws. Raises CannotRun when there is none here."""
    library = plugins.need("playwright.sync_api", "the first paint")
    if (chromium := shutil.which("chromium")) is None:
        raise CannotRun("no chromium on the path; apt-get install chromium")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            tab = browser.new_page()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_function("performance.getEntriesByType('paint').length > 0")
            return float(tab.evaluate("performance.getEntriesByType('paint')[0].startTime")) / 1000
        finally:
            browser.close()

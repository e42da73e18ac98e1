"""Empirical distributions of latency, a line per launch: an average would show the distribution of none of them."""

from typing import Literal

from loadtest.report import comparison, scales, series, sheet, wording
from loadtest.report.comparison import grouped
from loadtest.report.drawing import Axis, Drawn
from loadtest.report.facts import Facts
from loadtest.report.model import Figure
from loadtest.report.series import Stroke
from loadtest.report.wording import Labels
from loadtest.results.row import Row
from medserve.numbers import number

MODES = ("in-process", "closed-loop", "open-loop")
SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001, 0.00001)


def figure(facts: Facts) -> Figure | None:
    """One panel per size and way of measuring single images; null without samples."""
    names = [comparison.single_image(facts.profiles.values(), mode) for mode in MODES]
    rows = [row for row in facts.rows if row.profile in names and row.usable]
    panels = []
    for group in grouped(rows, "dataset", "architecture", "size").values():
        by_profile = grouped(group, "profile").values()
        panels += [panel for rows in by_profile if (panel := _panel(facts, rows, group)) is not None]
    caption = (
        "The share of requests of one image that took at least so long; both axes are logarithmic. Every launch is a "
        "thin line, solid for native and broken for ONNX: the distance between the lines of a deployment is what its "
        "intervals are made of. A line ends at its slowest answer."
    )
    return sheet.draw("distributions", "Distributions", caption, panels, wording.key(rows)) if panels else None


def _panel(facts: Facts, rows: list[Row], beside: list[Row]) -> Drawn | None:
    """One way of measuring, on the same axis as all others at this size."""
    found = [(row, curve) for row in rows for curve in facts.curves[row.cell].values() if curve.shares]
    if not found:
        return None
    ends = [
        (end, None, None)
        for row in beside
        for curve in facts.curves[row.cell].values()
        for end in (curve.milliseconds[0], curve.milliseconds[-1])
    ]
    x = Axis(title="ms (log)", domain=scales.logarithmic(ends))
    least = min(curve.shares[-1] for _, curve in found)
    shares = tuple(share for share in SHARES if share >= least)
    y = Axis(title="took at least so long (log)", domain=(least / 1.2, 1.0), ticks=shares, form="~%")
    strokes = [
        Stroke(wording.colour(row.framework), _kind(row), curve.milliseconds, curve.shares) for row, curve in found
    ]
    words = [wording.profile(facts.profiles[rows[0].profile]), *facts.datasets(rows[0].dataset)]
    title = ", ".join([*words, *facts.architectures(rows[0].architecture), f"{rows[0].size} px"])
    slowest = max(curve.milliseconds[-1] for _, curve in found)
    names = wording.listed(list(dict.fromkeys(Labels(facts.rows).full(row) for row, _ in found)))
    says = f"{len(strokes)} launches of {names}, the slowest answer after {number(slowest)} ms"
    return series.strokes(strokes, x, y, title, says)


def _kind(row: Row) -> Literal["native", "ONNX"]:
    return "ONNX" if row.format == "onnx" else "native"

"""How names are written: plain titles, one colour per framework; latencies with their unit; and the captions."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.results.row import Row
from loadtest.results.tabular import Mark
from medserve.numbers import ABSENT, interval, number
from medserve.spec import LoadProfile
from medserve.tables import DATASETS, FORMATS, title

_PROSE = tomllib.loads((Path(__file__).parent / "prose.toml").read_text())
SECTIONS: dict[str, dict[str, str]] = _PROSE["sections"]
"""Title and introduction of each section."""
CAPTIONS: dict[str, str] = _PROSE["figures"]
"""By the name of a figure."""
TABLES: dict[str, str] = _PROSE["tables"]
"""Captions by the title of a table."""
MS = "\N{NO-BREAK SPACE}ms"
# Okabe & Ito (2008), "Color Universal Design": told apart with any kind of colour vision.
COLOURS = {"pytorch": "#D55E00", "keras_tf": "#0072B2", "flax_nnx": "#009E73"}
SPARE = ("#CC79A7", "#E69F00", "#56B4E9")
NULL = "#767676"
MUTED = "#57606a"


def milliseconds(value: float | None) -> str:
    """A latency with its unit, on one line."""
    return number(value) + MS


def estimate(row: Row, name: str = "p50") -> str:
    """A percentile of a row with its interval: `0.436 ms [0.423, 0.451]`."""
    found = row.percentile(name)
    bounds = interval(found.low, found.high)
    return milliseconds(found.value) + (f" {bounds}" if bounds else "")


def several(count: int, thing: str, things: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def framework(name: str | None) -> str:
    """The title of a framework; the null runtime has none."""
    return "Null" if name is None else title(name)


def dataset(name: str) -> str:
    """The title of a data set."""
    return DATASETS[name].title if name in DATASETS else name


def colour(name: str | None) -> str:
    """The colour of a framework, the same in every report; a framework without its own gets a spare one."""
    if name is None:
        return NULL
    return COLOURS.get(name) or SPARE[sum(name.encode()) % len(SPARE)]


def mark(row: Row) -> Mark:
    """The sign of a row's deployment."""
    null, onnx = row.framework is None, row.format == "onnx"
    return Mark(colour(row.framework), "square" if null else "diamond" if onnx else "disc")


def profile(load: LoadProfile) -> str:
    """A way of measuring in a few words."""
    where = {"in-process": "In process", "closed-loop": "HTTP, closed loop", "open-loop": "HTTP, open loop"}[load.mode]
    words = [where]
    words += [schedule(load)] if load.rate or load.load else []
    words += [f"pauses of {pause(load.gap_seconds)}"] if load.gap_seconds else []
    words += [f"{load.users} users"] if load.users > 1 else []
    words += [f"timing mistake {load.mistake}"] if load.mistake else []
    words += [f"batches of {load.batch}"] if load.batch > 1 else ["one image"] if load.mode == "in-process" else []
    return ", ".join(words)


def under(load: LoadProfile) -> str:
    """A load over HTTP in a sentence: `at 50 requests per second, Poisson`."""
    if load.mode == "open-loop":
        rate = f"at {load.rate:g} requests per second" if load.rate else ""
        rate = f"at {load.load * 100:g} % of the capacity" if load.load else rate
        return ", ".join(filter(None, (rate, _arrivals(load))))
    pauses = f"with pauses of {pause(load.gap_seconds)}" if load.gap_seconds else "back to back"
    return f"{several(load.users, 'user')}, {pauses}"


def schedule(load: LoadProfile) -> str:
    """The arrivals of an open loop: `50/s`, `50/s Poisson, batches of 8`."""
    batches = f", batches of {load.batch}" if load.batch > 1 else ""
    asked = f"{load.rate:g}/s" if load.rate else ""
    words = " ".join(filter(None, (asked, _arrivals(load))))
    if load.load:
        words = f"{load.load * 100:g} % of capacity" + (f" {_arrivals(load)}" if load.arrivals != "poisson" else "")
    return words + batches


def _arrivals(load: LoadProfile) -> str:
    words = {"constant": "", "poisson": "Poisson", "bursts": f"in bursts of {load.burst}", "trace": "by trace"}
    return words[load.arrivals]


def pause(seconds: float) -> str:
    """A pause between requests."""
    return "none" if not seconds else f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


class Labels:
    """Names deployments by what distinguishes them within these rows, and by no more."""

    def __init__(self, rows: Sequence[Row]) -> None:
        names = (
            "precision",
            "architecture",
            "device",
            "settings",
            "threads",
            "batch_images",
            "instances",
            "variant",
            "seed",
            "server",
            "copy",
        )
        known = [row for row in rows if row.framework is not None]
        self._varying = {name for name in names if len({getattr(row, name) for row in known}) > 1}

    def kind(self, row: Row) -> str:
        """The words beside the framework: format, runtime unless it is the format's default, and what varies."""
        if row.framework is None:
            words = ["floor of the wrapper"]
        else:
            default = FORMATS[row.format].runtime if row.format in FORMATS else None
            words = [title(row.format or ABSENT)] + ([title(row.runtime)] if row.runtime != default else [])
        return ", ".join(words + self.varying(row))

    def varying(self, row: Row) -> list[str]:
        """The words for what varies among the rows."""
        shown: dict[str, Any] = {
            "precision": row.precision,
            "architecture": row.architecture,
            "device": row.device,
            "settings": row.settings,
            "threads": several(row.threads, "thread"),
            "batch_images": f"batches of up to {row.batch_images}" if row.batch_images > 1 else "no batching",
            "instances": several(row.instances, "instance"),
            "variant": row.variant,
            "seed": f"seed {row.seed}",
            "server": row.server,
            "copy": f"copy {row.copy}" if row.copy else None,
        }
        return [str(shown[key]) for key in shown if key in self._varying and shown[key] is not None]

    def full(self, row: Row) -> str:
        """The name of a deployment, for a sentence or an axis."""
        return f"{framework(row.framework)} {self.kind(row)}" if row.framework else "Null (floor)"

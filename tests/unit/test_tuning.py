"""Which options are taken of those that were tried: what is fastest beside the defaults, together or alone."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loadtest.measure import tuning
from loadtest.measure.tuning import settings, tune
from medserve import plugins
from medserve.errors import CannotRun
from medserve.jobs import Setting
from medserve.spec import Deployment

SETTINGS = tuple(
    Setting(option=option, value=value, why="", source="")
    for option, value in (("heap", "kept"), ("graph", "frozen"), ("graph", "optimised"), ("arena", "off"))
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    np.savez(tmp_path / "golden.npz", images=np.zeros(1), scores=np.zeros(1))
    return tmp_path


def found(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], faults: float = 0.0
) -> tuple[dict[str, str], float]:
    """What is chosen where the latency of each candidate is that of the defaults times a number of its own.

    `faults` are the page faults of a call, unless the heap is kept.
    """
    scratch = artifact / "scratch"
    scratch.mkdir()

    def measure(self: tuning._Tuning, options: dict[str, str]) -> str:
        key = tuning._key(options)
        speed = 1.0
        for one in key.split():
            speed *= speeds.get(one, 1.0)
        speed = speeds.get(key, speed)
        # The first launch of each is disturbed.
        disturbed = 1.0 if key in self._medians else 2.0
        found = {batch: base * speed * disturbed for batch, base in ((1, 1.0), (32, 20.0))}
        self._medians.setdefault(key, []).append(found)
        self._faults.setdefault(key, []).append(0.0 if "heap" in options else faults)
        return key

    monkeypatch.setattr(tuning._Tuning, "measure", measure)
    monkeypatch.setattr(tuning, "settings", lambda *_: SETTINGS)
    told: list[str] = []
    done = tune(artifact, Deployment(artifact="a", runtime="torchscript"), scratch, told.append)
    assert [told.count(tuning._key(one)) for one in ({}, done.chosen)] == [tuning.LAUNCHES] * 2
    assert len(done.candidates) == len({tuning._key(one.options) for one in done.candidates}) == 2 * 3 * 2
    assert len(told) == 12 + (tuning.LAUNCHES - 1) * (1 + tuning.AGAIN)
    return done.chosen, done.ratio


def test_what_helps_is_taken_together(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"heap=kept": 0.7, "graph=frozen": 0.9, "graph=optimised": 0.8, "arena=off": 1.2}
    chosen, ratio = found(artifact, monkeypatch, speeds)
    assert chosen == {"heap": "kept", "graph": "optimised"}
    assert ratio == pytest.approx(0.56)


def test_what_helps_only_with_another_option_is_found(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"graph=optimised": 0.5, "heap=kept": 0.999, "heap=kept graph=optimised": 0.4}
    chosen, ratio = found(artifact, monkeypatch, speeds)
    assert chosen == {"graph": "optimised", "heap": "kept"}
    assert ratio == pytest.approx(0.4)


def test_what_helps_only_with_two_others_is_found(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"graph=optimised": 0.5, "arena=off": 1.3, "heap=kept": 1.0}
    speeds |= {"graph=optimised arena=off": 0.4, "heap=kept graph=optimised arena=off": 0.3}
    chosen, ratio = found(artifact, monkeypatch, speeds)
    assert chosen == {"graph": "optimised", "arena": "off", "heap": "kept"}
    assert ratio == pytest.approx(0.3)


def test_options_that_add_nothing_are_left_out(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"graph=optimised": 0.5, "heap=kept graph=optimised": 0.495}
    assert found(artifact, monkeypatch, speeds) == ({"graph": "optimised"}, pytest.approx(0.5))


def test_the_defaults_are_kept_unless_something_is_clearly_faster(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(artifact, monkeypatch, {"heap=kept": 0.99, "arena=off": 1.5}) == ({}, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("faults", "speed", "chosen"),
    [(20.0, 0.99, {}), (100.0, 0.99, {"heap": "kept"}), (100.0, 1.01, {"heap": "kept"}), (1e5, 1.05, {})],
)
def test_of_equally_fast_options_those_without_page_faults_are_taken(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, faults: float, speed: float, chosen: dict[str, str]
) -> None:
    assert found(artifact, monkeypatch, {"heap=kept": speed}, faults)[0] == chosen


def test_a_slow_network_has_time_for_what_helps_together(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    (artifact / "scratch").mkdir()

    def measure(self: tuning._Tuning, options: dict[str, str]) -> str:
        clock[0] += 58.0
        speed = (0.9 if "heap" in options else 1.0) * (0.8 if options.get("graph") == "optimised" else 1.0)
        self._medians.setdefault(tuning._key(options), []).append({1: speed, 32: speed})
        return ""

    monkeypatch.setattr(tuning._Tuning, "measure", measure)
    monkeypatch.setattr(tuning, "settings", lambda *_: SETTINGS)
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    done = tune(artifact, Deployment(artifact="a", runtime="torchscript"), artifact / "scratch", lambda _: None)
    assert done.chosen == {"heap": "kept", "graph": "optimised"}
    assert done.seconds < tuning.MOST_SECONDS + 58


def test_a_runtime_that_cannot_be_measured_is_a_reason(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    with pytest.raises(CannotRun, match="artifact"):
        tune(artifact, Deployment(artifact="a", runtime="torchscript"), tmp_path / "scratch", lambda _: None)


@pytest.mark.parametrize("name", plugins.names("serve.runtimes"))
def test_every_setting_says_why_and_who_offers_it(name: str) -> None:
    literals = plugins.literals("serve.runtimes", name)
    for device in literals.get("DEVICES", ("cpu", "cuda")):
        declared = settings(name, device)
        assert len({(one.option, one.value) for one in declared}) == len(declared)
        assert all(one.why and one.source.startswith("https://") for one in declared)
        # What computes has something to choose from on a processor.
        assert bool(declared) == bool(literals["READS"]) or device == "cuda"

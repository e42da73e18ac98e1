"""The best options of a runtime for one artifact on this machine, of those that its file declares in TUNING.

A candidate is a value, or the default, of each option. Every one is timed in process, in a fresh process: each option
alone, then several together, the most promising first, for what one gains may depend on another. The fastest are timed
again, beside the defaults. None of these launches is reported. Options that change the scores are never taken. Of
equally fast candidates those are taken with fewer page faults by an order of magnitude, for what these cost differs
among machines and from hour to hour.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import exp, inf, log, log10, prod
from pathlib import Path
from statistics import fmean
from typing import cast

import msgspec
import numpy as np

from loadtest import samples
from loadtest.results import latency
from medserve import machine, plugins, stage, store
from medserve.errors import CannotRun
from medserve.jobs import Candidate, Launch, Setting, Tuned
from medserve.result import Result
from medserve.spec import Cell, Deployment, Device
from medserve.tables import profile

LAUNCHES, AGAIN = 2, 6
"""Launches of the defaults and of the fastest candidates, and how many those are; of the others one."""
GAIN = 0.98
"""Ratio to the defaults below which a candidate is taken: two launches do not tell smaller gains from chance."""
SECONDS, WARMUP = 1.0, 0.5
"""Of timing each batch size in each launch; what takes longer than that is timed six times."""
MOST_SECONDS = 600.0
"""Seconds after which no candidate is timed again; half of them for timing each once."""


SHARED = {
    "heap": Setting(
        option="heap",
        value="kept",
        why="each call frees what it allocates, and glibc returns large blocks to the kernel",
        source="https://man7.org/linux/man-pages/man3/mallopt.3.html",
        device="cpu",
    )
}
"""What several runtimes declare by its name alone."""


def settings(runtime: str, device: Device) -> tuple[Setting, ...]:
    """What a runtime's file declares for a device, nothing where it computes nothing."""
    declared = cast(Sequence[str | Sequence[str]], plugins.literal("serve.runtimes", runtime, "TUNING") or ())
    found = (SHARED[each] if isinstance(each, str) else _setting(*each) for each in declared)
    return tuple(setting for setting in found if setting.device in (None, device))


def _setting(option: str, value: str, why: str, source: str, device: str | None = None) -> Setting:
    return Setting(option=option, value=value, why=why, source=source, device=cast(Device | None, device))


def tune(artifact: Path, deployment: Deployment, scratch: Path, tell: Callable[[str], None]) -> Tuned:
    """Try every setting of the deployment's runtime; `tell` takes a line for each candidate.

    Raises CannotRun where not even the defaults can be measured.
    """
    began = time.monotonic()
    tuning = _Tuning(artifact, deployment, scratch)
    declared = settings(deployment.runtime, deployment.device)
    tried = _candidates(declared)

    def time_each(candidates: Iterable[dict[str, str]], until: float) -> None:
        for options in candidates:
            if not options or time.monotonic() - began < until:
                tell(tuning.measure(options))

    time_each((options for options in tried if len(options) < 2), MOST_SECONDS / 2)
    together = [options for options in tried if len(options) > 1 and tuning.expected(options) < inf]
    time_each(sorted(together, key=tuning.expected), MOST_SECONDS / 2)
    fastest = [{}, *sorted((options for options in tried if options), key=tuning.ratio)[:AGAIN]]
    time_each([options for options in fastest if tuning.ratio(options) < inf] * (LAUNCHES - 1), MOST_SECONDS)
    # Of those that chance does not tell from the best, one with the fewest page faults, then with the fewest options.
    best = min(map(tuning.ratio, fastest))
    chosen = min(
        (options for options in fastest if tuning.ratio(options) * GAIN <= best),
        key=lambda one: (round(log10(max(tuning.faults(one), machine.MANY_FAULTS))), len(one), tuning.ratio(one)),
    )
    return Tuned(
        deployment=deployment,
        machine=machine.fingerprint(),
        settings=declared,
        candidates=tuple(tuning.candidate(options) for options in tried),
        chosen=chosen,
        ratio=tuning.ratio(chosen),
        seconds=round(time.monotonic() - began, 1),
    )


def _candidates(declared: Sequence[Setting]) -> list[dict[str, str]]:
    """A value or the default of each option, those with fewer values first."""
    values: dict[str, list[dict[str, str]]] = {}
    for setting in declared:
        values.setdefault(setting.option, [{}]).append({setting.option: setting.value})
    chosen = product(*values.values())
    return sorted(({name: one[name] for one in each for name in one} for each in chosen), key=len)


class _Tuning:
    def __init__(self, artifact: Path, deployment: Deployment, scratch: Path) -> None:
        self._artifact, self._deployment, self._scratch = artifact, deployment, scratch
        with np.load(artifact / "golden.npz") as golden:
            np.save(scratch / "images.npy", golden["images"])
            np.save(scratch / "scores.npy", golden["scores"])
        self._medians: dict[str, list[dict[int, float]]] = {}
        self._faults: dict[str, list[float]] = {}
        self._reasons: dict[str, str] = {}
        self._launches = 0

    def measure(self, options: dict[str, str]) -> str:
        """One launch of a candidate; says what came of it. Raises CannotRun for the defaults."""
        key = _key(options)
        index, self._launches = self._launches, self._launches + 1
        deployment = msgspec.structs.replace(self._deployment, options=self._deployment.options | options)
        batches = dict.fromkeys((deployment.batch_sizes[0], deployment.batch_sizes[-1]))
        cells = tuple(
            Cell(
                deployment=deployment,
                profile=profile("in-process", batch=batch, seconds=SECONDS, warmup_seconds=WARMUP, requests=0),
            )
            for batch in batches
        )
        server, client = machine.divide_cpus(deployment.cores)
        launch = Launch(
            study="tuning", index=index, cells=cells, artifact=str(self._artifact.resolve()),
            results=str(self._scratch / "results"), images=str(self._scratch / "images.npy"),
            # Golden images are compared when the runtime is opened.
            expected=None, server_cpus=server, client_cpus=client, seed=0, stages=False,
        )  # fmt: skip
        path = self._scratch / f"launch-{index}.json"
        store.write_json(path, launch)
        env = machine.thread_environment(deployment.threads)
        words = ["-m", "loadtest", "launch", str(path)]
        code, _, reason = stage.run(words, self._scratch / f"launch-{index}.log", env=env)
        if code:
            if not options:
                raise CannotRun(reason)
            self._reasons[key] = reason
            return f"{key}: {reason}"
        found = {cell.profile.batch: self._found(cell, index) for cell in cells}
        self._medians.setdefault(key, []).append({batch: median for batch, (median, _) in found.items()})
        self._faults.setdefault(key, []).append(max(faults for _, faults in found.values()))
        return f"{key}: " + ", ".join(
            f"batch {batch} {median:.3g} ms" + f" ({faults:,.0f} page faults)" * (faults > machine.MANY_FAULTS)
            for batch, (median, faults) in found.items()
        )

    def _found(self, cell: Cell, index: int) -> tuple[float, float]:
        """The median latency in milliseconds and the page faults of a call."""
        folder = self._scratch / "results" / cell.name / str(index)
        result = store.read_json(folder / "result.json", Result)
        store.check_digests(folder, result.files)
        times = latency.service_time(latency.after_warmup(samples.read(folder / "samples.parquet")))
        timer = result.process["timer"]
        return float(np.median(times)) / 1e6, timer.get("minor_faults", 0) / timer["calls"]

    def ratio(self, options: dict[str, str]) -> float:
        """The geometric mean over batch sizes of its latency over that of the defaults; infinite if not measured.

        Of each the fastest launch counts: what disturbs the machine only makes it slower.
        """
        launches, defaults = self._medians.get(_key(options), []), self._medians[_key({})]
        if not launches:
            return inf
        return exp(fmean(log(_fastest(launches, batch) / _fastest(defaults, batch)) for batch in launches[0]))

    def expected(self, options: dict[str, str]) -> float:
        """The ratio that options would have together if each gained what it gains alone."""
        return prod(self.ratio({name: value}) for name, value in options.items())

    def faults(self, options: dict[str, str]) -> float:
        """The most page faults of a call of any batch size in any launch: where the heap lies differs among them."""
        return max(self._faults.get(_key(options), [0.0]))

    def candidate(self, options: dict[str, str]) -> Candidate:
        """What was found of it."""
        launches = self._medians.get(_key(options), [])
        medians = {batch: tuple(launch[batch] for launch in launches) for batch in (launches[0] if launches else {})}
        parts = (options, *({name: value} for name, value in options.items()))
        reason = next((known for part in parts if (known := self._reasons.get(_key(part)))), None)
        if not launches and reason is None:
            reason = f"not tried within {MOST_SECONDS / 2:g} s"
        faults = tuple(self._faults.get(_key(options), ()))
        return Candidate(options=options, medians_ms=medians, faults=faults, reason=reason)


def _fastest(launches: list[dict[int, float]], batch: int) -> float:
    return min(launch[batch] for launch in launches)


def _key(options: dict[str, str]) -> str:
    return " ".join(f"{option}={value}" for option, value in options.items()) or "default"

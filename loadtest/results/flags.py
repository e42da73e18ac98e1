"""What a row may not claim: each rule with the one clear reason that it gives."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from statistics import fmean
from typing import Any

from loadtest.analysis import compare
from loadtest.analysis.saturation import Rung, knee
from loadtest.results.launches import COMPARED, LATE, Counted
from medserve.result import SelfTest
from medserve.spec import LoadProfile
from medserve.tables import ROOFLINE

Row = dict[str, Any]

UNTESTED = "the ruler was not tested in this run"


def deployment(row: Row) -> str:
    """The deployment of a row: its cell without the profile."""
    return str(row["cell"]).removesuffix(f".{row['profile']}")


def late(counted: Sequence[Counted]) -> str | None:
    """Why the client, not the server, made an open loop slow; null where it did not."""
    for p in COMPARED:
        ratios = [one.late[p] for one in counted if p in one.late]
        if ratios and (ratio := exp(fmean(map(log, ratios)))) > LATE:
            return (
                f"the client sent late: p{p * 100:g} from the intended time is {(ratio - 1) * 100:.0f} % above that "
                "from the sending, with connections free"
            )
    return None


def failed_test(found: SelfTest | None) -> str | None:
    """Why no row of a run may be believed."""
    if found is None or not found.failed:
        return None
    names = [check.name for check in found.failed]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the ruler failed its self-test: {names[0]}{more}"


def above_roofline(profile: LoadProfile, size: int, counted: Sequence[Counted], found: SelfTest | None) -> str | None:
    """Why a rate is too near to what the generator itself can do; null for one user, whose rate is its latency."""
    total = sum(one.seconds for one in counted)
    if found is None or size not in found.roofline or not total or (profile.rate is None and profile.users == 1):
        return None
    answered = sum(one.count - one.failed for one in counted) / total
    rate, roof = max(answered, profile.rate or 0.0), found.roofline[size]
    if rate <= ROOFLINE * roof:
        return None
    return f"{rate:,.0f} requests/s are {rate / roof * 100:.0f} % of the generator's roofline, {roof:,.0f} (limit 70 %)"


def steady(counted: Sequence[Counted]) -> tuple[bool | None, str | None]:
    """Whether every launch settled, null where too few requests tell; and of those that did not, the first reason."""
    known = [one.steady for one in counted if not (one.steady.steady and one.steady.reason)]
    if not known:
        return None, None
    denied = [one for one in known if not one.steady]
    if not denied:
        return True, None
    where = f" (in {len(denied)} of {len(counted)} launches)" if len(counted) > 1 else ""
    return False, f"{denied[0].reason}{where}"


def bimodal(counted: Sequence[Counted]) -> tuple[bool, str | None]:
    """Whether any launch shows two populations of latency, and the first of them in words."""
    found = [one.modes for one in counted if one.modes]
    if not found:
        return False, None
    one = found[0]
    where = f" (in {len(found)} of {len(counted)} launches)" if len(counted) > 1 else ""
    lower, upper = one.lower / 1e6, one.upper / 1e6
    return True, f"bimodal: {1 - one.share:.0%} around {lower:.3g} ms, {one.share:.0%} around {upper:.3g} ms{where}"


def drifting(counted: Sequence[Counted]) -> tuple[bool | None, str | None]:
    """Whether the medians of successive launches go one way all the time; null where there are too few to tell."""
    medians = [one.intended.values[0.5] / 1e6 for one in counted]
    if len(medians) < compare.DRIFT:
        return None, None
    if not compare.drifting(medians):
        return False, None
    verb = "rise" if medians[-1] > medians[0] else "fall"
    return True, (
        f"the medians of the launches only {verb}, from {medians[0]:.3g} to {medians[-1]:.3g} ms: "
        "the machine drifts, compare within blocks"
    )


def disturbed(counted: Sequence[Counted]) -> tuple[int, int, str | None]:
    """Windows that were watched, those disturbed, and by what most often."""
    windows = [window for one in counted for window in one.windows]
    reasons = Counter(window.reason for window in windows if window.reason)
    if not reasons:
        return len(windows), 0, None
    count = reasons.total()
    return len(windows), count, f"{count} of {len(windows)} windows disturbed: {reasons.most_common(1)[0][0]}"


def cached(counted: Sequence[Counted]) -> tuple[bool | None, str | None]:
    """Whether the audit of any launch found a cache, null where none was made."""
    audits = [one.repeats for one in counted if one.repeats]
    for one in audits:
        if one.cached:
            took = f"{one.ratio * 100:.0f} % [{one.low * 100:.0f}, {one.high * 100:.0f}]"
            return True, f"the server caches: a repeated request took {took} of the first one's time"
    return (False if audits else None), None


def spread_caching(rows: Iterable[Row], deployment: Mapping[str, str]) -> None:
    """What the audit of one cell found holds for all cells of its deployment over HTTP (`deployment` by cell)."""
    over_http = [row for row in rows if row["mode"] != "in-process" and row["status"] == "done"]
    audited = {deployment[row["cell"]]: row for row in over_http if row["cached"] is not None}
    for row in over_http:
        source = audited.get(deployment[row["cell"]])
        if source is None or source is row:
            continue
        row["cached"] = source["cached"]
        if source["cached"]:
            row["valid"] = False
            _add(row, f"the server caches, as the audit of {source['profile']} shows")


def quote_up_to_the_knee(ladder: Sequence[tuple[int, Row]]) -> None:
    """Mark the knee of one deployment's rows by users, and take the latencies above it out of them."""
    rungs = [
        Rung(users=users, throughput=row["throughput"], p50_ms=row["p50_ms"])
        for users, row in ladder
        if row["status"] == "done" and row["p50_ms"] and row["throughput"]
    ]
    if len(rungs) < 2:
        return
    best = knee(rungs)
    for users, row in ladder:
        row["knee"] = users == best
        if users > best and row["status"] == "done":
            row |= {key: None for key in row if key.startswith(("p50_", "p90_", "p99_"))}
            _add(row, f"above the knee of its ladder ({best} users) latency is waiting for other users: not quoted")


def _add(row: Row, reason: str) -> None:
    row["reason"] = f"{row['reason']}; {reason}" if row["reason"] else reason

"""Flags of rows: each rule says why a number of a row must not be used as it is, in one reason."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

import msgspec

from loadtest.analysis import compare
from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import saturation_point
from loadtest.analysis.steady import of_launches
from loadtest.results.launch_summary import COMPARED, LaunchSummary
from loadtest.results.row import Row
from medserve.result import SelfTest
from medserve.spec import LoadProfile

NO_SELFTEST = "this run has no self-test of the load generator"


def late(launches: Sequence[LaunchSummary]) -> str | None:
    """Why the client, not the server, made an open loop slow, in most launches; null where it did not."""
    limit = min((launch.result.limits.lateness for launch in launches), default=0.0)
    for p in COMPARED:
        ratios = [launch.lateness[p] for launch in launches if p in launch.lateness]
        if ratios and (ratio := median(ratios)) > limit:
            return (
                f"the client sent late: p{p * 100:g} from the intended start is {(ratio - 1) * 100:.0f} % above the "
                "service time, although connections were free"
            )
    return None


def failed_selftest(launches: Sequence[LaunchSummary], selftest: SelfTest | None) -> str | None:
    """Why a row is invalid: the self-test before any of its launches failed; of older ones, that of the run."""
    tested = (launch.result.selftest or (selftest.verdict if selftest else None) for launch in launches)
    return next((one.failed for one in tested if one and one.failed), None)


def above_roofline(
    profile: LoadProfile, size: int, launches: Sequence[LaunchSummary], selftest: SelfTest | None
) -> str | None:
    """Why a rate is too near to what the generator itself can do; null for one user, whose latency sets the rate."""
    total = sum(launch.seconds for launch in launches)
    one_user = profile.mode == "closed-loop" and profile.users == 1
    if selftest is None or size not in selftest.roofline or not total or one_user:
        return None
    answered = sum(launch.count - launch.failed for launch in launches) / total
    asked = max(launch.result.cell.profile.rate or 0.0 for launch in launches)
    rate, roof, limit = max(answered, asked), selftest.roofline[size], selftest.roofline_limit
    if rate <= limit * roof:
        return None
    share = f"{rate / roof * 100:.0f} % of the generator's roofline, {roof:,.0f}"
    return f"{rate:,.0f} requests/s are {share} (limit {limit * 100:.0f} %)"


def steady(launches: Sequence[LaunchSummary]) -> tuple[bool | None, str | None]:
    """Whether a cell has a steady state, as `steady.of_launches`; and the first reason if not."""
    found = of_launches([launch.steady for launch in launches])
    if found is not False:
        return found, None
    unsteady = [launch.steady for launch in launches if not launch.steady.steady]
    return False, f"{unsteady[0].reason}{_in_launches(len(unsteady), launches)}"


def bimodal(launches: Sequence[LaunchSummary]) -> tuple[bool, str | None]:
    """Whether most launches show two populations of latency, and the first of them in words."""
    found = [launch.modes for launch in launches if launch.modes]
    if 2 * len(found) <= len(launches):
        return False, None
    modes = found[0]
    lower, upper = modes.lower / 1e6, modes.upper / 1e6
    return True, (
        f"bimodal: {1 - modes.share:.0%} of the requests around {lower:.3g} ms, {modes.share:.0%} around "
        f"{upper:.3g} ms{_in_launches(len(found), launches)}"
    )


def drifting(launches: Sequence[LaunchSummary]) -> tuple[bool | None, str | None]:
    """Whether the medians of successive launches all rise or all fall; null where there are too few to tell."""
    medians = [launch.intended.values[0.5] / 1e6 for launch in launches]
    if len(medians) < compare.DRIFT:
        return None, None
    if not compare.drifting(medians):
        return False, None
    verb = "rise" if medians[-1] > medians[0] else "fall"
    return True, (
        f"the medians of the launches only {verb}, from {medians[0]:.3g} to {medians[-1]:.3g} ms: "
        "the machine drifts, compare within blocks"
    )


def disturbed(launches: Sequence[LaunchSummary]) -> tuple[int, int, str | None]:
    """The number of monitored windows, of disturbed ones, and their most frequent cause."""
    windows = [window for launch in launches for window in launch.result.windows]
    reasons = Counter(window.reason for window in windows if window.reason)
    if not reasons:
        return len(windows), 0, None
    count = reasons.total()
    return len(windows), count, f"{count} of {len(windows)} windows disturbed: {reasons.most_common(1)[0][0]}"


def cached(launches: Sequence[LaunchSummary]) -> tuple[bool | None, str | None]:
    """Whether the audit of any launch found a cache; null where no launch has an audit."""
    audits = [launch.audit for launch in launches if launch.audit]
    for audit in audits:
        if audit.cached:
            interval = f"{audit.ratio * 100:.0f} % [{audit.low * 100:.0f}, {audit.high * 100:.0f}]"
            return True, f"the server caches: a repeated request took {interval} of the first one's time"
    return (False if audits else None), None


def spread_caching(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the audit of one cell applied to all cells of its deployment over HTTP."""
    audited = {row.deployment: row for row in rows if _over_http(row) and row.cached is not None}
    found = []
    for row in rows:
        source = audited.get(row.deployment) if _over_http(row) else None
        if source is None or source is row:
            found.append(row)
        elif source.cached:
            reason = f"the server caches, as the audit of {source.profile} shows"
            found.append(row.with_reason(reason, cached=True, valid=False))
        else:
            found.append(msgspec.structs.replace(row, cached=False))
    return found


def suppress_beyond_saturation(ladder: Sequence[tuple[int, Row]]) -> list[Row]:
    """The rows of one deployment by users, with the saturation point marked and the latencies beyond it removed."""
    measured = [(users, row) for users, row in ladder if row.status == "done" and row.p50.value and row.throughput]
    point = saturation_point((users, row.throughput, row.p50.value) for users, row in measured)
    if point is None or len(measured) < 2:
        return [row for _, row in ladder]
    reason = f"no latency beyond the saturation point ({point} users): requests wait for other users' requests"
    nothing = Interval(reason=reason)
    return [
        row.with_reason(reason, saturation=False, p50=nothing, p90=nothing, p99=nothing)
        if users > point and row.status == "done"
        else msgspec.structs.replace(row, saturation=users == point)
        for users, row in ladder
    ]


def _over_http(row: Row) -> bool:
    return row.mode != "in-process" and row.status == "done"


def _in_launches(count: int, launches: Sequence[LaunchSummary]) -> str:
    return f" (in {count} of {len(launches)} launches)" if len(launches) > 1 else ""

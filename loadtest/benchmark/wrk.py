"""`wrk` as an independent client of the closed loop: another language and parser, the same bytes to the same server."""

import shutil
import subprocess
from pathlib import Path

import msgspec

from medserve import machine
from medserve.errors import CannotRun

SCRIPT = """
local file = io.open("%s", "rb")
local whole = file:read("*a")
file:close()
request = function() return whole end
done = function(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"p50": %%g, "requests": %%d, "failed": %%d}\\n',
    latency:percentile(50), summary.requests, failed))
end
"""


class _Output(msgspec.Struct):
    p50: float
    requests: int
    failed: int


def measure(url: str, request: bytes, seconds: float, cpus: tuple[int, ...], folder: Path) -> float:
    """The p50 in microseconds that wrk measures in a closed loop over one connection.

    `folder` is for its script. Raises CannotRun without wrk, or when a request failed.
    """
    if shutil.which("wrk") is None:
        raise CannotRun("wrk is not installed (Debian package wrk)")
    body, script = folder / "request", folder / "wrk.lua"
    body.write_bytes(request)
    script.write_text(SCRIPT % body)
    words = ["wrk", "-t1", "-c1", f"-d{max(1, round(seconds))}s", "-s", str(script), url]
    before = machine.usable_cpus()
    machine.pin(cpus)  # wrk inherits it
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + 30)
    finally:
        machine.pin(before)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise CannotRun(f"wrk ended without a result: {' '.join((done.stderr or done.stdout).split())[:300]}")
    output = msgspec.json.decode(lines[-1], type=_Output)
    if output.failed or not output.requests:
        raise CannotRun(f"wrk: {output.failed} of {output.requests} requests failed")
    return output.p50

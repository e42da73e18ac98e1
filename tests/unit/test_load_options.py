"""What the options of `medserve load` become, and which contradict one another."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.commands.load import load_profile, parse_ladder
from medserve.errors import BadInput
from medserve.spec import Arrivals, LoadProfile


def profile(
    arrivals: Arrivals | None = None,
    trace: Path | None = None,
    *,
    ladder: bool = False,
    objective: bool = False,
    audit: bool = False,
    **plain: Any,
) -> LoadProfile:
    plain = {"burst": 8, "seconds": 1.0, "warmup_seconds": 0.0} | plain
    asked = LoadProfile(name="manual", mode="closed-loop", **plain)
    return load_profile(asked, arrivals, trace, ladder=ladder, objective=objective, audit=audit)


def test_options_become_a_profile(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("0\n0.5\n")
    assert profile().mode == "closed-loop"
    assert profile(gap_seconds=0.1).gap_seconds == 0.1
    assert profile(rate=5.0).arrivals == "constant"
    assert profile(rate=5.0, arrivals="bursts").burst == 8
    assert profile(objective=True).arrivals == "poisson"
    assert profile(trace=trace).trace == str(trace)
    assert parse_ladder("8,1,2,2") == (1, 2, 8)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"ladder": True, "objective": True}, "give one of them"),
        ({"ladder": True, "rate": 5.0}, "leave out --rate"),
        ({"rate": 5.0, "gap_seconds": 1.0}, "leave out --users and --gap"),
        ({"rate": 5.0, "users": 2}, "leave out --users and --gap"),
        ({"arrivals": "trace"}, "--trace FILE"),
        ({"arrivals": "poisson", "rate": 5.0, "trace": Path("x")}, "belong together"),
        ({"trace": Path("x"), "rate": 5.0}, "its own rate"),
        ({"trace": Path("/nowhere/x")}, "not a readable trace"),
        ({"arrivals": "poisson"}, "needs a --rate"),
        ({"audit": True, "users": 2}, "--audit needs one back-to-back user"),
    ],
)
def test_options_that_contradict_one_another_are_refused(other: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        profile(**other)


@pytest.mark.parametrize("text", ["", "4", "1,x", "0,1", "1;2"])
def test_a_refused_ladder_shows_the_form(text: str) -> None:
    with pytest.raises(BadInput, match="such as 1,2,4,8"):
        parse_ladder(text)

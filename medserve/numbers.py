"""How numbers are written for people, in reports and on terminals; files of data keep full precision."""

from math import isfinite

ABSENT = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    """Three significant digits with trailing zeros; powers of ten for very small and very large numbers."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    if not isfinite(value):
        return str(value)
    mantissa, _, power = f"{value:.2e}".partition("e")
    exponent = int(power)
    if not -3 <= exponent < 8:
        return f"{mantissa.replace('-', MINUS)} {TIMES} 10{str(exponent).translate(SUPERSCRIPTS)}"
    digits = 2 - exponent
    return f"{round(value, digits):,.{max(0, digits)}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; empty without one."""
    return "" if low is None or high is None else f"[{number(low)}, {number(high)}]"


def times(value: float) -> str:
    """A ratio."""
    return number(value) + TIMES


def percent(share: float | None) -> str:
    """A share in per cent with two decimals, without the sign."""
    return ABSENT if share is None else f"{share * 100:.2f}"


def plain(value: float) -> str:
    """A number as it may stand in a name: digits, at most six decimals."""
    return f"{value:.6f}".rstrip("0").rstrip(".")

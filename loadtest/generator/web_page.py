"""What Locust's web page may do: it has no login, and by itself Locust takes every option from it, files and all."""

from urllib.parse import urlsplit

from flask import Flask, request

ADDRESS = "127.0.0.1"
"""Where the page listens unless --web-host names another address."""
LOCAL = (ADDRESS, "localhost", "::1")
SETTINGS = {"user_count", "spawn_rate", "run_time", "profile", "rate", "arrivals", "burst", "gap", "batch"}
"""Fields of the page that start a test. All other options, files and addresses above all, are the command line's."""
POSTS = ("locust.swarm", "locust.stop", "locust.reset_stats")


def guard(app: Flask, listens: str, host: str | None) -> None:
    """Refuse a post to the page of Locust that sets anything but SETTINGS, or comes from a page of another site.

    `listens` is the address of the page, `host` that of the server under test, null where the command line has none.
    """

    @app.before_request
    def refuse() -> tuple[dict[str, object], int] | None:
        if request.method != "POST":
            return None
        reason, status = _foreign(listens), 403
        if reason is None and request.endpoint not in POSTS:
            reason = f"{request.path} is not available"
        if reason is None:
            # The page of Locust shows the message of an answer with status 200.
            reason, status = _unset(host), 200
        return None if reason is None else ({"success": False, "message": reason}, status)


def _foreign(listens: str) -> str | None:
    """Why a request comes from a page of another site, which a browser lets reach even the loopback address."""
    name = urlsplit(f"//{request.host}").hostname
    if listens in LOCAL and name not in LOCAL:
        return f"this page is at {listens}, not at {name}"
    origin = request.headers.get("Origin")
    return f"a page of {origin} may not post here" if origin and urlsplit(origin).netloc != request.host else None


def _unset(host: str | None) -> str | None:
    """Why the options of a start cannot be set here."""
    foreign = request.form.keys() - SETTINGS - {"host"}
    if foreign and request.endpoint == "locust.swarm":
        return f"{', '.join(sorted(foreign))}: set on the command line only; restart Locust with it"
    if request.form.get("host", host) != host:
        return f"the host is {host or 'not set'}; it is set on the command line only, by --host"
    return None

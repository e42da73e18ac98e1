"""What Locust's web page may do: it has no login, and by itself Locust takes every option from it, files and all."""

from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request

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
    def refuse() -> Response | None:
        if request.method != "POST":
            return None
        reason = _foreign(listens)
        if reason is None and request.endpoint not in POSTS:
            reason = f"{request.path} is not available"
        if reason is not None:
            return _refusal(reason, 403)
        foreign = sorted(request.form.keys() - SETTINGS - {"host"}) if request.endpoint == "locust.swarm" else []
        if foreign:
            return _refusal(f"{', '.join(foreign)}: set on the command line only; restart Locust with it")
        if request.form.get("host", host) != host:
            return _refusal(f"the host is {host or 'not set'}; it is set on the command line only, by --host")
        return None


def _foreign(listens: str) -> str | None:
    """Why a request comes from a page of another site, which a browser lets reach even the loopback address."""
    name = urlsplit(f"//{request.host}").hostname
    if listens in LOCAL and name not in LOCAL:
        return f"this page is at {listens}, not at {name}"
    origin = request.headers.get("Origin")
    return f"a page of {origin} may not post here" if origin and urlsplit(origin).netloc != request.host else None


def _refusal(reason: str, status: int = 200) -> Response:
    """As Locust refuses a start: its page shows the message of an answer with status 200."""
    answer = jsonify(success=False, message=reason)
    answer.status_code = status
    return answer

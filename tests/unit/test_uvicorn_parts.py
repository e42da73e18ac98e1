"""The private parts of uvicorn that `serve.protocol` relies on: a version of uvicorn without them fails here."""

import inspect
from collections import deque

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from serve.protocol import Protocol


@pytest.fixture
def made() -> HttpToolsProtocol:
    config = uvicorn.Config(lambda scope: None, interface="asgi3", http=HttpToolsProtocol, ws="none", lifespan="off")
    return HttpToolsProtocol(config, ServerState(), {}, _loop=object())  # type: ignore[arg-type]


def test_attributes_of_a_connection(made: HttpToolsProtocol) -> None:
    assert isinstance(made.pipeline, deque)
    assert made.connections == set() == made.tasks
    assert (made.scope, made.cycle, made.headers) == (None, None, None)
    assert made.server_state.total_requests == 0
    assert made.loop is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data_received", ["self", "data"]),
        ("on_message_begin", ["self"]),
        ("on_header", ["self", "name", "value"]),
        ("on_headers_complete", ["self"]),
        ("on_body", ["self", "body"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("_start_asgi_task", ["self", "cycle", "app"]),
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
    ],
)
def test_methods_that_are_overridden(name: str, words: list[str]) -> None:
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) == words
    assert list(inspect.signature(getattr(Protocol, name)).parameters) == words


def test_what_uvicorn_does_where_ours_relies_on_it() -> None:
    begin = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    # The newest waiting request is on the left; the scope has the list that on_header appends to.
    assert "self.pipeline.appendleft((self.cycle, app))" in begin
    header = inspect.getsource(HttpToolsProtocol.on_header)
    assert "self.headers.append((name, value))" in header
    assert "self.expect_100_continue = True" in header
    assert '"headers": self.headers' in inspect.getsource(HttpToolsProtocol.on_message_begin)
    run = inspect.getsource(RequestResponseCycle.run_asgi)
    assert "self.scope, self.receive, self.send" in run
    assert "await self.send_500_response()" in run
    assert "self.flow.resume_reading()" in inspect.getsource(RequestResponseCycle.receive)
    assert set(inspect.signature(FlowControl).parameters) == {"transport"}
    for name in (
        "body",
        "more_body",
        "disconnected",
        "response_complete",
        "response_started",
        "keep_alive",
        "message_event",
        "scope",
    ):
        assert f"self.{name}" in inspect.getsource(RequestResponseCycle.__init__)


def test_the_server_is_asked_ten_times_per_second() -> None:
    assert "await asyncio.sleep(0.1)" in inspect.getsource(uvicorn.Server.main_loop)
    assert "self.on_tick(counter)" in inspect.getsource(uvicorn.Server.main_loop)

"""A server of the protocol that answers what a test tells it to."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from medserve import wire

SHAPE = (28, 28, 3)
CLASSES = 8


class Stub(http.server.ThreadingHTTPServer):
    """A server of the protocol whose infer answers are the test's to choose."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: "Callable[[Handler], None]") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.lock = threading.Lock()
        self.asked = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up when a test is over; that is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Stub
    body: bytes

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        metadata = {"name": "m", "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, *SHAPE]}]}
        pages = {"/v2/models": {"models": ["m"]}, "/v2/models/m": metadata}
        self.reply(200 if self.path in pages else 404, json.dumps(pages.get(self.path, {})).encode())

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.asked += 1
        self.server.answer(self)

    def reply(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.send_response(status)
        for name, value in headers or []:
            self.send_header(name.decode(), value.decode())
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def scores(self, scores: np.ndarray) -> None:
        request = wire.Request(np.zeros((1, *SHAPE), np.uint8), None, True)
        headers, body = wire.encode_response("m", "1", scores.astype(np.float32), request)
        self.reply(200, body, headers)


UNIFORM = np.full((1, CLASSES), 1 / CLASSES, np.float32)


@contextmanager
def stub(answer: Callable[[Handler], None]) -> Iterator[Stub]:
    with Stub(answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()

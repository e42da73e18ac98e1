"""Bodies of requests, up to a limit: in one piece or in many, as they are or compressed."""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medserve.errors import BadInput

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

WINDOWS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""Content encodings that are read, with what zlib calls them."""


class TooLarge(Exception):
    """A body above its limit."""


async def rest(body: bytes, receive: Receive, limit: int) -> bytes:
    """A whole body of which `body` came first. Raises TooLarge as soon as it is."""
    parts, size, more = [body], len(body), True
    while more:
        message = await receive()
        # A client that hangs up leaves a body too short to decode; its 400 goes nowhere.
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size += len(parts[-1])
        if size > limit:
            raise TooLarge
    return b"".join(parts)


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """A compressed body as it was. Raises TooLarge above `limit`, however small it came, and BadInput for damage."""
    stream = zlib.decompressobj(WINDOWS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadInput(f"the body is not {encoding.decode()} data: {error}") from None
    if len(plain) > limit:
        raise TooLarge
    if not stream.eof or stream.unused_data:
        raise BadInput(f"the body is not one whole {encoding.decode()} stream")
    return plain

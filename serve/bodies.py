"""Reads and decompresses request bodies, up to a limit."""

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medserve.errors import BadInput

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

WINDOWS = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""The supported content encodings, with zlib's window sizes for them."""


class TooLarge(Exception):
    """The body is larger than its limit."""


async def rest(body: bytes, receive: Receive, limit: int) -> bytes:
    """The complete body, whose first part is `body`. Raises TooLarge as soon as it exceeds `limit` bytes."""
    parts, size, more = [body], len(body), True
    while more:
        message = await receive()
        # When a client disconnects, the body is incomplete; nothing reads the resulting 400.
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
        size += len(parts[-1])
        if size > limit:
            raise TooLarge
    return b"".join(parts)


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The decompressed body. Raises TooLarge if it exceeds `limit` bytes, BadInput if it cannot be decompressed."""
    stream = zlib.decompressobj(WINDOWS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadInput(f"the body is not {encoding.decode()} data: {error}") from None
    if len(plain) > limit:
        raise TooLarge
    if not stream.eof or stream.unused_data:
        raise BadInput(f"the body is not a single complete {encoding.decode()} stream")
    return plain

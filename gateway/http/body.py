"""Hot path: reads a request's body within a size and a time."""

import asyncio

from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from gateway.core.errors import ApiError

MAX_LENGTH_DIGITS = 18  # int() takes offence at thousands


def declared_length(message: RawRequestMessage) -> float:
    """Return the Content-Length, 0 where there is none."""
    digits = message.headers.get("Content-Length", "0").lstrip("0")
    return float("inf") if len(digits) > MAX_LENGTH_DIGITS else int(digits or "0")


async def read_body(
    message: RawRequestMessage, payload: StreamReader, most: int, seconds: float
) -> bytes:
    """Return the whole body. Raises ApiError when it is too large or takes too long."""
    if declared_length(message) > most:
        raise _too_large(most)
    if payload.is_eof():
        body = payload.read_nowait(-1)
        if len(body) > most:
            raise _too_large(most)
        return body
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while part := await payload.readany():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        raise too_slow(seconds) from None
    return b"".join(parts)


def too_slow(seconds: float) -> ApiError:
    """Return the error of a body that did not come in time."""
    return ApiError("request_timeout", f"The request's body did not arrive within {seconds:g} s.")


def _too_large(most: int) -> ApiError:
    return ApiError("request_too_large", f"The request's body is larger than {most} bytes.")

"""Hot path: response heads, rendered by hand because a reply is then one write."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

_date = (0, b"")


def status_line(status: int) -> bytes:
    """Return the first line of a response."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


@lru_cache(256)
def reply_start(status: int, content_type: str) -> bytes:
    """Return a whole reply's head up to the figure of its length."""
    kind = content_type.encode("latin-1")
    return b"%bContent-Type: %b\r\nContent-Length: " % (status_line(status), kind)


def date_line() -> bytes:
    """Return the Date header, rendered once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n".encode())
    return _date[1]

"""Pieces of scripts that several tables of faults share."""

from operator import attrgetter

from tests.chaos.fault_case import HandedOver
from tests.support.faults import LAST_CHUNK, STREAM_HEAD, Step, events, hold, raw, when_shown, whole
from tests.support.speech import Speech

Steps = tuple[Step, ...]
Both = tuple[Steps, Steps]  # for a whole reply and for a stream

answer, everything = attrgetter("whole"), attrgetter("stream")
words, end = attrgetter("words"), attrgetter("end")

CHUNKED_JSON = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
CLOSE_FRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"

RESET, PROTOCOL = HandedOver("reset"), HandedOver("protocol")
CUT, TOLD = HandedOver("stream_cut"), HandedOver("stream_error")


GOOD: Both = (
    (whole(answer),),
    (raw(STREAM_HEAD), events(everything), raw(LAST_CHUNK)),
)
SHOWN: Steps = (raw(STREAM_HEAD), events(words), when_shown)  # the client has had content
NOBODY: Both = (hold,), (hold,)  # of a door that lets nobody in


def both(*steps: Step) -> Both:
    """The same steps, whatever is asked for."""
    return steps, steps


def sized(body: bytes, kind: bytes = b"application/json", length: int = -1) -> bytes:
    """A reply with a length, the body's by default."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(body) if length < 0 else length) + body


def behind(prefix: bytes) -> Both:
    """The good answers behind some bytes."""
    return (raw(prefix), *GOOD[0]), (raw(prefix), *GOOD[1])


def headed(*lines: bytes) -> Both:
    """The good answers with more lines in their heads."""
    return _changed(b"\r\n", b"\r\n" + b"".join(line + b"\r\n" for line in lines))


def opened(line: bytes) -> Both:
    """The good answers with another first line."""
    return _changed(b"HTTP/1.1 200 OK\r\n", line)


def _changed(old: bytes, new: bytes) -> Both:
    def reply(speech: Speech) -> bytes:
        return sized(speech.whole).replace(old, new, 1)

    return (raw(reply),), (raw(STREAM_HEAD.replace(old, new, 1)), *GOOD[1][1:])

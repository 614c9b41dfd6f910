"""Faults inside a stream of events whose HTTP is good."""

from operator import attrgetter
from typing import Any

from tests.chaos.fault_case import (
    ANTHROPIC,
    OPENAI,
    PATHS,
    RELAYED,
    Answered,
    BrokenOff,
    Expected,
    Fault,
    HandedOver,
    late,
)
from tests.chaos.fault_pieces import CUT, PROTOCOL, SHOWN, TOLD, end, everything, words
from tests.support.faults import (
    LAST_CHUNK,
    STREAM_HEAD,
    Piece,
    Scene,
    Step,
    chunk,
    events,
    hold,
    raw,
)
from tests.support.speech import event

opening, error, finish = attrgetter("opening"), attrgetter("error"), attrgetter("finish")
terminator, more = attrgetter("terminator"), attrgetter("more")

HUGE = b"data: " + b"x" * (5 * 2**20)  # the cap is at 4 MiB
NULLS = (
    b'{"id": null, "choices": [{"index": 0, "delta": null, "finish_reason": null}], "usage": null}'
)


def stream(*pieces: Piece) -> tuple[Step, ...]:
    """A stream of these events, framed well and ended in order."""
    return raw(STREAM_HEAD), events(*pieces), raw(LAST_CHUNK)


def behind_content(*pieces: Piece) -> tuple[Step, ...]:
    """The same, once the client has read the text."""
    return *SHOWN, events(*pieces), raw(LAST_CHUNK)


def first_and_later(
    name: str, first: Expected, later: Expected, *pieces: Piece, **options: Any
) -> tuple[Fault, Fault]:
    """Two rows: these events before anything else, and behind content."""
    return (
        Fault(f"{name}-first", first, stream=stream(*pieces), **options),
        Fault(f"{name}-behind-content", later, stream=behind_content(*pieces), **options),
    )


def changed(change: Any) -> tuple[Step, ...]:
    """The good stream, its bytes changed, in one chunk."""
    return raw(STREAM_HEAD), chunk(lambda s: change(s.stream)), raw(LAST_CHUNK)


async def quote(scene: Scene) -> None:
    """Send an error event that tells the key it was asked with."""
    headers = scene.request.headers
    key = headers.get("x-api-key") or headers["authorization"].removeprefix("Bearer ")
    await scene.chunk(scene.told(error).replace(b"engine", key.encode()))


def unreadable(name: str, piece: Piece) -> tuple[Fault, ...]:
    """Three rows: an event nobody can read among good ones, first of all, and the last one.

    Relayed it is the client's to judge; a translation would have to leave it out, and so does not
    go on. It begins no answer.
    """
    passed = Answered(unreadable=1)
    return (
        Fault(
            f"{name}-among-good-ones",
            {"relayed": passed, "translated": BrokenOff("protocol")},
            stream=behind_content(piece, end),
        ),
        Fault(
            f"{name}-first",
            {"relayed": passed, "translated": PROTOCOL},
            stream=stream(piece, everything),
        ),
        Fault(
            f"{name}-and-nothing-more",
            CUT,
            stream=stream(piece),
            paths=tuple(path for path, way in PATHS.items() if way == RELAYED),
        ),
    )


ENDS = (
    Fault("no-event-at-all", CUT, stream=(raw(STREAM_HEAD), raw(LAST_CHUNK))),
    Fault("comments-and-the-end", CUT, stream=stream(b": hello\n\n" * 3)),
    Fault("opening-and-the-end", CUT, stream=stream(opening)),
    Fault("ended-behind-content", BrokenOff("stream_cut"), stream=behind_content()),
    Fault(
        "ended-in-an-event",
        BrokenOff("stream_cut"),
        stream=(*SHOWN, chunk(b'data: {"choices": [{"del'), raw(LAST_CHUNK)),
    ),
    Fault(
        "finished-without-terminator", Answered(), stream=stream(words, finish, lambda s: s.usage)
    ),
    Fault(
        "terminator-without-a-line-end",
        Answered(),
        stream=(raw(STREAM_HEAD), events(words), chunk(lambda s: s.end[:-2]), raw(LAST_CHUNK)),
    ),
    Fault(
        "terminator-without-a-finish",
        Answered(anthropic_source="partial"),  # whose last figures would have come with the finish
        stream=stream(words, lambda s: s.usage, terminator),
    ),
    Fault("terminator-twice", Answered(), stream=stream(everything, terminator)),
    Fault("content-behind-the-terminator", Answered(), stream=stream(everything, more, terminator)),
    Fault("error-behind-the-terminator", Answered(), stream=stream(everything, error)),
)

ERRORS = (
    *first_and_later("error", TOLD, BrokenOff("stream_error"), error),
    *first_and_later("error-and-terminator", TOLD, BrokenOff("stream_error"), error, terminator),
    Fault("error-behind-the-opening", TOLD, stream=stream(opening, error)),
    Fault(
        "silent-behind-the-opening",
        late("first_token_timeout"),
        stream=(*stream(opening)[:-1], hold),
        timeouts={"first_token": 0.4, "idle": 3},
    ),
    Fault(
        "error-that-quotes-the-key-first", TOLD, stream=(raw(STREAM_HEAD), quote, raw(LAST_CHUNK))
    ),
    Fault(
        "error-that-quotes-the-key-behind-content",
        BrokenOff("stream_error"),
        stream=(*SHOWN, quote, raw(LAST_CHUNK)),
    ),
    *first_and_later(
        "error-as-text",
        TOLD,
        BrokenOff("stream_error"),
        event({"error": "out of memory"}),
        paths=OPENAI,
    ),
    *first_and_later(
        "error-with-a-type-of-event",
        TOLD,
        BrokenOff("stream_error"),
        event({"error": {"message": "no", "type": "x"}}, "error"),
        paths=OPENAI,
    ),
    Fault(
        "another-message-begins",
        BrokenOff("stream_error"),
        stream=behind_content(lambda s: s.opening.replace(b"msg_1", b"msg_2")),
        paths=ANTHROPIC,
    ),
)

CUTS = (
    Fault(
        "event-too-large-first",
        HandedOver("too_large"),
        stream=(raw(STREAM_HEAD), chunk(HUGE), raw(LAST_CHUNK)),
    ),
    Fault(
        "event-too-large-behind-content",
        BrokenOff("too_large"),
        stream=(*SHOWN, chunk(HUGE), raw(LAST_CHUNK)),
    ),
)

GARBAGE = (
    Fault(
        "fields-nobody-knows",
        Answered(),
        stream=stream(b"id: 7\nretry: 10\nnews\n: comment\n\n", everything),
    ),
    Fault("empty-data", Answered(), stream=stream(words, b"data:\n\n", b"data: \n\n", end)),
    Fault("empty-lines", Answered(), stream=changed(lambda s: s.replace(b"\n\n", b"\n\n\n\n\n"))),
    Fault(
        "types-nobody-knows", Answered(), stream=stream(words, event({"type": "news"}, "news"), end)
    ),
    Fault("bom", Answered(), stream=changed(lambda s: b"\xef\xbb\xbf" + s)),
    Fault("line-ends-of-cr", Answered(), stream=changed(lambda s: s.replace(b"\n", b"\r"))),
    Fault("line-ends-of-crlf", Answered(), stream=changed(lambda s: s.replace(b"\n", b"\r\n"))),
    Fault(
        "no-space-behind-the-colon", Answered(), stream=changed(lambda s: s.replace(b": ", b":"))
    ),
    Fault(
        "nulls",
        Answered(),
        stream=stream(b"data: " + NULLS + b"\n\n", words, b"data: " + NULLS + b"\n\n", end),
        paths=OPENAI,
    ),
    Fault(
        "choices-null-or-none",
        Answered(),
        stream=stream(event({"choices": None}), event({"choices": []}), words, end),
        paths=OPENAI,
    ),
    Fault(
        "content-null",
        Answered(),
        stream=stream(event({"choices": [{"index": 0, "delta": {"content": None}}]}), everything),
        paths=OPENAI,
    ),
    Fault(
        "blocks-null",
        Answered(),
        stream=stream(
            words,
            event({"type": "ping", "index": None, "delta": None, "content_block": None}),
            end,
        ),
        paths=ANTHROPIC,
    ),
    Fault(
        "usage-left-out-of-the-stream",
        Answered(source="estimated"),
        stream=stream(words, finish, terminator),
        paths=OPENAI,
    ),
    Fault(
        "usage-misshapen-in-the-stream",
        Answered(source="estimated"),
        stream=stream(words, finish, event({"choices": [], "usage": "much"}), terminator),
        paths=OPENAI,
    ),
    *unreadable("json-garbled", b'data: {"choices": [{"index": 0, "delta": {"content": " lo\n\n'),
    *unreadable("not-utf-8", lambda s: s.more.replace(b" more", b" \xff\xfe")),
)

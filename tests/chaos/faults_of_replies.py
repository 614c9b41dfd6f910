"""Faults of a whole reply: its status, its type, its coding, its JSON."""

import gzip
import json
from typing import Any

from tests.chaos.fault_case import ANTHROPIC, OPENAI, Answered, Fault, HandedOver, PassedOn
from tests.chaos.fault_pieces import (
    CUT,
    GOOD,
    PROTOCOL,
    TOLD,
    Both,
    answer,
    both,
)
from tests.support.faults import LAST_CHUNK, STREAM_HEAD, Scene, Step, events, raw, whole
from tests.support.speech import Speech, error_body

ERROR = "the engine is on fire"
PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
LIMITED = HandedOver("status", 429, told=429, code="rate_limit_exceeded")


def refuses(status: int, *lines: str) -> Both:
    """Answer with an error."""
    step = whole(lambda s: json.dumps(_error(s)).encode(), *lines, status=status)
    return both(step)


def _error(speech: Speech) -> Any:
    return error_body("anthropic" if b"message_stop" in speech.terminator else "openai", ERROR)


def quotes(status: int) -> Both:
    """Answer with an error that tells the key it was asked with."""

    async def step(scene: Scene) -> None:
        headers = scene.request.headers
        key = headers.get("x-api-key") or headers["authorization"].removeprefix("Bearer ")
        told = scene.told(lambda s: json.dumps(_error(s)).encode())
        await whole(told.replace(b"engine", key.encode()), status=status)(scene)

    return both(step)


def trouble(status: int) -> Fault:
    """The provider's own trouble."""
    return Fault(f"status-{status}", HandedOver("status", status), *refuses(status))


def mistake(status: int) -> Fault:
    """The client's."""
    return Fault(f"status-{status}", PassedOn(status), *refuses(status))


STATUSES = (
    *[mistake(status) for status in (400, 404, 409, 413, 418, 422)],
    *[trouble(status) for status in (401, 402, 403, 407, 408, 425)],
    *[trouble(status) for status in (500, 501, 502, 503, 504, 520, 529, 599, 999)],
    Fault("status-400-that-quotes-the-key", PassedOn(400), *quotes(400)),
    Fault("status-401-that-quotes-the-key", HandedOver("status", 401), *quotes(401)),
    Fault("status-500-that-quotes-the-key", HandedOver("status", 500), *quotes(500)),
    Fault("status-429", LIMITED, *refuses(429)),
    Fault("status-429-with-retry-after", LIMITED, *refuses(429, "Retry-After: 17")),
    Fault(
        "status-429-with-a-date",
        LIMITED,
        *refuses(429, "Retry-After: Sat, 21 Nov 2026 10:00:30 GMT"),
    ),
    Fault(
        "status-429-with-nonsense", LIMITED, *refuses(429, "Retry-After: -1e9", "Retry-After-Ms: x")
    ),
    Fault(
        "status-503-as-a-stream",
        HandedOver("status", 503),
        *both(raw(STREAM_HEAD.replace(b"200", b"503")), events(lambda s: s.error), raw(LAST_CHUNK)),
    ),
    Fault(
        "status-204",
        HandedOver("status", 204),
        *both(raw(b"HTTP/1.1 204 No Content\r\n\r\n")),
    ),
    Fault(
        "status-304",
        HandedOver("status", 304),
        *both(raw(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n")),
    ),
    Fault(
        "status-202",
        HandedOver("status", 202),
        *both(whole(answer, status=202)),
    ),
    Fault(
        "redirect",
        HandedOver("status", 302),
        *both(whole(answer, "Location: /v1/elsewhere", status=302)),
    ),
    Fault(
        "redirect-to-another-method",
        HandedOver("status", 307),
        *both(whole(b"", "Location: /v1/elsewhere", status=307)),
    ),
)


def page(status: int) -> Both:
    """Answer with a page for people."""
    step = whole(PAGE, "Content-Type: text/html", status=status)
    return both(step)


def typed(kind: bytes) -> Step:
    """Send the stream under another type."""
    head = STREAM_HEAD.replace(b"text/event-stream", kind)
    return raw(head, lambda s: b"%x\r\n%b\r\n0\r\n\r\n" % (len(s.stream), s.stream))


def packed(name: str, pack: Any) -> Both:
    """The good answers, coded."""
    kind = f"Content-Type: text/event-stream\r\nContent-Encoding: {name}"
    return (
        (whole(lambda s: pack(s.whole), f"Content-Encoding: {name}"),),
        (whole(lambda s: pack(s.stream), kind),),
    )


def zipped(data: bytes) -> bytes:
    """Compress."""
    return gzip.compress(data, mtime=0)


TYPES = (
    Fault("page-with-502", HandedOver("status", 502), *page(502)),
    Fault("page-with-200", PROTOCOL, *page(200)),
    Fault(
        "json-called-text",
        {"relayed": Answered(content_type="text/plain"), "translated": Answered()},
        (whole(answer, "Content-Type: text/plain"),),
    ),
    Fault(
        "json-without-a-type",
        Answered(),
        (
            raw(
                lambda s: (
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(s.whole), s.whole)
                )
            ),
        ),
    ),
    Fault("stream-called-text", PROTOCOL, stream=(typed(b"text/plain"),)),
    Fault("stream-called-json", PROTOCOL, stream=(typed(b"application/json"),)),
    Fault(
        "stream-type-in-capitals",
        Answered(),
        stream=(typed(b"Text/Event-Stream"),),
    ),
    Fault(
        "stream-type-with-charset", Answered(), stream=(typed(b"text/event-stream; charset=UTF-8"),)
    ),
    Fault("json-where-a-stream-was-asked-for", Answered(), stream=(whole(answer),)),
    Fault("stream-where-json-was-asked-for", PROTOCOL, unary=GOOD[1]),
    Fault("gzip", {"unary": Answered(), "stream": PROTOCOL}, *packed("gzip", zipped)),
    Fault("gzip-in-capitals", {"unary": Answered(), "stream": PROTOCOL}, *packed("GZIP", zipped)),
    Fault("gzip-damaged", PROTOCOL, *packed("gzip", lambda data: zipped(data)[:12] + b"\0" * 40)),
    Fault("gzip-cut", PROTOCOL, *packed("gzip", lambda data: zipped(data)[:-12])),
    Fault("gzip-that-is-none", PROTOCOL, *packed("gzip", bytes)),
    Fault("coding-nobody-knows", PROTOCOL, *packed("br", bytes)),
    Fault("coding-named-identity", Answered(), *packed("identity", bytes)),
)


def body(content: bytes) -> tuple[Step, ...]:
    """Answer with this."""
    return (whole(content),)


def edited(old: str, new: str) -> tuple[Step, ...]:
    """The good reply with something else in it."""

    def edit(speech: Speech) -> bytes:
        assert old.encode() in speech.whole
        return speech.whole.replace(old.encode(), new.encode("latin-1"))

    return (whole(edit),)


NOTHING_SAID = Answered(text="", source="estimated")

BODIES = (
    Fault(
        "empty",
        {"unary": PROTOCOL, "stream": CUT},
        body(b""),
        (whole(b"", "Content-Type: text/event-stream"),),
    ),
    Fault("spaces", PROTOCOL, *both(whole(b" \r\n" * 9))),
    Fault("no-object", PROTOCOL, *both(whole(b'["choices"]'))),
    Fault("null", PROTOCOL, *both(whole(b"null"))),
    Fault("json-cut", PROTOCOL, (whole(lambda s: s.whole[:-9]),)),
    Fault(
        "json-garbled",
        PROTOCOL,
        (whole(lambda s: s.whole.replace(b":", b";")),),
    ),
    Fault("json-twice", PROTOCOL, (whole(lambda s: s.whole * 2),)),
    Fault("json-not-utf-8", PROTOCOL, edited("one two", "\xff\xfe")),
    Fault("json-with-a-bom", PROTOCOL, (whole(lambda s: b"\xef\xbb\xbf" + s.whole),)),
    Fault(
        "error-with-200",
        TOLD,
        *both(whole(lambda s: json.dumps(_error(s)).encode())),
    ),
    Fault(
        "choices-null",
        NOTHING_SAID,
        body(b'{"id": "x", "choices": null, "usage": null}'),
        paths=OPENAI,
    ),
    Fault(
        "choices-none",
        NOTHING_SAID,
        body(b'{"id": "x", "choices": []}'),
        paths=OPENAI,
    ),
    Fault(
        "message-null",
        NOTHING_SAID,
        body(b'{"id": "x", "choices": [{"index": 0, "message": null, "finish_reason": "stop"}]}'),
        paths=OPENAI,
    ),
    Fault(
        "message-content-null",
        NOTHING_SAID,
        body(b'{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":null}}]}'),
        paths=OPENAI,
    ),
    Fault(
        "content-blocks-null",
        NOTHING_SAID,
        body(
            b'{"id": "x", "type": "message", "role": "assistant", "content": null, "usage": null}'
        ),
        paths=ANTHROPIC,
    ),
    Fault("usage-left-out", Answered(source="estimated"), edited('"usage"', '"used"')),
    Fault(
        "usage-misshapen",
        Answered(source="estimated"),
        edited('_tokens": 2', '_tokens": "two"'),
    ),
    Fault(
        "usage-absurd",
        Answered(source="estimated"),
        edited('_tokens": 2', '_tokens": 20000000000000000000000'),
    ),
    Fault("usage-negative", Answered(source="estimated"), edited('_tokens": 2', '_tokens": -2')),
)

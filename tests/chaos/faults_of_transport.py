"""Faults below the reply's content: connections, TLS, heads, framing, silence."""

from tests.chaos.fault_case import (
    Answered,
    BrokenOff,
    Fault,
    GivenUp,
    HandedOver,
    late,
    late_in,
)
from tests.chaos.fault_pieces import (
    CHUNKED_JSON,
    CLOSE_FRAMED,
    CUT,
    GOOD,
    NOBODY,
    PROTOCOL,
    RESET,
    SHOWN,
    answer,
    behind,
    end,
    everything,
    headed,
    opened,
    sized,
    words,
)
from tests.support.faults import (
    LAST_CHUNK,
    STREAM_HEAD,
    Door,
    chunk,
    close,
    drip,
    events,
    hold,
    over_and_over,
    raw,
    reset,
    whole,
)

LONG_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
OLD_JSON = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
OLD_STREAM = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
MEBIBYTE = 2**20

CONNECTIONS = (
    Fault("refused", HandedOver("connect"), *NOBODY, door=Door.REFUSES),
    Fault("black-hole", late("connect_timeout"), *NOBODY, Door.FULL, timeouts={"connect": 0.4}),
    Fault("tls-good", Answered(), *GOOD, Door.TLS),
    Fault("tls-to-a-plain-server", HandedOver("tls"), *NOBODY, Door.PLAIN),
    Fault("tls-not-trusted", HandedOver("tls"), *GOOD, Door.UNTRUSTED),
    Fault("tls-of-another-name", HandedOver("tls"), *GOOD, Door.MISNAMED),
    Fault("tls-closed-in-its-handshake", HandedOver("connect"), *NOBODY, Door.TLS_CLOSES),
    Fault(
        "tls-silent-in-its-handshake",
        late("connect_timeout"),
        *NOBODY,
        Door.TLS_SILENT,
        timeouts={"connect": 0.4},
    ),
    Fault("reset-before-the-head", RESET, (reset,), (reset,)),
    Fault("closed-before-the-head", RESET, (close,), (close,)),
    Fault(
        "closed-in-the-head", RESET, (raw(LONG_HEAD[:30]), close), (raw(STREAM_HEAD[:30]), close)
    ),
    Fault("reset-behind-the-head", RESET, (raw(LONG_HEAD), reset), (raw(STREAM_HEAD), reset)),
    Fault("closed-behind-the-head", RESET, (raw(LONG_HEAD), close), (raw(STREAM_HEAD), close)),
)

SILENCE = (
    Fault(
        "silent-before-the-head",
        late("first_byte_timeout"),
        (hold,),
        (hold,),
        timeouts={"first_byte": 0.4},
    ),
    Fault(
        "head-that-drips",
        late("first_byte_timeout"),
        (raw(LONG_HEAD[:-2]), over_and_over(b"x: y\r\n")),
        (raw(STREAM_HEAD[:-2]), over_and_over(b"x: y\r\n")),
        timeouts={"first_byte": 0.4},
    ),
    Fault(
        "silent-behind-the-head",
        late("first_byte_timeout"),
        (raw(LONG_HEAD), hold),
        (raw(STREAM_HEAD), hold),
        timeouts={"first_byte": 0.4},
    ),
    Fault(
        "comments-alone",
        late("first_token_timeout"),
        stream=(raw(STREAM_HEAD), over_and_over(b": wait\n\n", chunked=True)),
        timeouts={"first_token": 0.4},
    ),
    Fault(
        "silent-in-the-body",
        {"unary": late("idle_timeout"), "stream": late_in("idle_timeout")},
        (raw(LONG_HEAD), raw(b'{"id": "x",'), hold),
        (*SHOWN, hold),
        timeouts={"idle": 0.4},
    ),
    Fault(
        "body-that-drips",
        Answered(),
        (raw(CHUNKED_JSON), drip(answer, 7, 0.004, chunked=True), raw(LAST_CHUNK)),
        (raw(STREAM_HEAD), drip(everything, 9, 0.004, chunked=True), raw(LAST_CHUNK)),
    ),
    Fault(
        "endless-for-the-provider",
        {"unary": late("attempt_timeout"), "stream": late_in("attempt_timeout")},
        (raw(LONG_HEAD.replace(b"1000", b"100000")), over_and_over(b" "), close),
        (*SHOWN, over_and_over(b": more\n\n", chunked=True), events(end), raw(LAST_CHUNK)),
        timeouts={"total": 2},
    ),
    Fault(
        "endless-for-the-client",
        {
            "unary": GivenUp("total_timeout", told=504, code="deadline_exceeded"),
            "stream": late_in("total_timeout"),
        },
        (raw(LONG_HEAD.replace(b"1000", b"100000")), over_and_over(b" "), close),
        (*SHOWN, over_and_over(b": more\n\n", chunked=True), events(end), raw(LAST_CHUNK)),
        headers={"x-sluice-timeout": "2"},
    ),
)

HEADS = (
    Fault("no-http-at-all", PROTOCOL, (raw(answer), close), (raw(everything), close)),
    Fault("banner-of-another-protocol", PROTOCOL, *opened(b"220 mail.test ESMTP\r\n")),
    Fault("status-line-garbled", PROTOCOL, *opened(b"HTTP/1.1 OK 200\r\n")),
    Fault("version-unknown", PROTOCOL, *opened(b"HTTP/7.3 200 OK\r\n")),
    Fault("status-of-four-digits", PROTOCOL, *opened(b"HTTP/1.1 2000 OK\r\n")),
    Fault("reason-left-out", Answered(), *opened(b"HTTP/1.1 200\r\n")),
    Fault("hints-before-the-head", Answered(), *behind(HINT * 5)),
    Fault("hints-without-end", PROTOCOL, *behind(HINT * 300)),
    Fault("continue-before-the-head", Answered(), *behind(b"HTTP/1.1 100 Continue\r\n\r\n")),
    Fault(
        "upgrade-nobody-asked-for",
        PROTOCOL,
        *behind(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    ),
    Fault("head-too-large", PROTOCOL, *headed(b"x: " + b"y" * MEBIBYTE)),
    Fault("headers-too-many", PROTOCOL, *headed(*[b"x-%d: y" % i for i in range(300)])),
    Fault("header-without-a-colon", PROTOCOL, *headed(b"not a header")),
    Fault("header-with-a-nul", PROTOCOL, *headed(b"x: a\0b")),
    Fault("header-with-a-bare-cr", PROTOCOL, *headed(b"x: a\rb: c")),
    Fault("header-folded", PROTOCOL, *headed(b"x: a\r\n b")),
    Fault("space-before-the-colon", PROTOCOL, *headed(b"x : y")),
    Fault(
        "head-twice",
        {"unary": RESET, "stream": PROTOCOL},
        (raw(LONG_HEAD, LONG_HEAD, answer), close),
        (raw(STREAM_HEAD * 2), events(everything), raw(LAST_CHUNK), close),
    ),
    Fault(
        "length-and-chunks",
        PROTOCOL,
        headed(b"Transfer-Encoding: chunked")[0],
        headed(b"Content-Length: 9")[1],
    ),
    Fault("lengths-that-differ", PROTOCOL, *headed(b"Content-Length: 7", b"Content-Length: 9")),
    Fault("length-that-is-none", PROTOCOL, *headed(b"Content-Length: ten")),
)

FRAMING = (
    Fault(
        "reply-of-http-1-0",
        Answered(),
        (raw(OLD_JSON, answer), close),
        (raw(OLD_STREAM, everything), close),
    ),
    Fault(
        "reply-framed-by-the-close",
        Answered(),
        (raw(CLOSE_FRAMED.replace(b"text/event-stream", b"application/json"), answer), close),
        (raw(CLOSE_FRAMED, everything), close),
    ),
    Fault(
        "length-too-short",
        {"unary": PROTOCOL, "stream": CUT},
        (raw(lambda s: sized(s.whole, length=len(s.whole) - 9)), close),
        (raw(lambda s: sized(s.stream, b"text/event-stream", 20)), close),
    ),
    Fault(
        "length-too-short-for-the-end",
        BrokenOff("stream_cut"),
        stream=(
            raw(lambda s: sized(s.words, b"text/event-stream", len(s.words) + 2)),
            SHOWN[-1],
            raw(end),
        ),
    ),
    Fault(
        "length-too-long",
        {"unary": RESET, "stream": Answered()},
        (whole(answer, extra=9), close),
        (raw(lambda s: sized(s.stream, b"text/event-stream", len(s.stream) + 9)), close),
    ),
    Fault(
        "length-too-long-and-no-end",
        BrokenOff("reset"),
        stream=(
            raw(lambda s: sized(s.words, b"text/event-stream", len(s.words) + 9)),
            SHOWN[-1],
            close,
        ),
    ),
    # In one piece: whatever comes later may be taken for the answer to the next request.
    Fault(
        "two-replies",
        Answered(),
        (raw(lambda s: sized(s.whole) + sized(b"{}")),),
        (*GOOD[1][:-1], raw(LAST_CHUNK + sized(b"{}"))),
    ),
    Fault(
        "chunk-size-garbled",
        PROTOCOL,
        (raw(CHUNKED_JSON, b"xyz\r\n"), hold),
        (raw(STREAM_HEAD, b"xyz\r\n"), hold),
    ),
    Fault(
        "chunk-size-garbled-behind-content",
        BrokenOff("protocol"),
        stream=(*SHOWN, raw(b"xyz\r\n"), hold),
    ),
    Fault(
        "chunk-size-beyond-64-bits",
        PROTOCOL,
        (raw(CHUNKED_JSON, b"1" * 20 + b"\r\n{"), hold),
        (raw(STREAM_HEAD, b"1" * 20 + b"\r\ndata"), hold),
    ),
    Fault(
        "chunk-size-negative",
        PROTOCOL,
        (raw(CHUNKED_JSON, b"-1\r\n"), hold),
        (raw(STREAM_HEAD, b"-1\r\n"), hold),
    ),
    Fault(
        "chunk-longer-than-it-says",
        PROTOCOL,
        (raw(CHUNKED_JSON, b"5\r\n", answer, b"\r\n0\r\n\r\n"), hold),
        (raw(STREAM_HEAD, b"5\r\n", everything, b"\r\n0\r\n\r\n"), hold),
    ),
    Fault(
        "last-chunk-missing",
        {"unary": RESET, "stream": Answered()},
        (raw(CHUNKED_JSON), chunk(answer), close),
        (raw(STREAM_HEAD), events(everything), close),
    ),
    Fault(
        "chunks-with-extensions-and-trailers",
        Answered(),
        (
            raw(CHUNKED_JSON, lambda s: b"%x;a=b\r\n%b\r\n" % (len(s.whole), s.whole)),
            raw(b"0\r\nx: y\r\n\r\n"),
        ),
        (raw(STREAM_HEAD), events(everything), raw(b"0\r\nx: y\r\n\r\n")),
    ),
    Fault("closed-behind-content", BrokenOff("reset"), stream=(*SHOWN, close)),
    Fault("reset-behind-content", BrokenOff("reset"), stream=(*SHOWN, reset)),
    Fault("closed-in-an-event", BrokenOff("reset"), stream=(*SHOWN, chunk(b"data: {"), close)),
    Fault("closed-in-a-chunk", BrokenOff("reset"), stream=(*SHOWN, raw(b"ff\r\ndata: {"), close)),
    Fault(
        "close-that-frames-half",
        {"unary": PROTOCOL, "stream": BrokenOff("stream_cut")},
        (raw(OLD_JSON, lambda s: s.whole[:-9]), close),
        (raw(OLD_STREAM, words), SHOWN[-1], close),
    ),
)

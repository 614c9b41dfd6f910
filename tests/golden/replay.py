"""A provider that answers with recordings: framed on the wire as their own provider frames them.

The model that a request names says which recording it gets, and in what pieces: `rec-12`,
`rec-12-events`, `rec-12-bytes`. Whether the request makes sense is not looked at.
"""

import json
import re
import struct
import urllib.parse
import zlib
from collections.abc import Callable
from typing import Literal, Self, get_args

from tests.golden.recordings import RECORDINGS, Api, Recording
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange, Received
from tests.support.wire import chunked

Delivery = Literal["whole", "events", "bytes"]
DELIVERIES: tuple[Delivery, ...] = get_args(Delivery)

# So many bytes are written at a time where a reply comes byte by byte; being prime, it also cuts
# through the framing of those chunks.
WRITE_BYTES = 1021


# --- Framing -------------------------------------------------------------------------------------


def data(line: str) -> bytes:
    """An event as OpenAI's chat sends it."""
    return b"data: " + line.encode() + b"\n\n"


def named(line: str) -> bytes:
    """An event as Anthropic, Cohere and OpenAI's responses send it: its type is its name, too."""
    kind: str = json.loads(line)["type"]
    return b"event: " + kind.encode() + b"\n" + data(line)


def data_crlf(line: str) -> bytes:
    """An event as Google sends it."""
    return b"data: " + line.encode() + b"\r\n\r\n"


def event_stream_message(line: str) -> bytes:
    """A message of AWS's event stream encoding: the one key is the type, its value the payload."""
    (kind,) = json.loads(line)
    payload = line.partition(":")[2].strip().removesuffix("}").encode()
    headers = b"".join(
        header(name, value)
        for name, value in (
            (":event-type", kind),
            (":content-type", "application/json"),
            (":message-type", "event"),
        )
    )
    prelude = struct.pack("!II", 12 + len(headers) + len(payload) + 4, len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def header(name: str, value: str) -> bytes:
    """A header of that encoding; 7 is the type of a string."""
    size = struct.pack("!B", len(name))
    return size + name.encode() + struct.pack("!BH", 7, len(value.encode())) + value.encode()


FRAME: dict[Api, Callable[[str], bytes]] = {
    "chat": data,
    "completions": data,
    "responses": named,
    "messages": named,
    "gemini": data_crlf,
    "converse": event_stream_message,
    "cohere": named,
}
DONE = b"data: [DONE]\n\n"
LAST: dict[Api, list[bytes]] = {"chat": [DONE], "completions": [DONE], "cohere": [DONE]}


def frames(recording: Recording) -> list[bytes]:
    """A stream's events as they go over the wire; a whole reply is one."""
    if not recording.stream:
        return [recording.path.read_bytes()]
    frame = FRAME[recording.api]
    return [frame(line) for line in recording.lines] + LAST.get(recording.api, [])


def content_type(recording: Recording) -> str:
    """What the reply's head says of it."""
    if not recording.stream:
        return "application/json"
    if recording.api == "converse":
        return "application/vnd.amazon.eventstream"
    return "text/event-stream"


STATUS = {"invalid_request_error": 400, "insufficient_quota": 429}


def status(recording: Recording) -> int:
    """The reply's status: Google's errors name theirs, OpenAI's a type."""
    if recording.api != "error":
        return 200
    error = recording.objects[0]["error"]
    return int(STATUS.get(error.get("type")) or error["code"])


# --- Serving -------------------------------------------------------------------------------------

MODEL = re.compile(r"rec-(\d+)(?:-(whole|events|bytes))?$")
# As Google, Bedrock and Azure have it in the path.
IN_PATH = re.compile(r"/(?:models|model|deployments)/([^/:?]+)")


def model_of(recording: Recording, how: Delivery | None = None) -> str:
    """The model to ask for; without a delivery, the reply comes whole."""
    return f"rec-{RECORDINGS.index(recording)}" + (f"-{how}" if how else "")


def asked_for(request: Received) -> str:
    """The model that a request names, in its path or else in its body."""
    if found := IN_PATH.search(urllib.parse.unquote(request.path)):
        return found[1]
    try:
        return str(request.json.get("model"))
    except (ValueError, AttributeError):
        return ""


def chosen(model: str) -> tuple[Recording, str] | None:
    """The recording and delivery that a model's name stands for."""
    found = MODEL.search(model)
    if found is None or int(found[1]) >= len(RECORDINGS):
        return None
    return RECORDINGS[int(found[1])], found[2] or "whole"


def writes(recording: Recording, how: str) -> list[bytes]:
    """A reply, cut as it is to be written: the head first, streams in chunked coding."""
    pieces = frames(recording)
    whole = b"".join(pieces)
    coding = "Transfer-Encoding: chunked" if recording.stream else f"Content-Length: {len(whole)}"
    lines = [f"HTTP/1.1 {status(recording)} X", f"Content-Type: {content_type(recording)}", coding]
    head = "\r\n".join([*lines, "", ""]).encode()
    if how == "bytes":
        each = [whole[i : i + 1] for i in range(len(whole))]
        body = chunked(*each) if recording.stream else whole
        return [head, *(body[i : i + WRITE_BYTES] for i in range(0, len(body), WRITE_BYTES))]
    if not recording.stream:
        return [head + whole]
    if how == "whole":
        return [head + chunked(whole)]
    return [head, *(chunked(piece, end=False) for piece in pieces), chunked()]


class Replay:
    """The server, in a thread of its own from enter to exit.

    `requests` holds the last request of every model that was asked for.
    """

    def __init__(self) -> None:
        self.requests: dict[str, Received] = {}
        self._thread = UpstreamThread(behaviour=self._answer)

    @property
    def received(self) -> list[Received]:
        """Every request so far."""
        return self._thread.received

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._thread.upstream.port

    @property
    def url(self) -> str:
        """The server's URL, without a path: every path is answered alike."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.__exit__(None, None, None)

    async def _answer(self, exchange: Exchange) -> None:
        model = asked_for(exchange.request)
        self.requests[model] = exchange.request
        found = chosen(model)
        if exchange.request.method != "POST" or found is None:
            await exchange.reply({"error": {"message": f"no such model: {model}"}}, 404)
            return
        for piece in writes(*found):
            await exchange.send(piece)

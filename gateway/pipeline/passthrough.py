"""Requests that go to a provider's own API as they are: who may, what it reserves, what it came to.

The gateway understands nothing of them but the models they name and the usage, where it sees them.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise, takewhile
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from gateway.core import record
from gateway.core.errors import ApiError, StoreError
from gateway.core.ids import request_id
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.formats.body import estimate_prompt
from gateway.pipeline.call import Call, Headers
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.lanes import Answer
from gateway.pipeline.serve import admit, authenticate
from gateway.pipeline.services import Services
from gateway.pipeline.settle import measure, settle
from gateway.policy.access import Principal, may_use
from gateway.policy.tokens import count_tokens
from gateway.providers.errors import UNREADABLE
from gateway.providers.foreign_usage import ForeignUsage
from gateway.upstream.exchange import Flow

NO_MODEL = "*"
MAX_TOKENS, MAX_CHOICES = 2**31, 128  # of what a request may ask, as in the dialects we know
MAX_SHOWN_CHARS = 256
LARGE_BODY_BYTES = 64 * 1024  # reading that name by name takes some milliseconds
# A path may be decoded again by each server that it passes.
MAX_ENCODINGS = 3

# What stands before a model's name in a path, in lower case: Google's, Bedrock's, Azure's.
_COLLECTIONS = frozenset(("models", "tunedmodels", "model", "deployments", "engines"))
_METHOD = re.compile(r":[a-z][A-Za-z]+\Z")  # Google's are a part of the name's segment
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
# What names a model in JSON, in lower case, or models to fall back to (OpenRouter, LiteLLM).
_MEMBERS = frozenset(("model", "models", "model_id", "modelid", "fallbacks"))
# What was said, and what only its reader understands: nobody acts on a name in there.
_CONTENT = frozenset(("messages", "contents", "metadata"))

Read = Callable[[], Awaitable[bytes | None]]


class Elsewhere:
    """The client of a call whose answer is written by somebody else."""

    connected = True
    chunked = False
    begun = False

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Do nothing."""

    def start(self, headers: bytes) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Do nothing."""

    def write_frame(self, frame: bytes) -> None:
        """Do nothing."""

    def finish(self, data: bytes) -> None:
        """Do nothing."""

    def follow(self, flow: Flow | None) -> None:
        """Do nothing."""

    def expect(self) -> None:
        """Do nothing."""


class Asked(msgspec.Struct):
    """What a JSON body says that matters, whatever its type."""

    model: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    generationConfig: Any = None
    inferenceConfig: Any = None


class Passage:
    """One request on its way through. Begun by `begin`, ended by `end`, always."""

    def __init__(self, services: Services, call: Call, *, counts: bool) -> None:
        self._services, self._call, self._counts = services, call, counts
        self._usage = ForeignUsage()
        self._ended = False

    @property
    def call(self) -> Call:
        """Return the request's state."""
        return self._call

    @property
    def target(self) -> Target:
        """Return where it goes."""
        assert self._call.route is not None
        return self._call.route.target

    @property
    def authorization(self) -> Headers:
        """Return the headers with which its provider is asked."""
        route = self._call.route
        assert route is not None
        assert route.adapter.conversation is not None
        headers = route.adapter.conversation.endpoint(route.target, stream=False).headers
        return tuple([(n, value) for n, value in headers if n.lower() != "content-type"])

    def see(self, data: bytes) -> None:
        """Look at a part of the answer."""
        if self._counts:
            self._usage.feed(data)

    def end(self, status: int, outcome: str, error: str = "") -> None:
        """Settle what it came to. Idempotent: the first word counts."""
        if self._ended:
            return
        self._ended = True
        call = self._call
        call.status, call.outcome, call.error = status, outcome, error
        call.finished = outcome == record.OK
        if status < 400:
            self._measure()
        settle(self._services, call)

    def _measure(self) -> None:
        """Count what the provider has told, or what was seen of a stream."""
        call, usage, text = self._call, self._usage.result(), self._usage.text()
        if usage is not None and not call.finished:  # it has told of the beginning, perhaps
            written = max(usage.completion_tokens, count_tokens(text))
            usage = msgspec.structs.replace(usage, completion_tokens=written)
        if usage is not None or text:
            measure(call, Answer(b"", usage, lambda: text))
            call.finished = True  # or it would be estimated again, without any of that

    async def settled(self) -> None:
        """Wait until the settlement is out of this process: then the client may see the end."""
        future: asyncio.Future[None] = self._services.loop.create_future()
        self._services.admission.after_settled(partial(_wake, future))
        await future


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def begin(
    services: Services,
    secret: str | None,
    provider: str,
    path: str,
    read: Read,
    trace: str,
    method: str,
) -> Passage:
    """Admit a request; `read` returns its JSON, None where it has none, and is asked last.

    Raises ApiError, StoreError.
    """
    clock, operation = asyncio.get_running_loop().time, Operation.PASSTHROUGH
    call = Call(request_id(), operation, b"", secret, Elsewhere(), clock(), trace)
    try:
        await authenticate(services, call)
        assert call.principal is not None
        segments = _segments(path)
        if services.catalogue.passage(provider, NO_MODEL) is None:
            message = f"No provider named {provider[:MAX_SHOWN_CHARS]!a} is passed through."
            raise ApiError("not_found", message)
        body = await read()
        asked, named = _read(body), _in_path(segments)
        if {NO_MODEL, f"{provider}/{NO_MODEL}"}.isdisjoint(call.principal.models):
            await _authorize(services.catalogue, call.principal, provider, path, body)
        # A provider that has the name in the path acts on that, whatever the body says.
        model = named[0] if named else _name(asked.model)
        served = services.catalogue.passage(provider, model or NO_MODEL)
        if served is None:
            raise ApiError("invalid_value", "That is no model's name.", param="model")
        call.model, call.route = served, served.routes[0]
        call.request = _request(
            asked, served.name, body, generates=bool(model and method == "POST")
        )
        call.principal = _limited(services.catalogue, call.principal, provider, model)
        await admit(services, call)
    except BaseException as error:
        _note(call, error)
        settle(services, call)
        raise
    call.attempts, call.sent_at = 1, clock()
    # Other methods show again what was counted when it was made.
    return Passage(services, call, counts=method == "POST")


def _note(call: Call, error: BaseException) -> None:
    """Note why a request was not admitted."""
    call.outcome = record.REFUSED
    if isinstance(error, ApiError):
        call.status, call.error = error.status, error.code
    elif isinstance(error, StoreError):
        call.status, call.error = 503, "store_unavailable"
    elif isinstance(error, asyncio.CancelledError):
        call.outcome = record.DISCONNECTED
    else:
        call.status, call.error = 500, "internal_error"


# -- which models are meant ------------------------------------------------------------------------


async def _authorize(
    catalogue: Catalogue, principal: Principal, provider: str, path: str, body: bytes | None
) -> None:
    """Let a key that is restricted ask only for what it may use. Raises ApiError.

    Which name a provider acts on is not known here. So every one counts, wherever it stands, and
    one must stand where providers look for it: in the path, or else in the body's own `model`.
    """
    segments = _segments(path)
    named = _in_path(segments)
    asked = [value for key, value in parse_qsl(path.partition("?")[2]) if key.lower() in _MEMBERS]
    try:
        large = body is not None and len(body) > LARGE_BODY_BYTES
        own, inner = await asyncio.to_thread(_in_body, body) if large else _in_body(body)
    except (ValueError, RecursionError):
        own, inner = [None], []  # unreadable to us, and perhaps not to the provider
    if not _is_plain(segments):
        own = [None]
    wanted = [_name(one) for one in (*named, *own, *asked, *inner)]
    for model in wanted if named or own else [NO_MODEL]:
        if not any(may_use(principal, name) for name in _names(catalogue, provider, model)):
            shown = f"{provider}/{model or NO_MODEL}"[:MAX_SHOWN_CHARS]
            raise ApiError("model_not_allowed", f"This key may not use {shown!a}.", param="model")


def _names(catalogue: Catalogue, provider: str, model: str) -> tuple[str, ...]:
    """Return what a provider's model is called here: not by a name that leads elsewhere."""
    if not model:
        return ()
    full = f"{provider}/{model}"
    served = catalogue.resolve(model)
    if served is None or any(
        (route.target.provider, route.target.model) == (provider, model) for route in served.routes
    ):
        return full, model
    return (full,)


def _segments(path: str) -> list[str]:
    """Return a path's segments, decoded as any server behind may. Raises ApiError."""
    plain, encodings = path.partition("?")[0].split("/"), 0
    while (decoded := [unquote(one) for one in plain]) != plain and encodings <= MAX_ENCODINGS:
        plain, encodings = decoded, encodings + 1
    segments = [one.replace("\\", "/") for one in plain]
    parts = {part.partition(";")[0] for one in segments for part in one.split("/")}
    if not parts.isdisjoint((".", "..")) or encodings > MAX_ENCODINGS:
        raise ApiError("not_found", "A path does not go upwards.")
    if any(_CONTROLS.search(one) for one in segments):
        raise ApiError("not_found", "A path has no such characters.")
    return [one.partition(";")[0] for one in segments]


def _in_path(segments: list[str]) -> list[str]:
    """Return the models that a path names."""
    kept = [one for one in takewhile(lambda one: not {"?", "#"} & set(one), segments) if one]
    found = [(before.lower(), name) for before, name in pairwise(kept)]
    return [
        _METHOD.sub("", name) if before.endswith("models") else name
        for before, name in found
        if before in _COLLECTIONS
    ]


def _is_plain(segments: list[str]) -> bool:
    """Tell whether a path names models only where `_in_path` finds them.

    Not where a slash is encoded in front of or behind what a name follows, nor where a method is
    called of something that we do not know.
    """
    hidden = [part.lower() for one in segments if "/" in one for part in one.split("/")]
    return _COLLECTIONS.isdisjoint(hidden) and (":" not in segments[-1] or bool(_in_path(segments)))


def _in_body(body: bytes | None) -> tuple[list[Any], list[str]]:
    """Return what JSON names as its model, each time it does, and all it names anywhere.

    Raises ValueError, RecursionError.
    """
    if body is None:
        return [], []
    # An object is a tuple, a list a list. A function of ours in between lets other threads run.
    whole = json.loads(body, object_pairs_hook=lambda members: tuple(members))
    own = [value for key, value in whole if key == "model"] if isinstance(whole, tuple) else []
    found: list[Any] = []
    waiting = [whole] if isinstance(whole, tuple | list) else []
    while waiting:
        one = waiting.pop()
        members = one if isinstance(one, tuple) else [("", value) for value in one]
        for key, value in members:
            if key.lower() in _MEMBERS:
                found += value if isinstance(value, list) else [value]
            if isinstance(value, tuple | list) and key not in _CONTENT:
                waiting.append(value)
    return own, [name for name in found if isinstance(name, str)]


def _name(value: Any) -> str:
    """Return a model's name without Google's collection; empty where it is none."""
    return value.removeprefix("models/") if isinstance(value, str) else ""


# -- what it may come to ---------------------------------------------------------------------------


def _read(body: bytes | None) -> Asked:
    try:
        return msgspec.json.decode(body or b"{}", type=Asked)
    except UNREADABLE:
        return Asked()  # the provider's to judge


def _request(asked: Asked, model: str, body: bytes | None, *, generates: bool) -> Request:
    google = asked.generationConfig if isinstance(asked.generationConfig, dict) else {}
    aws = asked.inferenceConfig if isinstance(asked.inferenceConfig, dict) else {}
    most = [asked.max_completion_tokens, asked.max_output_tokens, asked.max_tokens]
    most += [google.get("maxOutputTokens"), aws.get("maxTokens")]
    wanted = [_count(one, MAX_TOKENS) for one in most]
    choices = [_count(one, MAX_CHOICES) for one in (asked.n, google.get("candidateCount"))]
    return Request(
        Operation.PASSTHROUGH,
        model,
        False,  # no stream of ours, whatever it is
        True,
        max(filter(None, wanted), default=None) if generates else 0,
        max(filter(None, choices), default=1),
        estimate_prompt(body) if body and generates else 0,
        {},
    )


def _count(value: Any, most: int) -> int:
    """Return how much is asked for, within reason; 0 where it makes no sense."""
    return min(max(value, 0), most) if type(value) is int else 0


def _limited(catalogue: Catalogue, principal: Principal, provider: str, model: str) -> Principal:
    """Return a key's holder with the limits of all the names that a model has."""
    names = _names(catalogue, provider, model) or (f"{provider}/{NO_MODEL}",)
    limits = dict.fromkeys(limit for name in names for limit in principal.limits_for(name))
    return msgspec.structs.replace(principal, limits=tuple(limits), by_model=())

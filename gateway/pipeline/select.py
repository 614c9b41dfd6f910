"""Hot path: which of a model's targets one request may go to, by what is in it and who asks."""

import re
from typing import NamedTuple

from gateway.core.errors import ApiError
from gateway.core.hints import TAGS
from gateway.core.request import Request
from gateway.pipeline.call import Call
from gateway.pipeline.served import Route, Served
from gateway.policy.routing import Chance
from gateway.policy.selection import Facts, choose, share_of

MAX_TAGS = 16
PREFIX_BYTES = 1024  # of a prompt, by which its cache is found again
_IMAGE = re.compile(rb'"type"\s*:\s*"(?:image|image_url|input_image)"')
_EMPTY = re.compile(rb'\s*(?:null|"\s*"|\{\s*\})\s*')  # which tells nobody from another
_PROMPTS = ("messages", "input", "prompt")
# Where clients say who asks, in the order of what is nearest to a conversation.
_WHO = ("prompt_cache_key", "safety_identifier", "user", "metadata")


class Selection(NamedTuple):
    """The targets that a request may go to. `pin` is empty where any of them may have it."""

    canary: Route | None
    routes: tuple[Route, ...]
    pin: bytes = b""


def select(call: Call, served: Served, chance: Chance) -> Selection:
    """Choose. Raises ApiError where no target takes such a request.

    Chance decides for somebody who says nothing about themselves.
    """
    request = call.request
    assert request is not None
    who = _identity(call, request)
    share = share_of(who, served.name) if who else chance()
    facts = _facts(call, request)
    canary, routes = choose(served.routes, facts, share)
    if canary is None and not routes:
        named = f" with the tags {', '.join(sorted(facts.tags))}" if facts.tags else ""
        message = f"No target of the model '{served.name}' takes this request{named}."
        raise ApiError("invalid_value", message, param=TAGS if facts.tags else "model")
    pin = b""
    if served.affinity != "none":
        pin = who if who and served.affinity == "session" else _beginning(request)
    return Selection(canary, routes, pin)


def _facts(call: Call, request: Request) -> Facts:
    fields = request.fields
    tools = bytes(fields.get("tools") or fields.get("functions") or b"")
    tags = [tag for one in call.hints.tags.split(",") if (tag := one.strip())]
    return Facts(
        tokens=request.prompt_estimate,
        tools=tools.strip() not in (b"", b"null", b"[]"),
        images=any(_IMAGE.search(fields[name]) for name in _PROMPTS if name in fields),
        stream=request.stream,
        labels=call.principal.labels if call.principal else (),
        tags=frozenset(tags[:MAX_TAGS]),
    )


def _identity(call: Call, request: Request) -> bytes:
    """Return whatever tells one user or conversation from another; empty where nothing does."""
    if call.hints.session:
        return call.hints.session.encode()
    for name in _WHO:
        if name in request.fields and not _EMPTY.fullmatch(request.fields[name]):
            return bytes(request.fields[name])
    return b""


def _beginning(request: Request) -> bytes:
    names = ("system", "instructions", *_PROMPTS)
    found = [bytes(request.fields[name])[:PREFIX_BYTES] for name in names if name in request.fields]
    return b"\0".join(found)[:PREFIX_BYTES]

"""Which models a request to a provider's own API names, wherever it does, and whether it may."""

import asyncio
import json
import re
from collections.abc import Set
from itertools import pairwise, takewhile
from typing import Any
from urllib.parse import parse_qsl, unquote

from msgspec import Raw

from gateway.core.errors import ApiError
from gateway.core.request import Request
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Served
from gateway.policy.access import Principal, may_use

Names = tuple[str, ...]  # of one model; the first as it was written

NO_MODEL = "*"
MAX_SHOWN_CHARS = 256
LARGE_BODY_BYTES = 64 * 1024  # reading that name by name takes some milliseconds
# What shows what is there, and generates nothing.
READING = frozenset(("GET", "HEAD", "OPTIONS"))
# What acts at once on the model that its JSON names, of any provider. Everything else may reach
# what others have (files, batches, threads), whatever model it names.
_GENERATING = frozenset(
    (
        *("chat/completions", "completions", "completion", "fim/completions", "complete"),
        *("responses", "responses/compact", "responses/input_tokens"),
        *("messages", "messages/count_tokens", "chat", "generate", "generate_stream"),
        *("embeddings", "embedding", "embed", "multimodalembeddings", "contextualizedembeddings"),
        *("rerank", "reranking", "score", "pooling", "classify", "classifications"),
        *("moderations", "chat/moderations", "chat/classifications"),
        *("images/generations", "images/edits", "audio/speech", "videos", "ocr"),
        *("tokenize", "detokenize", "infill", "invocations"),
    )
)
# What has a body's tokens counted, at the end of a path, in lower case: of Anthropic, Google,
# Bedrock, OpenAI, Cohere, xAI, Moonshot, vLLM. Only whole names: what they name is free.
_COUNTING = frozenset(
    (
        *("count_tokens", "count-tokens", "counttokens", "computetokens", "input_tokens"),
        *("tokenize", "detokenize", "tokenize-text", "estimate-token-count"),
        "count-tokens:rawpredict",  # Claude's at Vertex AI, which has it for a model
    )
)
# What stands before that, beside a version: OpenAI's API at Groq, Ollama's, Fireworks', Cohere's.
_ROOTS = frozenset(("api", "openai", "anthropic", "inference", "compatibility", "beta", "paas"))
_VERSION = re.compile(r"v[0-9]\w*", re.ASCII)
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
# The same among the fields of a request that we understand, and what a function takes.
_SAID = frozenset(
    (
        *("model", "messages", "input", "contents", "prompt", "system", "instructions"),
        *("metadata", "user"),
    )
)
_SCHEMAS = _CONTENT | {
    *("function", "parameters", "input_schema", "input_examples", "json_schema", "schema")
}
_MAY_NAME = re.compile(rb"model|fallbacks|\\u", re.IGNORECASE)  # escaped or not
_UNREADABLE = (ValueError, RecursionError)  # of Python's `json`

Members = tuple[tuple[str, Any], ...]


async def authorize(
    catalogue: Catalogue,
    principal: Principal,
    provider: str,
    method: str,
    path: str,
    body: bytes | None,
) -> None:
    """Let a key that is restricted ask only for what it may use. Raises ApiError.

    Which name a provider acts on is not known here. So every one counts, wherever it stands, and
    one must stand where providers look for it: in the path, or else in the body's own `model` of
    what acts on that. Anything else needs all of a provider, and so does what changes or deletes.
    """
    segments = segments_of(path)
    named = in_path(segments)
    asked = [value for key, value in parse_qsl(path.partition("?")[2]) if key.lower() in _MEMBERS]
    try:
        members, inner = await _named(body)
        own = [value for key, value in members if key == "model"]
    except _UNREADABLE:
        own, inner = [None], []  # unreadable to us, and perhaps not to the provider
    if not is_plain(segments):
        own = [None]
    wanted = [plain_name(one) for one in (*named, *own, *asked, *inner)]
    acts_on_own = method == "POST" and bool(own) and _generates(segments)
    if not (acts_on_own or (named and (method in READING or method == "POST"))):
        wanted = [NO_MODEL, *wanted]
    for model in wanted:
        if not any(may_use(principal, name) for name in names_of(catalogue, provider, model)):
            shown = f"{provider}/{model or NO_MODEL}"[:MAX_SHOWN_CHARS]
            raise ApiError("model_not_allowed", f"This key may not use {shown!a}.", param="model")


async def named_beside(catalogue: Catalogue, served: Served, request: Request) -> list[Names]:
    """Return the names of each model that a request names beside the one asked for.

    Providers act on them: to fall back to, or as what a tool asks. Raises ApiError.
    """
    try:
        found = await _beside(request.fields)
    except _UNREADABLE:
        raise ApiError("invalid_json", "The request body is nested too deeply.") from None
    providers = {route.target.provider for route in served.routes}
    return [
        (model, *[name for one in providers for name in names_of(catalogue, one, model)])
        for model in map(plain_name, found)
    ]


def authorize_beside(principal: Principal, beside: list[Names]) -> None:
    """Let a key that is restricted name only models that it may use. Raises ApiError."""
    for model, *names in beside:
        if not any(may_use(principal, name) for name in names):
            shown = model[:MAX_SHOWN_CHARS]
            raise ApiError("model_not_allowed", f"This key may not use {shown!a}.", param="model")


def limited_beside(principal: Principal, served: Served, beside: list[Names]) -> Principal:
    """Return a key's holder with the limits of all models that a request names."""
    limits = dict.fromkeys(principal.limits_for(served.name, served.full_names))
    for name in [name for names in beside for name in names]:
        limits |= dict.fromkeys(principal.limits_for(name))
    return principal.limited_to(tuple(limits))


async def _beside(fields: dict[str, Raw]) -> list[str]:
    """Return the models that fields name beside the request's own. Raises one of _UNREADABLE."""
    suspicious = {
        name: raw
        for name, raw in fields.items()
        if name not in _SAID and (name.lower() in _MEMBERS or _MAY_NAME.search(raw))
    }
    if sum(len(memoryview(raw)) for raw in suspicious.values()) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(_in_fields, suspicious)
    return _in_fields(suspicious)


def _in_fields(fields: dict[str, Raw]) -> list[str]:
    read = [
        (name, json.loads(bytes(raw), object_pairs_hook=_pairs)) for name, raw in fields.items()
    ]
    return _names_in(tuple(read), _SCHEMAS)


async def own_models(body: bytes | None) -> list[str]:
    """Return each model that JSON names as its own, in any case; none where it cannot be read."""
    try:
        members, _ = await _named(body)
    except _UNREADABLE:
        return []
    found = [plain_name(value) for key, value in members if key.lower() == "model"]
    return [one for one in found if one]


def names_of(catalogue: Catalogue, provider: str, model: str) -> tuple[str, ...]:
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


def segments_of(path: str) -> list[str]:
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


def in_path(segments: list[str]) -> list[str]:
    """Return the models that a path names."""
    kept = [one for one in takewhile(lambda one: not {"?", "#"} & set(one), segments) if one]
    found = [(before.lower(), name) for before, name in pairwise(kept)]
    return [
        _METHOD.sub("", name) if before.endswith("models") else name
        for before, name in found
        if before in _COLLECTIONS
    ]


def _generates(segments: list[str]) -> bool:
    """Tell whether a path is that of an operation that acts at once on its body's model."""
    kept = [one for one in segments if one]
    ahead = takewhile(lambda one: one in _ROOTS or _VERSION.fullmatch(one) is not None, kept)
    return "/".join(kept[len(list(ahead)) :]) in _GENERATING


def is_counting(segments: list[str], named: list[str]) -> bool:
    """Tell whether a path with these models in it has tokens counted, which costs nothing."""
    last = segments[-1].lower()
    if last in _COUNTING:
        return segments[-1] not in named
    return ":" in last and last.rpartition(":")[2] in _COUNTING and bool(named)


def is_plain(segments: list[str]) -> bool:
    """Tell whether a path names models only where `in_path` finds them.

    Not where a slash is encoded in front of or behind what a name follows, nor where a method is
    called of something that we do not know.
    """
    hidden = [part.lower() for one in segments if "/" in one for part in one.split("/")]
    return _COLLECTIONS.isdisjoint(hidden) and (":" not in segments[-1] or bool(in_path(segments)))


async def _named(body: bytes | None) -> tuple[Members, list[str]]:
    """Read a body, a large one in a thread. Raises one of _UNREADABLE."""
    large = body is not None and len(body) > LARGE_BODY_BYTES
    return await asyncio.to_thread(_in_body, body) if large else _in_body(body)


def _in_body(body: bytes | None) -> tuple[Members, list[str]]:
    """Return the members of a JSON object, each as often as it is there, and all models it names.

    Raises one of _UNREADABLE.
    """
    if body is None:
        return (), []
    whole = json.loads(body, object_pairs_hook=_pairs)
    own = whole if isinstance(whole, tuple) else ()
    return own, _names_in(whole, _CONTENT)


def _pairs(members: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Return an object as a tuple, as a list is one; it being ours lets other threads run."""
    return tuple(members)


def _names_in(whole: Any, unread: Set[str]) -> list[str]:
    """Return all models that JSON names, but in members that are not to be read."""
    found: list[Any] = []
    waiting = [whole] if isinstance(whole, tuple | list) else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += [value for value in one if isinstance(value, tuple | list)]
            continue
        for key, value in one:
            if key.lower() in _MEMBERS:
                found += value if isinstance(value, list) else [value]
            if isinstance(value, tuple | list) and key not in unread:
                waiting.append(value)
    return [name for name in found if isinstance(name, str)]


def plain_name(value: Any) -> str:
    """Return a model's name without Google's collection; empty where it is none."""
    return value.removeprefix("models/") if isinstance(value, str) else ""

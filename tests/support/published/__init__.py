"""Checks a request's body against what its provider has published, not against what we sent before.

The SDKs in the lock file are the publications, so "published" means at their versions. Each is
looked at as late as it is needed and read into shapes; what is said of a body is said by field.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version

from tests.support.published import sources
from tests.support.published.shapes import Shape


class Unpublished(Exception):
    """The package that publishes an API is not installed."""


@dataclass(frozen=True)
class Source:
    """The package that publishes an API, and how its shape is read from there."""

    package: str
    read: Callable[[], Shape]


APIS = {
    "chat": Source("openai", sources.chat),
    "completions": Source("openai", sources.completions),
    "embeddings": Source("openai", sources.embeddings),
    "responses": Source("openai", sources.responses),
    "messages": Source("anthropic", sources.messages),
    "messages_2023_06_01": Source("anthropic", sources.messages_2023_06_01),
    "gemini": Source("google-genai", sources.gemini),
    "converse": Source("botocore", partial(sources.converse, "Converse")),
    "converse_stream": Source("botocore", partial(sources.converse, "ConverseStream")),
    "mistral": Source("mistralai", sources.mistral),
    "cohere": Source("cohere", sources.cohere),
}


def problems(api: str, body: bytes) -> list[str]:
    """What is wrong with a body, each problem naming its field; nothing where it is valid.

    Raises Unpublished where the package that publishes the API is not installed.
    """
    shape = _shape(api)
    try:
        value = json.loads(body, object_pairs_hook=_unique, parse_constant=_refuse)
    except ValueError as error:
        return [f"body: {error}"]
    return list(shape.problems(value, ""))


@cache
def _shape(api: str) -> Shape:
    source = APIS[api]
    try:
        version(source.package)
    except PackageNotFoundError:
        raise Unpublished(f"{api} is published by {source.package}, not installed") from None
    return source.read()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, each of whose names is there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"given twice: {sorted({x for x in names if names.count(x) > 1})}")
    return found


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

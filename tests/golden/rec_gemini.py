"""Reads recorded replies of Google's generateContent and streamGenerateContent."""

import re
from itertools import pairwise
from typing import Any

from gateway.core.usage import Usage
from tests.golden.rec_expected import Expected, joined

Json = dict[str, Any]

KNOWN = {"text", "thought", "thoughtSignature", "functionCall"}
VALUES = ("stringValue", "numberValue", "boolValue", "nullValue")
STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def content(chunks: list[Json]) -> Expected:
    """A reply, whole or in chunks: each has further parts of the same content."""
    candidates = [chunk["candidates"][0] for chunk in chunks if chunk.get("candidates")]
    parts = [p for c in candidates for p in (c.get("content") or {}).get("parts") or ()]
    found = [c["finishReason"] for c in candidates if c.get("finishReason")]
    found += [c["promptFeedback"]["blockReason"] for c in chunks if "promptFeedback" in c]
    counts = [chunk["usageMetadata"] for chunk in chunks if "usageMetadata" in chunk]
    return Expected(
        text=joined([part.get("text") for part in parts if not part.get("thought")]),
        reasoning=joined([part.get("text") for part in parts if part.get("thought")]),
        signatures=[part["thoughtSignature"] for part in parts if "thoughtSignature" in part],
        tool_calls=calls([part["functionCall"] for part in parts if "functionCall" in part]),
        server_blocks=[key for part in parts for key in part if key not in KNOWN],
        finish=found[-1] if found else None,
        usage=counted(counts[-1]) if counts else None,
    )


def calls(pieces: list[Json]) -> list[tuple[str, Json]]:
    """The calls: a piece with a name begins one, one without continues it, or only ends it."""
    found: list[tuple[str, Json]] = []
    for piece in pieces:
        if "name" in piece:
            found.append((piece["name"], {**piece.get("args", {})}))
        for part in piece.get("partialArgs", ()):
            put(found[-1][1], part["jsonPath"], next(part[key] for key in VALUES if key in part))
    return found


def put(root: Json, path: str, value: Any) -> None:
    """Set what stands at a path such as `$.items[0].name`; a further piece of a string is added."""
    keys = [name or int(index) for name, index in STEP.findall(path)]
    into: Any = root
    for key, following in pairwise(keys):
        into = entry(into, key, [] if isinstance(following, int) else {})
    if isinstance(value, str):
        value = entry(into, keys[-1], "") + value
    entry(into, keys[-1], value)
    into[keys[-1]] = value


def entry(into: Any, key: Any, default: Any) -> Any:
    """An entry of an object or array, made where it is missing; arrays grow by one."""
    if isinstance(into, dict):
        return into.setdefault(key, default)
    if key == len(into):
        into.append(default)
    return into[key]


def counted(usage: Json) -> Usage:
    """Google counts thoughts beside the candidates, and prompts of tools beside the prompt."""
    thoughts = usage.get("thoughtsTokenCount", 0)
    return Usage(
        usage.get("promptTokenCount", 0) + usage.get("toolUsePromptTokenCount", 0),
        usage.get("cachedContentTokenCount", 0),
        0,
        usage.get("candidatesTokenCount", 0) + thoughts,
        thoughts,
    )

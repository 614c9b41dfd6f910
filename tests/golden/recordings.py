"""Every recorded reply of a provider: over which API it came, or why it is left out.

What a reply says is read in the `rec_*.py` beside this file, and never with the gateway's own code:
tests compare the two.
"""

import json
import os
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from tests.golden import rec_gemini, rec_messages, rec_openai, rec_others
from tests.golden.rec_expected import Expected

__all__ = ["LEFT_OUT", "NEEDS_RECORDINGS", "RECORDINGS", "Api", "Expected", "Recording", "read"]

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("SLUICE_FIXTURES") or ROOT.parent / "shared" / "fixtures")
DIRECTORY = FIXTURES / "provider-recordings"
NEEDS_RECORDINGS = pytest.mark.skipif(
    not DIRECTORY.is_dir(), reason=f"no recordings at {DIRECTORY} (set SLUICE_FIXTURES)"
)
STREAM = ".chunks.txt"

Api = Literal[
    "chat",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "gemini",
    "converse",
    "cohere",
    "error",
]


# --- What is left out ----------------------------------------------------------------------------

WHY_LEFT_OUT = {
    "LICENSE": "not a recording: the licence of all others",
    "*/reranking/*": "reranking: nothing is generated",
    "*/skills/*": "management of skills: nothing is generated",
    "*transcription*": "transcription of speech",
    "openai/image/openai-image*": "images",
    "google/interactions/*": "Google's Interactions API",
    "*/speech-translation/*": "live speech over a WebSocket: not an HTTP reply",
    "openai/responses/parallel-tool-call-wrapper.1.chunks.txt": (
        "written by hand and broken: its first and last event lack a closing brace"
    ),
}


def name_of(path: Path) -> str:
    return path.relative_to(DIRECTORY).as_posix()


FILES = [path for path in sorted(DIRECTORY.rglob("*")) if path.is_file()]
LEFT_OUT = {
    name_of(path): why
    for path in FILES
    for pattern, why in WHY_LEFT_OUT.items()
    if fnmatch(name_of(path), pattern)
}


# --- What is kept --------------------------------------------------------------------------------


class Recording(NamedTuple):
    """One reply. Some files have the replies of several turns: `part` tells which it is."""

    path: Path
    name: str
    provider: str
    api: Api
    stream: bool
    part: int = 0

    @property
    def lines(self) -> list[str]:
        """A stream's events, the JSON text of each as recorded."""
        return replies(self.path)[self.part]

    @property
    def objects(self) -> list[Any]:
        """A stream's events, or the one whole body; decoded."""
        if self.stream:
            return [json.loads(line) for line in self.lines]
        return [json.loads(self.path.read_bytes())]


# Signs by which an API is known, in a whole reply or in a stream's first event. The first counts:
# a response has an `error`, too, which is null.
BY_OBJECT: dict[str, Api] = {
    "chat.completion": "chat",
    "chat.completion.chunk": "chat",
    "text_completion": "completions",
    "list": "embeddings",
    "response": "responses",
}
BY_TYPE: dict[str, Api] = {
    "message": "messages",
    "message_start": "messages",
    "message-start": "cohere",
    "response.created": "responses",
}
BY_KEY: dict[str, Api] = {
    "choices": "chat",  # Moonshot's chunks have no object, Azure's first one an empty one
    "candidates": "gemini",
    "stopReason": "converse",
    "messageStart": "converse",
    "contentBlockStart": "converse",
    "contentBlockDelta": "converse",
    "finish_reason": "cohere",
    "embeddings": "embeddings",
    "predictions": "embeddings",
    "error": "error",
}
ENDS = {"message_stop", "response.completed", "response.failed", "response.incomplete"}


def api_of(content: dict[str, Any]) -> Api | None:
    known = BY_OBJECT.get(content.get("object", "")) or BY_TYPE.get(content.get("type", ""))
    return known or next((api for key, api in BY_KEY.items() if key in content), None)


@cache
def replies(path: Path) -> list[list[str]]:
    """The lines of a stream's file, by reply: after an event that ends one, another begins."""
    found: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line.strip():
            continue
        if found[-1] and json.loads(found[-1][-1]).get("type") in ENDS:
            found.append([])
        found[-1].append(line)
    return found


def recordings_in(path: Path) -> list[Recording]:
    """The replies of a file; none, if it cannot be told over which API they came."""
    name, provider = name_of(path), name_of(path).split("/")[0]
    if not name.endswith(STREAM):
        api = api_of(json.loads(path.read_bytes()))
        return [Recording(path, name, provider, api, stream=False)] if api else []
    parts = replies(path)
    api = api_of(json.loads(parts[0][0]))
    names = [f"{name}#{part + 1}" if len(parts) > 1 else name for part in range(len(parts))]
    return [Recording(path, names[i], provider, api, True, i) for i in range(len(parts)) if api]


RECORDINGS = [
    recording
    for path in FILES
    if name_of(path) not in LEFT_OUT
    for recording in recordings_in(path)
]


# --- What they say -------------------------------------------------------------------------------

Reader = Callable[[list[dict[str, Any]]], Expected]

READERS: dict[Api, Reader] = {
    "chat": rec_openai.completion,
    "completions": rec_openai.completion,
    "embeddings": rec_openai.embeddings,
    "responses": rec_openai.response,
    "messages": rec_messages.message,
    "gemini": rec_gemini.content,
    "converse": rec_others.converse,
    "cohere": rec_others.cohere,
    "error": rec_openai.error,
}
STREAM_READERS: dict[Api, Reader] = {
    "chat": rec_openai.completion,
    "completions": rec_openai.completion,
    "responses": rec_openai.response_stream,
    "messages": rec_messages.message_stream,
    "gemini": rec_gemini.content,
    "converse": rec_others.converse_stream,
    "cohere": rec_others.cohere_stream,
}


def read(recording: Recording) -> Expected:
    """What a recorded reply says."""
    readers = STREAM_READERS if recording.stream else READERS
    return readers[recording.api](recording.objects)

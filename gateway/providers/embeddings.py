"""Embeddings as OpenAI's API has them, for providers that have them otherwise."""

import base64
import struct
from typing import Any

import msgspec

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.core.messages import Fit
from gateway.core.request import Request
from gateway.core.usage import Usage
from gateway.providers.errors import UNREADABLE, unreadable

# A vector as it stands in a reply. Each is read on its own: all of a reply's numbers at once would
# keep the interpreter, and with it every other request, for as long as that takes.
Vector = msgspec.Raw
NO_VECTOR = Vector(b"[]")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[float]).decode
_KNOWN = frozenset(("model", "input", "dimensions", "encoding_format", "user"))


def texts_of(request: Request, fit: Fit) -> tuple[list[str], int | None]:
    """Return what is to be embedded, and in how many dimensions. Raises ApiError."""
    fields = request.fields
    try:
        given = msgspec.json.decode(fields["input"], type=str | list[str])
    except msgspec.ValidationError:
        text = "This provider takes text, or a list of texts, and no tokens."
        raise ApiError("unsupported_parameter", text, param="input") from None
    try:
        dimensions = msgspec.json.decode(fields.get("dimensions", b"null"), type=int | None)
    except msgspec.ValidationError:
        text = "Invalid value for 'dimensions': expected an integer."
        raise ApiError("invalid_value", text, param="dimensions") from None
    for name, raw in fields.items():
        if name not in _KNOWN and bytes(raw) != b"null":
            fit.refuse(name)
    if "user" in fields:
        fit.leave_out("user")
    return [given] if isinstance(given, str) else given, dimensions


def encode_vectors(vectors: list[Vector], request: Request, usage: Usage | None) -> bytes:
    """Write a whole reply, in the encoding that was asked for. Raises UpstreamError."""
    wants_base64 = bytes(request.fields.get("encoding_format", b"")) == b'"base64"'
    write = _base64 if wants_base64 else _compact
    data = [
        {"object": "embedding", "index": index, "embedding": write(vector)}
        for index, vector in enumerate(vectors)
    ]
    used = usage.prompt_tokens if usage is not None else 0
    reply: dict[str, Any] = {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    return _encode(reply)


def _numbers(vector: Vector) -> list[float]:
    try:
        return _decode(vector)
    except UNREADABLE as error:
        raise unreadable(error) from None


def _compact(vector: Vector) -> msgspec.Raw:
    """Write a vector without blanks: some providers' have a line for each number."""
    return msgspec.Raw(_encode(_numbers(vector)))


def _base64(vector: Vector) -> str:
    """Write a vector as OpenAI does: 32-bit floats, little-endian."""
    numbers = _numbers(vector)
    try:
        packed = struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError:
        message = "the reply holds numbers that no vector has"
        raise UpstreamError(Failure.PROTOCOL, message) from None
    return base64.b64encode(packed).decode()

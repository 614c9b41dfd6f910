"""Errors as OpenAI's API writes them: the shape of every route that is not another API's."""

import msgspec

from gateway.core.errors import ApiError


class _ErrorFields(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(msgspec.Struct):
    error: _ErrorFields


_encode = msgspec.json.Encoder().encode


def error_body(error: ApiError) -> bytes:
    """Encode an error as OpenAI's API does."""
    return _encode(_ErrorBody(_ErrorFields(error.message, error.type, error.param, error.code)))


def error_event(error: ApiError) -> bytes:
    """Encode an error inside a stream: SDKs raise it, so no stream ends looking finished."""
    return b"data: " + error_body(error) + b"\n\n"

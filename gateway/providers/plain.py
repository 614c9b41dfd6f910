"""Documents that are plain text, for providers that take them as such."""

import msgspec

from gateway.core.errors import ApiError
from gateway.core.messages import Media


def plain_text(part: Media) -> str:
    """Return the text of a document given as base64. Raises ApiError."""
    try:
        return msgspec.json.decode(f'"{part.data}"', type=bytes).decode(errors="replace")
    except msgspec.DecodeError:
        text = f"Invalid value for '{part.where}': expected base64."
        raise ApiError("invalid_value", text, param=part.where) from None

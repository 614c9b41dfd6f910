"""A model's name as part of a path: whatever a client writes, it stays one part."""

from urllib.parse import quote

from gateway.core.errors import ApiError


def segment(model: str, *, keep: str = "") -> str:
    """Quote a name. Raises ApiError for one that would walk the path."""
    if any(part in ("", ".", "..") for part in model.split("/")) and model:
        raise ApiError("model_not_found", f"No model can be named '{model}'.", param="model")
    return quote(model, safe=keep)

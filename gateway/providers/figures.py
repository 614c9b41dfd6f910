"""Hot path: figures of usage as servers write them: integers, also as texts or with a point."""

from typing import Annotated, Any, TypeVar

import msgspec

MAX_TOKENS = 10**12  # a figure above is none
# A count that some write with a point; what is no number is none (as a text there are inf, nan).
Count = Annotated[float, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_T = TypeVar("_T")


def figures(found: Any, kind: type[_T]) -> _T | None:
    """Return decoded JSON as a struct of figures; None where it cannot be understood."""
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError:
        return None

"""Hot path: figures of usage as servers write them: integers, also as texts or with a point."""

from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


def figures(found: Any, kind: type[_T]) -> _T | None:
    """Return decoded JSON as a struct of figures; None where it cannot be understood."""
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError:
        return None

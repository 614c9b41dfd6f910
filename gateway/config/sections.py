"""What every part of `sluice.yaml` is made of."""

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=10**12)]  # Lua counts exactly up to 2**53
Seconds = Annotated[float, Meta(gt=0, le=7 * 86_400)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping in the file."""

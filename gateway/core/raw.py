"""JSON that is passed on unread.

msgspec takes `Raw | None` for None alone, so an optional field is a `Raw` that may be NOTHING.
"""

from msgspec import Raw

NOTHING = Raw(b"")


def given(raw: Raw) -> Raw | None:
    """Return a field's JSON; None where it is absent or null."""
    return None if bytes(raw) in (b"", b"null") else raw

"""What a client's headers ask of the gateway itself, as they were written."""

import msgspec

TIMEOUT, TAGS, SESSION = "x-sluice-timeout", "x-sluice-tags", "x-sluice-session"
IDEMPOTENCY_KEY = "idempotency-key"
NAMES = (TIMEOUT, TAGS, SESSION, IDEMPOTENCY_KEY)


class Hints(msgspec.Struct, frozen=True, gc=False):
    """`timeout` is seconds; `tags` stand between commas; empty where a client says nothing."""

    timeout: str = ""
    tags: str = ""
    session: str = ""
    idempotency_key: str = ""


NO_HINTS = Hints()

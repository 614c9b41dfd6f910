"""Hot path: who a key is, and which models it may use. Pure."""

from fnmatch import fnmatchcase

import msgspec

from gateway.policy.limits import Bucket


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The holder of a key: `key` is its id, never the secret; `buckets` all limits that apply."""

    key: str
    tenant: str
    models: tuple[str, ...]
    buckets: tuple[Bucket, ...]


def may_use(principal: Principal, model: str) -> bool:
    """Tell whether an allowlist with wildcards covers a model name."""
    return any(
        pattern == "*" or pattern == model or fnmatchcase(model, pattern)
        for pattern in principal.models
    )

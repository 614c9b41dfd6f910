"""A service reached by a key and an address; and what LiteLLM's addresses are here."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import msgspec

from gateway.config.litellm.prefixes import ANY, COMPATIBLE, Row
from gateway.config.litellm.source import REFERENCE, Fields, NotCarried
from gateway.providers import PROVIDERS

Entry = dict[str, Any]

_OPERATIONS = re.compile(
    r"(/v1/messages|/chat/completions|/completions|/embeddings|/responses|/api(/generate|/chat)?)$"
)
_NUMERIC = re.compile(r"localhost|[\d.]+|.*:.*")
_NO_NAMES = frozenset(("api", "base", "url", "endpoint", "host", "www", "inference"))


class Reached(msgspec.Struct, frozen=True):
    """A provider entry, what to call it, and the provider's own name for the model.

    `variables`: where the deployment has no address, those that LiteLLM takes it from.
    """

    entry: Entry
    name: str
    model: str
    variables: tuple[str, ...] = ()


class Call(msgspec.Struct, frozen=True):
    """A deployment on its way: its fields, what its prefix means, and its api_base.

    `stated`: the api_base is that of a variable; `usual`: what its cloud's deployments have where
    they do not say it.
    """

    fields: Fields
    row: Row
    prefix: str
    model: str
    base: str | None
    stated: bool = False
    usual: Mapping[str, str] = {}

    @property
    def host(self) -> str:
        """Return the host of the api_base, empty where the file does not say it."""
        if self.base is None or self.base.startswith(REFERENCE):
            return ""
        return parts_of(self.base).hostname or ""


def plain(call: Call) -> Reached:
    """Reach a service by a key and an address."""
    row = call.row
    key = call.fields.secret("api_key")
    if key is None and row.key:
        key = REFERENCE + row.key
    base = _address(call)
    own = PROVIDERS[row.kind].base_url
    if base is None and own is None:
        raise NotCarried("no api_base says where it is")
    entry: Entry = {"kind": row.kind}
    if key is not None:
        entry["api_key"] = key
    if base is not None and base != own:
        entry["base_url"] = base
    if row is ANY and call.prefix == "openai":
        entry["prices"] = "openai"  # a price goes by the name there, wherever that is
    name = call.prefix if row.base or row.kind == COMPATIBLE else row.kind
    if row is ANY and base is not None:
        name = _called(base)
    return Reached(entry, name, call.model)


def _called(base: str) -> str:
    """Return what to call a server that has nothing but an address."""
    if base.startswith(REFERENCE):
        words = base.removeprefix(REFERENCE).lower().split("_")
    else:
        host = parts_of(base).hostname or ""
        words = ["local"] if _NUMERIC.fullmatch(host) else host.split(".")[:3]
    named = [word for word in words if word not in _NO_NAMES]
    name = "-".join(named) if base.startswith(REFERENCE) else (named or words)[0]
    return f"{name}-compatible" if name in PROVIDERS else name or COMPATIBLE


def parts_of(url: str) -> SplitResult:
    """Take an address apart. Raises NotCarried."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise NotCarried("its api_base is not an http address")
    return parts


def put_together(fields: Fields, parts: SplitResult, path: str) -> str:
    """Put an address together again, without what a base URL cannot have."""
    if parts.query or parts.fragment:
        fields.lost("api_base", "a base URL has no query: the part from ? on is left out")
    if parts.username or parts.password:
        fields.lost("api_base", "user and password of an address are not sent: set a header")
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, path.rstrip("/"), "", ""))


def _address(call: Call) -> str | None:
    """Return where a service is; None: at its kind's own address."""
    row, base = call.row, call.base
    if base is None:
        return REFERENCE + row.base_variable if row.base_variable else row.base or None
    if base.startswith(REFERENCE):
        if row.end:
            text = f"the address in {base.removeprefix(REFERENCE)} has to end with {row.end} here"
            call.fields.note("api_base", text)
        return base
    parts = parts_of(base)
    path = _OPERATIONS.sub("", parts.path.rstrip("/"))
    if row.end and not path.endswith(row.end):
        path += row.end
    return put_together(call.fields, parts, path)

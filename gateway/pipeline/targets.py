"""A provider as it is configured, made ready to be asked: address, keys, request heads, checks."""

import hashlib
import re
from urllib.parse import urlsplit

import msgspec

from gateway import __version__
from gateway.config import schema
from gateway.config.keys import LEFT_IN, is_left_in
from gateway.core.errors import ConfigError
from gateway.core.operations import Operation
from gateway.core.target import Target
from gateway.pipeline.lanes import Lane, lane
from gateway.providers import PROVIDERS, Adapter, Kind
from gateway.providers.adapter import Endpoint
from gateway.upstream.credentials import check_signing, make_signer
from gateway.upstream.dial import proxy_headers

Headers = tuple[tuple[str, str], ...]


class Way(msgspec.Struct, frozen=True):
    """How one operation reaches a target, and the request heads for it, up to Content-Length.

    `passed_on`: the client's headers that go along, with what is sent where it has none.
    """

    lane: Lane
    stream_lane: Lane
    head: bytes
    stream_head: bytes
    passed_on: Headers
    path: str
    stream_path: str


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1, token
# Framing, connection and coding are the transport's to say: a stream is read as it comes.
_OUR_HEADERS = frozenset(
    {
        *("content-length", "transfer-encoding", "connection", "host", "content-type", "te"),
        *("upgrade", "accept-encoding"),
    }
)
_OF_SOME_KINDS = frozenset(
    name for kind in PROVIDERS.values() for name in (*kind.settings, *kind.options)
)


def settings_of(provider: schema.Provider) -> dict[str, str]:
    names = ("api", "api_version", "region", "project", "location")
    found = {name: getattr(provider, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def base_url_of(provider: schema.Provider) -> str:
    """Return where a provider is; its kind's own address may depend on settings."""
    if provider.base_url is not None:
        return provider.base_url
    url = PROVIDERS[provider.kind].base_url
    assert url is not None
    settings = settings_of(provider)
    if settings.get("location") == "global":  # Vertex AI's worldwide endpoint has no prefix
        url = url.replace("{location}-", "")
    return url.format(**settings) if "{" in url else url


def keys_of(provider: schema.Provider) -> list[tuple[str | None, int]]:
    """Return a provider's keys with their weights."""
    found: list[tuple[str | None, int]] = []
    if provider.api_key is not None or not provider.api_keys:
        found.append((provider.api_key, 1))
    more = [
        (one, 1) if isinstance(one, str) else (one.key, one.weight) for one in provider.api_keys
    ]
    return [*found, *more]


def where_of(provider: schema.Provider) -> str:
    """Return what stands for a provider's address and credentials: others have another digest."""
    about = (
        *(base_url_of(provider), keys_of(provider), sorted(provider.headers.items())),
        *(provider.entra, provider.aws, provider.credentials, provider.proxy, provider.ca_file),
    )
    packed = msgspec.msgpack.encode(about)
    return hashlib.blake2b(packed, digest_size=8, person=b"sluice-where").hexdigest()


def ways_of(
    adapter: Adapter, target: Target, *, drop: bool, keeps: bool = False
) -> dict[Operation, Way]:
    found = {}
    for operation in Operation:
        way = lane(adapter, operation, target, drop=drop)
        if way is not None:
            streams = lane(adapter, operation, target, drop=drop, keeps=keeps)
            assert streams is not None
            plain, stream = way.endpoint(stream=False), streams.endpoint(stream=True)
            heads = [request_head("POST", one, target) for one in (plain, stream)]
            own = _names(target.headers)
            length = b"\r\nContent-Length: "
            found[operation] = Way(
                lane=way,
                stream_lane=streams,
                head=heads[0] + length,
                stream_head=heads[1] + length,
                # What has no default is a list, such as betas: the client's is for more of it.
                passed_on=tuple(
                    [(n, given) for n, given in plain.passed_on if not given or n not in own]
                ),
                path=plain.path,
                stream_path=stream.path,
            )
    return found


def request_head(method: str, endpoint: Endpoint, target: Target) -> bytes:
    path, origin = endpoint.path, target.origin
    proxied: tuple[tuple[str, str], ...] = ()
    if origin.proxy is not None and origin.scheme == "http":
        path = f"http://{origin.authority}{path}"  # absolute form, RFC 9112 section 3.2.2
        proxied = proxy_headers(origin.proxy)
    usual = (
        ("User-Agent", f"sluice/{__version__}"),
        ("Accept", "application/json, text/event-stream"),
        ("Accept-Encoding", "identity"),
    )
    headers = with_operators((*usual, *endpoint.headers, *proxied), target)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {origin.authority}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode("latin-1")


def with_operators(headers: Headers, target: Target) -> Headers:
    """Return headers with those that the operator has set, in the place of others of the name."""
    own = _names(target.headers)
    return (*[one for one in headers if one[0].lower() not in own], *target.headers)


def _names(headers: Headers) -> frozenset[str]:
    return frozenset([name.lower() for name, _ in headers])


def check_provider(name: str, provider: schema.Provider) -> None:
    field = f"providers.{name}"
    kind = PROVIDERS.get(provider.kind)
    if kind is None:
        known = ", ".join(PROVIDERS)
        raise ConfigError(f"unknown kind {provider.kind!r}; one of: {known}", field=f"{field}.kind")
    for unknown in sorted(_OF_SOME_KINDS - {*kind.settings, *kind.options}):
        if getattr(provider, unknown) is not None:
            message = f"kind {provider.kind!r} has no {unknown}"
            raise ConfigError(message, field=f"{field}.{unknown}")
    if kind.needs_key and not provider.api_key and not provider.api_keys:
        raise ConfigError(f"kind {provider.kind!r} needs an api_key", field=field)
    if provider.base_url is None and kind.base_url is None:
        raise ConfigError(f"kind {provider.kind!r} needs a base_url", field=field)
    settings = settings_of(provider)
    keyed = any(key for key, _ in keys_of(provider))
    for name_of_setting in kind.settings:
        # With an address and a key Bedrock's region is of no use to anybody.
        if name_of_setting not in settings and not (provider.base_url and keyed):
            raise ConfigError(f"kind {provider.kind!r} needs a {name_of_setting}", field=field)
    url = base_url_of(provider)
    check_signing(provider, field)
    _check_url(url, ("http", "https", "unix", "demo"), f"{field}.base_url")
    if "@" in urlsplit(url).netloc:
        message = "user and password of an address are not sent: put them in headers: Authorization"
        raise ConfigError(message, field=f"{field}.base_url")
    if provider.proxy is not None:
        _check_url(provider.proxy, ("http",), f"{field}.proxy")
    for i, (key, _) in enumerate(keys_of(provider), -1 if provider.api_key is not None else 0):
        place = f"{field}.api_key" if i < 0 or key is None else f"{field}.api_keys[{i}]"
        _check_sendable("a key", key, place)
        if key is not None and is_left_in(key):
            raise ConfigError(LEFT_IN, field=place)
    _check_headers(provider, kind, f"{field}.headers")


def _check_headers(provider: schema.Provider, kind: Kind, field: str) -> None:
    names: set[str] = set()
    for header, text in provider.headers.items():
        place = field + (f".{header}" if header.isprintable() else "")
        name = header.lower()
        if not _HEADER_NAME.fullmatch(header):
            raise ConfigError(f"a header cannot be named {header!r}", field=place)
        if name in _OUR_HEADERS:
            raise ConfigError(f"{header!r} is the gateway's to set", field=place)
        if name in names:
            raise ConfigError("given twice: case does not matter in a header's name", field=place)
        if name in _credentials(provider, kind):
            message = "the provider's credential goes there: take one of the two out"
            raise ConfigError(message, field=place)
        names.add(name)
        _check_sendable("a header", text, place)


def _credentials(provider: schema.Provider, kind: Kind) -> set[str]:
    """Return the headers, in lower case, that hold the credential that a provider has."""
    keyed = any(key for key, _ in keys_of(provider))
    found = {kind.credential.lower()} if keyed else set()
    return found | ({"authorization"} if make_signer(provider) is not None else set())


def _check_sendable(what: str, text: str | None, field: str) -> None:
    if text is not None and not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{what} holds characters that HTTP forbids", field=field)
    if text == "" and what == "a key":
        raise ConfigError("a key is empty", field=field)


def _check_url(url: str, schemes: tuple[str, ...], field: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(
            parts.path if parts.scheme in ("unix", "demo") else parts.hostname
        )
        _ = parts.port
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"expected a URL ({', '.join(schemes[:2])})", field=field)
    if parts.scheme == "unix" and parts.netloc:
        message = "a path begins with /: unix:///run/model.sock, with three slashes"
        raise ConfigError(message, field=field)
    if parts.query or parts.fragment:
        raise ConfigError("a base URL has no query and no fragment", field=field)

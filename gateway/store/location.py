"""Where Redis is: a `redis://`, `rediss://`, `redis+sentinel://` or `unix://` URL taken apart."""

from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from gateway.core.errors import ConfigError

DEFAULT_PORT = 6379
SENTINEL_PORT = 26379
_SCHEMES = {
    "redis": (False, False),
    "rediss": (True, False),
    "redis+sentinel": (False, True),
    "rediss+sentinel": (True, True),
    "redis+cluster": (False, False),
    "rediss+cluster": (True, False),
}


class Location(msgspec.Struct, frozen=True):
    """An address with its credentials; printing it shows no password.

    With `sentinels` they are asked which server is the master of `service` now; `seeds` are any
    servers of a cluster.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    unix_path: str | None = None
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: str | None = None
    database: int = 0
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    seeds: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        if self.sentinels:
            return f"the master of {self.service!r}"
        if self.seeds:
            return "the cluster of " + ", ".join(f"{host}:{port}" for host, port in self.seeds)
        return self.unix_path or f"{self.host}:{self.port}"

    __repr__ = __str__


def parse_url(url: str) -> Location:
    """Take a URL apart. Raises ConfigError, never quoting the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
        tls, by_sentinel = _SCHEMES.get(parts.scheme, (False, False))
        _check_options(set(query), tls=tls)
        service, _, path = parts.path.strip("/").partition("/") if by_sentinel else ("", "", "")
        if not by_sentinel and parts.scheme != "unix":
            path = parts.path.strip("/")
        database = query.get("db", [path or "0"])[0]
        common = Location(
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            database=int(database or 0),
        )
        if common.database < 0:
            raise ValueError
        if parts.scheme == "unix":
            if parts.hostname or not parts.path.strip("/"):
                raise ValueError
            return msgspec.structs.replace(common, unix_path=unquote(parts.path))
        if parts.scheme not in _SCHEMES:
            raise ValueError
        ca_file = next(iter(query.get("ssl_ca_certs", [])), None)
        if parts.scheme.endswith("+cluster"):
            if common.database:
                raise ValueError
            places = parts.netloc.rpartition("@")[2].split(",")
            seeds = tuple(_address(place, DEFAULT_PORT) for place in places)
            return msgspec.structs.replace(common, tls=tls, ca_file=ca_file, seeds=seeds)
        if by_sentinel:
            if not service:
                raise ValueError
            found = tuple(
                _address(a, SENTINEL_PORT) for a in parts.netloc.rpartition("@")[2].split(",")
            )
            return msgspec.structs.replace(
                common, tls=tls, ca_file=ca_file, sentinels=found, service=service
            )
        return msgspec.structs.replace(
            common,
            host=parts.hostname or "127.0.0.1",
            port=parts.port or DEFAULT_PORT,
            tls=tls,
            ca_file=ca_file,
        )
    except ValueError:
        raise ConfigError(
            "expected redis://[user:password@]host[:port][/db], rediss://..., unix:///path or "
            "redis+sentinel://host[:port],.../service[/db] or redis+cluster://host[:port],...",
            field="redis.url",
        ) from None


def _check_options(options: set[str], *, tls: bool) -> None:
    """Refuse options that would do nothing. One that is none may be part of a password."""
    known = ["db", *(["ssl_ca_certs"] if tls else [])]
    if not options <= set(known):
        message = f"has an option behind ? that is not known here; there is {' and '.join(known)}"
        raise ConfigError(message, field="redis.url")


def _address(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or port

"""Where Redis is: a `redis://`, `rediss://` or `unix://` URL taken apart."""

from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from gateway.core.errors import ConfigError

DEFAULT_PORT = 6379


class Location(msgspec.Struct, frozen=True):
    """An address with its credentials; printing it shows no password."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    unix_path: str | None = None
    tls: bool = False
    ca_file: str | None = None
    username: str | None = None
    password: str | None = None
    database: int = 0

    def __str__(self) -> str:
        return self.unix_path or f"{self.host}:{self.port}"

    __repr__ = __str__


def parse_url(url: str) -> Location:
    """Take a URL apart. Raises ConfigError, never quoting the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        database = query.get("db", [parts.path.strip("/") if parts.scheme != "unix" else "0"])[0]
        common = Location(
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            database=int(database or 0),
        )
        if common.database < 0:
            raise ValueError
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError
            return msgspec.structs.replace(common, unix_path=unquote(parts.path))
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError
        return msgspec.structs.replace(
            common,
            host=parts.hostname or "127.0.0.1",
            port=parts.port or DEFAULT_PORT,
            tls=parts.scheme == "rediss",
            ca_file=next(iter(query.get("ssl_ca_certs", [])), None),
        )
    except ValueError:
        raise ConfigError(
            "expected redis://[user:password@]host[:port][/db], rediss://... or unix:///path",
            field="redis.url",
        ) from None

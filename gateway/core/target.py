"""A target: one provider that can serve a model, and how it is reached."""

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """Where connections go: scheme http or https, or a Unix socket path; keys the pool.

    `proxy` is the http:// URL of a forward proxy, `ca_file` a PEM bundle to verify against.
    """

    scheme: str
    host: str
    port: int
    unix_path: str | None = None
    proxy: str | None = None
    ca_file: str | None = None
    max_connections: int = 1000

    @property
    def authority(self) -> str:
        """Return the Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class Deadlines(msgspec.Struct, frozen=True):
    """Seconds allowed for one attempt; `total` is for the whole request."""

    connect: float
    first_byte: float
    idle: float
    total: float
    first_token: float = 120.0


class Target(msgspec.Struct, frozen=True):
    """What an adapter needs to build a request; `model` is the provider's own name for it."""

    provider: str
    kind: str
    model: str
    origin: Origin
    base_path: str
    api_key: str | None
    headers: tuple[tuple[str, str], ...]
    deadlines: Deadlines
    priority: int = 1
    idempotent: bool = False  # does what has the same Idempotency-Key only once
    drains: bool = False  # read to the end for the usage when the client leaves
    max_output: int | None = None  # tokens, where a request sets no maximum and one must be set
    settings: tuple[tuple[str, str], ...] = ()  # what else a kind needs: region, project ...

    def setting(self, name: str) -> str:
        """Return one of the kind's settings, empty where it is not set."""
        return next((value for key, value in self.settings if key == name), "")

    def __repr__(self) -> str:  # the key must not reach a log by way of a repr
        return f"Target({self.provider}, {self.model})"

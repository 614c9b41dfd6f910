"""What the configuration offers, compiled: models, and for each the routes that can serve it."""

import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import msgspec

from gateway import __version__
from gateway.config import schema
from gateway.core.errors import ConfigError
from gateway.core.operations import Operation
from gateway.core.target import Deadlines, Origin, Target
from gateway.policy.pricing import Price, PriceTable, Schedule
from gateway.providers import PROVIDERS, Adapter
from gateway.providers.adapter import Endpoint
from gateway.upstream.dial import proxy_headers

# Names made up by clients (`provider/anything`) that are compiled and kept.
MAX_DYNAMIC_MODELS = 1000
# Of these, how many get counters of their own, once a provider has answered for them.
MAX_DYNAMIC_LABELS = 200


class Route(msgspec.Struct, frozen=True):
    """A target with all that can be prepared for it: request heads, and what it charges."""

    target: Target
    adapter: Adapter
    heads: dict[Operation, bytes]
    price: Price | None
    schedule: Schedule | None

    @property
    def priority(self) -> int:
        """Return the target's rank."""
        return self.target.priority

    def price_now(self) -> Price | None:
        """Return the price that holds now; None where nobody knows it."""
        if self.price is not None or self.schedule is None:
            return self.price
        return self.schedule.at(datetime.now(UTC))


class Lister(msgspec.Struct, frozen=True):
    """A provider that is to be asked which models it has, with the whole request for it."""

    target: Target
    adapter: Adapter
    request: bytes


class Served(msgspec.Struct, frozen=True):
    """A model name and its routes. `configured`: the operator named it (safe as a label)."""

    name: str
    routes: tuple[Route, ...]
    max_output: int | None
    configured: bool
    owner: str


class Catalogue:
    """Resolves model names. Built once from a configuration. Raises ConfigError."""

    def __init__(self, config: schema.Config, prices: PriceTable, demo_socket: str) -> None:
        self._config, self._prices, self._demo_socket = config, prices, demo_socket
        self._dynamic: dict[str, Served] = {}
        self._labels: set[str] = set()
        for name, provider in config.providers.items():
            _check_provider(name, provider)
        self._models = {name: self._configured(name, m) for name, m in config.models.items()}

    def resolve(self, model: str) -> Served | None:
        """Return what serves a model name: configured, `provider/model`, or claimed by one."""
        return self._models.get(model) or self._dynamic.get(model) or self._claimed(model)

    def may_label(self, model: str) -> bool:
        """Tell whether counters may carry a name that a client made up: the first few may."""
        if model not in self._labels and len(self._labels) < MAX_DYNAMIC_LABELS:
            self._labels.add(model)
        return model in self._labels

    def listed(self) -> list[Served]:
        """Return every model that can be named: configured ones, and literal claims."""
        names = dict.fromkeys(self._models)
        for name, provider in self._config.providers.items():
            claims = _claims(provider)
            if provider.models is None and not all(map(_is_literal, claims)):
                continue  # the provider itself says what it has
            for pattern in claims:
                if _is_literal(pattern):
                    names.setdefault(self.public_name(name, pattern))
        return [served for name in names if (served := self.resolve(name)) is not None]

    def listers(self) -> list[Lister]:
        """Return the providers whose models the configuration does not name one by one."""
        found = []
        for name, provider in self._config.providers.items():
            claims = _claims(provider)
            if not claims or not all(map(_is_literal, claims)):
                adapter = PROVIDERS[provider.kind].adapter
                target = self._target(schema.Target(name, ""), provider)
                head = _request_head("GET", adapter.listing(target), target)
                found.append(Lister(target, adapter, head + b"\r\n\r\n"))
        return found

    def public_name(self, provider: str, model: str) -> str:
        """Return how clients call a provider's model: by its bare name where that is clear."""
        return model if self._owner(model) == provider else f"{provider}/{model}"

    def _owner(self, model: str) -> str | None:
        """Return the one provider that claims a bare name."""
        owners = [
            name
            for name, provider in self._config.providers.items()
            if any(fnmatchcase(model, pattern) for pattern in _claims(provider))
        ]
        return owners[0] if len(owners) == 1 else None

    def _claimed(self, model: str) -> Served | None:
        if not model.isprintable():
            return None
        provider, slash, rest = model.partition("/")
        if slash and rest and provider in self._config.providers:
            owner, own_name = provider, rest
        else:
            found = self._owner(model)
            if found is None:
                return None
            owner, own_name = found, model
        route = self._route(schema.Target(owner, own_name), None)
        served = Served(model, (route,), None, False, owner)
        if len(self._dynamic) >= MAX_DYNAMIC_MODELS:
            self._dynamic.pop(next(iter(self._dynamic)))
        self._dynamic[model] = served
        return served

    def _configured(self, name: str, model: schema.Model) -> Served:
        routes = []
        for i, target in enumerate(model.targets):
            try:
                routes.append(
                    self._route(msgspec.structs.replace(target, model=target.model or name), model)
                )
            except ValueError as error:
                raise ConfigError(str(error), field=f"models.{name}.targets[{i}].price") from None
        return Served(name, tuple(routes), model.max_output_tokens, True, model.targets[0].provider)

    def _route(self, wanted: schema.Target, model: schema.Model | None) -> Route:
        provider = self._config.providers[wanted.provider]
        kind = PROVIDERS[provider.kind]
        assert wanted.model is not None
        target = self._target(wanted, provider)
        heads = {op: _head(kind.adapter, op, target) for op in kind.adapter.operations}
        price = wanted.price or (model.price if model else None)
        default = self._config.pricing.default
        seller = provider.prices or kind.prices
        schedule = self._prices.schedule(seller, wanted.model) if seller else None
        if schedule is None and price is None:
            price = default
        return Route(target, kind.adapter, heads, _own_price(price), schedule)

    def _target(self, wanted: schema.Target, provider: schema.Provider) -> Target:
        url = provider.base_url or PROVIDERS[provider.kind].base_url
        assert url is not None
        assert wanted.model is not None
        times = provider.timeouts or self._config.server.timeouts
        parts = urlsplit(url)
        local = {"demo": self._demo_socket, "unix": parts.path}.get(parts.scheme)
        origin = Origin(
            scheme="http" if local else parts.scheme,
            host=parts.hostname or "localhost",
            port=parts.port or (443 if parts.scheme == "https" else 80),
            unix_path=local,
            proxy=provider.proxy,
            ca_file=provider.ca_file,
            max_connections=provider.max_connections,
        )
        return Target(
            provider=wanted.provider,
            kind=provider.kind,
            model=wanted.model,
            origin=origin,
            base_path="/v1" if parts.scheme == "unix" else parts.path.rstrip("/"),
            api_key=provider.api_key,
            headers=tuple(provider.headers.items()),
            deadlines=Deadlines(times.connect, times.first_byte, times.idle, times.total),
            priority=wanted.priority,
            drains=provider.on_disconnect == "drain",
        )


def _is_literal(pattern: str) -> bool:
    return not any(mark in pattern for mark in "*?[")


def _claims(provider: schema.Provider) -> tuple[str, ...]:
    return PROVIDERS[provider.kind].claims if provider.models is None else provider.models


def _own_price(price: schema.Price | None) -> Price | None:
    if price is None:
        return None
    return Price.from_rates(
        price.input, price.output, price.cached, price.cache_write, price.per_request
    )


def _head(adapter: Adapter, operation: Operation, target: Target) -> bytes:
    """Render a request head up to the value of Content-Length."""
    head = _request_head("POST", adapter.endpoint(operation, target), target)
    return head + b"\r\nContent-Length: "


def _request_head(method: str, endpoint: Endpoint, target: Target) -> bytes:
    path, origin = endpoint.path, target.origin
    proxied: tuple[tuple[str, str], ...] = ()
    if origin.proxy is not None and origin.scheme == "http":
        path = f"http://{origin.authority}{path}"  # absolute form, RFC 9112 section 3.2.2
        proxied = proxy_headers(origin.proxy)
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {origin.authority}",
        f"User-Agent: sluice/{__version__}",
        "Accept: application/json, text/event-stream",
        "Accept-Encoding: identity",
        *(f"{name}: {value}" for name, value in (*endpoint.headers, *proxied)),
    ]
    return "\r\n".join(lines).encode("latin-1")


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.1, token
# Framing and connection are the transport's to say.
_OUR_HEADERS = frozenset(
    {"content-length", "transfer-encoding", "connection", "host", "content-type", "te", "upgrade"}
)


def _check_provider(name: str, provider: schema.Provider) -> None:
    field = f"providers.{name}"
    kind = PROVIDERS.get(provider.kind)
    if kind is None:
        known = ", ".join(PROVIDERS)
        raise ConfigError(f"unknown kind {provider.kind!r}; one of: {known}", field=f"{field}.kind")
    if kind.needs_key and not provider.api_key:
        raise ConfigError(f"kind {provider.kind!r} needs an api_key", field=field)
    url = provider.base_url or kind.base_url
    if url is None:
        raise ConfigError(f"kind {provider.kind!r} needs a base_url", field=field)
    _check_url(url, ("http", "https", "unix", "demo"), f"{field}.base_url")
    if provider.proxy is not None:
        _check_url(provider.proxy, ("http",), f"{field}.proxy")
    for text in (provider.api_key or "", *provider.headers.values()):
        if not text.isascii() or not text.isprintable():
            raise ConfigError("a key or header holds characters that HTTP forbids", field=field)
    for header in provider.headers:
        if not _HEADER_NAME.fullmatch(header) or header.lower() in _OUR_HEADERS:
            raise ConfigError(f"{header!r} cannot be set", field=field)


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
    if parts.query or parts.fragment:
        raise ConfigError("a base URL has no query and no fragment", field=field)

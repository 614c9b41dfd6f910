"""What the configuration offers, compiled: models, and for each the routes that can serve it."""

import random
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
from gateway.pipeline.lanes import Lane, lane
from gateway.policy.breaker import Breaker, Rules
from gateway.policy.pricing import Price, PriceTable, Schedule
from gateway.policy.retry import Budget
from gateway.policy.rotation import Rotation
from gateway.policy.routing import UNKNOWN_PRICE, TargetState
from gateway.providers import PROVIDERS, Adapter
from gateway.providers.adapter import Endpoint
from gateway.upstream.credentials import Signer, check_signing, make_signer
from gateway.upstream.dial import proxy_headers

Headers = tuple[tuple[str, str], ...]

# Names made up by clients (`provider/anything`) that are compiled and kept.
MAX_DYNAMIC_MODELS = 1000
# Of these, how many get counters of their own, once a provider has answered for them.
MAX_DYNAMIC_LABELS = 200
MAX_MODEL_CHARS = 256


class Way(msgspec.Struct, frozen=True):
    """How one operation reaches a target, and the request heads for it, up to Content-Length.

    `passed_on`: the client's headers that go along, with what is sent where it has none.
    """

    lane: Lane
    head: bytes
    stream_head: bytes
    passed_on: Headers
    path: str
    stream_path: str


class Route(msgspec.Struct, frozen=True):
    """A target with all that can be prepared for it: its ways, and what it charges.

    Of a provider with several keys each is a target of its own in `others`; `rotation` says whose
    turn it is. `signer` adds what only the moment of sending knows.
    """

    target: Target
    adapter: Adapter
    ways: dict[Operation, Way]
    price: Price | None
    schedule: Schedule | None
    signer: Signer | None = None
    rotation: Rotation | None = None
    number: int = 0
    others: "tuple[Route, ...]" = ()
    weight: int = 1
    state: TargetState = msgspec.field(default_factory=lambda: TargetState(_untroubled()))

    @property
    def priority(self) -> int:
        """Return the target's rank."""
        return self.target.priority

    @property
    def unit_price(self) -> float:
        """Return what a token costs, to compare targets by."""
        price = self.price_now()
        return UNKNOWN_PRICE if price is None else price.input + price.output

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
    strategy: str = "priority"
    budget: Budget = msgspec.field(default_factory=lambda: Budget(0))


class Catalogue:
    """Resolves model names. Built once from a configuration. Raises ConfigError."""

    def __init__(self, config: schema.Config, prices: PriceTable, demo_socket: str) -> None:
        self._config, self._prices, self._demo_socket = config, prices, demo_socket
        self._dynamic: dict[str, Served] = {}
        self._signers: dict[str, Signer | None] = {}
        self._rotations: dict[str, Rotation] = {}
        # By provider and model; those of names that clients make up share their provider's.
        self._states: dict[tuple[str, str], TargetState] = {}
        self._breaker = msgspec.convert(config.breaker, Rules, from_attributes=True)
        self._labels: set[str] = set()
        for name, provider in config.providers.items():
            _check_provider(name, provider)
        self._models = {name: self._configured(name, m) for name, m in config.models.items()}

    def resolve(self, model: str) -> Served | None:
        """Return what serves a model name: configured, `provider/model`, or claimed by one."""
        return self._models.get(model) or self._dynamic.get(model) or self._claimed(model)

    def passage(self, provider: str, model: str) -> Served | None:
        """Return the way to a provider's own API, with a model's price; None: there is none."""
        configured = self._config.providers.get(provider)
        if configured is None or not configured.passthrough:
            return None
        name = f"{provider}/{model}"
        known = self._dynamic.get(name)
        if known is not None:
            return known
        if not model.isprintable() or len(model) > MAX_MODEL_CHARS:
            return None
        return self._remember(name, provider, model)

    def authorization(self, provider: str) -> Headers:
        """Return the headers with which a provider is asked."""
        found = self._config.providers[provider]
        target = self._target(schema.Target(provider, ""), found, _keys(found)[0][0])
        adapter = PROVIDERS[found.kind].adapter_for(target)
        assert adapter.conversation is not None
        headers = adapter.conversation.endpoint(target, stream=False).headers
        return tuple([(n, value) for n, value in headers if n.lower() != "content-type"])

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
                target = self._target(schema.Target(name, ""), provider, _keys(provider)[0][0])
                adapter = PROVIDERS[provider.kind].adapter_for(target)
                endpoint = adapter.listing(target)
                if endpoint is not None:
                    head = _request_head("GET", endpoint, target)
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
        return self._remember(model, owner, own_name)

    def _remember(self, name: str, owner: str, own_name: str) -> Served:
        route = self._route(schema.Target(owner, own_name), None)
        budget = Budget(self._config.retries.budget)
        served = Served(name, (route,), None, False, owner, budget=budget)
        if len(self._dynamic) >= MAX_DYNAMIC_MODELS:
            self._dynamic.pop(next(iter(self._dynamic)))
        self._dynamic[name] = served
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
        return Served(
            name,
            tuple(routes),
            model.max_output_tokens,
            True,
            model.targets[0].provider,
            model.strategy,
            Budget(self._config.retries.budget),
        )

    def _route(self, wanted: schema.Target, model: schema.Model | None) -> Route:
        provider = self._config.providers[wanted.provider]
        kind = PROVIDERS[provider.kind]
        assert wanted.model is not None
        price = wanted.price or (model.price if model else None)
        default = self._config.pricing.default
        seller = provider.prices or kind.prices
        schedule = self._prices.schedule(seller, wanted.model) if seller else None
        if schedule is None and price is None:
            price = default
        keys = _keys(provider)
        targets = [
            self._target(wanted, provider, key, model.max_output_tokens if model else None)
            for key, _ in keys
        ]
        drop = (model and model.unsupported) or provider.unsupported or self._config.unsupported
        ways = [_ways(kind.adapter_for(one), one, drop=drop == "drop") for one in targets]
        signer = self._signer(wanted.provider, provider)
        own = _own_price(price)
        state = self._state(wanted.provider, wanted.model if model else "")
        routes = [
            Route(
                target,
                kind.adapter_for(target),
                way,
                own,
                schedule,
                signer,
                weight=wanted.weight,
                state=state,
            )
            for target, way in zip(targets, ways, strict=True)
        ]
        if len(routes) == 1:
            return routes[0]
        rotation = self._rotations.get(wanted.provider)
        if rotation is None:
            weights = [weight for _, weight in keys]
            rotation = self._rotations[wanted.provider] = Rotation(weights)
        numbered = [
            msgspec.structs.replace(route, rotation=rotation, number=number)
            for number, route in enumerate(routes)
        ]
        return msgspec.structs.replace(numbered[0], others=tuple(numbered))

    def _state(self, provider: str, model: str) -> TargetState:
        found = self._states.get((provider, model))
        if found is None:
            breaker = Breaker(self._breaker, random.random)
            found = self._states[provider, model] = TargetState(breaker)
        return found

    def _signer(self, name: str, provider: schema.Provider) -> Signer | None:
        if name not in self._signers:
            self._signers[name] = make_signer(provider)
        return self._signers[name]

    def _target(
        self,
        wanted: schema.Target,
        provider: schema.Provider,
        key: str | None,
        max_output: int | None = None,
    ) -> Target:
        url = _base_url(provider)
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
            api_key=key,
            headers=tuple(provider.headers.items()),
            deadlines=Deadlines(
                times.connect, times.first_byte, times.idle, times.total, times.first_token
            ),
            priority=wanted.priority,
            drains=provider.on_disconnect == "drain",
            max_output=max_output,
            settings=tuple(_settings(provider).items()),
        )


def _untroubled() -> Breaker:
    return Breaker(Rules(), random.random)


def _settings(provider: schema.Provider) -> dict[str, str]:
    names = ("api", "api_version", "region", "project", "location")
    found = {name: getattr(provider, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _base_url(provider: schema.Provider) -> str:
    """Return where a provider is; its kind's own address may depend on settings."""
    if provider.base_url is not None:
        return provider.base_url
    url = PROVIDERS[provider.kind].base_url
    assert url is not None
    settings = _settings(provider)
    if settings.get("location") == "global":  # Vertex AI's worldwide endpoint has no prefix
        url = url.replace("{location}-", "")
    return url.format(**settings) if "{" in url else url


def _keys(provider: schema.Provider) -> list[tuple[str | None, int]]:
    """Return a provider's keys with their weights."""
    found: list[tuple[str | None, int]] = []
    if provider.api_key is not None or not provider.api_keys:
        found.append((provider.api_key, 1))
    more = [
        (one, 1) if isinstance(one, str) else (one.key, one.weight) for one in provider.api_keys
    ]
    return [*found, *more]


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


def _ways(adapter: Adapter, target: Target, *, drop: bool) -> dict[Operation, Way]:
    found = {}
    for operation in Operation:
        way = lane(adapter, operation, target, drop=drop)
        if way is not None:
            plain, stream = way.endpoint(stream=False), way.endpoint(stream=True)
            heads = [_request_head("POST", one, target) for one in (plain, stream)]
            length = b"\r\nContent-Length: "
            found[operation] = Way(
                way, heads[0] + length, heads[1] + length, plain.passed_on, plain.path, stream.path
            )
    return found


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
    if kind.needs_key and not provider.api_key and not provider.api_keys:
        raise ConfigError(f"kind {provider.kind!r} needs an api_key", field=field)
    if provider.base_url is None and kind.base_url is None:
        raise ConfigError(f"kind {provider.kind!r} needs a base_url", field=field)
    settings = _settings(provider)
    for name_of_setting in kind.settings:
        if name_of_setting not in settings and provider.base_url is None:
            raise ConfigError(f"kind {provider.kind!r} needs a {name_of_setting}", field=field)
    url = _base_url(provider)
    check_signing(provider, field)
    _check_url(url, ("http", "https", "unix", "demo"), f"{field}.base_url")
    if provider.proxy is not None:
        _check_url(provider.proxy, ("http",), f"{field}.proxy")
    keys = [key for key, _ in _keys(provider) if key is not None]
    for text in (*keys, *provider.headers.values()):
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

"""What the configuration offers, compiled: models, and for each the routes that can serve it."""

import random
from urllib.parse import urlsplit

import msgspec

from gateway.config import schema
from gateway.core.errors import ConfigError
from gateway.core.patterns import covers
from gateway.core.target import Deadlines, Origin, Target
from gateway.pipeline.rules import (
    conditions_of,
    hedge_after,
    is_selective,
    limits_of,
    uneven_limits,
)
from gateway.pipeline.served import Lister, Route, Served, Shadow, answered_by, full_names_of
from gateway.pipeline.targets import (
    base_url_of,
    check_provider,
    keys_of,
    request_head,
    settings_of,
    ways_of,
    where_of,
)
from gateway.policy import limits as policy_limits
from gateway.policy.access import Principal
from gateway.policy.breaker import Breaker, Rules
from gateway.policy.caching import Overrides
from gateway.policy.limits import Rates, check_period, limits
from gateway.policy.pricing import Price, PriceTable, microusd
from gateway.policy.retry import Budget
from gateway.policy.rotation import Rotation
from gateway.policy.routing import TargetState
from gateway.providers import PROVIDERS
from gateway.store import names
from gateway.upstream.credentials import Signer, make_signer

# Names made up by clients (`provider/anything`) that are compiled and kept.
MAX_DYNAMIC_MODELS = 1000
# Of these, how many get counters of their own, once a provider has answered for them.
MAX_DYNAMIC_LABELS = 200
MAX_MODEL_CHARS = 256
SHADOW_KEY = "shadow"  # in records, where a client's key stands


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
        self._uneven = uneven_limits(config.models)
        for name, provider in config.providers.items():
            check_provider(name, provider)
            self._signers[name] = make_signer(provider)
        self._models = {name: self._configured(name, m) for name, m in config.models.items()}
        self._check_fallbacks()

    def resolve(self, model: str) -> Served | None:
        """Return what serves a model name: configured, `provider/model`, or claimed by one."""
        return self._models.get(model) or self._dynamic.get(model) or self._claimed(model)

    def shared_states(self, strategy: str = "") -> dict[str, TargetState]:
        """Return what is known of the targets of models that have several, by provider/model.

        Of those of one strategy, or of all.
        """
        return {
            f"{route.target.provider}/{route.target.model}": route.state
            for served in self._models.values()
            if len(served.routes) > 1 and strategy in ("", served.strategy)
            for route in served.routes
        }

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

    def has_label(self, model: str) -> bool:
        """Tell whether counters carry a name already."""
        return model in self._labels

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

    def listers(self, *, every: bool = False) -> list[Lister]:
        """Return the providers whose models the configuration does not name one by one, or all.

        All of them are those that can be asked for their models, each with every key.
        """
        found = []
        for name, provider in self._config.providers.items():
            claims = _claims(provider)
            if not (every or not claims or not all(map(_is_literal, claims))):
                continue
            for number, (key, _) in enumerate(keys_of(provider), 1):
                target = self._target(schema.Target(name, ""), provider, key)
                adapter = PROVIDERS[provider.kind].adapter_for(target)
                endpoint = adapter.listing(target)
                if endpoint is not None and (every or number == 1):
                    head = request_head("GET", endpoint, target)
                    found.append(Lister(target, adapter, head + b"\r\n\r\n", number))
        return found

    def public_name(self, provider: str, model: str) -> str:
        """Return how clients call a provider's model: by its bare name where that is clear."""
        return model if self._owner(model) == provider else f"{provider}/{model}"

    def _owner(self, model: str) -> str | None:
        """Return the one provider that claims a bare name."""
        owners = [
            name
            for name, provider in self._config.providers.items()
            if any(covers(pattern, model) for pattern in _claims(provider))
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
        full_names = full_names_of(name, (route,))
        served = Served(name, (route,), None, False, owner, budget=budget, full_names=full_names)
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
                place = f"models.{name}" if target.price is None else f"models.{name}.targets[{i}]"
                raise ConfigError(str(error), field=f"{place}.price") from None
        return Served(
            name,
            tuple(routes),
            model.max_output_tokens,
            True,
            model.targets[0].provider,
            model.strategy,
            Budget(self._config.retries.budget),
            model.affinity != "none" or any(map(is_selective, model.targets)),
            model.affinity,
            msgspec.structs.asdict(model.fallbacks),
            hedge_after(model.hedge),
            None if model.shadow is None else self._shadow(name, model.shadow),
            model.timeouts.total if model.timeouts is not None else None,
            model.on_stream_failure == "continue",
            Overrides.of(model.cache),
            full_names_of(name, routes),
        )

    def _shadow(self, name: str, wanted: schema.Shadow) -> Shadow:
        """Return a shadow: what it costs is counted under a tenant of its own."""
        route = self._route(schema.Target(wanted.provider, wanted.model or name), None)
        rates = Rates()
        if wanted.budget is not None:
            try:
                check_period(wanted.budget.per)
                amount = microusd(wanted.budget.usd)
            except ValueError as error:
                raise ConfigError(str(error), field=f"models.{name}.shadow.budget") from None
            rates = Rates(budgets=(policy_limits.Budget(amount, wanted.budget.per),))
        prefix = names.limit_prefix(names.SHADOW_TENANT, f"model:{name}")
        owed = limits("shadow", prefix, rates)
        return Shadow(
            Served(name, (route,), None, True, wanted.provider),
            wanted.percent,
            wanted.concurrency,
            Principal(SHADOW_KEY, names.SHADOW_TENANT, ("*",), owed),
        )

    def _check_fallbacks(self) -> None:
        for name, served in self._models.items():
            for kind, others in served.fallbacks.items():
                for other in others:
                    if other == name or self.resolve(other) is None:
                        field = f"models.{name}.fallbacks.{kind}"
                        raise ConfigError(f"{other!r} is no other model", field=field)

    def _route(self, wanted: schema.Target, model: schema.Model | None) -> Route:
        provider = self._config.providers[wanted.provider]
        kind = PROVIDERS[provider.kind]
        assert wanted.model is not None
        price = wanted.price or (model.price if model else None)
        default = self._config.pricing.default
        seller = provider.prices or kind.prices
        schedule = self._prices.schedule(seller, wanted.model) if seller else None
        if schedule is not None and schedule.uncounted:
            schedule = None
        if schedule is None and price is None:
            price = default
        keys = keys_of(provider)
        targets = [self._target(wanted, provider, key, model) for key, _ in keys]
        drop = (model and model.unsupported) or provider.unsupported or self._config.unsupported
        keeps = model is not None and model.on_stream_failure == "continue"
        ways = [
            ways_of(kind.adapter_for(one), one, drop=drop == "drop", keeps=keeps) for one in targets
        ]
        signer = self._signers[wanted.provider]
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
                conditions=conditions_of(wanted.when),
                tags=frozenset(wanted.tags),
                canary=wanted.canary,
                limits=limits_of(wanted, wanted.model, self._uneven),
                headers=answered_by(target.provider, target.model),
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
            where = where_of(self._config.providers[provider])
            found = self._states[provider, model] = TargetState(breaker, where)
        return found

    def _target(
        self,
        wanted: schema.Target,
        provider: schema.Provider,
        key: str | None,
        model: schema.Model | None = None,
    ) -> Target:
        url = base_url_of(provider)
        assert wanted.model is not None
        own = model.timeouts if model is not None else None
        times = own or provider.timeouts or self._config.server.timeouts
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
            idempotent=provider.idempotency,
            drains=provider.on_disconnect == "drain",
            max_output=model.max_output_tokens if model is not None else None,
            settings=tuple(settings_of(provider).items()),
        )


def _is_literal(pattern: str) -> bool:
    return not any(mark in pattern for mark in "*?[")


def _claims(provider: schema.Provider) -> tuple[str, ...]:
    return PROVIDERS[provider.kind].claims if provider.models is None else provider.models


def _own_price(price: schema.Price | None) -> Price | None:
    if price is None:
        return None
    return Price.from_rates(
        price.input,
        price.output,
        price.cached,
        price.cache_write,
        price.per_request,
        price.cache_write_1h,
        price.per_search,
    )

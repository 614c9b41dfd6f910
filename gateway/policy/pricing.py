"""Hot path: what a request cost, and which price applies to a model at a moment.

Only integers: a rate is nano-dollars per million tokens, so a rate times a token count is exact
femto-dollars. Prices come from a table compiled beforehand (`price_data`) or from the configuration
(`Price.from_rates`). This file never imports the data set's own library and does no I/O.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import NamedTuple, Self

import msgspec

from gateway.core.record import Cost
from gateway.core.usage import Usage

Usd = str | float | Decimal  # a configured amount in US dollars

FEMTO_PER_NANO = 10**6
FEMTO_PER_MICRO = 10**9
MOST_RESERVED = 2**52  # micro-dollars: no budget is larger, and Lua counts them exactly
# Refuses an amount that it would have to round, and one too long to be a price.
_EXACT = Context(prec=40, traps=[InvalidOperation, Inexact])

# Provider kinds that the data set's own rules miss or mistake (they take "openai-compatible" for
# OpenAI); an underscore counts as a hyphen. Empty: serves any maker's models, so search by model.
KINDS = {
    "openai-compatible": "",
    "azure-openai": "azure",
    "azure-ai": "azure",
    "vertex-anthropic": "google",
    "fireworks-ai": "fireworks",
    "z-ai": "zai",
}

_COMPACT_DATE = re.compile(r"-(20[0-9]{6})(?=-|:|$)")


class PriceDataError(ValueError):
    """The bytes are not a price table of this format: compile a new one."""


class Rates(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Nano-dollars per million tokens; `cached` means read from the cache."""

    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int
    audio_input: int
    audio_output: int
    cache_write_1h: int
    image_input: int
    image_output: int


class Tier(Rates, frozen=True, array_like=True, gc=False):
    """Rates of the whole request, not of the excess, when its prompt has over `above` tokens."""

    above: int


class Price(Rates, frozen=True, array_like=True, gc=False):
    """What a model costs: the rates up to the first tier, and ascending tiers.

    A request and a web search have a price in nano-dollars. `unmetered` names what the provider
    also bills and the gateway does not count (characters, pages ...).
    """

    request: int = 0
    search: int = 0
    tiers: tuple[Tier, ...] = ()
    unmetered: tuple[str, ...] = ()
    version: str = ""

    @property
    def uncounted(self) -> bool:
        """Tell whether the provider bills nothing that the gateway counts: 0 is not free then."""
        tokens = (self.input, self.output, self.audio_input, self.audio_output)
        pictures = (self.image_input, self.image_output)
        return bool(self.unmetered) and not any((*tokens, *pictures, self.request))

    @classmethod
    def from_rates(
        cls,
        input_per_mtok: Usd,
        output_per_mtok: Usd,
        cached_per_mtok: Usd | None = None,
        cache_write_per_mtok: Usd | None = None,
        per_request: Usd = 0,
        cache_write_1h_per_mtok: Usd | None = None,
        per_search: Usd = 0,
    ) -> Self:
        """Build a price from US dollars; the input rate stands in for absent cache rates.

        What is written for an hour costs what is written at all, where nobody says.
        """
        prompt, output = nano_usd(input_per_mtok), nano_usd(output_per_mtok)
        written = prompt if cache_write_per_mtok is None else nano_usd(cache_write_per_mtok)
        lasting = cache_write_1h_per_mtok
        return cls(
            input=prompt,
            cached=prompt if cached_per_mtok is None else nano_usd(cached_per_mtok),
            cache_write=written,
            output=output,
            reasoning=output,
            audio_input=prompt,
            audio_output=output,
            cache_write_1h=written if lasting is None else nano_usd(lasting),
            image_input=prompt,
            image_output=output,
            request=nano_usd(per_request),
            search=nano_usd(per_search),
            version="config",
        )


class CostComponents(NamedTuple):
    """Femto-dollars; their sum is what `cost_microusd` rounds. Searches are with the request."""

    input: int
    cached: int
    cache_write: int
    output: int
    request: int


def nano_usd(usd: Usd) -> int:
    """Convert US dollars exactly (a float means its shortest decimal), or raise ValueError."""
    try:
        amount = _EXACT.create_decimal(str(usd))
        nano = int(_EXACT.quantize(_EXACT.scaleb(amount, 9), Decimal(1)))
    except (ArithmeticError, ValueError):
        raise ValueError(f"not an amount in whole nano-dollars: {usd!r}") from None
    if nano < 0:
        raise ValueError(f"an amount of money is not negative: {usd!r}")
    return nano


def microusd(usd: Usd) -> int:
    """Convert US dollars to whole micro-dollars, rounded down, or raise ValueError."""
    return nano_usd(usd) // 1000


def cost_components(price: Price, usage: Usage) -> CostComponents:
    """Split the cost by what caused it.

    Impossible counts (negative, more cached than prompt tokens) are clamped: a provider's mistake
    must not make a cost negative or fail a settlement.
    """
    prompt = max(usage.prompt_tokens, 0)
    cached = min(max(usage.cached_tokens, 0), prompt)
    written = min(max(usage.cache_write_tokens, 0), prompt - cached)
    lasting = min(max(usage.cache_write_1h_tokens, 0), written)
    completion = max(usage.completion_tokens, 0)
    reasoning = min(max(usage.reasoning_tokens, 0), completion)
    plain, answered = prompt - cached - written, completion - reasoning
    heard = min(max(usage.audio_prompt_tokens, 0), plain)
    spoken = min(max(usage.audio_completion_tokens, 0), answered)
    rates: Rates = price
    for tier in price.tiers:
        beside = min(max(usage.beside_prompt_tokens, 0), prompt)
        if max(prompt - beside, beside) > tier.above:
            rates = tier
    given = (plain - heard) * rates.input + heard * rates.audio_input
    made = (answered - spoken) * rates.output + spoken * rates.audio_output
    if usage.image_prompt_tokens:
        seen = min(max(usage.image_prompt_tokens, 0), plain - heard)
        given += seen * (rates.image_input - rates.input)
    if usage.image_completion_tokens:
        drawn = min(max(usage.image_completion_tokens, 0), answered - spoken)
        made += drawn * (rates.image_output - rates.output)
    return CostComponents(
        given,
        cached * rates.cached,
        (written - lasting) * rates.cache_write + lasting * rates.cache_write_1h,
        made + reasoning * rates.reasoning,
        (price.request + max(usage.web_searches, 0) * price.search) * FEMTO_PER_NANO,
    )


def cost_microusd(price: Price, usage: Usage) -> int:
    """Return the cost in micro-dollars, rounded once, half up."""
    return rounded(cost_components(price, usage))


def most_microusd(
    price: Price, prompt: int, output: int, *, sound: bool = False, lasting: bool = False
) -> int:
    """Return what so many tokens can cost at the most, whatever kinds they turn out to be.

    `sound` tells that some may be sound, `lasting` that some may be kept for an hour. A model with
    a price for pictures makes them unasked.
    """
    rates: Rates = price
    for tier in price.tiers:
        if prompt > tier.above:
            rates = tier
    given = max(rates.input, rates.image_input, rates.cache_write)
    made = max(rates.output, rates.image_output, rates.reasoning)
    if lasting:
        given = max(given, rates.cache_write_1h)
    if sound:
        given, made = max(given, rates.audio_input), max(made, rates.audio_output)
    femto = prompt * given + output * made + price.request * FEMTO_PER_NANO
    return min((femto + FEMTO_PER_MICRO - 1) // FEMTO_PER_MICRO, MOST_RESERVED)


def rounded(components: CostComponents) -> int:
    """Return the sum in micro-dollars, rounded half up."""
    return (sum(components) + FEMTO_PER_MICRO // 2) // FEMTO_PER_MICRO


def in_microusd(components: CostComponents) -> Cost:
    """Round the components so that they add up to the rounded whole (largest remainders)."""
    wholes, rests = [], []
    for component in components:
        whole, rest = divmod(component, FEMTO_PER_MICRO)
        wholes.append(whole)
        rests.append(rest)
    missing = (sum(rests) + FEMTO_PER_MICRO // 2) // FEMTO_PER_MICRO
    for _ in range(missing):
        largest = rests.index(max(rests))
        wholes[largest] += 1
        rests[largest] = 0
    return Cost(*wholes)


class Rule(msgspec.Struct, frozen=True, array_like=True):
    """A match rule of the data set over a lower-case name: an operator and its text or rules."""

    op: str
    text: str = ""
    rules: "tuple[Rule, ...]" = ()

    def matches(self, name: str) -> bool:
        """Tell whether a name satisfies the rule."""
        return _OPERATORS[self.op](self, name)


# `re` compiles a pattern on first use and keeps it.
_OPERATORS: dict[str, Callable[[Rule, str], bool]] = {
    "equals": lambda rule, name: name == rule.text,
    "starts_with": lambda rule, name: name.startswith(rule.text),
    "ends_with": lambda rule, name: name.endswith(rule.text),
    "contains": lambda rule, name: rule.text in name,
    "regex": lambda rule, name: re.search(rule.text, name) is not None,
    "or": lambda rule, name: any(part.matches(name) for part in rule.rules),
    "and": lambda rule, name: all(part.matches(name) for part in rule.rules),
}


class DatedPrice(msgspec.Struct, frozen=True, array_like=True):
    """A price that holds from a day on, or between two times of the day; all in UTC."""

    price: Price
    since: date | None = None
    daily: tuple[time, time] | None = None

    def active(self, moment: datetime) -> bool:
        """Tell whether the price holds at a moment given in UTC."""
        if self.daily is not None:
            (start, end), now = self.daily, moment.time()
            return start <= now < end if start <= end else now >= start or now < end
        return self.since is None or moment.date() >= self.since


class Schedule(msgspec.Struct, frozen=True, array_like=True):
    """A model's prices in the data set's order. Keep this, not a price: some change by the hour."""

    model: str
    prices: tuple[DatedPrice, ...]

    @property
    def uncounted(self) -> bool:
        """Tell whether a price of it is in units alone that the gateway does not count."""
        return any(dated.price.uncounted for dated in self.prices)

    def at(self, moment: datetime) -> Price:
        """Return the last price that holds at the moment (naive means UTC), or else the first."""
        utc = moment.astimezone(UTC) if moment.tzinfo else moment
        holding = (dated.price for dated in reversed(self.prices) if dated.active(utc))
        return next(holding, self.prices[0].price)


class Catalog(msgspec.Struct, frozen=True, array_like=True):
    """A provider's models: the first that matches wins; exact names are resolved beforehand."""

    exact: dict[str, int]
    patterns: tuple[tuple[int, Rule], ...]
    models: tuple[Schedule, ...]

    def find(self, name: str) -> Schedule | None:
        """Return the first model that matches a lower-case name."""
        index = self.exact.get(name)
        if index is None:
            index = next((i for i, rule in self.patterns if rule.matches(name)), None)
        return None if index is None else self.models[index]


class Provider(msgspec.Struct, frozen=True, array_like=True):
    """A provider of the data set, its catalog still encoded: a gateway needs few of some fifty."""

    id: str
    catalog: msgspec.Raw
    aliases: Rule | None  # other names of the provider
    claims: Rule | None  # bare model names that mean this provider
    resells: tuple[str, ...]  # providers whose models it also sells


class Table(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """What the file holds. Raise the tag with every change of layout: it refuses older files."""

    version: str
    providers: tuple[Provider, ...]


class PriceTable:
    """The compiled data set, asked for prices by provider and model."""

    def __init__(self, table: Table) -> None:
        self.version = table.version
        self._providers = {provider.id: provider for provider in table.providers}
        self._catalogs: dict[str, Catalog] = {}

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a table. Raises PriceDataError."""
        try:
            return cls(msgspec.msgpack.decode(data, type=Table))
        except msgspec.DecodeError as error:
            raise PriceDataError(f"not a price table of this format: {error}") from error

    @property
    def sellers(self) -> tuple[str, ...]:
        """Return the ids of the providers whose prices it has."""
        return tuple(self._providers)

    def knows(self, provider: str) -> bool:
        """Tell whether it has a provider's prices, by its id or another name of it."""
        return self._provider(provider) is not None

    def find(self, provider: str | None, model: str, at: datetime) -> Price | None:
        """Return the price of a model at a moment, or None where the data set has none."""
        schedule = self.schedule(provider, model)
        return None if schedule is None else schedule.at(at)

    def schedule(self, provider: str | None, model: str) -> Schedule | None:
        """Return a model's prices over time.

        `provider` is an id of the data set, another name it knows, or one of `KINDS`. Without a
        known one the model's prefix names it ("groq/gemma2"), or else the model's maker is meant.
        """
        seller, name = self._locate(provider, model.lower())
        if seller is None:
            return None
        return self._search(seller, name) or self._search(seller, _with_dashed_date(name))

    def _locate(self, provider: str | None, name: str) -> tuple[Provider | None, str]:
        """Return the provider to search and the name to search for."""
        if provider is not None and (known := self._provider(provider)):
            return known, name
        prefix, _, rest = name.partition("/")
        if rest and (known := self._provider(prefix)):
            return known, rest
        claims = (p for p in self._providers.values() if p.claims and p.claims.matches(name))
        return next(claims, None), name

    def _provider(self, kind: str) -> Provider | None:
        name = kind.lower().strip()
        mapped = KINDS.get(name.replace("_", "-"), name)
        if not mapped or mapped in self._providers:
            return self._providers.get(mapped)
        aliased = (p for p in self._providers.values() if p.aliases and p.aliases.matches(mapped))
        return next(aliased, None)

    def _search(self, seller: Provider, name: str) -> Schedule | None:
        """Search the seller's own models, then those of the makers it resells."""
        found = (self._catalog(provider).find(name) for provider in (seller.id, *seller.resells))
        return next(filter(None, found), None)

    def _catalog(self, provider: str) -> Catalog:
        if provider not in self._catalogs:
            raw = self._providers[provider].catalog
            self._catalogs[provider] = msgspec.msgpack.decode(raw, type=Catalog)
        return self._catalogs[provider]


def _with_dashed_date(name: str) -> str:
    """Spell a date as the data set does: LiteLLM and OpenRouter write -20251211 for -2025-12-11."""

    def dashed(match: re.Match[str]) -> str:
        try:
            return f"-{date.fromisoformat(match[1])}"
        except ValueError:
            return match[0]

    return _COMPACT_DATE.sub(dashed, name)

"""Compiles the price data set of genai-prices into the file that `pricing.PriceTable` reads.

    python -m gateway.policy.price_data OUTPUT_FILE

The supervisor runs it in a process of its own when the file of the installed version is absent:
importing genai-prices takes 0.2 s and 32 MB. Only the data that ships in the wheel is read; the
updater, which would download, is never started. Left out are prices of special requests (batch,
flex, priority), which the gateway does not tell apart, and units it does not count: those are named
in `Price.unmetered`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.policy.pricing import (
    Catalog,
    DatedPrice,
    Price,
    Provider,
    Rule,
    Schedule,
    Table,
    Tier,
)

if TYPE_CHECKING:
    from genai_prices import types as source

    Value = Decimal | source.TieredPrices
    Values = dict[str, Value]

DISTRIBUTION = "genai-prices"
UNWRITABLE = os.EX_CANTCREAT  # the exit code where there is a table, and no place for it

# The price keys of each rate; the first one present counts. genai-prices takes tokens out of a
# wider kind (cache reads out of the input) only where the narrower one has a price of its own.
RATE_KEYS = {
    "input": ("input_mtok",),
    "cached": ("cache_read_mtok", "input_mtok"),
    "cache_write": ("cache_write_mtok", "input_mtok"),
    "output": ("output_mtok",),
    "reasoning": ("output_reasoning_mtok", "output_mtok"),
    "audio_input": ("input_audio_mtok", "input_mtok"),
    "audio_output": ("output_audio_mtok", "output_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    "image_input": ("input_image_mtok", "input_mtok"),
    "image_output": ("output_image_mtok", "output_mtok"),
}
# Dollars a thousand.
REQUEST_KEY, SEARCH_KEY = "requests_kcount", "web_searches_kcount"
METERED_KEYS = {REQUEST_KEY, SEARCH_KEY}.union(*RATE_KEYS.values())


@cache
def source_version() -> str:
    """Name the installed data set, e.g. "genai-prices/0.2.3", without importing it."""
    return f"{DISTRIBUTION}/{metadata.version(DISTRIBUTION)}"


def compile_table() -> bytes:
    """Encode the installed data set."""
    from genai_prices.data import providers

    known = {provider.id for provider in providers}
    table = Table(source_version(), tuple(_provider(provider, known) for provider in providers))
    return msgspec.msgpack.encode(table)


def compile_price(prices: "source.ModelPrice") -> Price:
    """Convert the prices of a model at one time."""
    values: Values = {key: value for key, value in vars(prices).items() if value is not None}
    metered = (values[key] for key in METERED_KEYS & values.keys())
    tiers = (tier for value in metered if not isinstance(value, Decimal) for tier in value.tiers)
    return Price(
        **_rates(values, 0),
        request=_nano(_usd(values.get(REQUEST_KEY), 0) / 1000),
        search=_nano(_usd(values.get(SEARCH_KEY), 0) / 1000),
        tiers=tuple(
            Tier(**_rates(values, start + 1), above=start)
            for start in sorted({tier.start for tier in tiers})
        ),
        unmetered=tuple(sorted(values.keys() - METERED_KEYS)),
        version=source_version(),
    )


def _rates(values: "Values", prompt: int) -> dict[str, Any]:
    """Return the fields of `Rates` for a prompt of that many tokens."""
    prices = {
        rate: next((values[key] for key in keys if key in values), None)
        for rate, keys in RATE_KEYS.items()
    }
    return {rate: _nano(_usd(price, prompt)) for rate, price in prices.items()}


def _usd(value: "Value | None", prompt: int) -> Decimal:
    """Return the amount in force for a prompt of that many tokens."""
    if value is None or isinstance(value, Decimal):
        return value or Decimal(0)
    return next((t.price for t in reversed(value.tiers) if prompt > t.start), value.base)


def _nano(usd: Decimal) -> int:
    """Round to a nano-dollar: what is finer is noise of a division, as in 0.13999999999999999."""
    return int(usd.scaleb(9).to_integral_value(ROUND_HALF_UP))


def _provider(provider: "source.Provider", known: set[str]) -> Provider:
    resells = provider.fallback_model_providers or ()
    return Provider(
        id=provider.id,
        catalog=msgspec.Raw(msgspec.msgpack.encode(compile_catalog(provider.models))),
        aliases=_rule(provider.provider_match) if provider.provider_match else None,
        claims=_rule(provider.model_match) if provider.model_match else None,
        resells=tuple(maker for maker in resells if maker in known),
    )


def compile_catalog(models: "Iterable[source.ModelInfo]") -> Catalog:
    """Split the match rules into exact names and the rest, keeping the models' order."""
    exact: dict[str, int] = {}
    patterns: list[tuple[int, Rule]] = []
    schedules: list[Schedule] = []
    for index, model in enumerate(models):
        rules = list(_alternatives(_rule(model.match)))
        for name in (rule.text for rule in rules if rule.op == "equals"):
            # An earlier model's looser rule wins over an exact name, as in genai-prices.
            earlier = (i for i, rule in patterns if rule.matches(name))
            exact.setdefault(name, next(earlier, index))
        patterns += ((index, rule) for rule in rules if rule.op != "equals")
        schedules.append(Schedule(model.id, tuple(_dated_prices(model))))
    return Catalog(exact, tuple(patterns), tuple(schedules))


def _alternatives(rule: Rule) -> Iterator[Rule]:
    if rule.op == "or":
        for part in rule.rules:
            yield from _alternatives(part)
    else:
        yield rule


def _rule(clause: "source.MatchLogic") -> Rule:
    """Convert a clause: a data class with one field, named after its operator (`or_`, `and_`)."""
    ((field, value),) = vars(clause).items()
    op = field.rstrip("_")
    if isinstance(value, list):
        return Rule(op, rules=tuple(_rule(part) for part in value))
    return Rule(op, value if op == "regex" else value.lower())


def _dated_prices(model: "source.ModelInfo") -> Iterator[DatedPrice]:
    if not isinstance(model.prices, list):
        yield DatedPrice(compile_price(model.prices))
        return
    for conditional in model.prices:
        constraint, price = conditional.constraint, compile_price(conditional.prices)
        if constraint is None:
            yield DatedPrice(price)
        elif hasattr(constraint, "start_date"):
            yield DatedPrice(price, since=constraint.start_date)
        else:
            daily = _utc(constraint.start_time), _utc(constraint.end_time)
            yield DatedPrice(price, daily=daily)


def _utc(moment: time) -> time:
    if moment.tzinfo is None:
        return moment
    return datetime.combine(date(1970, 1, 1), moment).astimezone(UTC).time()


def write_file(path: Path, data: bytes) -> None:
    """Put the data in place at once, readable by the owner alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main() -> None:
    """Compile the table into the file named on the command line."""
    parser = argparse.ArgumentParser(description="Compile the price table.")
    parser.add_argument("output_file", type=Path)
    path = parser.parse_args().output_file
    data = compile_table()
    try:
        write_file(path, data)
    except OSError as error:
        print(error.strerror, file=sys.stderr)
        sys.exit(UNWRITABLE)


if __name__ == "__main__":
    main()

"""The compiled price table, held against genai-prices itself: same model, same price, same date."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from genai_prices import types as library
from genai_prices.data_snapshot import get_snapshot

from gateway.policy import price_data
from gateway.policy.price_data import compile_catalog, compile_price
from gateway.policy.pricing import KINDS, Price, PriceDataError, PriceTable, Schedule, Table

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
PROVIDERS = {provider.id: provider for provider in get_snapshot().providers}


@pytest.fixture(scope="module")
def data() -> bytes:
    return price_data.compile_table()


@pytest.fixture(scope="module")
def table(data: bytes) -> PriceTable:
    return PriceTable.decode(data)


# --- Which model a name means --------------------------------------------------------------------


def library_model(provider: str | None, name: str) -> library.ModelInfo | None:
    try:
        return get_snapshot().find_provider_model(name, None, provider, None)[1]
    except LookupError:
        return None


def agree(found: Schedule | None, expected: library.ModelInfo | None) -> bool:
    if found is None or expected is None:
        return found is None and expected is None
    price = compile_price(expected.get_prices(NOON))
    return found.model == expected.id and found.at(NOON) == price


def rule_texts(rule: library.MatchLogic) -> Iterator[str]:
    for value in vars(rule).values():
        if isinstance(value, str):
            yield value
        else:
            for part in value:
                yield from rule_texts(part)


def spellings(name: str) -> list[str]:
    dates = ["-2026-02-28", "-20260228", "-20260231", "@20260815", "-20260815-v1:0"]
    endings = [*dates, ":free", "-latest", "-preview", "-tts", "-0", "x"]
    beginnings = ["x", "us.", "models/", "openai/", "~"]
    altered = [name + end for end in endings] + [start + name for start in beginnings]
    return [name.upper(), name[:-1], *altered]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_names_mean_the_model_that_the_library_finds(table: PriceTable, provider: str) -> None:
    models = PROVIDERS[provider].models
    names = {model.id for model in models}
    names.update(text for model in models for text in rule_texts(model.match))
    sample = models[:: max(1, len(models) // 50)]
    names.update(name for model in sample for name in spellings(model.id))
    for name in names:
        assert agree(table.schedule(provider, name), library_model(provider, name)), name


@pytest.mark.parametrize("provider", PROVIDERS)
def test_names_without_a_provider(table: PriceTable, provider: str) -> None:
    for model in PROVIDERS[provider].models:
        for name in (model.id, f"{provider}/{model.id}", f"somebody/{model.id}"):
            # The library's "litellm": the prefix counts if it is a provider, or else the name.
            prefix, slash, rest = name.partition("/")
            known = f"{KINDS.get(prefix, prefix)}{slash}{rest}"
            expected = library_model("litellm" if slash else None, known)
            assert agree(table.schedule(None, name), expected), name
            assert agree(table.schedule("nobody-known", name), expected), name


def test_the_first_model_that_matches_wins_over_an_exact_name() -> None:
    loose = library.ClauseStartsWith("Nova")
    exact = library.ClauseOr([library.ClauseEquals("nova-2"), library.ClauseEquals("Star-1")])
    catalog = compile_catalog(
        [
            library.ModelInfo("first", loose, prices=library.ModelPrice()),
            library.ModelInfo("second", exact, prices=library.ModelPrice()),
            library.ModelInfo("third", library.ClauseContains("-"), prices=library.ModelPrice()),
        ]
    )
    found = {name: catalog.find(name) for name in ("nova-2", "star-1", "sun-1", "sun")}
    meant = {name: schedule and schedule.model for name, schedule in found.items()}
    assert meant == {"nova-2": "first", "star-1": "second", "sun-1": "third", "sun": None}


@pytest.mark.parametrize(
    ("kind", "model", "seller"),
    [
        ("openai", "gpt-4o-mini", "openai"),
        ("OpenAI ", "GPT-4o-mini", "openai"),
        ("azure", "gpt-4o-mini", "openai"),
        ("azure_openai", "gpt-4o-mini", "openai"),
        ("anthropic", "claude-sonnet-4-5-20250929", "anthropic"),
        ("google", "gemini-2.5-pro", "google"),
        ("gemini", "gemini-2.5-pro", "google"),
        ("vertex", "claude-sonnet-4-5", "google"),
        ("vertex", "claude-2", "anthropic"),
        ("vertex-anthropic", "gemini-2.5-pro", "google"),
        ("bedrock", "amazon.nova-lite-v1:0", "aws"),
        ("xai", "grok-4.3", "x-ai"),
        ("openai-compatible", "claude-sonnet-4-5", "anthropic"),
    ],
)
def test_provider_kinds(table: PriceTable, kind: str, model: str, seller: str) -> None:
    expected = library_model(seller, model)
    assert expected is not None
    assert agree(table.schedule(kind, model), expected)


@pytest.mark.parametrize("provider", ["openai", "azure", "demo", "openai-compatible", "", None])
@pytest.mark.parametrize("model", ["my-deployment", "", "/", "openai/", "é" * 500])
def test_an_unknown_model_has_no_price(table: PriceTable, provider: str | None, model: str) -> None:
    assert table.find(provider, model, NOON) is None


# --- Which price holds when ----------------------------------------------------------------------


def changes(model: library.ModelInfo) -> Iterator[datetime]:
    for dated in model.prices if isinstance(model.prices, list) else ():
        if isinstance(dated.constraint, library.StartDateConstraint):
            yield datetime.combine(dated.constraint.start_date, time(), UTC)
        elif dated.constraint is not None:
            yield datetime.combine(NOON, dated.constraint.start_time)
            yield datetime.combine(NOON, dated.constraint.end_time)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_prices_change_when_the_library_says(table: PriceTable, provider: str) -> None:
    tick, east = timedelta(microseconds=1), timezone(timedelta(hours=9))
    for model in PROVIDERS[provider].models:
        meant, schedule = library_model(provider, model.id), table.schedule(provider, model.id)
        assert (meant is None) == (schedule is None)
        if meant is None or schedule is None:
            continue
        for change in changes(meant):
            for moment in (change - tick, change, change + tick, datetime(2019, 1, 1, tzinfo=UTC)):
                price = compile_price(meant.get_prices(moment))
                assert schedule.at(moment) == price
                assert schedule.at(moment.astimezone(east)) == price
                assert schedule.at(moment.replace(tzinfo=None)) == price


def test_a_daily_interval_may_span_midnight() -> None:
    day, night = Price.from_rates(2, 2), Price.from_rates(1, 1)
    rows = [[day], [night, None, [time(22), time(6)]]]
    schedule = msgspec.convert(msgspec.to_builtins(["m", rows]), Schedule)
    hours = {
        hour: schedule.at(datetime.combine(date(2026, 1, 1), time(hour))) for hour in range(24)
    }
    assert [hour for hour, price in hours.items() if price == day] == list(range(6, 22))


# --- The file ------------------------------------------------------------------------------------


def test_encoding_round_trip(data: bytes, table: PriceTable) -> None:
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(data, type=Table)) == data
    assert table.version == price_data.source_version()
    price = table.find("openai", "gpt-4o", NOON)
    assert price is not None
    assert price.version == table.version
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(price), type=Price) == price


def test_what_is_not_a_table_of_this_format_is_refused(data: bytes) -> None:
    older = msgspec.msgpack.encode([0, *msgspec.msgpack.decode(data)[1:]])
    for wrong in (b"", b"{}", data[:-1], data[: len(data) // 2], data + b"x", older):
        with pytest.raises(PriceDataError):
            PriceTable.decode(wrong)


OFFLINE = """
import runpy, sys, threading
def refuse(event, arguments):
    assert not event.startswith("socket."), event
sys.addaudithook(refuse)
sys.argv = ["price_data", sys.argv[1]]
runpy.run_module("gateway.policy.price_data", run_name="__main__")
assert threading.active_count() == 1
"""


def test_the_command_writes_a_private_file_and_opens_no_socket(tmp_path: Path, data: bytes) -> None:
    output = tmp_path / "prices.msgpack"
    output.write_bytes(b"older")
    subprocess.run([sys.executable, "-c", OFFLINE, output], check=True)
    assert output.read_bytes() == data
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [output]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        price_data.write_file(tmp_path / "taken", b"table")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]

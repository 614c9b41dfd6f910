"""Costs, held against genai-prices itself: every price of its data set, for any usage."""

import subprocess
import sys
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

import msgspec
import pytest
from genai_prices import types as library
from genai_prices.data import providers
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.usage import Usage
from gateway.policy.price_data import compile_price
from gateway.policy.pricing import (
    CostComponents,
    Price,
    Tier,
    Usd,
    cost_components,
    cost_microusd,
    in_microusd,
    most_microusd,
    nano_usd,
)


def dated_prices(model: library.ModelInfo) -> list[library.ModelPrice]:
    if isinstance(model.prices, list):
        return [dated.prices for dated in model.prices]
    return [model.prices]


PRICES = {p.id: [price for m in p.models for price in dated_prices(m)] for p in providers}
ALL_PRICES = [price for prices in PRICES.values() for price in prices]


# --- What the library says -----------------------------------------------------------------------


def in_nano_dollars(price: library.ModelPrice) -> library.ModelPrice:
    """Round the few rates that carry the noise of a division to nano-dollars, as the table does."""

    def rounded(value: Decimal) -> Decimal:
        return value.quantize(Decimal("1e-9"), ROUND_HALF_UP)

    def convert(value: Decimal | library.TieredPrices) -> Decimal | library.TieredPrices:
        if isinstance(value, Decimal):
            return rounded(value)
        tiers = [library.Tier(tier.start, rounded(tier.price)) for tier in value.tiers]
        return library.TieredPrices(rounded(value.base), tiers)

    return library.ModelPrice(**{key: convert(value) for key, value in vars(price).items()})


def library_microusd(price: library.ModelPrice, usage: Usage) -> int:
    counted = library.Usage(
        input_tokens=usage.prompt_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.completion_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=usage.audio_prompt_tokens,
        output_audio_tokens=usage.audio_completion_tokens,
        cache_audio_read_tokens=0,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        web_searches=usage.web_searches,
        input_image_tokens=usage.image_prompt_tokens,
        output_image_tokens=usage.image_completion_tokens,
        cache_image_read_tokens=0,
    )
    usd = price.calc_price(counted)["total_price"]
    return int((usd * 10**6).to_integral_value(ROUND_HALF_UP))


@cache
def both(index: int) -> tuple[Price, library.ModelPrice]:
    return compile_price(ALL_PRICES[index]), in_nano_dollars(ALL_PRICES[index])


# --- Cost ----------------------------------------------------------------------------------------


def boundary_usages(price: Price) -> list[Usage]:
    thresholds = [tier.above + step for tier in price.tiers for step in (-1, 0, 1)]
    return [
        usage
        for prompt in (0, 1, 25, 9_999, 1_000_000, *thresholds)
        for usage in (
            Usage(prompt, prompt // 3, prompt // 5, 777, 333),
            Usage(prompt, prompt // 3, prompt // 5, 777, 333, prompt // 4, 400),
            Usage(prompt, cached_tokens=prompt),
            Usage(prompt, cache_write_tokens=prompt),
            Usage(prompt, 0, prompt // 2, 777, cache_write_1h_tokens=prompt // 3, web_searches=3),
            Usage(prompt, prompt // 3, 0, 777, 33, prompt // 4, 40, 0, 0, prompt // 5, 700),
        )
    ]


@pytest.mark.parametrize("provider", PRICES)
def test_every_price_costs_what_the_library_says(provider: str) -> None:
    for source in PRICES[provider]:
        price, reference = compile_price(source), in_nano_dollars(source)
        for usage in boundary_usages(price):
            cost = cost_microusd(price, usage)
            assert cost == library_microusd(reference, usage), (source, usage)
            if reference != source:
                assert abs(cost - library_microusd(source, usage)) <= 1, (source, usage)


@settings(max_examples=500, deadline=None)
@given(data=st.data(), index=st.integers(0, len(ALL_PRICES) - 1))
def test_any_usage_costs_what_the_library_says(data: st.DataObject, index: int) -> None:
    price, reference = both(index)
    near_tiers = [st.integers(tier.above - 2, tier.above + 2) for tier in price.tiers]
    prompt = data.draw(st.one_of(st.integers(0, 2_000_000), *near_tiers))
    cached = data.draw(st.integers(0, prompt))
    written = data.draw(st.integers(0, prompt - cached))
    completion = data.draw(st.integers(0, 200_000))
    thought = data.draw(st.integers(0, completion))
    heard = data.draw(st.integers(0, prompt - cached - written))
    spoken = data.draw(st.integers(0, completion - thought))
    lasting, searches = data.draw(st.integers(0, written)), data.draw(st.integers(0, 50))
    seen = data.draw(st.integers(0, prompt - cached - written - heard))
    drawn = data.draw(st.integers(0, completion - thought - spoken))
    usage = Usage(
        *(prompt, cached, written, completion, thought, heard, spoken, lasting, searches),
        *(seen, drawn),
    )
    assert cost_microusd(price, usage) == library_microusd(reference, usage)


def test_few_rates_are_finer_than_a_nano_dollar() -> None:
    assert sum(in_nano_dollars(price) != price for price in ALL_PRICES) < len(ALL_PRICES) // 50


def test_a_tier_applies_to_the_whole_request_beyond_its_threshold() -> None:
    long = (6 * 10**9, 6 * 10**8, 75 * 10**8, 225 * 10**8, 225 * 10**8, 0, 0, 0, 0, 0)
    short = (3 * 10**9, 3 * 10**8, 375 * 10**7, 15 * 10**9, 15 * 10**9, 0, 0, 0, 0, 0)
    price = Price(*short, tiers=(Tier(*long, 200_000),))
    assert cost_microusd(price, Usage(200_000, completion_tokens=100)) == 600_000 + 1_500
    assert cost_microusd(price, Usage(200_001, completion_tokens=100)) == 1_200_006 + 2_250
    # Cached tokens count towards the threshold, completion tokens do not.
    assert cost_microusd(price, Usage(200_001, cached_tokens=200_000)) == 6 + 120_000
    assert cost_microusd(price, Usage(1, completion_tokens=200_001)) == 3 + 3_000_015
    # Rounds are requests of their own: none of these is beyond it, one of those is.
    assert cost_microusd(price, Usage(203_000, beside_prompt_tokens=180_000)) == 609_000
    assert cost_microusd(price, Usage(203_000, beside_prompt_tokens=201_000)) == 1_218_000


def test_tokens_without_a_cache_price_pay_the_input_price() -> None:
    price = compile_price(library.ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(4)))
    assert (price.cached, price.cache_write) == (price.input, price.input) == (2 * 10**9, 2 * 10**9)


def test_the_units_that_are_not_counted_are_named() -> None:
    source = library.ModelPrice(input_mtok=Decimal(1), audio_hours=Decimal(3))
    assert compile_price(source).unmetered == ("audio_hours",)
    assert not compile_price(source).uncounted


@pytest.mark.parametrize(
    ("source", "uncounted"),
    [
        (library.ModelPrice(input_mchars=Decimal(15)), True),
        (library.ModelPrice(audio_hours=Decimal(1), input_mtok=Decimal(0)), True),
        (library.ModelPrice(audio_hours=Decimal(1), requests_kcount=Decimal(5)), False),
        (library.ModelPrice(audio_hours=Decimal(1), output_image_mtok=Decimal(5)), False),
        (library.ModelPrice(input_mtok=Decimal(0)), False),
        (library.ModelPrice(), False),
    ],
)
def test_a_price_in_units_that_are_not_counted_is_not_free(
    source: library.ModelPrice, uncounted: bool
) -> None:
    assert compile_price(source).uncounted is uncounted


def test_the_sum_is_rounded_once_and_half_up() -> None:
    price = Price.from_rates("0.5", "0.25")
    assert cost_microusd(price, Usage(prompt_tokens=1)) == 1
    assert cost_microusd(price, Usage(completion_tokens=1)) == 0
    assert cost_microusd(price, Usage(prompt_tokens=1, completion_tokens=1)) == 1
    assert cost_microusd(price, Usage(prompt_tokens=2, completion_tokens=2)) == 2
    femto = cost_components(price, Usage(prompt_tokens=1, completion_tokens=1))
    assert femto == CostComponents(5 * 10**8, 0, 0, 25 * 10**7, 0)


@given(*[st.integers(0, 10**9)] * 5)
def test_every_token_of_the_providers_totals_is_billed_exactly_once(
    fresh: int, cached: int, written: int, said: int, thought: int
) -> None:
    prompt, completion = fresh + cached + written, said + thought
    used = Usage(prompt, cached, written, completion, thought)
    price = Price.from_rates(1, 1, 1, 1)  # a micro-dollar a token, whatever its kind
    assert cost_microusd(price, used) == prompt + completion


@given(st.lists(st.integers(0, 10**13), min_size=5, max_size=5))
def test_the_components_in_microusd_add_up_to_the_cost(femto: list[int]) -> None:
    parts = CostComponents(*femto)
    rounded = msgspec.structs.astuple(in_microusd(parts))
    assert sum(rounded) == (sum(femto) + 10**9 // 2) // 10**9
    for got, exact in zip(rounded, femto, strict=True):
        assert abs(got * 10**9 - exact) < 10**9


def test_a_request_fee_is_charged_once() -> None:
    price = Price.from_rates(1, 1, per_request="0.012")
    assert cost_microusd(price, Usage()) == 12_000
    assert cost_microusd(price, Usage(prompt_tokens=5)) == 12_005


def test_what_is_written_for_an_hour_and_searches_have_their_price() -> None:
    price = Price.from_rates(3, 15, "0.3", "3.75", cache_write_1h_per_mtok=6, per_search="0.01")
    used = Usage(1000, 100, 500, 10, cache_write_1h_tokens=200, web_searches=2)
    # 400 fresh at 3, 100 read at 0.3, 300 written at 3.75 and 200 at 6, 10 at 15, two searches
    assert cost_microusd(price, used) == 1200 + 30 + 1125 + 1200 + 150 + 20_000
    assert in_microusd(cost_components(price, used)).request == 20_000
    assert Price.from_rates(3, 15, cache_write_per_mtok=4).cache_write_1h == 4 * 10**9


@pytest.mark.parametrize(
    ("impossible", "clamped"),
    [
        (Usage(-5, -5, -5, -5, -5), Usage()),
        (Usage(10, cached_tokens=-3), Usage(10)),
        (Usage(10, cached_tokens=25), Usage(10, cached_tokens=10)),
        (Usage(10, 6, 6), Usage(10, 6, 4)),
        (Usage(completion_tokens=4, reasoning_tokens=9), Usage(0, 0, 0, 4, 4)),
        (Usage(10, 6, 1, 4, 3, 9, 9), Usage(10, 6, 1, 4, 3, 3, 1)),
        (Usage(10, 0, 0, 4, 0, -9, -9), Usage(10, 0, 0, 4)),
        (Usage(10, 0, 4, 0, 0, 0, 0, 9, -9), Usage(10, 0, 4, 0, 0, 0, 0, 4)),
        (Usage(10, 0, 4, 0, 0, 0, 0, -9), Usage(10, 0, 4)),
        (Usage(10, 2, 1, 9, 3, 4, 2, 0, 0, 9, 9), Usage(10, 2, 1, 9, 3, 4, 2, 0, 0, 3, 4)),
        (Usage(10, 0, 0, 4, 0, 0, 0, 0, 0, -9, -9), Usage(10, 0, 0, 4)),
    ],
)
def test_impossible_counts_are_clamped(impossible: Usage, clamped: Usage) -> None:
    rates = (10**9, 10**8, 2 * 10**9, 4 * 10**9, 3 * 10**9, 5 * 10**9, 6 * 10**9, 7 * 10**9)
    price = Price(*rates, image_input=8 * 10**9, image_output=9 * 10**9)
    assert cost_components(price, impossible) == cost_components(price, clamped)


# --- Prices from the configuration ---------------------------------------------------------------


def test_configured_rates() -> None:
    price = Price.from_rates(0.15, "0.6", Decimal("0.075"))
    assert price == Price(
        input=150_000_000,
        cached=75_000_000,
        cache_write=150_000_000,
        output=600_000_000,
        reasoning=600_000_000,
        audio_input=150_000_000,
        audio_output=600_000_000,
        cache_write_1h=150_000_000,
        image_input=150_000_000,
        image_output=600_000_000,
        version="config",
    )
    free = Price.from_rates(0, 0, 0, 0)
    assert cost_microusd(free, Usage(10**6, 10, 10, 10**6, 10)) == 0


@pytest.mark.parametrize(
    ("usd", "nano"),
    [
        ("0.000000001", 1),
        (1e-9, 1),
        (0.1, 10**8),
        (3, 3 * 10**9),
        ("1.10000000000000000000", 11 * 10**8),
        ("1e2", 10**11),
        (Decimal("-0"), 0),
    ],
)
def test_dollars_convert_exactly(usd: Usd, nano: int) -> None:
    assert nano_usd(usd) == nano


NO_AMOUNTS = ["", "cheap", "nan", "sNaN", "inf", "1e999999", "1e-999999", "1e99999999999999999999"]


@pytest.mark.parametrize("usd", [*NO_AMOUNTS, "9" * 100, "-1", -0.5, "1e-10", 0.1 + 0.2, True])
def test_amounts_that_are_no_price_are_refused(usd: Usd) -> None:
    with pytest.raises(ValueError, match=r"nano-dollars|negative"):
        nano_usd(usd)


@given(st.integers(0, 10**15))
def test_every_whole_nano_dollar_amount_converts(nano: int) -> None:
    assert nano_usd(Decimal(nano).scaleb(-9)) == nano


# --- What the hot path must not load -------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "import gateway.policy.pricing",
        "from gateway.policy.price_data import source_version; assert source_version()",
    ],
)
def test_the_data_sets_library_is_not_imported(statement: str) -> None:
    check = "import sys; assert not [m for m in sys.modules if 'genai' in m or m == 'asyncio']"
    subprocess.run([sys.executable, "-c", f"{statement}; {check}"], check=True)


def test_what_is_reserved_covers_the_dearest_kind_of_token() -> None:
    price = Price.from_rates(1, 2, cache_write_per_mtok="1.25", cache_write_1h_per_mtok=3)
    dear = msgspec.structs.replace(price, audio_input=10 * 10**9, audio_output=20 * 10**9)
    assert most_microusd(dear, 1000, 100) == 1250 + 200
    assert most_microusd(dear, 1000, 100, lasting=True) == 3000 + 200
    assert most_microusd(dear, 1000, 100, sound=True) == 10_000 + 2000
    assert most_microusd(Price.from_rates(0, 0, per_request="0.0000015"), 0, 0) == 2


@given(*[st.integers(0, 10**6)] * 7, st.booleans())
def test_no_usage_within_a_reservation_costs_more(
    prompt: int,
    cached: int,
    written: int,
    output: int,
    thought: int,
    spoken: int,
    drawn: int,
    sound: bool,
) -> None:
    price = msgspec.structs.replace(
        Price.from_rates(3, 15, "0.3", "3.75"),
        audio_input=40 * 10**9,
        audio_output=80 * 10**9,
        image_input=8 * 10**9,
        image_output=32 * 10**9,
    )
    heard = spoken if sound else 0
    used = Usage(prompt, cached, written, output, thought, heard, heard, 0, 0, drawn, drawn)
    assert cost_microusd(price, used) <= most_microusd(price, prompt, output, sound=sound)

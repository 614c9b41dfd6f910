"""LiteLLM's settings: the master key, Redis, deadlines, retries, budgets; and what is noted."""

import hashlib
from typing import Any

import pytest

from tests.support.litellm import deployed, noted, settled, targets


def test_the_master_key_goes_on_opening_everything() -> None:
    key = "env:LITELLM_MASTER_KEY"
    found = settled(general_settings={"master_key": "os.environ/LITELLM_MASTER_KEY"})
    assert found.config["auth"] == {"admin_key": key, "keys": [{"name": "master", "key": key}]}
    clear = "sk-f81c0a5729e34bd6"
    found = settled(general_settings={"master_key": clear})
    digest = hashlib.sha256(clear.encode()).hexdigest()
    assert found.config["auth"] == {
        "admin_key": clear,
        "keys": [{"name": "master", "sha256": digest}],
    }
    assert "in clear" in noted(found, "general_settings.master_key")
    short = settled(general_settings={"master_key": "sk-1234"})
    assert list(short.config["auth"]) == ["keys"]
    assert "too easy" in noted(short, "general_settings.master_key")
    known = settled(general_settings={"master_key": "sk-1234567890123456"})
    assert list(known.config["auth"]) == ["keys"]
    word = settled(general_settings={"master_key": "sk-test"})
    assert "auth" not in word.config
    assert "anybody would try" in noted(word, "general_settings.master_key")
    assert "LITELLM_MASTER_KEY" in noted(settled(), "general_settings.master_key")


@pytest.mark.parametrize(
    ("router", "url"),
    [
        ({"redis_url": "redis://u:p@h:1/2"}, "redis://u:p@h:1/2"),
        ({"redis_url": "os.environ/REDIS"}, "env:REDIS"),
        ({"redis_host": "h"}, "redis://h:6379"),
        ({"redis_host": "h", "redis_port": 1, "redis_password": "p/"}, "redis://:p%2F@h:1"),
        (
            {"redis_host": "h", "redis_port": "1", "redis_db": 2, "redis_ssl": True},
            "rediss://h:1/2",
        ),
        ({"redis_host": "h", "redis_password": "os.environ/P"}, None),
        ({"redis_host": "h", "redis_port": "many"}, None),
        ({"redis_url": "http://h"}, None),
        ({"redis_host": "redis://h:6379"}, None),
    ],
)
def test_redis_is_a_url(router: dict[str, Any], url: str | None) -> None:
    found = settled(router_settings=router)
    assert found.config.get("redis", {}).get("url") == url
    assert any("redis" in note.field for note in found.notes)


def test_parts_of_redis_that_are_not_used_are_said() -> None:
    parts = {"redis_host": "h", "redis_port": 1, "redis_password": "p", "redis_ssl": True}
    found = settled(router_settings={"redis_url": "redis://u:9", **parts, "redis_db": ""})
    assert found.config["redis"] == {"url": "redis://u:9"}
    for name in parts:
        said = noted(found, f"router_settings.{name}")
        assert said == "not carried over: router_settings.redis_url is above it"
    assert not noted(found, "router_settings.redis_db")
    alone = settled(router_settings={"redis_password": "p", "redis_ssl": False})
    assert "no redis_host" in noted(alone, "router_settings.redis_password")
    assert not noted(alone, "router_settings.redis_ssl")


@pytest.mark.parametrize(
    ("router", "litellm", "timeouts"),
    [
        ({}, {"request_timeout": 120}, {"first_byte": 120, "first_token": 120, "idle": 120}),
        (
            {},
            {"request_timeout": 900},
            dict.fromkeys(("first_byte", "first_token", "idle", "total"), 900),
        ),
        ({"timeout": "30"}, {"request_timeout": 9}, {"first_byte": 30, "first_token": 30}),
        ({"timeout": 30, "stream_timeout": 5}, {}, {"first_byte": 30, "first_token": 5}),
        ({"stream_timeout": 5}, {}, {"first_byte": 60, "first_token": 5}),
        ({"stream_timeout": 90}, {}, {"first_byte": 90, "first_token": 90, "idle": 90}),
        ({}, {"request_timeout": 0}, None),
        ({}, {"request_timeout": "os.environ/T"}, None),
    ],
)
def test_a_deadline_is_that_of_the_first_byte_a_streams_first_token_and_a_pause(
    router: dict[str, Any], litellm: dict[str, Any], timeouts: dict[str, float] | None
) -> None:
    found = settled(router_settings=router, litellm_settings=litellm)
    assert found.config.get("server", {}).get("timeouts") == timeouts


def test_a_deployments_deadline_is_its_providers() -> None:
    usual = {"router_settings": {"timeout": 30}}
    same = deployed({"model": "openai/x", "timeout": 30}, **usual)
    assert "timeouts" not in same.config["providers"]["openai"]
    longer = deployed({"model": "openai/x", "timeout": 900.5}, **usual)
    own = dict.fromkeys(("first_byte", "first_token", "idle", "total"), 900.5)
    assert longer.config["providers"]["openai"]["timeouts"] == own
    assert longer.config["server"]["timeouts"]["total"] == 2702  # it is asked three times


@pytest.mark.parametrize(
    ("usual", "own", "timeouts"),
    [
        (
            {"timeout": 300},
            {"stream_timeout": 10},
            {"first_byte": 300, "first_token": 10, "idle": 300},
        ),
        (
            {"stream_timeout": 20},
            {"timeout": 100},
            {"first_byte": 100, "first_token": 20, "idle": 100},
        ),
        ({"stream_timeout": 20}, {"request_timeout": 9}, {"first_byte": 20, "first_token": 20}),
        ({"timeout": 300}, {"timeout": 300}, None),
        ({"timeout": 30, "stream_timeout": 5}, {"stream_timeout": 5}, None),
    ],
)
def test_a_deployments_deadlines_are_each_above_the_usual_one(
    usual: dict[str, Any], own: dict[str, Any], timeouts: dict[str, float] | None
) -> None:
    found = deployed({"model": "openai/x", **own}, router_settings=usual)
    assert found.config["providers"]["openai"].get("timeouts") == timeouts


def test_there_is_time_for_every_fallback_and_retry() -> None:
    keys = [{"model": f"openai/{i}", "api_key": "env"} for i in range(3)]
    slow = {"request_timeout": 600, "num_retries": 2}
    found = deployed(*keys, litellm_settings=slow)
    assert found.config["server"]["timeouts"] == {
        **dict.fromkeys(("first_byte", "first_token", "idle"), 600),
        "total": 5400,
    }
    endless = deployed(*keys, litellm_settings={"request_timeout": 604_800})
    assert endless.config["server"]["timeouts"]["total"] == 604_800
    wild = {"model_name": "openai/*", "litellm_params": {"model": "openai/*", "timeout": 900}}
    found = settled(model_list=[wild], litellm_settings={"num_retries": 0})
    assert found.config["server"]["timeouts"] == {"total": 900}


def test_deadlines_that_nobody_says_are_noted_once() -> None:
    own = {"stream_timeout": 5}
    silent: list[dict[str, Any]] = [{"model": "openai/x"}, {"model": "openai/y", **own}]
    said = [note for note in deployed(*silent).notes if "6000 s" in note.text]
    assert [note.field for note in said] == ["router_settings.timeout"]
    for usual in ({"timeout": 30}, {"timeout": 30, "stream_timeout": 5}):
        assert not noted(deployed(*silent, router_settings=usual), "router_settings.timeout")
    longer = deployed({"model": "openai/x", "timeout": 3}, router_settings={"stream_timeout": 5})
    assert "whole reply" in noted(longer, "model_list[0].litellm_params.stream_timeout")


def test_retries_and_cooldowns_are_carried_over() -> None:
    router = {"num_retries": 3, "allowed_fails": 2, "cooldown_time": 400}
    found = settled(router_settings=router, litellm_settings={"num_retries": 1})
    assert found.config["retries"] == {"attempts": 3}
    assert found.config["breaker"] == {"failures": 3, "ejection": 400, "longest": 400}
    assert "is above it" in noted(found, "litellm_settings.num_retries")
    many = settled(litellm_settings={"num_retries": 9, "allowed_fails": 5000})
    assert many.config["retries"] == {"attempts": 5}
    assert many.config["breaker"] == {"failures": 1000}
    assert "5 at most" in noted(many, "litellm_settings.num_retries")
    never = settled(router_settings={"num_retries": 0, "disable_cooldowns": True})
    assert never.config["retries"] == {"attempts": 0}
    assert never.config["breaker"] == {"panic": 0}


def test_what_nobody_says_is_tried_again_as_litellm_does() -> None:
    silent = deployed({"model": "openai/x"})
    assert silent.config["retries"] == {"attempts": 2}
    said = noted(silent, "router_settings.num_retries")
    assert said.startswith("there is none: 2")
    own = deployed({"model": "openai/x"}, litellm_settings={"num_retries": 1})
    assert own.config["retries"] == {"attempts": 1}
    for text in (said, noted(own, "litellm_settings.num_retries")):
        assert "not after timeouts alone" in text
    never = deployed({"model": "openai/x"}, router_settings={"num_retries": 0})
    assert not noted(never, "router_settings.num_retries")


@pytest.mark.parametrize(
    ("litellm", "budget"),
    [
        ({"max_budget": 100, "budget_duration": "30d"}, {"usd": 100, "per": "30d"}),
        ({"max_budget": "2.5", "budget_duration": "1mo"}, {"usd": 2.5, "per": "month"}),
        ({"max_budget": 100}, {"usd": 100, "per": "total"}),
        ({"max_budget": "0.1234567891234"}, {"usd": 0.123457, "per": "total"}),
        ({"max_budget": 100, "budget_duration": "30s"}, None),
        ({"max_budget": 0}, None),
        ({"max_budget": "1e12"}, None),
        ({"budget_duration": "1d"}, None),
    ],
)
def test_a_budget_is_that_of_everybody(litellm: dict[str, Any], budget: Any) -> None:
    found = settled(litellm_settings=litellm)
    assert any("budget" in note.field for note in found.notes)
    if budget is None:
        assert "limits" not in found.config
    else:
        assert found.config["limits"] == {"global": {"budget": budget}}
        assert found.config["pricing"] == {"default": {"input": 0, "output": 0}}


def test_whatever_else_is_set_is_noted_with_a_reason() -> None:
    found = settled(
        router_settings={"retry_policy": {"TimeoutErrorRetries": 3}, "retry_after": 3, "x": 1},
        litellm_settings={"callbacks": ["a"]},
        general_settings={"database_url": "postgres://u:p@h/d", "max_parallel_requests": 5, "y": 0},
        environment_variables={"REDIS_HOST": "h", "SECRET": "s3cret"},
        guardrails=[{}],
        include=["other.yaml"],
        z={"a": 1},
    )
    fields = {note.field for note in found.notes if note.text.startswith("not carried over: ")}
    assert fields == {
        *("router_settings.retry_policy", "router_settings.retry_after", "router_settings.x"),
        "litellm_settings.callbacks",
        *("general_settings.database_url", "general_settings.max_parallel_requests"),
        *("general_settings.y", "environment_variables.REDIS_HOST", "environment_variables.SECRET"),
        *("guardrails", "include", "z"),
    }
    assert "s3cret" not in str(found.notes)
    assert found.config == {}


@pytest.mark.parametrize("section", ["litellm_params", "model_info"])
def test_prices_that_are_not_carried_over_are_said_to_be_prices(section: str) -> None:
    names = (
        *("input_cost_per_second", "input_cost_per_token_above_200k_tokens", "tiered_pricing"),
        *("output_cost_per_reasoning_token", "cache_read_input_token_cost_flex"),
    )
    own = {"model": "openai/x", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}
    entry: dict[str, Any] = {"model_name": "m", "litellm_params": own, "model_info": {}}
    entry[section] |= dict.fromkeys(names, 1)
    found = settled(model_list=[entry])
    assert targets(found)[0]["price"] == {"input": 1, "output": 1}
    for name in names:
        said = noted(found, f"model_list[0].{section}.{name}")
        assert said.startswith("not carried over: this price is left out")


def test_what_is_off_or_empty_is_no_loss() -> None:
    found = settled(
        litellm_settings={"cache": False, "callbacks": [], "drop_params": False, "x": None},
        general_settings={"database_url": None, "master_key": "os.environ/KEY"},
    )
    assert [note.field for note in found.notes] == ["general_settings.master_key"]


def test_a_size_of_requests_is_in_bytes() -> None:
    found = settled(general_settings={"max_request_size_mb": 2, "master_key": "sk-1234"})
    assert found.config["server"] == {"max_request_size": 2_097_152}


@pytest.mark.parametrize(
    ("litellm", "cache", "lost"),
    [
        ({"cache": True}, {"enabled": True, "requests": "all", "ttl": 60}, set()),
        (
            {"cache": "true", "cache_params": {"type": "redis", "ttl": 600, "host": "h"}},
            {"enabled": True, "requests": "all", "ttl": 600},
            {"host"},
        ),
        (
            {"cache": True, "cache_params": {"type": "local", "supported_call_types": ["x"]}},
            {"enabled": True, "requests": "all", "ttl": 600, "redis": False},
            {"supported_call_types"},
        ),
        (
            {"cache": True, "cache_params": {"type": "redis-semantic", "ttl": -1}},
            {"enabled": True, "requests": "all"},
            {"type", "ttl"},
        ),
        ({"cache": True, "cache_params": {"mode": "default_off"}}, None, {"mode"}),
        ({"cache": False, "cache_params": {"type": "redis"}}, None, set()),
    ],
)
def test_the_cache_is_carried_over(
    litellm: dict[str, Any], cache: dict[str, Any] | None, lost: set[str]
) -> None:
    found = settled(litellm_settings=litellm)
    assert found.config.get("cache") == cache
    texts = {note.field.rpartition(".")[2] for note in found.notes if "not carried" in note.text}
    assert texts == lost


@pytest.mark.parametrize(
    ("params", "others", "ttl", "lost"),
    [
        ({}, {"default_redis_ttl": 30}, 30, set()),
        ({"ttl": 600}, {"default_redis_ttl": 30}, 600, set()),
        ({"default_in_redis_ttl": 90}, {}, 90, set()),
        ({"ttl": 600, "default_in_redis_ttl": 90}, {}, 90, {"ttl"}),
        ({"default_in_memory_ttl": 90}, {}, 60, {"default_in_memory_ttl"}),
        ({"type": "local", "default_in_memory_ttl": 90}, {}, 90, set()),
        ({"type": "local", "default_in_redis_ttl": 90}, {}, 600, {"default_in_redis_ttl"}),
        ({"type": "redis-semantic", "default_in_redis_ttl": 90}, {}, 90, {"type"}),
        ({"type": "disk"}, {}, None, {"type"}),
    ],
)
def test_an_answer_is_kept_for_as_long_as_litellm_keeps_it(
    params: dict[str, Any], others: dict[str, Any], ttl: int | None, lost: set[str]
) -> None:
    found = settled(litellm_settings={"cache": True, "cache_params": params, **others})
    assert found.config["cache"].get("ttl") == ttl
    texts = {note.field.rpartition(".")[2] for note in found.notes if "not carried" in note.text}
    assert texts == lost
    said = noted(found, "litellm_settings.cache_params.ttl")
    assert ("for good; here 3600 s" in said) == (ttl is None)

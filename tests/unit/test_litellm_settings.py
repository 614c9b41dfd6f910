"""LiteLLM's settings: the master key, Redis, deadlines, retries, budgets; and what is noted."""

import hashlib
from typing import Any

import pytest

from tests.support.litellm import deployed, noted, settled


def test_the_master_key_goes_on_opening_everything() -> None:
    key = "env:LITELLM_MASTER_KEY"
    found = settled(general_settings={"master_key": "os.environ/LITELLM_MASTER_KEY"})
    assert found.config["auth"] == {"admin_key": key, "keys": [{"name": "master", "key": key}]}
    clear = "sk-0123456789abcdef"
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


@pytest.mark.parametrize(
    ("router", "litellm", "timeouts"),
    [
        ({}, {"request_timeout": 120}, {"first_byte": 120, "first_token": 120}),
        ({}, {"request_timeout": 900}, {"first_byte": 900, "first_token": 900, "total": 900}),
        ({"timeout": "30"}, {"request_timeout": 9}, {"first_byte": 30, "first_token": 30}),
        ({"timeout": 30, "stream_timeout": 5}, {}, {"first_byte": 30, "first_token": 5}),
        ({"stream_timeout": 5}, {}, {"first_byte": 60, "first_token": 5}),
        ({"stream_timeout": 90}, {}, {"first_byte": 90, "first_token": 90}),
        ({}, {"request_timeout": 0}, None),
        ({}, {"request_timeout": "os.environ/T"}, None),
    ],
)
def test_a_deadline_is_that_of_the_first_byte_and_of_a_streams_first_token(
    router: dict[str, Any], litellm: dict[str, Any], timeouts: dict[str, float] | None
) -> None:
    found = settled(router_settings=router, litellm_settings=litellm)
    assert found.config.get("server", {}).get("timeouts") == timeouts


def test_a_deployments_deadline_is_its_providers() -> None:
    usual = {"router_settings": {"timeout": 30}}
    same = deployed({"model": "openai/x", "timeout": 30}, **usual)
    assert "timeouts" not in same.config["providers"]["openai"]
    longer = deployed({"model": "openai/x", "timeout": 900.5}, **usual)
    own = {"first_byte": 900.5, "first_token": 900.5}
    assert longer.config["providers"]["openai"]["timeouts"] == own
    assert longer.config["server"]["timeouts"]["total"] == 900.5


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
        ({"cache": True}, {"enabled": True, "requests": "all"}, set()),
        (
            {"cache": "true", "cache_params": {"type": "redis", "ttl": 600, "host": "h"}},
            {"enabled": True, "requests": "all", "ttl": 600},
            {"host"},
        ),
        (
            {"cache": True, "cache_params": {"type": "local", "supported_call_types": ["x"]}},
            {"enabled": True, "requests": "all", "redis": False},
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

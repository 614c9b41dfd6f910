"""Who a key is, and which models it may use."""

import hashlib

import msgspec
import pytest

from gateway.config.load import load_text
from gateway.core.errors import ApiError
from gateway.pipeline.keyring import Keyring
from gateway.policy.access import Principal, may_use
from gateway.policy.limits import Rates, limits

KEYS = """
auth:
  keys:
    - {name: ci, tenant: acme, key: env:CI, models: [gpt-4o-mini, "claude-*"], rpm: 600, burst: 9}
    - {name: dev, key: env:DEV}
limits: {default: {rpm: 5, tpm: 50}}
tenants: {acme: {rpm: 6000, tpm: 1000}}
"""
ENVIRON = {"CI": "sk-ci-0123456", "DEV": "sk-dev-012345"}


def keyring(text: str = KEYS) -> Keyring:
    return Keyring(load_text(text, "t", ENVIRON))


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        (("*",), ["gpt-4o", "a/b", ""], []),
        ((), [], ["gpt-4o"]),
        (("gpt-4o",), ["gpt-4o"], ["gpt-4o-mini", "GPT-4o", "openai/gpt-4o", "gpt-4"]),
        (("gpt-*", "o1"), ["gpt-", "gpt-5", "o1"], ["o1-mini", "xgpt-5"]),
        (("openai/*",), ["openai/gpt-5", "openai/a/b"], ["gpt-5", "azure/gpt-5"]),
        (("o?",), ["o1"], ["o", "o12"]),
        (("a[1]",), ["a[1]", "a1"], ["a2"]),
        (("gpt-4.1",), ["gpt-4.1"], ["gpt-4x1"]),
    ],
)
def test_allowlists_have_wildcards(
    patterns: tuple[str, ...], allowed: list[str], refused: list[str]
) -> None:
    holder = Principal("k", "t", patterns, ())
    assert [model for model in allowed if not may_use(holder, model)] == []
    assert [model for model in refused if may_use(holder, model)] == []


@pytest.mark.parametrize(
    ("pattern", "model", "full_names", "limited"),
    [
        ("gpt-*", "gpt-5", (), True),
        ("gpt-*", "p/gpt-5", (), True),
        ("gpt-*", "o3", ("p/o3",), False),
        ("p/*", "p/gpt-5", (), True),
        ("p/*", "gpt-5", ("p/gpt-5",), True),
        ("p/gpt-5", "gpt-5", ("q/gpt-5", "p/gpt-5"), True),
        ("p/*", "gpt-5", ("q/gpt-5",), False),
        ("p/*", "gpt-5", (), False),
        ("p/*", "org/llama", ("p/org/llama",), True),
        ("claude-sonnet[1m]", "claude-sonnet[1m]", (), True),
        ("claude-sonnet[1m]", "p/claude-sonnet[1m]", (), True),
        ("claude-sonnet[1m]", "claude-sonnetm", (), True),
        ("claude-sonnet[1m]", "claude-sonnet", (), False),
        ("*", "a/b", ("c/b",), True),
    ],
)
def test_a_limit_of_a_model_holds_for_all_its_names(
    pattern: str, model: str, full_names: tuple[str, ...], limited: bool
) -> None:
    (one,) = limits("key", "x", Rates(rpm=1))
    holder = Principal("k", "t", ("*",), (), ((pattern, (one,), ()),))
    applied = (one,) if limited else ()
    assert holder.limits_for(model, full_names) == applied
    assert [grant.limit for grant in holder.counts(model, full_names, 0.0)] == [*applied]


def holder(ring: Keyring, secret: str | None) -> Principal:
    found = ring.find(secret)
    assert found is not None
    return found


def test_a_secret_finds_its_holder_with_every_limit_that_applies() -> None:
    ci = holder(keyring(), ENVIRON["CI"])
    assert (ci.key, ci.tenant, ci.models) == ("ci", "acme", ("gpt-4o-mini", "claude-*"))
    shown = [(b.name, b.capacity, b.per_minute, b.scope) for b in ci.limits]
    assert shown == [
        ("sluice:limit:{acme}:key:ci:rpm", 9, 600, "key"),
        ("sluice:limit:{acme}:key:ci:tpm", 50, 50, "key"),
        ("sluice:limit:{acme}:tenant:rpm", 6000, 6000, "tenant"),
        ("sluice:limit:{acme}:tenant:tpm", 1000, 1000, "tenant"),
    ]
    dev = holder(keyring(), ENVIRON["DEV"])
    assert (dev.key, dev.tenant, dev.models) == ("dev", "default", ("*",))
    assert [b.scope for b in dev.limits] == ["key", "key"]


def test_limits_can_be_switched_off() -> None:
    off = KEYS.replace("limits: {", "limits: {enabled: false, ")
    assert holder(keyring(off), ENVIRON["CI"]).limits == ()


@pytest.mark.parametrize(
    ("secret", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("sk-ci-0123457", "invalid_api_key"),
        ("sk-ci-0123456 ", "invalid_api_key"),
        (hashlib.sha256(b"sk-ci-0123456").hexdigest(), "invalid_api_key"),
        ("\udcff\udcfe", "invalid_api_key"),
        ("x" * 100_000, "invalid_api_key"),
    ],
)
def test_any_other_secret_is_refused(secret: str | None, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        keyring().find(secret)
    assert (caught.value.code, caught.value.status) == (code, 401)
    assert not secret or secret not in caught.value.message


def test_without_authentication_everyone_is_anonymous_under_the_default_limits() -> None:
    open_to_all = keyring("limits: {default: {rpm: 5}}")
    for secret in (None, "", "anything"):
        found = holder(open_to_all, secret)
        assert (found.key, found.tenant, found.models) == ("anonymous", "default", ("*",))
        names = [b.name for b in found.limits]
        assert names == ["sluice:limit:{default}:key:anonymous:rpm"]


def test_no_secret_is_held() -> None:
    held = repr(vars(keyring()))
    assert not any(secret in held for secret in ENVIRON.values())


def test_limits_of_one_request_count_as_those_of_a_key_do() -> None:
    ci = holder(keyring(), ENVIRON["CI"])
    (rpm, tpm, *_) = ci.limits
    found = msgspec.structs.replace(ci, by_model=(("*", (), ()),)).limited_to((tpm, rpm))
    assert (found.limits_for("any"), found.key) == ((tpm, rpm), "ci")
    assert [grant.limit for grant in found.counts("any", (), 0.0)] == [rpm]

"""Bodies that make no key: each is refused in OpenAI's shape, naming what is wrong."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.admin import ADMIN_KEY, admin, make
from tests.support.config import KEY, config, digest
from tests.support.gateway import Gateway, running
from tests.support.wire import ask, chunked, head_of

NAMED = {"name": "a"}
# What is wrong, and the parameter that the answer names.
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "name"),
    ({"name": ""}, "name"),
    ({"name": None}, "name"),
    ({"name": "x" * 65}, "name"),
    ({"tenant": 5}, "tenant"),
    ({"tenant": "a}b"}, "tenant"),
    ({"models": "m"}, "models"),
    ({"models": [""]}, "models[0]"),
    ({"models": ["m", 5]}, "models[1]"),
    ({"rpm": "5"}, "rpm"),
    ({"rpm": 0}, "rpm"),
    ({"rpm": -1}, "rpm"),
    ({"rpm": 1.5}, "rpm"),
    ({"rpm": True}, "rpm"),
    ({"burst": []}, "burst"),
    ({"tpm": {}}, "tpm"),
    ({"concurrency": "many"}, "concurrency"),
    ({"expires": -1}, "expires"),
    ({"expires": "tomorrow"}, "expires"),
    ({"labels": ["team"]}, "labels"),
    ({"labels": {str(n): "x" for n in range(9)}}, "labels"),
    ({"shadow": ["budget"]}, "shadow[0]"),
    ({"budget": 5}, "budget"),
    ({"budget": {"per": "day"}}, "budget.usd"),
    ({"per_model": []}, "per_model"),
]
# What is wrong, and what the answer's message says of it.
MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"nonsense": 1}, "nonsense"),
    ({"sha256": "0" * 64}, "sha256"),
    ({"id": "key_0"}, "id"),
    ({"revoked": 0}, "revoked"),
    ({"labels": {"team": 1}}, "labels"),
    ({"labels": {"a b": "x"}}, "labels"),
    ({"labels": {"team": "x=y"}}, "labels"),
    ({"per_model": {"m": {"rpm": 0}}}, "per_model"),
    ({"per_model": {"m": {"budget": {"usd": 0}}}}, "per_model.m.budget.usd"),
    ({"budget": {"usd": 5, "per": "year"}}, "budget.per"),
    ({"budget": {"usd": 5, "per": "30s"}}, "budget.per"),
    ({"budget": {"usd": "five"}}, "budget.usd"),
    ({"budget": {"usd": 0}}, "budget.usd"),
    ({"budget": {"usd": -5}}, "budget.usd"),
    ({"budget": [{"usd": 5}, {"usd": 6}]}, "budget"),
    ({"budget": {"usd": 5, "currency": "EUR"}}, "currency"),
]
# What is wrong, the parameter, and what it may be.
_A_NAME = "expected up to 64 letters, digits and . _ -, of which the first is a letter or digit"
_A_LABEL = "expected 1 to 64 letters, digits and . _ -"
_COUNT = "expected a whole number, at least 1"
WORDS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "a b"}, "name", _A_NAME),
    ({"rpm": 0}, "rpm", _COUNT),
    ({"per_model": {"m": {"rpm": 1}, "p/x.1*": {"rpm": 0}}}, "per_model.p/x.1*.rpm", _COUNT),
    ({"labels": {"team": "y z"}}, "labels.team", _A_LABEL),
    ({"labels": {"a b": "x"}}, "labels.a b", _A_LABEL),
    ({"shadow": ["usd"]}, "shadow[0]", "expected concurrency, rpm or tpm, got 'usd'"),
    ({"cache": {"bill": "each"}}, "cache.bill", "unknown field"),
    ({"models": [""]}, "models[0]", "expected a length of at least 1"),
]
BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "invalid_json"),
    (b"not", 400, "invalid_json"),
    (b'{"name":"a"', 400, "invalid_json"),
    (b'{"name":"a"} x', 400, "invalid_json"),
    (b'{"name":"\xff\xfe"}', 400, "invalid_json"),
    (b"[" * 50_000, 400, "invalid_json"),
    (b'{"name":"a","labels":' + b'{"a":' * 20_000, 413, "request_too_large"),
    (b"null", 400, "invalid_value"),
    (b"[]", 400, "invalid_value"),
    (b'["name","a"]', 400, "invalid_value"),
    (b'"a"', 400, "invalid_value"),
    (b'{"name":"a"}' + b" " * 65_536, 413, "request_too_large"),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that nobody chats with."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    text = config("http://127.0.0.1:9/v1", auth={"admin_key": ADMIN_KEY, "keys": [static]})
    with running(text, workers=2) as started:
        yield started


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The id of the key that changes are tried on."""
    return {}


async def each_way(gateway: Gateway, made: dict[str, str]) -> list[tuple[str, str]]:
    """Making a key and changing one."""
    if not made:
        made["id"], _ = await make(gateway)
    return [("POST", "/keys"), ("PATCH", f"/keys/{made['id']}")]


async def count(gateway: Gateway) -> int:
    """How many keys there are."""
    return len((await admin(gateway, "GET", "/keys")).json["data"])


@pytest.mark.parametrize(("wrong", "field"), FIELDS)
async def test_a_wrong_value_is_refused_by_its_name(
    gateway: Gateway, made: dict[str, str], wrong: dict[str, Any], field: str
) -> None:
    for method, path in await each_way(gateway, made):
        before = await count(gateway)
        reply = await admin(gateway, method, path, {**NAMED, **wrong})
        assert reply.status == 400
        assert reply.error["code"] in ("invalid_value", "missing_required_parameter")
        assert reply.error["param"] == field
        assert await count(gateway) == before


@pytest.mark.parametrize(("wrong", "field", "said"), WORDS)
async def test_a_wrong_value_is_explained_in_words(
    gateway: Gateway, made: dict[str, str], wrong: dict[str, Any], field: str, said: str
) -> None:
    for method, path in await each_way(gateway, made):
        reply = await admin(gateway, method, path, {**NAMED, **wrong})
        assert (reply.status, reply.error["param"]) == (400, field)
        assert reply.error["message"] == f"Invalid value for '{field}': {said}."


@pytest.mark.parametrize(("wrong", "said"), MESSAGES)
async def test_what_cannot_be_is_refused_with_the_reason(
    gateway: Gateway, made: dict[str, str], wrong: dict[str, Any], said: str
) -> None:
    for method, path in await each_way(gateway, made):
        before = await admin(gateway, "GET", "/keys")
        reply = await admin(gateway, method, path, {**NAMED, **wrong})
        assert (reply.status, reply.error["code"]) == (400, "invalid_value")
        assert said in reply.error["message"]
        assert (await admin(gateway, "GET", "/keys")).json == before.json


async def test_a_key_without_a_name_is_refused(gateway: Gateway) -> None:
    reply = await admin(gateway, "POST", "/keys", {"tenant": "acme"})
    assert (reply.status, reply.error["code"]) == (400, "missing_required_parameter")
    assert reply.error["param"] == "name"


@pytest.mark.parametrize(("body", "status", "code"), BODIES)
async def test_a_body_that_is_no_object_is_refused(
    gateway: Gateway, made: dict[str, str], body: bytes, status: int, code: str
) -> None:
    for method, path in await each_way(gateway, made):
        before = await count(gateway)
        reply = await admin(gateway, method, path, body)
        assert (reply.status, reply.error["code"]) == (status, code)
        assert await count(gateway) == before


@pytest.mark.parametrize("blocked", [1, 0, "true", [], {}])
async def test_blocked_is_true_or_false(
    gateway: Gateway, made: dict[str, str], blocked: object
) -> None:
    _, (method, path) = await each_way(gateway, made)
    reply = await admin(gateway, method, path, {"blocked": blocked})
    assert (reply.status, reply.error["param"]) == (400, "blocked")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"grace_seconds": -1}, 400, "grace_seconds"),
        ({"grace_seconds": "1"}, 400, "grace_seconds"),
        ({"grace_seconds": 1.5}, 400, "grace_seconds"),
        ({"grace_seconds": None}, 400, "grace_seconds"),
        ({"grace": 1}, 400, "grace"),
        ([], 400, None),
        (b"{", 400, None),
        (b"\xff", 400, None),
    ],
)
async def test_a_rotation_that_makes_no_sense_changes_nothing(
    gateway: Gateway, made: dict[str, str], body: Any, status: int, param: str | None
) -> None:
    _, (_, path) = await each_way(gateway, made)
    before = (await admin(gateway, "GET", path)).json
    reply = await admin(gateway, "POST", f"{path}/rotate", body)
    assert (reply.status, reply.error["param"]) == (status, param)
    assert (await admin(gateway, "GET", path)).json == before


async def test_a_body_in_chunks_is_read_like_any_other(gateway: Gateway) -> None:
    head = head_of("Transfer-Encoding: chunked", path="/admin/keys", key=ADMIN_KEY)
    reply = await ask(gateway.port, head + chunked(b'{"name":', b'"chunked"}'))
    assert (reply.status, reply.json["name"]) == (201, "chunked")

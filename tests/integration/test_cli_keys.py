"""`sluice keys` as an operator runs it, beside a gateway that serves."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store import names
from tests.support.admin import everywhere, until_all, use
from tests.support.command import failed, run, sluice
from tests.support.config import KEY, PRICED_MODEL, config, digest
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """Two workers; `own` costs a fraction of a micro-dollar a token, `bounded` has limits."""
    static = {"name": "k", "tenant": "acme", "sha256": digest(KEY)}
    target = {"provider": "p0", "model": PRICED_MODEL}
    price = {"input": "3.3", "output": "15.7"}
    with UpstreamThread() as upstream:
        text = config(
            upstream.url,
            auth={"keys": [static]},
            tenants={"bounded": {"rpm": 100, "budget": {"usd": 5, "per": "day"}}},
            models={"m": {"targets": [target]}, "own": {"targets": [target], "price": price}},
        )
        with running(text, workers=2) as started:
            yield started


def shown(text: str) -> dict[str, str]:
    """A record as it is printed for people."""
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def created(gateway: Gateway, *words: str) -> dict[str, Any]:
    """Make a key of tenant acme."""
    text = run(gateway, "keys", "create", "--name", "cli", "--tenant", "acme", "--json", *words)
    found: dict[str, Any] = json.loads(text)
    return found


# -- keys --------------------------------------------------------------------------------------


async def test_a_key_is_made_with_all_that_is_asked(gateway: Gateway) -> None:
    words = ["--tenant", "bounded", "--model", "m", "--model", "o*", "--rpm", "90", "--burst", "9"]
    words += ["--tpm", "9000", "--concurrency", "7", "--budget", "4.5/day", "--budget", "250/30d"]
    words += ["--label", "team=x", "--label", "env=prod", "--expires", "12h"]
    words += ["--cache", "off", "--cache-ttl", "90s"]
    record = created(gateway, *words)
    wanted = {
        "name": "cli",
        "tenant": "bounded",
        "models": ["m", "o*"],
        "rpm": 90,
        "burst": 9,
        "tpm": 9000,
        "concurrency": 7,
        "labels": {"team": "x", "env": "prod"},
    }
    assert {name: record[name] for name in wanted} == wanted
    assert [(b["usd"], b["per"]) for b in record["budget"]] == [("4.5", "day"), ("250", "30d")]
    assert 0 <= record["created"] + 43_200 - record["expires"] <= 1
    assert record["cache"] == {"enabled": False, "ttl": 90}
    assert (await use(gateway, record["key"])).status == 200


async def test_a_key_is_printed_for_people_too(gateway: Gateway) -> None:
    words = ("--name", "plain", "--label", "team=x", "--expires", "1d")
    record = shown(run(gateway, "keys", "create", *words))
    assert (record["name"], record["labels"]) == ("plain", '{"team": "x"}')
    assert record["expires"].endswith("Z")
    assert (await use(gateway, record["key"])).status == 200
    again = shown(run(gateway, "keys", "show", record["id"]))
    secret = record.pop("key")
    assert again.pop("last_used") != record.pop("last_used") == "never"
    assert again == record
    assert again["sha256"] == digest(secret)


def test_a_key_that_ended_long_ago_is_shown_with_its_end(gateway: Gateway) -> None:
    key_id = created(gateway)["id"]
    assert "expires" not in shown(run(gateway, "keys", "show", key_id))
    with contextlib.closing(gateway.store) as store:  # as the admin API would, `expires: 0`
        store.hset(names.key(key_id), "expires", 0)
    assert shown(run(gateway, "keys", "show", key_id))["expires"] == "1970-01-01 00:00:00Z"


def test_keys_are_listed_by_tenant_with_their_state(gateway: Gateway) -> None:
    ids = {}
    for state in ("active", "blocked", "revoked", "expired"):
        words = ["--expires", "0s"] if state == "expired" else []
        ids[state] = created(gateway, "--tenant", "listed", "--name", state, *words)["id"]
    run(gateway, "keys", "update", ids["blocked"], "--block")
    run(gateway, "keys", "revoke", ids["revoked"])
    head, *lines = run(gateway, "keys", "list", "--tenant", "listed").splitlines()
    assert head.split() == ["ID", "NAME", "TENANT", "STATE", "LAST", "USED"]
    found = {tuple(line.split()) for line in lines}
    assert found == {(ids[s], s, "listed", s, "never") for s in ids}
    everyone = json.loads(run(gateway, "keys", "list", "--json"))
    assert {one["id"] for one in everyone} >= set(ids.values())
    assert json.loads(run(gateway, "keys", "list", "--json", "--tenant", "nobody")) == []


async def test_a_key_is_changed_blocked_and_unblocked(gateway: Gateway) -> None:
    record = created(gateway, "--label", "team=x", "--rpm", "5000")
    key_id, secret = record["id"], record.pop("key")
    assert await everywhere(gateway, secret) == {200}
    text = run(gateway, "keys", "update", key_id, "--json", "--block", "--name", "changed")
    expected = {**record, "name": "changed", "blocked": True}
    assert {**json.loads(text), "last_used": 0} == expected
    await until_all(gateway, secret, 401)
    run(gateway, "keys", "update", key_id, "--unblock", "--model", "own")
    await until_all(gateway, secret, 403)
    after = json.loads(run(gateway, "keys", "show", key_id, "--json"))
    expected |= {"blocked": False, "models": ["own"], "last_used": after["last_used"]}
    assert after == expected


async def test_a_secret_is_shown_by_create_and_rotate_alone(gateway: Gateway) -> None:
    record = created(gateway)
    key_id, first = record["id"], record["key"]
    second = json.loads(run(gateway, "keys", "rotate", key_id, "--json", "--grace", "10m"))["key"]
    assert await everywhere(gateway, first) | await everywhere(gateway, second) == {200}
    code, said = failed(gateway, "keys", "rotate", key_id, "--grace", "4000d")
    assert (code, "at most 3660d" in said) == (2, True)
    third = shown(run(gateway, "keys", "rotate", key_id, "--grace", "0s"))["key"]
    await until_all(gateway, second, 401)
    assert await everywhere(gateway, third) == {200}
    later = [("show", key_id), ("list",), ("update", key_id, "--rpm", "9"), ("revoke", key_id)]
    printed = [run(gateway, "keys", *words, *mode) for words in later for mode in ((), ("--json",))]
    logged = gateway.log_file.read_text() + gateway.errors
    for secret in (first, second, third):
        assert secret.startswith("sk-sluice-")
        assert secret not in "".join(printed) + logged
    await until_all(gateway, third, 401)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--rpm", "0"), "rpm"),
        (("--rpm", "many"), "--rpm"),
        (("--tpm", "-1"), "tpm"),
        (("--name", "a b"), "name"),
        (("--tenant", "{}"), "tenant"),
        (("--budget", "free"), "--budget"),
        (("--budget", "5/year"), "budget.per"),
        (("--budget", "0"), "budget.usd"),
        (("--budget", "1/day", "--budget", "2/day"), "same period"),
        (("--label", "team"), "--label"),
        (("--label", "a b=c"), "--label"),
        (("--expires", "tomorrow"), "--expires"),
        (("--model", ""), "--model"),
        (("--tenant", "bounded", "--rpm", "101"), "rpm: 101 is above the tenant's 100"),
        (("--tenant", "bounded", "--budget", "5.01/day"), "budget"),
        (("--no-such-thing",), "--no-such-thing"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    gateway: Gateway, words: tuple[str, ...], reason: str
) -> None:
    before = run(gateway, "keys", "list", "--json")
    code, said = failed(gateway, "keys", "create", "--name", "a", *words)
    assert code == 2
    assert reason in said
    assert run(gateway, "keys", "list", "--json") == before


@pytest.mark.parametrize("action", ["show", "update", "rotate", "revoke"])
def test_an_id_that_nobody_has_is_an_error(gateway: Gateway, action: str) -> None:
    assert failed(gateway, "keys", action, "key_0") == (1, "sluice: there is no key 'key_0'.")


def test_without_a_gateway_the_command_asks_for_one() -> None:
    with tempfile.TemporaryDirectory(prefix="sluice-test-") as directory:
        for words in (("list",), ("create", "--name", "a"), ("show", "key_0")):
            done = sluice(Path(directory), None, "keys", *words)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.endswith("Is the gateway running?\n")
            assert "Traceback" not in done.stderr
        done = sluice(Path(directory), None, "usage")
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (1, "", False)

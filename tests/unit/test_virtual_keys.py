"""A virtual key's record: how it is kept, how long a secret is good, how many are remembered."""

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.schema import Auth, Budget, Config, Key, KeySettings, Limit
from gateway.core.errors import ApiError, StoreError
from gateway.pipeline.keyring import MAX_REMEMBERED, Keyring
from gateway.store.keys import VirtualKey, VirtualKeys, decode, encode, new_secret, sha256

NOW = 1_800_000_000.0
CURRENT, PREVIOUS, STRANGER = (hashlib.sha256(t).hexdigest() for t in (b"1", b"0", b"?"))

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
label = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
count = st.integers(1, 10**12) | st.none()
kinds = st.lists(st.sampled_from(("rpm", "tpm", "concurrency")), unique=True).map(tuple)
amounts = st.floats(0, 1e9) | st.decimals(0, 10**9, places=6).map(str)
budget = st.builds(
    Budget,
    usd=amounts,
    per=st.sampled_from(("day", "week", "month", "total", "30d", "90m")),
    shadow=st.booleans(),
)
limit = {
    "rpm": count,
    "burst": count,
    "tpm": count,
    "concurrency": count,
    "budget": budget | st.lists(budget, max_size=3).map(tuple),
    "shadow": kinds,
}
settings = st.builds(
    KeySettings,
    name=names,
    tenant=names,
    models=st.lists(st.text(min_size=1, max_size=20), max_size=4).map(tuple),
    labels=st.dictionaries(label, label, max_size=8),
    expires=st.none() | st.floats(0, 2.5e11) | st.integers(0, 2 * 10**11),
    per_model=st.dictionaries(st.text(max_size=20), st.builds(Limit, **limit), max_size=3),
    **limit,
)
moment = st.integers(0, 10**12)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
records = st.builds(
    VirtualKey,
    id=st.from_regex(r"key_[0-9a-f]{16}", fullmatch=True),
    settings=settings,
    sha256=digests,
    created=moment,
    previous_sha256=digests | st.just(""),
    previous_until=moment,
    last_used=moment,
    blocked=st.booleans(),
    revoked=moment,
)


def stored(record: VirtualKey) -> dict[bytes, bytes]:
    """What Redis gives back of a record."""
    flat = {name.encode(): value.encode() for name, value in encode(record).items()}
    return flat | {b"last_used": str(record.last_used).encode()}


def a_record(**fields: Any) -> VirtualKey:
    """A record with a secret and the one before."""
    given = {"settings": KeySettings(name="a"), **fields}
    return VirtualKey(id="key_0", sha256=CURRENT, created=1, previous_sha256=PREVIOUS, **given)


# -- how it is kept ------------------------------------------------------------------------------


@given(records)
def test_a_record_comes_back_as_it_was_kept(record: VirtualKey) -> None:
    assert decode(stored(record)) == record


@given(records)
def test_a_record_is_text_that_people_can_read(record: VirtualKey) -> None:
    flat = encode(record)
    assert all(isinstance(value, str) for value in flat.values())
    assert (flat["name"], flat["tenant"]) == (record.settings.name, record.settings.tenant)
    assert json.loads(flat["models"]) == list(record.settings.models)
    assert "last_used" not in flat  # or a change would undo what other workers note


@given(records)
def test_what_is_shown_of_a_record_is_json_without_the_secret_before(record: VirtualKey) -> None:
    shown = json.loads(msgspec.json.encode(record.public()))
    own = ["sha256", "created", "previous_until", "last_used", "blocked", "revoked"]
    assert set(shown) == {"id", *KeySettings.__struct_fields__, *own}
    assert [shown[name] for name in own] == [getattr(record, name) for name in own]


NEEDED = ["id", "name", "sha256", "created", "previous_sha256", "previous_until", "revoked"]


@pytest.mark.parametrize("missing", [*NEEDED, "blocked"])
def test_a_hash_that_lacks_a_field_is_no_record(missing: str) -> None:
    flat = stored(a_record())
    del flat[missing.encode()]
    assert decode(flat) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "a b"),
        ("tenant", "a}b"),
        ("models", "m"),
        ("models", "5"),
        ("models", '["m"'),
        ("labels", '{"a b":"x"}'),
        ("rpm", "0"),
        ("rpm", '"5"'),
        ("rpm", ""),
        ("budget", '{"usd":5,"nonsense":1}'),
        ("budget", "5"),
        ("per_model", "[]"),
        ("expires", "-1"),
        ("created", "yesterday"),
        ("created", ""),
        ("created", "1.5"),
        ("previous_until", "null"),
        ("revoked", ""),
        ("last_used", "x"),
    ],
)
def test_a_hash_with_a_damaged_field_is_no_record(name: str, value: str) -> None:
    assert decode({**stored(a_record()), name.encode(): value.encode()}) is None


@given(st.dictionaries(st.sampled_from(sorted(encode(a_record()))), st.text(max_size=30)))
def test_no_text_in_a_hash_is_more_than_no_record(damage: dict[str, str]) -> None:
    changed = {name.encode(): value.encode() for name, value in damage.items()}
    assert isinstance(decode(stored(a_record()) | changed), VirtualKey | None)


def test_an_empty_hash_and_one_that_only_says_when_it_was_used_are_no_records() -> None:
    assert decode({}) is None
    assert decode({b"last_used": b"1800000000"}) is None


def test_a_record_of_before_a_setting_was_known_has_its_default() -> None:
    flat = stored(a_record())
    del flat[b"labels"], flat[b"shadow"], flat[b"last_used"]
    assert decode(flat) == a_record()


# -- how long a secret is good -------------------------------------------------------------------

FOREVER = float("inf")


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("revoked", [0, 1])
@pytest.mark.parametrize("expires", [None, 0, NOW - 1, NOW, NOW + 50])
@pytest.mark.parametrize("grace", [0, int(NOW) - 1, int(NOW), int(NOW) + 10, int(NOW) + 100])
def test_a_secret_is_good_until_the_first_of_its_ends(
    blocked: bool, revoked: int, expires: float | None, grace: int
) -> None:
    named = KeySettings(name="a", expires=expires)
    record = a_record(settings=named, previous_until=grace, blocked=blocked, revoked=revoked)
    dead = blocked or bool(revoked)
    end = FOREVER if expires is None else expires
    for digest, until in ((CURRENT, end), (PREVIOUS, min(end, grace)), (STRANGER, 0), ("", 0)):
        assert record.good_until(digest, NOW) == (0 if dead or until <= NOW else until)


def test_a_key_that_never_rotated_has_no_secret_before() -> None:
    record = VirtualKey(id="key_0", settings=KeySettings(name="a"), sha256=CURRENT, created=1)
    assert record.good_until(CURRENT, NOW) == FOREVER
    for digest in ("", PREVIOUS, STRANGER):
        assert record.good_until(digest, NOW) == 0


def test_secrets_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(secret.startswith("sk-sluice-") and len(secret) == 53 for secret in made)
    assert sha256("sk-a") == hashlib.sha256(b"sk-a").hexdigest()


# -- how many are remembered ---------------------------------------------------------------------


class Store:
    """Stands for the virtual keys in Redis: one secret is known."""

    def __init__(self) -> None:
        self.asked, self.noted, self.down = 0, 0, False
        self.looked = 0

    async def find(self, digest: str) -> VirtualKey | None:
        """Count, and know one."""
        self.asked += 1
        if self.down:
            raise StoreError("away")
        return a_record() if digest == CURRENT else None

    async def version(self) -> int:
        """Count; where it is down, say nothing for ever the first time, then fail."""
        self.looked += 1
        if self.down and self.looked == 1:
            await asyncio.Event().wait()
        if self.down:
            raise StoreError("away")
        return 1

    def used(self, key_id: str, now: float) -> None:
        """Count."""
        self.noted += 1


def a_keyring(store: Store, *, trusting: bool = False) -> Keyring:
    """A keyring with a static key beside."""
    static = Key(name="k", sha256=sha256("static"))
    config = Config(auth=Auth(enabled=True, keys=(static,)))
    return Keyring(config, cast(VirtualKeys, store), trusting=trusting)


async def test_each_key_good_or_wrong_is_asked_for_once() -> None:
    store = Store()
    keyring = a_keyring(store)
    for _ in range(3):
        assert keyring.find("static") is not None
        assert (await keyring.authenticate("1")).key == "key_0"
        with pytest.raises(ApiError, match="not valid"):
            await keyring.authenticate("wrong")
    assert (store.asked, store.noted) == (2, 1)


async def test_wrong_keys_are_remembered_in_bounds_and_a_good_one_goes_on() -> None:
    store = Store()
    keyring = a_keyring(store)
    for n in itertools.count():
        with pytest.raises(ApiError):
            await keyring.authenticate(f"wrong-{n}")
        assert len(keyring._remembered) <= MAX_REMEMBERED
        if n % 1000 == 0:
            assert (await keyring.authenticate("1")).key == "key_0"
        if n > 2 * MAX_REMEMBERED:
            break


async def test_what_the_store_did_not_answer_is_not_remembered() -> None:
    store = Store()
    keyring = a_keyring(store)
    store.down = True
    for _ in range(2):
        with pytest.raises(StoreError):
            await keyring.authenticate("1")
    store.down = False
    assert (await keyring.authenticate("1")).key == "key_0"
    assert store.asked == 3


async def watched(ring: Keyring, until: Callable[[], bool]) -> None:
    """Let a keyring look for changes until something is so."""
    watching = asyncio.create_task(ring.watch())
    async with asyncio.timeout(20):
        while not until():
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_key_first_seen_right_before_redis_goes_away_is_trusted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.pipeline.keyring.WATCH_SECONDS", 0.0)
    store = Store()
    ring = a_keyring(store, trusting=True)
    await ring.authenticate("1")
    store.down, store.looked = True, 1
    await watched(ring, lambda: store.looked > 5)
    assert ring.find("1") is not None
    store.down = False
    await watched(ring, lambda: ring.find("1") is None)  # it may have changed meanwhile


async def test_without_trust_a_redis_that_stands_still_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.pipeline.keyring.WATCH_SECONDS", 0.0)
    monkeypatch.setattr("gateway.pipeline.keyring.ANSWER_SECONDS", 0.01)
    store = Store()
    ring = a_keyring(store)
    await ring.authenticate("1")
    store.down = True
    await watched(ring, lambda: ring.find("1") is None)
    assert store.looked == 1

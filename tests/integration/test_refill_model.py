"""A bucket in the store against one in exact fractions: it may round down, never up.

Time is the store's own clock, which each decision reports, plus what the test moved `updated` back.
"""

import itertools
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.policy.limits import RATE, TOKENS, Limit
from gateway.store import names, scripts
from tests.support.store import StoreServer, bucket, new_tenant, store_server

LEASE_MS = 30_000
MINUTE_US = 60_000_000

# Move time on and ask for units; or move time on and settle the newest lease, giving units back.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "settle"]),
        st.one_of(st.integers(0, 5_000), st.integers(0, 3 * MINUTE_US)),
        st.integers(0, 120),
    ),
    min_size=1,
    max_size=25,
)
RATES = st.one_of(st.integers(1, 120), st.integers(1, 2_000_000))


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with (
        tempfile.TemporaryDirectory(prefix="sluice-") as directory,
        store_server(Path(directory)) as running,
    ):
        yield running


class Modelled:
    """One bucket, in the store and as an exact fraction, on a clock that tests may advance."""

    def __init__(self, server: StoreServer, capacity: int, per_minute: int) -> None:
        self._server, self._tenant = server, new_tenant()
        self.bucket: Limit = bucket(self._tenant, TOKENS, capacity, per_minute)
        self.exact = Fraction(capacity)
        self._skipped_us = 0
        self._seen_us: int | None = None
        self._numbers = itertools.count()
        self.leases: list[str] = []
        self.roundings = 0
        self.unsure_us = 0

    def advance(self, microseconds: int) -> None:
        """Let time pass; a bucket that does not exist yet is full at any time."""
        if self._server.redis.exists(self.bucket.name):
            self._server.rewind(self.bucket, microseconds / 1e6)
            self._skipped_us += microseconds

    def admit(self, amount: int) -> tuple[bool, int]:
        """Ask; return whether it was admitted and the level before."""
        lease = f"{next(self._numbers)}"
        data = (LEASE_MS, [self._spec], [(lease, "{}", [(1, amount)])])
        keys = [*names.leases(self._tenant), self.bucket.name, names.settled(self._tenant)]
        now_us, ((refusing, _, level),) = self._run(scripts.ADMIT, keys, data)
        self._catch_up(now_us + self._skipped_us)
        if refusing:
            return False, level
        self.leases.append(lease)
        return True, level + amount

    def settle(self, surplus: int) -> None:
        """Give back what the newest lease did not use; what it used too much is below 0."""
        before = self._time_us()
        self._catch_up(before + self._skipped_us)
        entry: tuple[object, ...] = (
            self.leases.pop(),
            [(1, surplus, 0)],
            [],
            (1,) + (0,) * 7,
            ("r",),
            0,
        )
        keys = [*names.leases(self._tenant), names.REQUESTS, self.bucket.name]
        assert self._run(scripts.SETTLE, keys, ([self._spec], 60, 60, 10, ["id"], [entry])) == [1]
        self.unsure_us += self._time_us() - before

    @property
    def _spec(self) -> tuple[int, int, int, bool]:
        return RATE, self.bucket.capacity, self.bucket.per_minute, False

    def _time_us(self) -> int:
        seconds, micros = self._server.redis.time()
        return int(seconds * 1_000_000 + micros)

    def _catch_up(self, now_us: int) -> None:
        passed = now_us - (self._seen_us if self._seen_us is not None else now_us)
        self._seen_us = now_us
        self.roundings += 1
        refilled = self.exact + Fraction(passed * self.bucket.per_minute, MINUTE_US)
        self.exact = min(Fraction(self.bucket.capacity), refilled)

    def _run(self, script: scripts.Script, keys: list[str], data: object) -> Any:
        packed = msgspec.msgpack.encode(data)
        connection = self._server.redis.connection_pool.get_connection()
        try:
            connection.send_command("EVAL", script.source, len(keys), *keys, packed)
            reply = connection.read_response(disable_decoding=True)
        finally:
            self._server.redis.connection_pool.release(connection)
        return msgspec.msgpack.decode(reply)


def walk(server: StoreServer, capacity: int, per_minute: int, steps: Any, signs: int) -> None:
    """Take the steps in both; after each the store is never above the exact level."""
    model = Modelled(server, capacity, per_minute)
    for kind, microseconds, amount in steps:
        model.advance(microseconds)
        if kind == "settle" and model.leases:
            surplus = amount * signs
            model.settle(surplus)
            model.exact = min(Fraction(capacity), model.exact + surplus)
        else:
            admitted, level = model.admit(amount)
            assert level <= model.exact
            # A credit may lose a microsecond's worth, and the last unit may not be whole yet.
            slack = 1 + Fraction((model.roundings + model.unsure_us) * per_minute, MINUTE_US)
            assert model.exact - level < slack
            assert admitted == (amount <= level)
            if admitted:
                model.exact -= amount


HYPOTHESIS = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@HYPOTHESIS
@given(capacity=st.integers(1, 200), per_minute=RATES, steps=STEPS)
def test_many_small_steps_never_credit_more_than_the_time_allows(
    server: StoreServer, capacity: int, per_minute: int, steps: Any
) -> None:
    asked = [("admit", microseconds, amount) for _, microseconds, amount in steps]
    walk(server, capacity, per_minute, asked, 1)


@HYPOTHESIS
@given(capacity=st.integers(1, 200), per_minute=st.integers(1, 120), steps=STEPS)
def test_what_is_given_back_never_credits_more_than_was_taken(
    server: StoreServer, capacity: int, per_minute: int, steps: Any
) -> None:
    walk(server, capacity, per_minute, steps, 1)


@HYPOTHESIS
@given(capacity=st.integers(1, 200), per_minute=st.integers(1, 120), steps=STEPS)
def test_what_was_used_beyond_the_reservation_is_always_owed(
    server: StoreServer, capacity: int, per_minute: int, steps: Any
) -> None:
    walk(server, capacity, per_minute, steps, -1)

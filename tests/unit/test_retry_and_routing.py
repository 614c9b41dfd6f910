"""What follows a failed attempt, what the client is told, and the order of targets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from gateway.core.errors import FAULTS, Failure, UpstreamError
from gateway.policy.retry import Next, client_error, decide, is_clients_fault
from gateway.policy.routing import plan

HANDED_OVER = [401, 402, 403, 407, 408, 425, 429, 500, 501, 502, 503, 504, 520, 529, 599]
CLIENTS = [400, 404, 405, 406, 409, 411, 413, 415, 416, 418, 422, 451, 499]


def status(code: int) -> UpstreamError:
    return UpstreamError(Failure.STATUS, "told so", status=code)


@pytest.mark.parametrize("code", HANDED_OVER)
def test_a_status_that_is_the_targets_own_trouble_goes_to_the_next(code: int) -> None:
    assert decide(status(code)) is Next.NEXT_TARGET
    assert not is_clients_fault(status(code))


@pytest.mark.parametrize("code", CLIENTS)
def test_a_status_that_is_the_clients_fault_goes_to_the_client(code: int) -> None:
    assert decide(status(code)) is Next.GIVE_UP
    assert is_clients_fault(status(code))


@pytest.mark.parametrize("failure", [f for f in Failure if f is not Failure.STATUS])
def test_every_failure_but_the_total_deadline_goes_to_the_next(failure: Failure) -> None:
    expected = Next.GIVE_UP if failure is Failure.TOTAL_TIMEOUT else Next.NEXT_TARGET
    assert decide(UpstreamError(failure, "x")) is expected
    assert not is_clients_fault(UpstreamError(failure, "x", status=400))


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [
        (Failure.CONNECT, "upstream_failed", 502),
        (Failure.TLS, "upstream_failed", 502),
        (Failure.RESET, "upstream_failed", 502),
        (Failure.PROTOCOL, "upstream_failed", 502),
        (Failure.STREAM_ERROR, "upstream_failed", 502),
        (Failure.STREAM_CUT, "upstream_failed", 502),
        (Failure.CONNECT_TIMEOUT, "deadline_exceeded", 504),
        (Failure.FIRST_BYTE_TIMEOUT, "deadline_exceeded", 504),
        (Failure.IDLE_TIMEOUT, "deadline_exceeded", 504),
        (Failure.TOTAL_TIMEOUT, "deadline_exceeded", 504),
        (Failure.BUSY, "overloaded", 503),
    ],
)
def test_the_client_is_told_what_became_of_it(failure: Failure, code: str, status: int) -> None:
    told = client_error(UpstreamError(failure, "it broke"), "p")
    assert (told.code, told.status, told.message) == (code, status, "p: it broke")
    assert told.retry_after == (1 if failure is Failure.BUSY else None)


def test_every_failure_has_an_answer() -> None:
    told = {client_error(UpstreamError(failure, "x"), "p").code for failure in Failure}
    assert told <= FAULTS.keys()


@pytest.mark.parametrize("wait", [None, 7.0])
def test_a_limit_of_the_provider_is_a_limit_for_the_client(wait: float | None) -> None:
    limited = UpstreamError(Failure.STATUS, "org-secret", status=429, retry_after=wait)
    told = client_error(limited, "p")
    assert (told.code, told.status, told.retry_after) == ("rate_limit_exceeded", 429, wait)
    assert "org-secret" not in told.message


@pytest.mark.parametrize("code", [401, 402, 403, 407, 408, 425])
def test_a_refused_credential_is_not_shown_to_the_client(code: int) -> None:
    told = client_error(UpstreamError(Failure.STATUS, "bad key sk-1", status=code), "p")
    assert (told.code, told.status) == ("upstream_failed", 502)
    assert "sk-1" not in told.message
    assert str(code) in told.message


@pytest.mark.parametrize("code", [500, 503, 529])
def test_a_failing_provider_is_quoted(code: int) -> None:
    assert client_error(status(code), "p").message == "p: told so"


class Ranked(Struct, frozen=True):
    """A target as far as the plan is concerned."""

    priority: int
    place: int


@given(st.lists(st.integers(1, 4)))
def test_targets_are_asked_by_priority_and_then_as_written(priorities: list[int]) -> None:
    targets = tuple(Ranked(priority, place) for place, priority in enumerate(priorities))
    planned = plan(targets)
    assert sorted(planned, key=lambda t: t.place) == list(targets)
    ranks = [(target.priority, target.place) for target in planned]
    assert ranks == sorted(ranks)

"""Looks for an answer in Redis: who looks together, and who is to get what nobody has."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gateway.pipeline.looking import Answers
from gateway.store.answers import place
from gateway.store.cache import ANOTHERS, MINE, NOBODY, Found

WHERE = place(b"form", "acme", "", "m", "k")
SERVICES: Any = SimpleNamespace(admission=SimpleNamespace(does_without=lambda tenant: False))


class Redis:
    """Looks that wait for their answer, with their tokens."""

    def __init__(self) -> None:
        self.looks: list[tuple[str, Callable[[Found], None]]] = []

    def find(self, where: object, token: str, least_ms: int, done: Callable[[Found], None]) -> None:
        self.looks.append((token, done))


def plan(*, shared: bool) -> Any:
    return SimpleNamespace(
        place=WHERE, shared=shared, least_ms=0, wishes=SimpleNamespace(reads=True)
    )


async def test_who_shares_nothing_neither_leads_nor_waits_for_who_does() -> None:
    redis: Any = Redis()
    nothing: Any = None
    answers = Answers(nothing, redis, nothing)
    sharing = [answers.look(SERVICES, plan(shared=True)) for _ in range(2)]
    alone = [answers.look(SERVICES, plan(shared=False)) for _ in range(2)]
    (token, shared), (none, unshared) = redis.looks
    assert token
    assert not none
    shared(Found(None, lead=MINE))
    unshared(Found(None, lead=NOBODY))
    assert [(await one).token for one in sharing] == [token, ""]
    assert [((await one).lead, (await one).token) for one in alone] == [(NOBODY, "")] * 2
    late = answers.look(SERVICES, plan(shared=False)), answers.look(SERVICES, plan(shared=True))
    (_, unshared), (_, shared) = redis.looks[2:]
    shared(Found(None, lead=ANOTHERS))
    unshared(Found(None, lead=NOBODY))
    assert [(await one).lead for one in late] == [NOBODY, ANOTHERS]

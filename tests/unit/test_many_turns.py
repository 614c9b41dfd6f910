"""Conversations of very many turns: the work grows with their number, not with its square."""

import json
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest

from gateway.core.messages import ASSISTANT, SYSTEM, USER, Message, Text, ToolResult, alternating
from gateway.core.operations import Operation
from gateway.formats import DIALECTS
from gateway.formats.body import decode

FEW, TIMES = 8_000, 4
MOST = 9  # times the work for TIMES as many; its square would be 16


def spent(work: Callable[[], Any]) -> float:
    """CPU seconds, of the best of five."""
    found = []
    for _ in range(5):
        before = process_time()
        work()
        found.append(process_time() - before)
    return min(found)


def growth(make: Callable[[int], Callable[[], Any]]) -> float:
    """How many times the work TIMES as much of something makes."""
    return spent(make(FEW * TIMES)) / spent(make(FEW))


def results(number: int) -> list[dict[str, Any]]:
    """Turns of a chat that are all results of tools."""
    return [{"role": "tool", "tool_call_id": str(i), "content": "x"} for i in range(number)]


def chat(messages: list[dict[str, Any]]) -> tuple[Message, ...]:
    request = decode(Operation.CHAT, json.dumps({"model": "m", "messages": messages}).encode())
    return DIALECTS[Operation.CHAT].prompt(request).messages


@pytest.mark.parametrize("role", [USER, SYSTEM, ASSISTANT])
def test_turns_of_one_side_are_joined_in_linear_time(role: str) -> None:
    def make(number: int) -> Callable[[], Any]:
        turns = (Message(role, (Text("x"),)),) * number
        return lambda: alternating(turns)

    assert growth(make) < MOST


def test_results_of_tools_are_joined_in_linear_time() -> None:
    def make(number: int) -> Callable[[], Any]:
        body = json.dumps({"model": "m", "messages": results(number)}).encode()
        request = decode(Operation.CHAT, body)
        return lambda: DIALECTS[Operation.CHAT].prompt(request)

    assert growth(make) < MOST


def test_turns_of_one_side_become_one() -> None:
    a, b, c, d = (Text(one) for one in "abcd")
    turns = [Message(USER, (a, b)), Message(SYSTEM, (c,)), Message(ASSISTANT, (d,))]
    joined = (Message(USER, (a, b, c)), Message(ASSISTANT, (d,)))
    assert alternating(tuple(turns)) == joined
    assert alternating(()) == ()


def test_results_stand_together_and_apart_from_what_is_said_after_them() -> None:
    said = {"role": "user", "content": "x"}
    first, second, third = chat([*results(2), said, *results(1)])
    assert [type(part) for part in first.parts] == [ToolResult, ToolResult]
    assert second == Message(USER, (Text("x"),))
    assert [type(part) for part in third.parts] == [ToolResult]


def test_what_the_system_says_after_a_result_keeps_its_place() -> None:
    turns = chat([*results(1), {"role": "system", "content": "x"}])
    assert [turn.role for turn in turns] == [USER, SYSTEM]

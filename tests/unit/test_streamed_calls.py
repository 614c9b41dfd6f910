"""Calls in streams of chat completions, in all the ways in which servers tell them apart."""

import json
from typing import Any

import pytest

from gateway.core.events import CallBegun, CallDelta, Event
from gateway.core.messages import ToolCall
from gateway.providers import PROVIDERS
from gateway.providers.chat_stream import ChatDecoder

Json = dict[str, Any]
ONE, OTHER = '{"a":1}', '{"a":2}'


def piece(index: int | None, id: str | None, name: str | None, arguments: str | None) -> Json:
    function = {"name": name, "arguments": arguments}
    return {
        **({} if index is None else {"index": index}),
        **({} if id is None else {"id": id}),
        "function": {key: value for key, value in function.items() if value is not None},
    }


def read(*deltas: list[Json], finish: str | None = "tool_calls") -> list[Event]:
    """Return the events of a stream, each of whose chunks has some pieces of calls."""
    decoder, found = ChatDecoder(), list[Event]()
    for pieces in (*deltas, None):
        choice: Json = {"index": 0, "delta": {"tool_calls": pieces} if pieces else {}}
        choice["finish_reason"] = None if pieces else finish
        found += decoder.feed(
            b"data: %b\n\n" % json.dumps({"id": "r", "choices": [choice]}).encode()
        )
    return [*found, *decoder.end()]


def calls(found: list[Event]) -> list[tuple[str, str, str]]:
    """Return each call's id, name and arguments, in the order of their numbers."""
    begun = [event for event in found if isinstance(event, CallBegun)]
    assert [event.index for event in begun] == list(range(len(begun)))
    told: dict[int, str] = {}
    for event in found:
        if isinstance(event, CallBegun):
            told[event.index] = ""
        elif isinstance(event, CallDelta):
            told[event.index] += event.arguments
    return [(event.id, event.name, told[event.index]) for event in begun]


FIRST, SECOND = ("call_r_0", "f", ONE), ("call_r_1", "g", OTHER)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([piece(0, "", "f", ONE), piece(0, "", "g", OTHER)], [FIRST, SECOND]),
        ([piece(0, None, "f", ONE), piece(0, None, "g", OTHER)], [FIRST, SECOND]),
        ([piece(0, "", "f", ONE), piece(0, "", "f", OTHER)], [FIRST, ("call_r_1", "f", OTHER)]),
        ([piece(0, "c", "f", ONE), piece(0, "c", "g", OTHER)], [("c", "f", ONE), SECOND]),
        (
            [piece(0, "c", "f", ONE), piece(0, "d", "f", OTHER)],
            [("c", "f", ONE), ("d", "f", OTHER)],
        ),
        ([piece(None, "c", "f", ONE), piece(None, "c", "g", OTHER)], [("c", "f", ONE), SECOND]),
        ([piece(None, None, "f", ONE), piece(None, None, "g", OTHER)], [FIRST, SECOND]),
        ([piece(0, None, "f", None), piece(0, None, "g", OTHER)], [("call_r_0", "f", ""), SECOND]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_calls_that_are_told_apart_by_little_stay_apart(
    pieces: list[Json], expected: list[tuple[str, str, str]], *, together: bool
) -> None:
    deltas = [pieces] if together else [[one] for one in pieces]
    assert calls(read(*deltas)) == expected


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, "c", "f", ""), piece(0, None, None, '{"a"'), piece(0, None, None, ":1}")],
        [piece(0, "c", "f", '{"a"'), piece(0, "c", "f", ":1}"), piece(0, "c", "f", "")],
        [piece(0, "c", None, ""), piece(0, None, "f", '{"a"'), piece(0, None, None, ":1}")],
        [piece(0, "c", None, '{"a"'), piece(0, None, "f", ""), piece(0, None, None, ":1}")],
        [piece(0, None, None, '{"a"'), piece(0, "c", "f", ":1}")],
        [piece(None, "c", "f", '{"a"'), piece(None, None, None, ":1}")],
        [piece(0, "c", "f", '{"a"'), piece(0, None, "f", ":1}"), piece(0, None, "f", "")],
        [piece(0, "c", "f", '{"a"'), piece(0, "d", "f", ":1}"), piece(0, "e", "f", "")],
        [piece(0, "c", "f", '{"a"'), piece(0, None, None, ":1}"), piece(0, None, "f", None)],
        [piece(0, "c", "f", ONE), piece(0, None, "f", "\n"), piece(0, None, None, "\n")],
    ],
)
def test_the_pieces_of_a_call_make_one(pieces: list[Json]) -> None:
    assert calls(read(*[[one] for one in pieces])) == [("c", "f", ONE)]


def test_the_pieces_of_a_call_without_an_id_that_all_name_it_make_one() -> None:
    pieces = [piece(0, None, "f", arguments) for arguments in ('{"a"', ":1", "}", "")]
    assert calls(read(*[[one] for one in pieces])) == [FIRST]


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(0, "c", "get_", None), piece(0, None, "weather", None), piece(0, None, None, ONE)],
        [piece(0, "c", "get_", ""), piece(0, None, "weather", ONE)],
        [piece(0, "c", "get_", ""), piece(0, "c", "get_weather", ""), piece(0, None, None, ONE)],
    ],
)
def test_a_name_that_comes_bit_by_bit_is_one(pieces: list[Json]) -> None:
    assert calls(read(*[[one] for one in pieces])) == [("c", "get_weather", ONE)]


@pytest.mark.parametrize("ids", [("c", "d"), ("", "")])
def test_a_call_of_the_same_name_may_have_its_arguments_later(ids: tuple[str, str]) -> None:
    one, other = ids
    pieces = [
        *(piece(0, one, "f", ""), piece(0, None, None, ONE)),
        *(piece(0, other, "f", ""), piece(0, None, None, OTHER)),
    ]
    expected = [(one or "call_r_0", "f", ONE), (other or "call_r_1", "f", OTHER)]
    assert calls(read(*[[part] for part in pieces])) == expected


@pytest.mark.parametrize("nothing", ["", "{}", "null"])
def test_calls_without_arguments_stay_apart_and_in_their_order(nothing: str) -> None:
    pieces = [piece(0, "c", "f", nothing), piece(0, "d", "f", nothing), piece(1, "e", "g", ONE)]
    found = calls(read(*[[one] for one in pieces]))
    expected = [("c", "f", nothing), ("d", "f", nothing), ("e", "g", ONE)]
    assert found == expected


def test_calls_whose_pieces_alternate() -> None:
    pieces = [
        piece(None, "c", "f", '{"a"'),
        piece(None, "d", "g", OTHER),
        piece(None, "c", None, ":1}"),
    ]
    assert calls(read(pieces)) == [("c", "f", ONE), ("d", "g", OTHER)]
    unnamed = [piece(0, "c", None, '{"a"'), piece(1, "d", "g", OTHER), piece(0, None, "f", ":1}")]
    assert sorted(calls(read(unnamed))) == [("c", "f", ONE), ("d", "g", OTHER)]


@pytest.mark.parametrize("finish", ["stop", None])
def test_a_call_without_a_name_is_told_at_the_end(finish: str | None) -> None:
    assert calls(read([piece(0, "c", None, ONE)], finish=finish)) == [("c", "", ONE)]


@pytest.mark.parametrize("ids", [("c", "c"), ("", ""), (None, None), ("c", "d")])
def test_a_whole_reply_tells_its_calls_apart_as_a_stream_does(ids: tuple[str | None, ...]) -> None:
    pieces = [piece(i, id, "f", ONE) for i, id in enumerate(ids)]
    choice = {"message": {"role": "assistant", "tool_calls": pieces}, "finish_reason": "tool_calls"}
    conversation = PROVIDERS["openai-compatible"].adapter.conversation
    assert conversation is not None
    reply = conversation.parse(json.dumps({"id": "r", "choices": [choice]}).encode())
    made = [part for part in reply.parts if isinstance(part, ToolCall)]
    assert [(call.id, call.name, call.arguments) for call in made] == calls(read(pieces))
    assert len({call.id for call in made}) == 2

"""A conversation of five turns through the gateway, in each dialect, to each provider.

The client sends back what it got, as its SDK's users do; the provider must find in its own words
all that it said before: thoughts with their signatures, parallel calls, results.
"""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.golden.conversation import QUESTION, TURNS, WIRES, Wire
from tests.support.gateway import Gateway, running
from tests.support.threaded import UpstreamThread
from tests.support.upstream import Exchange

TOOLS = ("weather", "note")
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": True}
SYSTEM = "You know the weather."
MODEL_IN_PATH = ("gemini", "bedrock")


class Model:
    """Answers a conversation's requests turn by turn, and keeps what it was asked."""

    def __init__(self) -> None:
        self.wire: Wire = WIRES["chat"]
        self.asked: list[dict[str, Any]] = []

    async def answer(self, exchange: Exchange) -> None:
        """Say the turn whose time has come: after each turn there are more messages."""
        body = exchange.request.json
        self.asked.append(body)
        turn = TURNS[len(self.asked) - 1]
        path = exchange.request.path
        if body.get("stream") or "stream" in path.partition("?")[0].lower():
            await exchange.send(
                f"HTTP/1.1 200 OK\r\nContent-Type: {self.wire.content_type}\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            for frame in self.wire.stream(turn):
                await exchange.chunk(frame)
            await exchange.end_stream()
        else:
            await exchange.reply(self.wire.whole(turn))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def gateway(model: Model) -> Iterator[Gateway]:
    with UpstreamThread(behaviour=model.answer) as thread:
        url = f"http://127.0.0.1:{thread.upstream.port}/v1"
        providers = {
            name: {"kind": wire.kind, "base_url": url, **wire.settings}
            for name, wire in WIRES.items()
        }
        with running(json.dumps({"providers": providers})) as started:
            yield started


# --- The clients ---------------------------------------------------------------------------------


def by_openai(gateway: Gateway, name: str, *, stream: bool) -> list[str]:
    """Hold the conversation with the OpenAI SDK; return the texts."""
    tools: Any = [
        {"type": "function", "function": {"name": tool, "parameters": SCHEMA}} for tool in TOOLS
    ]
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
    ]
    texts = []
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk", max_retries=0) as client:
        for turn in TURNS:
            asked: Any = {
                "model": f"{name}/{WIRES[name].model}",
                "messages": messages,
                "tools": tools,
                "reasoning_effort": "high",
                "max_completion_tokens": 20_000,
            }
            if stream:
                message = chunks_put_together(client.chat.completions.create(**asked, stream=True))
            else:
                reply = client.chat.completions.create(**asked)
                message = reply.choices[0].message.model_dump(exclude_none=True)
            texts.append(message.get("content") or "")
            messages.append(message)
            results = iter(turn.results)
            for call in message.get("tool_calls", ()):
                result = {"role": "tool", "tool_call_id": call["id"], "content": next(results)}
                messages.append(result)
    return texts


def chunks_put_together(chunks: Any) -> dict[str, Any]:
    """Merge deltas as the SDK's own helper does: texts grow, lists are matched by index."""
    message: dict[str, Any] = {"role": "assistant"}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            for call in delta.pop("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                index = call.pop("index")
                if index == len(calls):
                    calls.append(call)
                else:
                    calls[index]["function"]["arguments"] += call["function"]["arguments"]
            for name, value in delta.items():
                if name == "role":
                    continue
                message[name] = message[name] + value if name in message else value
    return message


def by_anthropic(gateway: Gateway, name: str, *, stream: bool) -> list[str]:
    """Hold the conversation with the Anthropic SDK; return the texts."""
    tools: Any = [{"name": tool, "input_schema": SCHEMA} for tool in TOOLS]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    texts = []
    with anthropic.Anthropic(base_url=gateway.url, api_key="sk", max_retries=0) as client:
        for turn in TURNS:
            asked: Any = {
                "model": f"{name}/{WIRES[name].model}",
                "messages": messages,
                "system": SYSTEM,
                "tools": tools,
                "thinking": {"type": "enabled", "budget_tokens": 2000},
                "max_tokens": 20_000,
            }
            if stream:
                with client.messages.stream(**asked) as streamed:
                    message = streamed.get_final_message()
            else:
                message = client.messages.create(**asked, timeout=30)
            texts.append("".join([b.text for b in message.content if b.type == "text"]))
            messages.append({"role": "assistant", "content": message.content})
            used = [block for block in message.content if block.type == "tool_use"]
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": block.id,
                    "content": [{"type": "text", "text": result}],
                }
                for block, result in zip(used, turn.results, strict=True)
            ]
            if results:
                messages.append({"role": "user", "content": results})
    return texts


def by_responses(gateway: Gateway, name: str, *, stream: bool) -> list[str]:
    """Hold the conversation by Responses with the OpenAI SDK; the provider keeps nothing."""
    tools: Any = [{"type": "function", "name": tool, "parameters": SCHEMA} for tool in TOOLS]
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    texts = []
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk", max_retries=0) as client:
        for turn in TURNS:
            asked: Any = {
                "model": f"{name}/{WIRES[name].model}",
                "input": items,
                "instructions": SYSTEM,
                "tools": tools,
                "reasoning": {"effort": "high", "summary": "auto"},
                "max_output_tokens": 20_000,
                "store": False,
            }
            if stream:
                with client.responses.stream(**asked) as streamed:
                    reply: Any = streamed.get_final_response()
            else:
                reply = client.responses.create(**asked)
            texts.append(reply.output_text)
            items += [item.model_dump(exclude_none=True) for item in reply.output]
            calls = [item for item in reply.output if item.type == "function_call"]
            items += [
                {"type": "function_call_output", "call_id": call.call_id, "output": result}
                for call, result in zip(calls, turn.results, strict=True)
            ]
    return texts


CLIENTS = {"openai": by_openai, "anthropic": by_anthropic, "responses": by_responses}


# --- What the provider must have been asked ------------------------------------------------------


def history(wire: Wire, until: int) -> list[Any]:
    """The turns of a request in the provider's words, behind the question."""
    found: list[Any] = []
    for turn in TURNS[:until]:
        found.append(wire.said(turn))
        given = wire.given(turn)
        found += given if isinstance(given, list) else [given]
    return found


def alike(found: Any) -> Any:
    """Arguments as values: how JSON is spaced is nobody's promise."""
    if isinstance(found, dict):
        return {
            name: json.loads(value) if name == "arguments" else alike(value)
            for name, value in found.items()
        }
    return [alike(one) for one in found] if isinstance(found, list) else found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("client", CLIENTS)
def test_nothing_is_lost_in_five_turns(
    gateway: Gateway, model: Model, client: str, wire: str, stream: bool
) -> None:
    model.wire, model.asked = WIRES[wire], []
    texts = CLIENTS[client](gateway, wire, stream=stream)
    assert texts == [turn.text for turn in TURNS]
    assert len(model.asked) == len(TURNS)
    for number, body in enumerate(model.asked):
        turns = [turn for turn in model.wire.turns_of(body) if turn.get("role") != "system"]
        assert SYSTEM in json.dumps(body)
        assert QUESTION in json.dumps(turns[0], ensure_ascii=False)
        assert alike(turns[1:]) == alike(history(model.wire, number)), number

"""A conversation of five turns with thoughts, parallel calls and results, as providers write it.

Each `Wire` knows how its provider says a turn, whole and streamed, and how the turn must stand in
the requests that follow. It shares no code with the gateway.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.golden.replay import data, data_crlf, event_stream_message, named

Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the model says. `calls`: id, name, arguments; `results` are what they come to."""

    text: str = ""
    thought: str = ""
    signature: str = ""
    calls: list[tuple[str, str, Json]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


QUESTION = "Which of the cities is warmest?"
TURNS = [
    Turn(
        text="I look at two.",
        thought="Oslo and Bergen first.",
        signature="c2lnLTE=",
        calls=[
            ("call_a1", "weather", {"city": "Oslo"}),
            ("call_a2", "weather", {"city": "Bergen"}),
        ],
        results=["4 degrees", '{"degrees": 7}'],
    ),
    Turn(
        thought="Now Tromsø.",
        signature="c2lnLTI=",
        calls=[("call_b1", "weather", {"city": "Tromsø", "deep": {"a": [1, 2.5, None, True]}})],
        results=['line one\nline "two"'],
    ),
    Turn(
        text='Quotes " and \\ and 漢字 and 🌧️.',
        thought="Notes help.",
        signature="c2lnLTM=",
        calls=[("call_c1", "note", {})],
        results=["noted"],
    ),
    Turn(
        thought="Two more.",
        signature="c2lnLTQ=",
        calls=[("call_d1", "weather", {"city": "Bodø"}), ("call_d2", "note", {"text": "x"})],
        results=["2 degrees", "noted too"],
    ),
    Turn(text="Bergen, with 7 degrees.", thought="Done.", signature="c2lnLTU="),
]


@dataclass(frozen=True)
class Wire:
    """A provider's way to write turns; `said` and `given` are its turns in a request."""

    kind: str
    model: str
    settings: Json
    whole: Callable[[Turn], Json]
    stream: Callable[[Turn], list[bytes]]
    content_type: str
    turns_of: Callable[[Json], list[Json]]
    said: Callable[[Turn], Any]
    given: Callable[[Turn], Any]


def pieces(text: str) -> list[str]:
    """A text in three pieces."""
    third = max(1, len(text) // 3)
    found = [text[:third], text[third : 2 * third], text[2 * third :]]
    return [piece for piece in found if piece]


# --- Anthropic -----------------------------------------------------------------------------------


def messages_blocks(turn: Turn) -> list[Json]:
    found: list[Json] = [
        {"type": "thinking", "thinking": turn.thought, "signature": turn.signature}
    ]
    if turn.text:
        found.append({"type": "text", "text": turn.text})
    for id, name, arguments in turn.calls:
        found.append({"type": "tool_use", "id": id, "name": name, "input": arguments})
    return found


def messages_whole(turn: Turn) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": messages_blocks(turn),
        "stop_reason": "tool_use" if turn.calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


def messages_stream(turn: Turn) -> list[bytes]:
    whole = messages_whole(turn)
    found: list[Json] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
    ]
    for index, block in enumerate(whole["content"]):
        empty = {**block, **{n: "" for n in ("thinking", "signature", "text") if n in block}}
        if block["type"] == "tool_use":
            empty["input"] = {}
        start = {"type": "content_block_start", "index": index, "content_block": empty}
        deltas: list[Json] = []
        if block["type"] == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": p} for p in pieces(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif block["type"] == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        else:
            said = pieces(json.dumps(block["input"]))
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in said]
        found.append(start)
        found += [{"type": "content_block_delta", "index": index, "delta": x} for x in deltas]
        found.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    found.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}})
    found.append({"type": "message_stop"})
    return [named(json.dumps(event)) for event in found]


def messages_results(turn: Turn) -> Json:
    results = [
        {"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": result}]}
        for (id, _, _), result in zip(turn.calls, turn.results, strict=True)
    ]
    return {"role": "user", "content": results}


ANTHROPIC = Wire(
    "anthropic",
    "claude-sonnet-4-5",
    {"api_key": "sk"},
    messages_whole,
    messages_stream,
    "text/event-stream",
    lambda body: list(body["messages"]),
    lambda turn: {"role": "assistant", "content": messages_blocks(turn)},
    messages_results,
)


# --- OpenAI, with the thoughts that compatible servers show --------------------------------------


def chat_message(turn: Turn) -> Json:
    found: Json = {"role": "assistant"}
    if turn.text or not turn.calls:
        found["content"] = turn.text
    if turn.calls:
        found["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for id, name, arguments in turn.calls
        ]
    found["reasoning_content"] = turn.thought
    return found


def chat_whole(turn: Turn) -> Json:
    finish = "tool_calls" if turn.calls else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "deepseek-v4",
        "choices": [{"index": 0, "message": chat_message(turn), "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def chat_stream(turn: Turn) -> list[bytes]:
    message, finish = chat_message(turn), "tool_calls" if turn.calls else "stop"
    deltas: list[Json] = [{"role": "assistant"}]
    deltas += [{"reasoning_content": piece} for piece in pieces(turn.thought)]
    deltas += [{"content": piece} for piece in pieces(turn.text)]
    for index, call in enumerate(message.get("tool_calls", ())):
        first = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        deltas.append({"tool_calls": [first]})
        for piece in pieces(call["function"]["arguments"]):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    found: list[tuple[Json, str | None]] = [(delta, None) for delta in deltas]
    found.append(({}, finish))
    chunks: list[Json] = [
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "deepseek-v4",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }
        for delta, reason in found
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    chunks.append({**chunks[-1], "choices": [], "usage": usage})
    return [*[data(json.dumps(chunk)) for chunk in chunks], data("[DONE]")]


def chat_results(turn: Turn) -> list[Json]:
    return [
        {"role": "tool", "tool_call_id": id, "content": result}
        for (id, _, _), result in zip(turn.calls, turn.results, strict=True)
    ]


CHAT = Wire(
    "deepseek",
    "deepseek-v4",
    {"api_key": "sk"},
    chat_whole,
    chat_stream,
    "text/event-stream",
    lambda body: list(body["messages"]),
    chat_message,
    chat_results,
)


# --- Gemini --------------------------------------------------------------------------------------


def gemini_parts(turn: Turn) -> list[Json]:
    found: list[Json] = [{"text": turn.text}] if turn.text else []
    for place, (_, name, arguments) in enumerate(turn.calls):
        part: Json = {"functionCall": {"name": name, "args": arguments}}
        if place == 0:
            part["thoughtSignature"] = turn.signature
        found.append(part)
    return found


def gemini_answer(turn: Turn, parts: list[Json], last: bool) -> Json:
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": "gemini-3-pro-preview",
        "responseId": f"resp{TURNS.index(turn)}",
    }


def gemini_whole(turn: Turn) -> Json:
    thought = {"text": turn.thought, "thought": True}
    return gemini_answer(turn, [thought, *gemini_parts(turn)], True)


def gemini_stream(turn: Turn) -> list[bytes]:
    parts = [{"text": piece, "thought": True} for piece in pieces(turn.thought)]
    parts += [{"text": piece} for piece in pieces(turn.text)]
    parts += [part for part in gemini_parts(turn) if "functionCall" in part]
    answers = [gemini_answer(turn, [part], False) for part in parts]
    answers.append(gemini_answer(turn, [{"text": ""}], True))
    return [data_crlf(json.dumps(answer)) for answer in answers]


def gemini_results(turn: Turn) -> Json:
    found = []
    for (_, name, _), result in zip(turn.calls, turn.results, strict=True):
        response = json.loads(result) if result.startswith("{") else {"result": result}
        found.append({"functionResponse": {"name": name, "response": response}})
    return {"role": "user", "parts": found}


GEMINI = Wire(
    "gemini",
    "gemini-3-pro-preview",
    {"api_key": "sk"},
    gemini_whole,
    gemini_stream,
    "text/event-stream",
    lambda body: list(body["contents"]),
    lambda turn: {"role": "model", "parts": gemini_parts(turn)},
    gemini_results,
)


# --- Bedrock -------------------------------------------------------------------------------------


def converse_blocks(turn: Turn) -> list[Json]:
    thought = {"text": turn.thought, "signature": turn.signature}
    found: list[Json] = [{"reasoningContent": {"reasoningText": thought}}]
    if turn.text:
        found.append({"text": turn.text})
    for id, name, arguments in turn.calls:
        found.append({"toolUse": {"toolUseId": id, "name": name, "input": arguments}})
    return found


def converse_whole(turn: Turn) -> Json:
    return {
        "output": {"message": {"role": "assistant", "content": converse_blocks(turn)}},
        "stopReason": "tool_use" if turn.calls else "end_turn",
        "usage": {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15},
        "metrics": {"latencyMs": 1},
    }


def converse_stream(turn: Turn) -> list[bytes]:
    found: list[Json] = [{"messageStart": {"role": "assistant"}}]
    for index, block in enumerate(converse_blocks(turn)):
        deltas: list[Json] = []
        if "text" in block:
            deltas = [{"text": piece} for piece in pieces(block["text"])]
        elif "toolUse" in block:
            use = block["toolUse"]
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            found.append({"contentBlockStart": {"contentBlockIndex": index, "start": start}})
            deltas = [{"toolUse": {"input": piece}} for piece in pieces(json.dumps(use["input"]))]
        else:
            deltas = [{"reasoningContent": {"text": piece}} for piece in pieces(turn.thought)]
            deltas.append({"reasoningContent": {"signature": turn.signature}})
        found += [
            {"contentBlockDelta": {"contentBlockIndex": index, "delta": delta}} for delta in deltas
        ]
        found.append({"contentBlockStop": {"contentBlockIndex": index}})
    found.append({"messageStop": {"stopReason": "tool_use" if turn.calls else "end_turn"}})
    usage = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}
    found.append({"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}})
    return [event_stream_message(json.dumps(event)) for event in found]


def converse_results(turn: Turn) -> Json:
    results = [
        {"toolResult": {"toolUseId": id, "content": [{"text": result}]}}
        for (id, _, _), result in zip(turn.calls, turn.results, strict=True)
    ]
    return {"role": "user", "content": results}


BEDROCK = Wire(
    "bedrock",
    "anthropic.claude-sonnet-4-5-20250929-v1:0",
    {"api_key": "sk", "region": "us-east-1"},
    converse_whole,
    converse_stream,
    "application/vnd.amazon.eventstream",
    lambda body: list(body["messages"]),
    lambda turn: {"role": "assistant", "content": converse_blocks(turn)},
    converse_results,
)

WIRES = {"anthropic": ANTHROPIC, "chat": CHAT, "gemini": GEMINI, "bedrock": BEDROCK}

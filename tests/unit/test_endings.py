"""Why an answer ended: a reason that nobody here knows is told as a guess."""

import json
from typing import Any

import pytest

from gateway.core import events
from gateway.core.messages import STOP
from gateway.providers.adapter import Conversation
from gateway.providers.anthropic import MessagesConversation
from gateway.providers.bedrock import ConverseConversation
from gateway.providers.chat import ChatCompletions
from gateway.providers.cohere import ADAPTER as COHERE
from gateway.providers.gemini import ADAPTER as GEMINI
from gateway.providers.quirks import NONE
from gateway.providers.responses import ResponsesConversation
from tests.golden.replay import event_stream_message

Json = dict[str, Any]
TEXT: Json = {"type": "text", "text": "half"}
assert COHERE.conversation is not None
assert GEMINI.conversation is not None


def converse(reason: str) -> tuple[Json, bytes]:
    whole = {"output": {"message": {"content": [{"text": "half"}]}}, "stopReason": reason}
    return whole, event_stream_message(json.dumps({"messageStop": {"stopReason": reason}}))


def messages(reason: str) -> tuple[Json, bytes]:
    end = {"type": "message_delta", "delta": {"stop_reason": reason}}
    return {"content": [TEXT], "stop_reason": reason}, sse(end)


def chat(reason: str) -> tuple[Json, bytes]:
    message = {"role": "assistant", "content": "half"}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    return {"choices": [choice]}, sse(end)


def cohere(reason: str) -> tuple[Json, bytes]:
    end = {"type": "message-end", "delta": {"finish_reason": reason}}
    return {"message": {"content": [TEXT]}, "finish_reason": reason}, sse(end)


def gemini(reason: str) -> tuple[Json, bytes]:
    candidate = {"content": {"parts": [{"text": "half"}]}, "finishReason": reason}
    return {"candidates": [candidate]}, sse({"candidates": [candidate]})


def responses(reason: str) -> tuple[Json, bytes]:
    response: Json = {"id": "r", "output": [], "status": "completed"}
    if reason != "completed":
        response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    return response, sse({"type": f"response.{response['status']}", "response": response})


def sse(one: Json) -> bytes:
    return b"data: %b\n\n" % json.dumps(one).encode()


APIS: dict[str, tuple[Conversation, Any, str]] = {
    "messages": (MessagesConversation(), messages, "end_turn"),
    "converse": (ConverseConversation(), converse, "end_turn"),
    "chat": (ChatCompletions(NONE), chat, "stop"),
    "cohere": (COHERE.conversation, cohere, "COMPLETE"),
    "gemini": (GEMINI.conversation, gemini, "STOP"),
    "responses": (ResponsesConversation(), responses, "completed"),
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("word", ["", "NEW_WORD", "pause_turn", "OTHER", "MALFORMED_FUNCTION_CALL"])
def test_a_reason_that_nobody_knows_is_a_guess(api: str, word: str) -> None:
    conversation, say, good = APIS[api]
    whole, stream = say(word or good)
    reply = conversation.parse(json.dumps(whole).encode())
    assert (reply.finish, reply.odd) == (STOP, bool(word))
    found = conversation.decoder().feed(stream)
    ended = [(one.reason, one.odd) for one in found if isinstance(one, events.Finished)]
    assert ended == [(STOP, bool(word))]

"""Reads recorded replies of Anthropic's Messages API.

A stream is first put together to the whole message that it tells, then read as such.
"""

from typing import Any

from gateway.core.usage import Usage
from tests.golden.rec_expected import Expected, arguments, joined

Json = dict[str, Any]

SPLICED = "another message began before this one's end"


def message(bodies: list[Json]) -> Expected:
    """A whole message: its content is a list of blocks."""
    body = bodies[0]
    blocks = body["content"]
    thought = [block for block in blocks if block["type"] == "thinking"]
    return Expected(
        text=joined([block["text"] for block in blocks if block["type"] == "text"]),
        reasoning=joined([block["thinking"] for block in thought]),
        signatures=[block["signature"] for block in thought if block.get("signature")],
        tool_calls=[(b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"],
        server_blocks=[
            block["type"]
            for block in blocks
            if block["type"] not in ("text", "thinking", "tool_use")
        ],
        finish=body["stop_reason"],
        usage=counted(body["usage"]),
        own_usage=counted({**body["usage"], "iterations": None}),
        error=body.get("error"),
    )


def message_stream(events: list[Json]) -> Expected:
    """A streamed message.

    A message_start of the same id is told twice and means nothing. One of another id is a proxy's
    retry, spliced into the reply: what was open never ends, and the rest is of another message.
    """
    body: Json = {}
    blocks: dict[int, Json] = {}
    whole: set[int] = set()
    for event in events:
        kind = event["type"]
        if kind == "message_start" and not body:
            # Where a program calls the tools, this one event may have the whole message.
            body = event["message"]
            blocks = dict(enumerate(body["content"]))
            whole = set(blocks)
        elif kind == "message_start" and event["message"]["id"] != body["id"]:
            body = {**body, "error": SPLICED}
            break
        elif kind == "content_block_start":
            blocks[event["index"]] = {**event["content_block"]}
        elif kind == "content_block_delta":
            apply(blocks[event["index"]], event["delta"])
        elif kind == "content_block_stop":
            whole.add(event["index"])
        elif kind == "message_delta":
            counts = {**body["usage"], **event["usage"]}  # they are totals, not increments
            body = {**body, **event["delta"], "usage": counts}
        elif kind == "error":
            body = {**body, "error": event["error"]["message"]}
            break
    content = [ended(block) for at, block in sorted(blocks.items()) if at in whole]
    return message([{**body, "content": content}])


GROWS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def apply(block: Json, delta: Json) -> None:
    """Add a delta to its block; citations and compactions are no text."""
    if delta["type"] == "input_json_delta":
        block["json"] = block.get("json", "") + delta["partial_json"]
    elif grows := GROWS.get(delta["type"]):
        block[grows] = block.get(grows, "") + delta[grows]


def ended(block: Json) -> Json:
    """A block whose deltas have all come; without any, its start has the input."""
    return {**block, "input": arguments(block["json"])} if block.get("json") else block


def counted(usage: Json) -> Usage:
    """Anthropic counts the prompt in three parts: read from the cache, written to it, neither.

    Compactions and advice are billed besides.
    """
    beside = [
        iteration
        for iteration in usage.get("iterations") or []
        if iteration["type"] in ("compaction", "advisor_message")
    ]
    rounds = [usage, *beside]
    cached = sum([one.get("cache_read_input_tokens") or 0 for one in rounds])
    written = sum([one.get("cache_creation_input_tokens") or 0 for one in rounds])
    reasoning = (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0
    prompt = sum([one["input_tokens"] for one in rounds]) + cached + written
    lasting = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens", 0)
    searched = (usage.get("server_tool_use") or {}).get("web_search_requests", 0)
    completion = sum([one["output_tokens"] for one in rounds])
    return Usage(
        *(prompt, cached, written, completion, reasoning),
        cache_write_1h_tokens=lasting,
        web_searches=searched,
        beside_prompt_tokens=sum([one["input_tokens"] for one in beside])
        + sum([one.get("cache_read_input_tokens") or 0 for one in beside])
        + sum([one.get("cache_creation_input_tokens") or 0 for one in beside]),
    )

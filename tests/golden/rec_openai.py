"""Reads recorded replies of OpenAI's dialects: chat, text completions, responses; and embeddings.

Every reader takes the JSON objects of one reply: a stream's events, or the one whole body.
"""

from typing import Any

from gateway.core.usage import Usage
from tests.golden.rec_expected import Expected, arguments, joined

Json = dict[str, Any]


# --- Chat and text completions -------------------------------------------------------------------


def completion(chunks: list[Json]) -> Expected:
    """A chat or text completion; chunks without a choice carry usage or filter results."""
    choices = [x for chunk in chunks for x in chunk.get("choices") or () if x["index"] == 0]
    messages = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    parts = [part for message in messages for part in content_parts(message)]
    found = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    counts = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    errors = [chunk["error"]["message"] for chunk in chunks if chunk.get("error")]
    return Expected(
        text=joined([choice.get("text") for choice in choices])
        + joined([part["text"] for part in parts if part["type"] == "text"]),
        reasoning=joined([m.get("reasoning_content") or m.get("reasoning") for m in messages])
        + joined([x["text"] for p in parts if p["type"] == "thinking" for x in p["thinking"]]),
        tool_calls=tool_calls(messages),
        finish=found[-1] if found else None,
        usage=counted(counts[-1]) if counts else None,
        error=errors[0] if errors else None,
    )


def content_parts(message: Json) -> list[Json]:
    """The content as parts, as Mistral's reasoning models send it; others send a string."""
    content = message.get("content")
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def tool_calls(messages: list[Json]) -> list[tuple[str, Json]]:
    """The calls, put together of their deltas; Mistral leaves out the index of a whole one."""
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    for message in messages:
        for place, call in enumerate(message.get("tool_calls") or ()):
            at = call.get("index", place)
            names[at] = names.get(at, "") + (call["function"].get("name") or "")
            texts[at] = texts.get(at, "") + (call["function"].get("arguments") or "")
    return [(names[at], arguments(texts[at])) for at in sorted(names)]


def counted(usage: Json) -> Usage:
    """A chat usage; cached is part of the prompt, reasoning of the completion."""
    prompt, output = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    cached = cached or usage.get("prompt_cache_hit_tokens") or usage.get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    if usage.get("total_tokens") == prompt + output + reasoning:
        output += reasoning  # xAI reports reasoning beside the completion and bills both
    searched = usage.get("num_search_queries") or 0  # Perplexity's
    return Usage(prompt, cached, 0, output, reasoning, web_searches=searched)


# --- Responses -----------------------------------------------------------------------------------


def response(bodies: list[Json]) -> Expected:
    """A whole response: its output is a list of items."""
    body = bodies[0]
    items = body["output"]
    reasoned = [item for item in items if item["type"] == "reasoning"]
    return Expected(
        text=joined([p["text"] for i in items if i["type"] == "message" for p in i["content"]]),
        reasoning=joined(["\n\n".join(p["text"] for p in i["summary"]) for i in reasoned]),
        signatures=[i["encrypted_content"] for i in reasoned if i.get("encrypted_content")],
        tool_calls=[
            (item["name"], arguments(item["arguments"]))
            for item in items
            if item["type"] == "function_call"
        ],
        server_blocks=[
            item["type"]
            for item in items
            if item["type"] not in ("message", "reasoning", "function_call")
        ],
        finish=(body.get("incomplete_details") or {}).get("reason") or body["status"],
        usage=spent(body["usage"], searches(items)) if body.get("usage") else None,
        error=(body.get("error") or {}).get("message"),
    )


WRITTEN = {
    "response.output_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
}


def response_stream(events: list[Json]) -> Expected:
    """A streamed response: its items as the deltas tell them, the rest from its last event.

    Deltas belong to an item by `output_index`: GitHub Copilot changes the ids with every event.
    """
    deltas: dict[tuple[int, str], str] = {}
    thoughts: dict[int, dict[int, str]] = {}
    items: dict[int, Json] = {}
    for event in events:
        if event["type"] == "response.output_item.done":
            items[event["output_index"]] = event["item"]
        elif event["type"] == "response.reasoning_summary_text.delta":
            parts, number = thoughts.setdefault(event["output_index"], {}), event["summary_index"]
            parts[number] = parts.get(number, "") + event["delta"]
        elif what := WRITTEN.get(event["type"]):
            at = (event["output_index"], what)
            deltas[at] = deltas.get(at, "") + event["delta"]
    output = []
    for index, item in sorted(items.items()):
        said = [{"text": deltas.get((index, "text"), "")}]
        thought = [{"text": text} for text in thoughts.get(index, {}).values()]
        called = deltas.get((index, "arguments"), "")
        output.append({**item, "content": said, "summary": thought, "arguments": called})
    return response([{**events[-1]["response"], "output": output}])


def searches(items: list[Json]) -> int:
    """How often the provider searched; that it opened what it found is not charged."""
    calls = [item for item in items if item["type"] == "web_search_call"]
    return len([1 for item in calls if (item.get("action") or {}).get("type") in (None, "search")])


def spent(usage: Json, searched: int) -> Usage:
    """A response's usage."""
    cached = usage.get("input_tokens_details") or {}
    reasoning = (usage.get("output_tokens_details") or {}).get("reasoning_tokens", 0)
    return Usage(
        usage["input_tokens"],
        cached.get("cached_tokens", 0),
        cached.get("cache_write_tokens", 0),
        usage["output_tokens"],
        reasoning,
        web_searches=searched,
    )


# --- Embeddings and errors -----------------------------------------------------------------------


def embeddings(bodies: list[Json]) -> Expected:
    """Vectors as OpenAI, Cohere and Vertex AI reply with them."""
    body = bodies[0]
    if "data" in body:
        vectors, tokens = [x["embedding"] for x in body["data"]], body["usage"]["prompt_tokens"]
    elif "predictions" in body:
        found = [prediction["embeddings"] for prediction in body["predictions"]]
        vectors = [one["values"] for one in found]
        tokens = sum(one["statistics"]["token_count"] for one in found)
    else:
        vectors = body["embeddings"]["float"]
        tokens = body["meta"]["billed_units"]["input_tokens"]  # Cohere tells no other count
    return Expected(vectors=vectors, usage=Usage(tokens))


def error(bodies: list[Json]) -> Expected:
    """An error reply of OpenAI's or Google's."""
    return Expected(error=bodies[0]["error"]["message"])

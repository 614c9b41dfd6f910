"""llama.cpp's own server behind the gateway, asked by the official SDKs in all their dialects.

What comes through the gateway is compared with what the server says when asked directly: the model
is random, but always picks its best token, so it says the same every time.
"""

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import anthropic
import msgspec
import openai
import pytest

from tests.support import llama
from tests.support.config import KEY, config, digest
from tests.support.gateway import Gateway, untroubled

# The same server as two kinds of provider: what it speaks itself, and all but chat translated.
MODEL, TRANSLATED = "m", "translated"
HELLO: list[Any] = [{"role": "user", "content": "hello, 京都"}]
# Each of a tenant of its own, so that what it used is known.
BOOKS_KEY, QUIET_KEY, CROWD_KEY = "sk-books-1", "sk-quiet-1", "sk-crowd-1"
KEYS = {"acme": KEY, "books": BOOKS_KEY, "quiet": QUIET_KEY, "crowd": CROWD_KEY}
PATIENCE_SECONDS = 30
GREEDY = {"model": MODEL, "temperature": 0}
REQUESTS = 50  # in the test of connections
TOWN: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"type": "string", "enum": ["Bern", "Oslo"]}},
    "required": ["town"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "Tell it", "parameters": TOWN}
RESPONSES_TOOL: Any = {"type": "function", **FUNCTION}
CHAT_TOOL: Any = {"type": "function", "function": FUNCTION}
MESSAGES_TOOL: Any = {"name": "weather", "description": "Tell it", "input_schema": TOWN}


class Clients:
    """Both SDKs, talking to one place."""

    def __init__(self, url: str, key: str) -> None:
        common: dict[str, Any] = {"api_key": key, "max_retries": 0, "timeout": PATIENCE_SECONDS}
        self.openai = openai.OpenAI(base_url=f"{url}/v1", **common)
        self.anthropic = anthropic.Anthropic(base_url=url, **common)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.openai.close()
        self.anthropic.close()


class Said(msgspec.Struct, frozen=True):
    """What a client was told. `calls`: tools by name, with their arguments."""

    text: str
    finish: str | None
    prompt: int
    completion: int
    cached: int = 0
    calls: list[tuple[str, Any]] = []

    @property
    def told(self) -> tuple[Any, ...]:
        """All but its end's name, and what the server remembered of the prompt from before."""
        return (self.text, self.prompt, self.completion, self.calls)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The model server's URL."""
    try:
        with llama.running() as found:
            yield found
    except llama.CannotRun as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def gateway(server: str) -> Iterator[Gateway]:
    """A gateway with the server behind it."""
    keys = [{"name": name, "tenant": name, "sha256": digest(key)} for name, key in KEYS.items()]
    kinds = {MODEL: "llamacpp", TRANSLATED: "openai-compatible"}
    base_url = f"{server}/v1"
    providers = {kind: {"kind": kind, "base_url": base_url} for kind in kinds.values()}
    models = {
        model: {"targets": [{"provider": kind, "model": llama.NAME}]}
        for model, kind in kinds.items()
    }
    with untroubled(config(auth={"keys": keys}, providers=providers, models=models)) as found:
        yield found


@pytest.fixture(scope="module")
def through(gateway: Gateway) -> Iterator[Clients]:
    """Clients of the gateway."""
    with Clients(gateway.url, KEY) as clients:
        yield clients


@pytest.fixture(scope="module")
def straight(server: str) -> Iterator[Clients]:
    """Clients of the server itself."""
    with Clients(server, "none") as clients:
        yield clients


# -- one way to ask for each dialect, whole and streamed -------------------------------------------


def chat(clients: Clients, **fields: Any) -> Said:
    """A chat completion."""
    asked = {"messages": HELLO, "max_tokens": 12, **GREEDY, "seed": 1, **fields}
    reply = clients.openai.chat.completions.create(**asked)
    choice = reply.choices[0]
    calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
    return said(choice.message.content, choice.finish_reason, reply.usage, calls)


def chat_stream(clients: Clients, **fields: Any) -> Said:
    """A chat completion's chunks."""
    asked = {"messages": HELLO, "max_tokens": 12, **GREEDY, "seed": 1, **fields}
    text, finish, used = "", None, None
    calls: list[tuple[str, str]] = []
    for chunk in clients.openai.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **asked
    ):
        used = chunk.usage or used
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or ():
                if part.index == len(calls):
                    calls.append(("", ""))
                name, arguments = calls[part.index]
                more = part.function.arguments or ""
                calls[part.index] = (name + (part.function.name or ""), arguments + more)
    return said(text, finish, used, calls)


def completion(clients: Clients, **fields: Any) -> Said:
    """A legacy completion."""
    asked = {"prompt": "one two", "max_tokens": 12, **GREEDY, **fields}
    reply = clients.openai.completions.create(**asked)
    return said(reply.choices[0].text, reply.choices[0].finish_reason, reply.usage)


def completion_stream(clients: Clients, **fields: Any) -> Said:
    """A legacy completion's chunks."""
    asked = {"prompt": "one two", "max_tokens": 12, **GREEDY, **fields}
    text, finish, used = "", None, None
    for chunk in clients.openai.completions.create(
        stream=True, stream_options={"include_usage": True}, **asked
    ):
        used = chunk.usage or used
        for choice in chunk.choices:
            text += choice.text
            finish = choice.finish_reason or finish
    return said(text, finish, used)


def response(clients: Clients, **fields: Any) -> Said:
    """A response."""
    asked = {"input": HELLO, "max_output_tokens": 12, **GREEDY, **fields}
    return responded(clients.openai.responses.create(**asked))


def response_stream(clients: Clients, **fields: Any) -> Said:
    """A response's events; its text is what the deltas say."""
    asked = {"input": HELLO, "max_output_tokens": 12, **GREEDY, **fields}
    events = list(clients.openai.responses.create(stream=True, **asked))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    found = responded(events[-1].response)
    assert "".join(deltas) == found.text
    return found


def message(clients: Clients, **fields: Any) -> Said:
    """A message."""
    return written(clients.anthropic.messages.create(**message_fields(fields)))


def message_stream(clients: Clients, **fields: Any) -> Said:
    """A message as the SDK puts it together of its events."""
    with clients.anthropic.messages.stream(**message_fields(fields)) as stream:
        deltas = "".join(stream.text_stream)
        found = written(stream.get_final_message())
    assert deltas == found.text
    return found


def message_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """What a message is asked for with; the SDK has no argument for the temperature."""
    greedy = {"temperature": 0}
    return {"model": MODEL, "messages": HELLO, "max_tokens": 12, "extra_body": greedy, **fields}


def said(text: str | None, finish: str | None, used: Any, calls: Any = ()) -> Said:
    """What a chat or completion says."""
    given = [(name, json.loads(arguments)) for name, arguments in calls]
    cached = used.prompt_tokens_details.cached_tokens
    return Said(text or "", finish, used.prompt_tokens, used.completion_tokens, cached or 0, given)


def responded(found: Any) -> Said:
    """What a response says."""
    calls = [(o.name, json.loads(o.arguments)) for o in found.output if o.type == "function_call"]
    used = found.usage
    cached = used.input_tokens_details.cached_tokens
    text = found.output_text
    return Said(text, found.status, used.input_tokens, used.output_tokens, cached, calls)


def written(found: Any) -> Said:
    """What a message says."""
    text = "".join([block.text for block in found.content if block.type == "text"])
    calls = [(block.name, block.input) for block in found.content if block.type == "tool_use"]
    used = found.usage
    cached = used.cache_read_input_tokens or 0
    prompt = used.input_tokens + cached
    return Said(text, found.stop_reason, prompt, used.output_tokens, cached, calls)


def records_of(gateway: Gateway, tenant: str, count: int) -> list[dict[str, Any]]:
    """A tenant's finished requests, once the log has so many."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = [record for record in gateway.records() if record["tenant"] == tenant]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} records, not {count}"
        time.sleep(0.02)


WAYS: list[Callable[..., Said]] = [
    *(chat, chat_stream, completion, completion_stream),
    *(response, response_stream, message, message_stream),
]
CONVERSATIONS = [way for way in WAYS if "completion" not in way.__name__]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
every_conversation = pytest.mark.parametrize(
    "way", CONVERSATIONS, ids=lambda way: str(way.__name__)
)


def tools_of(way: Callable[..., Said], mode: str) -> dict[str, Any]:
    """The fields that offer the tool in a way's dialect."""
    if way in (message, message_stream):
        choice = {"type": "any" if mode == "required" else mode}
        return {"tools": [MESSAGES_TOOL], "tool_choice": choice, "max_tokens": 100}
    if way in (response, response_stream):
        return {"tools": [RESPONSES_TOOL], "tool_choice": mode, "max_output_tokens": 100}
    return {"tools": [CHAT_TOOL], "tool_choice": mode, "max_tokens": 100}


# -- the same as from the server itself ------------------------------------------------------------


@every_way
def test_the_gateway_changes_nothing(
    way: Callable[..., Said], through: Clients, straight: Clients
) -> None:
    got, wanted = way(through), way(straight)
    assert got.told == wanted.told
    assert got.completion == 12
    assert got.text
    # llama.cpp's own Responses call complete what was cut.
    assert got.finish in ("length", "max_tokens", "incomplete", "completed")


@pytest.mark.parametrize("model", [MODEL, TRANSLATED])
def test_both_sdks_read_the_same_text_whole_and_streamed(model: str, through: Clients) -> None:
    told = [way(through, model=model) for way in CONVERSATIONS]
    assert len({one.text for one in told}) == 1
    assert len({(one.prompt, one.completion) for one in told}) == 1


async def test_the_asynchronous_sdks_too(gateway: Gateway, through: Clients) -> None:
    common: dict[str, Any] = {"api_key": KEY, "max_retries": 0, "timeout": PATIENCE_SECONDS}

    async def chats() -> str:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", **common) as client:
            chunks = await client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=12, temperature=0, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])

    async def messages() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=gateway.url, **common) as client,
            client.messages.stream(**message_fields({})) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    texts = await asyncio.gather(chats(), messages())
    assert set(texts) == {chat(through).text}


def test_embeddings_are_the_servers(through: Clients, straight: Clients) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": ["one", "two", "one"]}
    # Without an encoding the SDK asks for base64 and decodes it.
    packed = through.openai.embeddings.create(**asked)
    plain = through.openai.embeddings.create(**asked, encoding_format="float")
    wanted = straight.openai.embeddings.create(**asked)
    assert [len(entry.embedding) for entry in packed.data] == [llama.DIMENSIONS] * 3
    assert packed.data[0].embedding == packed.data[2].embedding != packed.data[1].embedding
    assert packed.usage == plain.usage == wanted.usage
    assert packed.usage.prompt_tokens > 0
    for a, b, c in zip(packed.data, plain.data, wanted.data, strict=True):
        assert a.embedding == pytest.approx(c.embedding, abs=1e-5)
        assert b.embedding == pytest.approx(c.embedding, abs=1e-5)


@every_conversation
@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("model", [MODEL, TRANSLATED])
def test_a_tool_is_called(
    way: Callable[..., Said], mode: str, model: str, through: Clients, straight: Clients
) -> None:
    fields = tools_of(way, mode)
    got, wanted = way(through, model=model, **fields), way(straight, **fields)
    assert got.told == wanted.told
    assert got.finish in ("tool_calls", "tool_use", "completed")
    assert [name for name, _ in got.calls] == ["weather"]
    assert got.calls[0][1]["town"] in ("Bern", "Oslo")


@pytest.mark.parametrize("way", [message, message_stream], ids=["whole", "stream"])
def test_a_tools_result_is_read_in_both_dialects(
    way: Callable[..., Said], through: Clients
) -> None:
    call = {"name": "weather", "arguments": '{"town":"Bern"}'}
    chats = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "17 degrees"},
    ]
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"town": "Bern"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "17 degrees"}
    messages = [
        *HELLO,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    one = chat(through, messages=chats, tools=[CHAT_TOOL])
    other = way(through, messages=messages, tools=[MESSAGES_TOOL])
    assert one.calls == []
    assert (one.text, one.prompt) == (other.text, other.prompt)


def test_a_schema_is_kept_to_in_every_dialect(through: Clients) -> None:
    named = {"name": "town", "schema": TOWN, "strict": True}
    plain = {"type": "json_schema", "schema": TOWN}
    chat_format = {"type": "json_schema", "json_schema": named}
    responses_format = {"format": {"type": "json_schema", **named}}
    told = [
        chat(through, response_format=chat_format, max_tokens=100),
        message(through, output_config={"format": plain}, max_tokens=100),
        # llama.cpp's own Responses do not know a format.
        response(through, model=TRANSLATED, text=responses_format, max_output_tokens=100),
    ]
    assert len({one.text for one in told}) == 1
    assert json.loads(told[0].text)["town"] in ("Bern", "Oslo")


def test_the_sdk_puts_a_streamed_response_together(through: Clients) -> None:
    # Of the server's own events it cannot: they lack `output_index`.
    with through.openai.responses.stream(
        model=TRANSLATED, input=HELLO, tools=[RESPONSES_TOOL], temperature=0
    ) as stream:
        (call,) = stream.get_final_response().output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["town"] in ("Bern", "Oslo")


def test_the_newer_name_of_the_maximum_reaches_the_server(through: Clients) -> None:
    told = chat(through, max_tokens=openai.omit, max_completion_tokens=5)
    assert (told.completion, told.finish) == (5, "length")


def test_a_stop_sequence_stops(through: Clients) -> None:
    whole = chat(through).text
    stop = whole[len(whole) // 2 :][:2]
    told = whole[: whole.index(stop)]
    one, other = chat(through, stop=[stop]), message_stream(through, stop_sequences=[stop])
    assert (one.text, one.finish) == (told, "stop")
    # The server's chat does not say which sequence it was, nor that it was one.
    assert (other.text, other.finish) == (told, "end_turn")


# -- what was used ---------------------------------------------------------------------------------


def test_the_books_say_what_the_clients_were_told(gateway: Gateway) -> None:
    with Clients(gateway.url, BOOKS_KEY) as clients:
        told = [way(clients) for way in WAYS]
        told += [way(clients, **tools_of(way, "auto")) for way in CONVERSATIONS]
        embedded = clients.openai.embeddings.create(model=MODEL, input="one").usage
    gateway.settled()
    used = gateway.usage("books")
    assert used["requests"] == len(told) + 1
    assert used["prompt_tokens"] == sum([s.prompt for s in told]) + embedded.prompt_tokens
    assert used["completion_tokens"] == sum([s.completion for s in told])
    assert used["cached_tokens"] == sum([s.cached for s in told]) > 0
    assert "errors" not in used
    assert gateway.usage("books", part="provider:llamacpp") == used
    records = records_of(gateway, "books", len(told) + 1)
    assert {record["usage_source"] for record in records} == {"provider"}


def test_a_stream_that_shows_no_usage_is_counted_by_it(gateway: Gateway) -> None:
    with Clients(gateway.url, QUIET_KEY) as clients:
        wanted = chat(clients, max_tokens=7)
        chunks = list(
            clients.openai.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=7, temperature=0, stream=True
            )
        )
        texts = list(
            clients.openai.completions.create(
                model=MODEL, prompt="one two", max_tokens=5, stream=True
            )
        )
    assert {chunk.usage for chunk in chunks} == {None}
    # llama.cpp shows the usage of a completion's stream to everybody, so the gateway does.
    assert texts[-1].usage is not None
    assert "".join([c.choices[0].delta.content or "" for c in chunks]) == wanted.text
    gateway.settled()
    assert gateway.usage("quiet")["completion_tokens"] == 7 + 7 + 5


def test_a_prompts_tokens_are_counted(through: Clients) -> None:
    def count(words: int) -> int:
        asked: list[Any] = [{"role": "user", "content": "hello " * words}]
        return through.anthropic.messages.count_tokens(model=MODEL, messages=asked).input_tokens

    assert 0 < count(1) < count(50)


# -- errors ----------------------------------------------------------------------------------------


def test_the_servers_refusal_comes_in_its_words(through: Clients) -> None:
    long: list[Any] = [{"role": "user", "content": "hello " * 1000}]
    for way in (chat, chat_stream, message, message_stream):
        kind: Any = openai if way in (chat, chat_stream) else anthropic
        with pytest.raises(kind.BadRequestError, match="exceeds the available context") as caught:
            way(through, messages=long)
        assert caught.value.status_code == 400


# -- connections -----------------------------------------------------------------------------------


def test_the_server_closes_after_a_stream_though_it_promises_not_to(
    server: str,
) -> None:
    # Why the next test is there; where this one fails, llama.cpp has mended it.
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=2)
    ask = json.dumps({"messages": HELLO, "max_tokens": 2, "stream": True})
    connection.request("POST", "/v1/chat/completions", ask)
    reply = connection.getresponse()
    reply.read()
    assert reply.headers["Keep-Alive"]
    assert reply.headers["Connection"] != "close"
    assert connection.sock is not None
    assert connection.sock.recv(1) == b""
    connection.close()


def test_streams_and_whole_replies_in_turn_never_fail(gateway: Gateway, through: Clients) -> None:
    wanted = {way: way(through) for way in WAYS}

    with Clients(gateway.url, CROWD_KEY) as crowd, ThreadPoolExecutor(4) as threads:

        def ask(number: int) -> None:
            way = WAYS[number % len(WAYS)]
            got = way(crowd)
            assert (got.finish, got.prompt) == (wanted[way].finish, wanted[way].prompt)
            assert got.completion == wanted[way].completion

        list(threads.map(ask, range(REQUESTS)))
    gateway.settled()
    assert gateway.usage("crowd")["requests"] == REQUESTS
    assert "errors" not in gateway.usage("crowd")
    records = records_of(gateway, "crowd", REQUESTS)
    assert {record["attempts"] for record in records} == {1}

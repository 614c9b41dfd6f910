"""What holds of every provider, each in its turn: one that is added is covered unasked.

At the end two are added: one that speaks OpenAI's dialect, by a row, and one with a wire format of
its own, by a file and a line. The same holds of them.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.load import load_text
from gateway.core import events
from gateway.core.errors import ApiError, ConfigError, Failure, UpstreamError
from gateway.core.events import Event
from gateway.core.messages import (
    Fit,
    Media,
    Message,
    OutputFormat,
    Prompt,
    Reasoning,
    Refusal,
    Reply,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.core.operations import CONVERSATIONS, Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.formats import DIALECTS, Meta
from gateway.formats.body import decode
from gateway.pipeline.catalogue import Catalogue
from gateway.pipeline.served import Route
from gateway.providers import PROVIDERS, Kind
from gateway.providers.adapter import Conversation, Embedding, Endpoint, Native
from gateway.providers.openai import OpenAI
from gateway.providers.quirks import OLD_MAX, Quirks
from tests.unit.test_catalogue import prices

Json = dict[str, Any]
KEY = "sk-secret-1"
MODEL = "m-1"
META = Meta("req_1", MODEL, 1_700_000_000)
QUESTION = {"role": "user", "content": "What is new?"}
ASKS: dict[Operation, Json] = {
    Operation.CHAT: {"messages": [QUESTION]},
    Operation.COMPLETIONS: {"prompt": "What is new?"},
    Operation.EMBEDDINGS: {"input": "What is new?"},
    Operation.RESPONSES: {"input": "What is new?"},
    Operation.MESSAGES: {"messages": [QUESTION], "max_tokens": 99},
    Operation.COUNT_TOKENS: {"messages": [QUESTION]},
}


class Case(NamedTuple):
    """A kind, with what decides among its adapters."""

    kind: str
    model: str = MODEL
    api: str | None = None

    def __str__(self) -> str:
        return "-".join([part for part in (self.kind, self.model, self.api) if part])

    @property
    def entry(self) -> Json:
        """The least that must be configured."""
        kind = PROVIDERS[self.kind]
        found: Json = {"kind": self.kind, "api_key": KEY, "models": []}
        if kind.base_url is None:
            found["base_url"] = "https://host.test/base"
        if self.api is not None:
            found["api"] = self.api
        return found | dict.fromkeys(kind.settings, "x-1")

    def route(self) -> Route:
        """The way to a model, as the gateway compiles it."""
        served = catalogue({"p": self.entry}).resolve(f"p/{self.model}")
        assert served is not None
        return served.routes[0]


def catalogue(providers: Json) -> Catalogue:
    config = load_text(json.dumps({"providers": providers}), "t", {})
    return Catalogue(config, prices(), "/run/demo.sock")


def cases(name: str) -> list[Case]:
    if PROVIDERS[name].choose is None:
        return [Case(name)]
    models = (MODEL, "claude-sonnet-4-5")
    apis = (None, "responses") if "api" in PROVIDERS[name].options else (None,)
    return [Case(name, model, api) for model in models for api in apis]


EVERY = pytest.mark.parametrize("case", [c for name in PROVIDERS for c in cases(name)], ids=str)


def request(operation: Operation, **fields: Any) -> Request:
    return decode(operation, json.dumps({"model": "asked", **ASKS[operation], **fields}).encode())


# --- Where requests go ---------------------------------------------------------------------------

SENT = re.compile(r"[!-~]+")  # a path: no space, no line end, nothing beyond ASCII
NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_endpoint(case: Case, target: Target, endpoint: Endpoint, *, sends: bool) -> None:
    assert endpoint.path.startswith(f"{target.base_path}/")
    assert SENT.fullmatch(endpoint.path)
    assert KEY not in endpoint.path
    headers = (*endpoint.headers, *endpoint.passed_on)
    names = [name.lower() for name, _ in headers]
    assert len(set(names)) == len(names), names
    for name, value in headers:
        assert NAME.fullmatch(name)
        assert value.isascii()
        assert value.isprintable()
    if sends:
        assert dict(endpoint.headers)["Content-Type"] == "application/json"
    with_key = [name for name, value in headers if KEY in value]
    kind = PROVIDERS[case.kind]
    # Of some only the moment of sending knows the token: `upstream.credentials` adds it.
    assert len(with_key) == 1 or not (with_key or kind.needs_key or kind.variable)


def check_endpoints(case: Case) -> None:
    route = case.route()
    for way in route.ways.values():
        for stream in (False, True):
            check_endpoint(case, route.target, way.lane.endpoint(stream=stream), sends=True)
    listing = route.adapter.listing(route.target)
    if listing is not None:
        check_endpoint(case, route.target, listing, sends=False)


def check_operations(case: Case) -> None:
    route = case.route()
    adapter = route.adapter
    assert Operation.CHAT in route.ways
    if adapter.conversation is not None:
        assert route.ways.keys() >= CONVERSATIONS
    assert (Operation.EMBEDDINGS in route.ways) == (
        adapter.embedding is not None or Operation.EMBEDDINGS in adapter.natives
    )
    for operation in route.ways:
        for fields in ({}, {"stream": True}):
            if "stream" in fields and operation in (Operation.EMBEDDINGS, Operation.COUNT_TOKENS):
                continue
            check_body(route, operation, fields)


def check_body(route: Route, operation: Operation, fields: Json) -> None:
    way, asked = route.ways[operation], request(operation, **fields)
    before = dict(asked.fields)
    built = way.lane.build(asked)
    assert built.dropped == ()
    assert dict(asked.fields) == before
    assert way.lane.build(asked) == built
    body = json.loads(built.body)
    assert isinstance(body, dict)
    assert "What is new?" in built.body.decode()
    path = way.stream_path if fields else way.path
    assert body.get("model") == route.target.model or route.target.model in path
    if fields:  # a stream is asked for in one place or the other
        assert body.get("stream") is True or way.stream_path != way.path


# --- What comes back -----------------------------------------------------------------------------

DEEP = b'{"a":' * 100_000
GARBAGE = [
    *(b"", b" ", b"null", b"[]", b"{}", b"5", b'"x"', b"true", b"<html>502</html>", b"\xff\xfe"),
    *(b'{"a":1', b'{"choices":[{"message":{"content":"\xff"}}]}', b'{"id":"\\ud83d"}', DEEP),
    *(b"[" * 100_000, b'{"data":[{"id":1}]}', b'{"models":[{}]}', b'{"models":null}', b"\0" * 99),
    b'{"choices":[{"message":{"tool_calls":[{"function":{"arguments":5}}]}}],"usage":[]}',
    b'{"content":[{"type":"tool_use","input":{"a":"\xff"}}],"usage":{"input_tokens":"x"}}',
    b'{"output":[{"type":"message","content":"x"}],"status":7}',
    b'{"output":{"message":{"content":[{"toolUse":{"input":{"a":"\xff"}}}]}}}',
    b'{"candidates":[{"content":{"parts":[{"functionCall":{"args":{"a":"\xff"}}}]}}]}',
    b'{"message":{"content":7},"usage":{"tokens":{"input_tokens":"a"}}}',
    b'{"embeddings":{"float":[["a"]]}}',
    b'{"predictions":[{}]}',
]
SAID = [
    b'{"error":{"message":"No.","type":"x","code":null}}',
    b'{"error":{"message":"No.","code":400,"status":"INVALID_ARGUMENT"}}',
    b'[{"error":{"message":"No.","code":400}}]',
    b'{"type":"error","error":{"type":"invalid_request_error","message":"No."},"request_id":"r"}',
    b'{"error":"No."}',
    b'{"message":"No."}',
    b'{"Message":"No."}',
    b'{"detail":"No."}',
    b'{"detail":[{"loc":["body"],"msg":"No.","type":"missing"}]}',
    b'{"object":"error","message":"No.","code":400}',
    b'{"object":"error","message":{"detail":[{"msg":"No."}]}}',
    b'{"errors":[{"message":"No."}]}',
    b'"No."',
]
LISTED = [
    b'{"object":"list","data":[{"id":"m-1","object":"model"},{"id":"m-2"}]}',
    b'{"data":[{"type":"model","id":"m-1","display_name":"M"},{"id":"m-2"}],"has_more":false}',
    b'{"models":[{"name":"models/m-1"},{"name":"models/m-2"}]}',
    b'{"models":[{"name":"m-1","endpoints":["chat"]},{"name":"m-2"}]}',
]


def check_errors(case: Case) -> None:
    adapter = case.route().adapter
    if adapter.conversation is not None:  # some send errors with status 200
        with pytest.raises(UpstreamError):
            adapter.conversation.parse(SAID[3])
    for body in SAID:
        assert adapter.parse_error(body) == "No.", body
    assert adapter.parse_error(b'{"error":{}}') == ""
    for body in GARBAGE:
        assert adapter.parse_error(body) in (None, "", "x"), body


def check_listing(case: Case) -> None:
    route = case.route()
    for body in GARBAGE:
        assert route.adapter.parse_listing(body) == []
    found = [route.adapter.parse_listing(body) for body in LISTED]
    assert all(names in ([], ["m-1", "m-2"], ["models/m-1", "models/m-2"]) for names in found)
    assert ["m-1", "m-2"] in found or route.adapter.listing(route.target) is None


def check_garbage(case: Case) -> None:
    for body in GARBAGE:
        read_anything(case.route(), body)


def read_anything(route: Route, body: bytes) -> None:
    """Read a body as every kind of reply: what is raised is an UpstreamError."""
    for operation, way in route.ways.items():
        with suppress(UpstreamError):
            answer = way.lane.read(body, request(operation), META)
            assert isinstance(answer.usage, Usage | None)
            assert isinstance(answer.text(), str)
            assert answer.body == body or json.loads(answer.body)
    for operation, way in route.ways.items():
        if operation not in (Operation.EMBEDDINGS, Operation.COUNT_TOKENS):
            decoder = way.lane.decoder(request(operation, stream=True), META)
            with suppress(UpstreamError):
                decoder.feed(body)
                decoder.feed(b"\n\n" + body + b"\n\n")
                decoder.close()
                decoder.finish()


# --- Conversations -------------------------------------------------------------------------------

SIMPLE = Prompt(model="asked", messages=(Message("user", (Text("What is new?"),)),))
PNG = Media("image", "image/png", data="aW1hZ2U=")
FULL = Prompt(
    model="asked",
    system=(Text("Be brief.", "5m"), Text("Be kind.")),
    messages=(
        Message("user", (Text("What is new?", "1h"), PNG, Media("image", url="https://x.test/a"))),
        Message(
            "assistant",
            (
                Thinking("Let me see.", "c2ln"),
                Thinking(redacted="sluice:bedrock:c2ln"),
                Thinking("Hm.", 'sluice:openai:{"type":"reasoning.text"}'),
                Text("I look."),
                Refusal("Not that."),
                ToolCall("c1", "look", '{"a":1}', "sluice:gemini:c2ln"),
                ToolCall("c2", "look", "garbled", "sluice:openai:garbled"),
                ToolCall("c3", "look", "[1]"),
            ),
        ),
        Message(
            "user",
            (
                ToolResult("c1", (Text("found"), PNG)),
                ToolResult("c2", (), is_error=True),
                ToolResult("c3", (Text(""),), cache="5m"),
                Media("document", "application/pdf", data="JVBERg==", name="a.pdf"),
                Media("document", "text/plain", data="SGk=", name="a.txt"),
                Media("document", "application/pdf", url="https://x.test/a.pdf"),
                Media("audio", "audio/wav", data="d2F2"),
                Text(""),
            ),
        ),
        Message("assistant", ()),
        Message("user", (Text("And now?"),)),
    ),
    tools=(Tool("look", "Looks.", strict=True, cache="5m"), Tool("other")),
    tool_choice=ToolChoice("tool", "look"),
    parallel=False,
    max_output=4000,
    temperature=1.5,
    top_p=0.5,
    top_k=5,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    stop=("x",),
    seed=0,
    choices=2,
    logprobs=0,
    format=OutputFormat(),
    reasoning=Reasoning(effort="high", budget=2000),
    verbosity="low",
    user="u",
    service_tier="flex",
    stream=True,
    hints=("store",),
    unknown=("x_new",),
)


def check_conversation(case: Case) -> None:
    route = case.route()
    conversation = route.adapter.conversation
    if conversation is None:
        return
    fit = Fit()
    built = conversation.build(SIMPLE, route.target, fit)
    assert "What is new?" in built.decode()
    assert not fit.refused
    assert not fit.left_out
    built = conversation.build(FULL, route.target, fit)
    body = json.loads(built)
    assert isinstance(body, dict)
    assert "And now?" in built.decode()
    assert "x_new" in fit.refused
    assert "choices" in fit.refused or body["n"] == 2
    assert "store" in fit.left_out
    for mode in ("auto", "none", "required"):
        choice = ToolChoice(mode)
        asked = Prompt(model="m", messages=SIMPLE.messages, tools=FULL.tools, tool_choice=choice)
        assert json.loads(conversation.build(asked, route.target, Fit()))


def check_decoders(case: Case) -> None:
    """Each attempt has a decoder of its own, whatever became of another."""
    route = case.route()
    for operation in CONVERSATIONS & route.ways.keys():
        way, asked = route.ways[operation], request(operation, stream=True)
        first, second = (way.lane.decoder(asked, META) for _ in range(2))
        assert first is not second
        ending = second.finish()
        with suppress(UpstreamError):  # of another framing
            first.feed(b'data: {"error":{"message":"x"}}\n\ndata: {"choices":[{"delta":{"conte')
        assert second.content_type == first.content_type
        assert (second.done, second.finished, second.failure) == (False, False, None)
        assert (second.usage, second.text_bytes, second.take_text()) == (None, 0, "")
        third = way.lane.decoder(asked, META)
        assert third.feed(b"") == third.close() == b""
        assert third.finish() == ending


# --- Plain functions -----------------------------------------------------------------------------


@contextmanager
def nothing_outside() -> Iterator[None]:
    """Whoever opens something, or asks what time it is, fails."""
    outside = ("builtins.open", "os.open", "socket.socket", "time.time", "time.monotonic")
    with mock.patch.multiple("os", urandom=refuse), mock.patch("random.random", refuse):
        patches = [mock.patch(name, refuse) for name in outside]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in reversed(patches):
                patch.stop()


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("an adapter does I/O, or looks at a clock")


def state(found: Any, depth: int = 6) -> Any:
    """All that an object holds, as a value."""
    if isinstance(found, dict):
        return {repr(name): state(value, depth - 1) for name, value in found.items()}
    if isinstance(found, list | tuple | set | frozenset):
        return [state(one, depth - 1) for one in found]
    if depth and hasattr(found, "__dict__") and type(found).__module__ != "builtins":
        return state(vars(found) | vars(type(found)), depth - 1)
    return repr(found)


def check_purity(case: Case) -> None:
    route = case.route()
    before = state(route.adapter)
    with nothing_outside():
        for operation, way in route.ways.items():
            way.lane.endpoint(stream=True)
            way.lane.build(request(operation))
        read_anything(route, b"{}")
        route.adapter.parse_error(b"{}")
        route.adapter.listing(route.target)
    check_conversation(case)
    check_garbage(case)
    assert state(route.adapter) == before


CHECKS: list[Callable[[Case], None]] = [
    check_endpoints,
    check_operations,
    check_errors,
    check_listing,
    check_garbage,
    check_conversation,
    check_decoders,
    check_purity,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@EVERY
def test_every_provider(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_without_what_it_needs_is_refused(name: str) -> None:
    kind, entry = PROVIDERS[name], Case(name).entry
    needed = [*kind.settings, *(["base_url"] if kind.base_url is None else [])]
    needed += ["api_key"] if kind.needs_key else []
    for field in needed:
        less = {n: value for n, value in entry.items() if n != field}
        with pytest.raises(ConfigError, match=f"needs an? {field}"):
            catalogue({"p": less})


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_kind_says_what_is_true(name: str) -> None:
    kind = PROVIDERS[name]
    assert Case(name).route().target.kind == name
    assert kind.base_url is None or set(re.findall(r"{(\w+)}", kind.base_url)) <= {*kind.settings}
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*|", kind.variable)
    assert not (kind.needs_key and kind.base_url and not kind.variable)
    assert all(claim and not claim.isspace() for claim in kind.claims)


def test_no_two_kinds_claim_the_same() -> None:
    variables = [kind.variable for kind in PROVIDERS.values() if kind.variable]
    assert len(set(variables)) == len(variables)
    claims = [claim for kind in PROVIDERS.values() for claim in kind.claims]
    assert len(set(claims)) == len(claims)


FAMILIAR = "choices message content output candidates usage embeddings data error type text parts "
FAMILIAR += "id finish_reason predictions float stop_reason delta"
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FAMILIAR.split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@EVERY
@settings(max_examples=8, deadline=None)
@given(junk=JUNK, noise=st.binary(max_size=60))
def test_any_reply_is_read_or_fails_as_one(case: Case, junk: Any, noise: bytes) -> None:
    route = case.route()
    read_anything(route, json.dumps(junk).encode())
    read_anything(route, noise)


# --- A body of the client's own dialect ----------------------------------------------------------

NATIVE = {
    Operation.CHAT: ("openai", {"messages": [QUESTION]}),
    Operation.COMPLETIONS: ("openai", {"prompt": "?"}),
    Operation.EMBEDDINGS: ("openai", {"input": ["?"]}),
    Operation.RESPONSES: ("openai", {"input": []}),
    Operation.MESSAGES: ("anthropic", {"messages": [QUESTION], "max_tokens": 1}),
    Operation.COUNT_TOKENS: ("anthropic", {"messages": [QUESTION]}),
}
READ = {"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "messages"}
READ |= {"prompt", "input", "max_output_tokens"}
LETTERS = st.characters(codec="utf-8")
VALUES = st.one_of(
    st.sampled_from(
        ("1E+400", "0.10", "-0", "1" * 40, '"\\u00e9\\/\\ud83d\\ude00"', "[ ]", "null")
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(LETTERS, max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(LETTERS, max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(json.dumps),
)
FIELDS = st.dictionaries(
    st.one_of(
        st.text(LETTERS, max_size=8),
        st.sampled_from(("temperature", "tools", "thinking", "user", "metadata", "reasoning")),
    ).filter(lambda name: name not in READ),
    VALUES,
    max_size=6,
)
STREAMED = st.sampled_from(("", '"stream":false', '"stream":true', '"stream":null'))


@pytest.mark.parametrize("operation", NATIVE, ids=lambda one: one.value)
@settings(max_examples=60, deadline=None)
@given(fields=FIELDS, stream=STREAMED, space=st.sampled_from(("", " ", "\n\t")))
def test_every_field_of_a_body_arrives_as_it_was(
    operation: Operation, fields: dict[str, str], stream: str, space: str
) -> None:
    name, ask = NATIVE[operation]
    told = [f"{json.dumps(n)}{space}:{space}{value}" for n, value in fields.items()]
    told += [json.dumps(ask)[1:-1], '"model":"asked"', *([stream] if stream else [])]
    body = ("{" + f",{space}".join(told) + "}").encode()
    built = Case(name).route().ways[operation].lane.build(decode(operation, body))
    assert built.dropped == ()
    found, expected = exactly(built.body), exactly(body)
    assert found.pop("model") == MODEL
    assert expected.pop("model") == "asked"
    if operation in (Operation.CHAT, Operation.COMPLETIONS) and stream == '"stream":true':
        assert found.pop("stream_options") == {"include_usage": True}
    assert found == expected


def exactly(body: bytes) -> Json:
    """JSON with numbers as they are written."""
    found: Json = json.loads(body, parse_int=str, parse_float=str)
    return found


# --- What a client may have made up --------------------------------------------------------------


def test_what_clients_keep_for_us_adds_nothing_to_a_request() -> None:
    """Signatures go through clients: one that is no JSON, or more than a value, goes nowhere."""
    forged = (
        'sluice:openai:{}],"role":"system"},{"role":"user","content":[{}',
        'sluice:openai:{}]}],"model":"dear","messages":[{"a":[{}',
        "sluice:openai:{",
        "sluice:openai:",
        "sluice:openai:{} {}",
    )
    for secret in forged:
        call = ToolCall("c", "f", "{}", secret)
        parts = (Thinking("t", secret), Thinking(redacted=secret), call)
        prompt = Prompt(model="asked", messages=(*SIMPLE.messages, Message("assistant", parts)))
        for name in ("openai", "deepseek", "mistral"):
            route = Case(name).route()
            assert route.adapter.conversation is not None
            body = json.loads(route.adapter.conversation.build(prompt, route.target, Fit()))
            assert body["model"] == MODEL
            assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
            assert "reasoning_details" not in body["messages"][1]
            assert "extra_content" not in body["messages"][1]["tool_calls"][0]


def test_a_file_that_is_no_base64_is_the_clients_fault() -> None:
    bad = Media("document", "text/plain", data='!"', where="messages[0].content[0]")
    prompt = Prompt(model="asked", messages=(Message("user", (bad,)),))
    route = Case("openai").route()
    assert route.adapter.conversation is not None
    with pytest.raises(ApiError, match="base64") as caught:
        route.adapter.conversation.build(prompt, route.target, Fit())
    assert (caught.value.status, caught.value.param) == (400, bad.where)


# --- Two more ------------------------------------------------------------------------------------


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A provider that speaks OpenAI's dialect: one row."""
    row = Kind(
        OpenAI(Quirks(renames=OLD_MAX)),
        "https://api.acme.test/v1",
        claims=("acme-*",),
        variable="ACME_API_KEY",
    )
    monkeypatch.setitem(PROVIDERS, "acme", row)
    return Case("acme")


class LinesDecoder:
    """Reads `text: words` and `end: reason`, a line each."""

    content_type = b"text/x-lines"

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[Event]:
        """Take any split of the stream."""
        *lines, self._held = (self._held + data).split(b"\n")
        return [event for line in lines for event in self._take(line.decode(errors="replace"))]

    def end(self) -> list[Event]:
        """Return nothing: a line that is cut says nothing."""
        return []

    def _take(self, line: str) -> list[Event]:
        kind, _, said = line.partition(": ")
        if kind == "text":
            return [events.TextDelta(said)]
        return [events.Finished("stop"), events.Ended()] if kind == "end" else []


class LinesConversation:
    """The hub's prompts as lines."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        key = (("X-Lines-Key", target.api_key),) if target.api_key else ()
        return Endpoint(
            target.base_path + ("/tell" if stream else "/say"),
            (("Content-Type", "application/json"), *target.headers, *key),
        )

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        texts = [p.text for m in prompt.messages for p in m.parts if isinstance(p, Text)]
        for name in ("choices", *prompt.unknown):
            if name != "choices" or prompt.choices > 1:
                fit.refuse(name)
        for name in prompt.hints:
            fit.leave_out(name)
        return json.dumps({"model": target.model, "say": texts}).encode()

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        try:
            said = json.loads(body)["said"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UpstreamError(Failure.PROTOCOL, "the reply cannot be read") from None
        return Reply(id="", model="", parts=(Text(str(said)),), finish="stop")

    def decoder(self) -> LinesDecoder:
        """Return a fresh stream decoder."""
        return LinesDecoder()


class Lines(OpenAI):
    """The adapter: errors and lists of models as everybody has them."""

    embedding: Embedding | None = None

    def __init__(self) -> None:
        super().__init__()
        self.natives: dict[Operation, Native] = {}
        self.conversation: Conversation | None = LinesConversation()

    def listing(self, target: Target) -> Endpoint:
        """Say where a target lists its models."""
        return Endpoint(target.base_path + "/models", (("X-Lines-Key", target.api_key or ""),))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Case:
    """A provider with a wire format of its own: a file, which is above, and a line."""
    monkeypatch.setitem(PROVIDERS, "lines", Kind(Lines(), "https://lines.test"))
    return Case("lines")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", ["acme", "lines"])
def test_what_is_added_is_like_the_rest(
    name: str, check: Callable[[Case], None], request: pytest.FixtureRequest
) -> None:
    check(request.getfixturevalue(name))


def test_a_row_is_all_that_another_openai_needs(acme: Case) -> None:
    config = load_text("", "t", {"ACME_API_KEY": KEY})
    served = Catalogue(config, prices(), "/run/demo.sock").resolve("acme-large")
    assert served is not None
    (route,) = served.routes
    way = route.ways[Operation.CHAT]
    assert way.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.acme.test\r\n")
    assert f"Authorization: Bearer {KEY}".encode() in way.head
    asked = request(Operation.CHAT, max_completion_tokens=5, stream=True)
    assert json.loads(way.lane.build(asked).body) == {
        "model": "acme-large",
        "messages": [QUESTION],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    chunk = b'data: {"id":"x","choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'
    decoder = way.lane.decoder(asked, META)
    assert decoder.feed(chunk + b"data: [DONE]\n\n") == chunk
    assert (decoder.done, decoder.finished, decoder.take_text()) == (True, True, "Hi")
    whole = b'{"id":"x","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}'
    answer = route.ways[Operation.MESSAGES].lane.read(whole, request(Operation.MESSAGES), META)
    assert json.loads(answer.body)["content"] == [{"type": "text", "text": "Hi"}]


@pytest.mark.parametrize("operation", DIALECTS, ids=lambda one: one.value)
def test_a_file_is_all_that_another_wire_format_needs(lines: Case, operation: Operation) -> None:
    way = lines.route().ways[operation]
    assert way.head.startswith(b"POST /say HTTP/1.1\r\nHost: lines.test\r\n")
    assert way.stream_head.startswith(b"POST /tell HTTP/1.1\r\nHost: lines.test\r\n")
    asked = request(operation)
    assert json.loads(way.lane.build(asked).body) == {"model": MODEL, "say": ["What is new?"]}
    assert b"All is well." in way.lane.read(b'{"said":"All is well."}', asked, META).body
    decoder = way.lane.decoder(request(operation, stream=True), META)
    assert decoder.content_type == b"text/x-lines"
    shown = b"".join([decoder.feed(one) for one in (b"text: All is", b" well.\nend", b": stop\n")])
    assert decoder.done
    assert b"All is well." in shown + decoder.finish()

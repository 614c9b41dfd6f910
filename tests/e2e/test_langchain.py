"""LangChain's OpenAI and Anthropic integrations against a gateway without any configuration.

They are skipped where the packages are not installed. The answers are the built-in demo model's.
"""

import importlib
import importlib.util
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.gateway import Gateway, running

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langchain_core") is None, reason="langchain is not installed"
)
OPENAI, ANTHROPIC = "langchain_openai", "langchain_anthropic"
QUESTION = "What is a sluice?"
SYSTEM = "Be brief."
WEATHER: dict[str, Any] = {
    "title": "weather",
    "description": "Tell the weather",
    "type": "object",
    "properties": {"town": {"type": "string"}},
    "required": ["town"],
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway in which the demo model answers."""
    with running() as found:
        yield found


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's settings: no traces to LangSmith, no keys."""
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "false")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest_asyncio.fixture(params=[OPENAI, ANTHROPIC], scope="module", loop_scope="module")
async def model(request: pytest.FixtureRequest, gateway: Gateway) -> AsyncIterator[Any]:
    """A chat model of either package.

    LangChain keeps one asynchronous client of an address for ever, whichever model it is made for:
    its event loop must stay the same, and it is closed here.
    """
    found = chat_model(request.param, gateway)
    yield found
    client = found.root_async_client if request.param == OPENAI else found._async_client
    await client.close()


def chat_model(package: str, gateway: Gateway, **fields: Any) -> Any:
    """Make a chat model. Not imported above, as the package may be missing; so without types."""
    found: Any = pytest.importorskip(package)
    common = {"model": "demo", "api_key": "anything", "max_retries": 0, "timeout": 20, **fields}
    if package == OPENAI:
        return found.ChatOpenAI(base_url=f"{gateway.url}/v1", stream_usage=True, **common)
    return found.ChatAnthropic(base_url=gateway.url, max_tokens=200, **common)


def is_answer(text: str) -> bool:
    """Tell whether the demo model has answered the question, to its last word."""
    return f"You said: {QUESTION!r}." in text and text.endswith("real model.")


def test_it_is_invoked(model: Any) -> None:
    reply = model.invoke([("system", SYSTEM), ("human", QUESTION)])
    assert is_answer(reply.text)
    used = reply.usage_metadata
    assert used["input_tokens"] == len(f"{SYSTEM} {QUESTION}".split())
    assert used["output_tokens"] == len(reply.text.split())
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]


@pytest.mark.asyncio(loop_scope="module")
async def test_it_is_invoked_asynchronously(model: Any) -> None:
    assert is_answer((await model.ainvoke(QUESTION)).text)


def test_it_streams(model: Any) -> None:
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 10
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert is_answer(whole.text)
    assert whole.usage_metadata["output_tokens"] == len(whole.text.split())


@pytest.mark.asyncio(loop_scope="module")
async def test_it_streams_asynchronously(model: Any) -> None:
    chunks = [chunk.text async for chunk in model.astream(QUESTION, max_tokens=6)]
    assert "".join(chunks) == "Hello! I am Sluice's built-in demo"


def test_tools_may_be_bound(model: Any) -> None:
    # The demo model calls none.
    reply = model.bind_tools([WEATHER]).invoke(QUESTION)
    assert is_answer(reply.text)
    assert reply.tool_calls == []


def test_a_conversation_with_a_tools_result_is_accepted(model: Any) -> None:
    messages = importlib.import_module("langchain_core.messages")
    call = {"name": "weather", "args": {"town": "京都"}, "id": "call_1", "type": "tool_call"}
    reply = model.bind_tools([WEATHER]).invoke(
        [
            messages.HumanMessage(QUESTION),
            messages.AIMessage("", tool_calls=[call]),
            messages.ToolMessage("17 degrees", tool_call_id="call_1"),
        ]
    )
    assert is_answer(reply.text)


def test_a_batch_is_answered(model: Any) -> None:
    replies = model.batch([QUESTION] * 4)
    assert all(is_answer(reply.text) for reply in replies)


def test_openais_responses_are_answered(gateway: Gateway) -> None:
    model = chat_model(OPENAI, gateway, use_responses_api=True)
    assert is_answer(model.invoke(QUESTION).text)
    chunks = [chunk.text for chunk in model.stream(QUESTION, max_tokens=6)]
    assert "".join(chunks) == "Hello! I am Sluice's built-in demo"


def test_anthropics_tokens_are_counted(gateway: Gateway) -> None:
    counted = chat_model(ANTHROPIC, gateway).get_num_tokens_from_messages(
        [importlib.import_module("langchain_core.messages").HumanMessage(QUESTION)]
    )
    assert 0 < counted < 30


@pytest.mark.parametrize("package", [OPENAI, ANTHROPIC])
def test_an_unknown_model_is_the_sdks_error(package: str, gateway: Gateway) -> None:
    model = chat_model(package, gateway, model="nope")
    sdk: Any = importlib.import_module(package.removeprefix("langchain_"))
    with pytest.raises(sdk.NotFoundError, match="'nope'"):
        model.invoke(QUESTION)


def test_texts_are_embedded(gateway: Gateway) -> None:
    found: Any = pytest.importorskip(OPENAI)
    embeddings = found.OpenAIEmbeddings(
        model="demo-embedding",
        base_url=f"{gateway.url}/v1",
        api_key="anything",
        dimensions=8,
        check_embedding_ctx_length=False,  # or it fetches a vocabulary from the network
    )
    one, two = embeddings.embed_documents(["one", "two"])
    assert len(one) == len(two) == 8
    assert embeddings.embed_query("one") == pytest.approx(one)
    assert one != two

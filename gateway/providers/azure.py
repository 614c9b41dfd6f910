"""Azure OpenAI: a resource's deployments, by its dated API or by its v1 surface.

A model is the name of a deployment. The key goes in `api-key`; a token of Entra instead is added
when a request is sent (`upstream.credentials`).
"""

from gateway.core.messages import Fit, Prompt, Reply
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.core.target import Target
from gateway.core.usage import Usage
from gateway.providers.adapter import (
    Conversation,
    Embedding,
    Endpoint,
    EventDecoder,
    Native,
    StreamDecoder,
)
from gateway.providers.errors import error_message
from gateway.providers.openai import PATHS, OpenAI
from gateway.providers.openai_wire import parse_listing
from gateway.providers.paths import segment

_OPENAI = OpenAI()
_PATHS = {**PATHS, Operation.RESPONSES: "/responses"}
V1 = "v1"
V1_VERSIONS = (V1, "preview", "latest")


class AzureNative:
    """A dialect of OpenAI's, at Azure's addresses."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def endpoint(self, operation: Operation, target: Target, *, stream: bool) -> Endpoint:
        """Say where to send an operation."""
        return _endpoint(operation, target)

    def build(self, request: Request, target: Target, fit: Fit) -> bytes:
        """Return the client's fields."""
        return self._native.build(request, target, fit)

    def parse_usage(self, body: bytes) -> Usage | None:
        """Read `usage`."""
        return self._native.parse_usage(body)

    def parse_text(self, body: bytes) -> str:
        """Return the text of every choice."""
        return self._native.parse_text(body)

    def decoder(self, request: Request) -> StreamDecoder:
        """Return a fresh stream decoder."""
        return self._native.decoder(request)


class AzureConversation:
    """The hub's prompts as chat completions, at Azure's addresses."""

    def endpoint(self, target: Target, *, stream: bool) -> Endpoint:
        """Say where prompts go."""
        return _endpoint(Operation.CHAT, target)

    def build(self, prompt: Prompt, target: Target, fit: Fit) -> bytes:
        """Write a prompt."""
        assert _OPENAI.conversation is not None
        return _OPENAI.conversation.build(prompt, target, fit)

    def parse(self, body: bytes) -> Reply:
        """Read a whole reply."""
        assert _OPENAI.conversation is not None
        return _OPENAI.conversation.parse(body)

    def decoder(self) -> EventDecoder:
        """Return a fresh stream decoder."""
        assert _OPENAI.conversation is not None
        return _OPENAI.conversation.decoder()


class Azure:
    """The adapter."""

    natives: dict[Operation, Native] = {
        operation: AzureNative(native) for operation, native in _OPENAI.natives.items()
    }
    conversation: Conversation | None = AzureConversation()
    embedding: Embedding | None = None

    def listing(self, target: Target) -> Endpoint | None:
        """Say where a resource lists its models: deployments are not listed anywhere."""
        return None

    def parse_listing(self, body: bytes) -> list[str]:
        """Return the ids under `data`."""
        return parse_listing(body)

    def parse_error(self, body: bytes) -> str | None:
        """Return the message."""
        return error_message(body)


def _endpoint(operation: Operation, target: Target) -> Endpoint:
    version = target.setting("api_version") or V1
    headers = (("Content-Type", "application/json"), *target.headers)
    if target.api_key is not None:
        headers = (*headers, ("api-key", target.api_key))
    base = target.base_path.removesuffix("/v1").removesuffix("/openai") + "/openai"
    path = _PATHS[operation]
    if version in V1_VERSIONS:
        query = "" if version == V1 else f"?api-version={version}"
        return Endpoint(f"{base}/v1{path}{query}", headers)
    if operation is Operation.RESPONSES:  # not below a deployment: the body names the model
        return Endpoint(f"{base}{path}?api-version={version}", headers)
    deployment = segment(target.model)
    return Endpoint(f"{base}/deployments/{deployment}{path}?api-version={version}", headers)


ADAPTER = Azure()

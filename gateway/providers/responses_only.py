"""OpenAI's models that have no chat completions: all conversations go by the Responses API."""

from gateway.core.operations import Operation
from gateway.providers.adapter import Conversation, Native
from gateway.providers.openai import OpenAI
from gateway.providers.responses import NativeResponses, ResponsesConversation


class ResponsesOnly(OpenAI):
    """The adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.natives: dict[Operation, Native] = {Operation.RESPONSES: NativeResponses()}
        self.conversation: Conversation | None = ResponsesConversation()


RESPONSES_ONLY = ResponsesOnly()

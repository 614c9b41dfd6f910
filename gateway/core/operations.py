"""What a client can ask for: the operations, each with its path."""

from enum import Enum


class Operation(Enum):
    """One kind of request; the value is the name in records and metrics (GenAI conventions)."""

    CHAT = "chat"
    COMPLETIONS = "text_completion"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"
    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    PASSTHROUGH = "passthrough"

    __hash__ = object.__hash__  # members are single; Enum's own hashes their names, in Python

    def __init__(self, label: str) -> None:
        self.label = label  # the value, without the Python code in which Enum keeps it


PATHS = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETIONS,
    "/v1/embeddings": Operation.EMBEDDINGS,
    "/v1/responses": Operation.RESPONSES,
    "/v1/messages": Operation.MESSAGES,
    "/v1/messages/count_tokens": Operation.COUNT_TOKENS,
}

# Whose errors and headers have Anthropic's shape.
ANTHROPIC = frozenset((Operation.MESSAGES, Operation.COUNT_TOKENS))
# A conversation with a model: what the hub can translate.
CONVERSATIONS = frozenset(
    (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES, Operation.MESSAGES)
)

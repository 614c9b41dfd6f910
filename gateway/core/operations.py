"""What a client can ask for: the operations, each with its path in OpenAI's API."""

from enum import Enum


class Operation(Enum):
    """One kind of request; the value is the name in records and metrics (GenAI conventions)."""

    CHAT = "chat"
    COMPLETIONS = "text_completion"
    EMBEDDINGS = "embeddings"


PATHS = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETIONS,
    "/v1/embeddings": Operation.EMBEDDINGS,
}

"""What one request used, in tokens, counted the way OpenAI counts."""

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts; cached and cache-write are part of the prompt, reasoning of the completion."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

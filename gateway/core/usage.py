"""What one request used, in tokens, counted the way OpenAI counts."""

import msgspec


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts; cached, cache-write, the first audio and image are part of the prompt.

    Audio and images that a cache gave are not counted as such. Reasoning, the second audio and
    image are part of the completion; what is written for an hour is part of what is written. Web
    searches are those that the provider made, and charges by the piece. What was read in rounds
    beside the answer's own is part of the prompt, and of none that is long.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_prompt_tokens: int = 0
    audio_completion_tokens: int = 0
    cache_write_1h_tokens: int = 0
    web_searches: int = 0
    image_prompt_tokens: int = 0
    image_completion_tokens: int = 0
    beside_prompt_tokens: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """Return what both used together."""
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Usage(*[a + b for a, b in zip(mine, theirs, strict=True)])

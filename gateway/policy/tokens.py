"""Token counts by the gateway itself, for replies whose provider reports none. Pure.

Exact for OpenAI's current vocabulary (o200k), a fair estimate for others. 38 us a thousand tokens,
so a bounded text is counted on the spot.
"""

import toktok

ENCODING = "o200k_base"
MAX_CHARS = 64 * 1024


def count_tokens(text: str) -> int:
    """Count a text's tokens; what is past 64 Ki characters counts in proportion."""
    if not text:
        return 0
    counted = int(toktok.batch_count([text[:MAX_CHARS]], ENCODING, 1)[0])
    return counted if len(text) <= MAX_CHARS else counted * len(text) // MAX_CHARS


def preload() -> None:
    """Load the vocabulary (0.4 s, 60 MB), before workers are forked, so that they share it."""
    count_tokens("ready")

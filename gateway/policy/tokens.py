"""Token counts by the gateway itself, for replies whose provider reports none. Pure.

Exact for OpenAI's current vocabulary (o200k), a fair estimate for others. The tokenizer holds the
interpreter's lock, so a thread would not help: what is counted on the spot is bounded.
"""

from collections.abc import Iterator, Sequence

import toktok

ENCODING = "o200k_base"
# Past either the rest counts in proportion. Prose takes 1 ms up to here, random letters 4 ms.
MAX_CHARS, MAX_TOKENS = 64 * 1024, 16 * 1024
PIECE_CHARS = 4096
BLANK_CHARS = 256  # a piece ends before a blank among its last ones: so pieces add up


def count_tokens(text: str) -> int:
    """Count a text's tokens."""
    if len(text) > PIECE_CHARS:
        return count_all((text,))
    return _count(text) if text else 0


def count_all(texts: Sequence[str]) -> int:
    """Count the tokens of several texts."""
    counted = seen = 0
    for text in texts:
        for piece in _pieces(text):
            if counted >= MAX_TOKENS or seen >= MAX_CHARS:
                return counted * sum(map(len, texts)) // seen
            piece = piece[: MAX_CHARS - seen]
            counted += _count(piece)
            seen += len(piece)
    return counted


def preload() -> None:
    """Load the vocabulary (0.4 s, 60 MB), before workers are forked, so that they share it."""
    count_tokens("ready")


def _count(text: str) -> int:
    return int(toktok.batch_count([text], ENCODING, 1)[0])


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + PIECE_CHARS
        if end < len(text):
            blank = text.rfind(" ", end - BLANK_CHARS, end)
            end = blank if blank > start else end
        yield text[start:end]
        start = end

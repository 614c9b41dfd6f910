"""Keys that stand in examples and templates, and are tried first by whoever looks for a way in.

A key is one only as a whole: its letters and digits, whatever their case and what stands between
them, are nothing but such words (with a year or a few digits behind them at the most), and runs as
on a keyboard or of one character. So `change-me`, `your-secret-admin-key`, `password12345678` and
`sk-1234567890abcdef` are, and no key that merely has `secret` in it: of random ones of 8 letters or
hexadecimal digits fewer than one in a million are, of 16 fewer than one in 10**12. Pure.
"""

import re
from string import ascii_lowercase, digits

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# `a` alone, and other words of hexadecimal digits, would be in too many random keys.
_WORDS = (
    *("access", "admin", "and", "anthropic", "api", "auth", "bearer", "before", "change"),
    *("changed", "changeit", "default", "demo", "deploy", "deploying", "deployment", "dummy"),
    *("enter", "example", "fill", "for", "gateway", "generate", "generatea", "goes", "here", "hex"),
    *("in", "insecure", "insert", "it", "key", "keys", "letmein", "litellm", "llm", "long"),
    *("master", "me", "must", "my", "not", "nota", "now", "openai", "openssl", "or", "pass"),
    *("passwd", "password", "phrase", "placeholder", "please", "prod", "production", "proxy"),
    *("put", "rand", "random", "real", "replace", "root", "sample", "secret", "secure", "set"),
    *("sluice", "some", "something", "string", "strong", "super", "the", "this", "to", "todo"),
    *("token", "unsafe", "use", "user", "value", "very", "with", "x", "your"),
    *("qwerty", *_KEYBOARD),
)
# Of keys for trials, which may be somebody's own, but not an operator's.
_WORDS_OF_TRIALS = (
    *("administrator", "dev", "development", "foo", "guest", "hello", "local", "localhost"),
    *("passw0rd", "server", "staging", "temp", "test", "testing", "virtual", "welcome", "world"),
)
_BETWEEN = re.compile(r"[\W_]+")
CALL_FOR_ANOTHER = "anybody would try that first; make one with: openssl rand -hex 32"
# Of OpenAI's and Anthropic's keys, and of examples made after them.
_PREFIXES = ("", "sk", "skproj", "skant")
_ROWS = (digits, f"{digits}abcdef", ascii_lowercase, ascii_lowercase + digits, *_KEYBOARD)
_RUNS = tuple(run for row in _ROWS for run in (row * 2, row[::-1] * 2))
_SHORTEST_RUN, _LONGEST = 4, 256  # characters
_LAST_DIGITS = re.compile(r"[0-9]{0,4}\Z")


def is_placeholder(key: str, *, operators: bool = False) -> bool:
    """Tell whether anybody would try a key first, a client's or an operator's."""
    words = _WORDS + _WORDS_OF_TRIALS if operators else _WORDS
    bare = _BETWEEN.sub("", key.lower())
    if len(set(bare or key)) == 1:
        return True
    if len(bare) > _LONGEST:
        return False
    return any(_is_nothing_but_pieces(bare.removeprefix(one), words) for one in _PREFIXES)


def _is_nothing_but_pieces(text: str, known: tuple[str, ...]) -> bool:
    """Tell whether a text is words and runs, and a few digits behind a word at its end."""
    ends = [0]  # of pieces that follow each other from the beginning on
    for start in ends:
        words = [start + len(word) for word in known if text.startswith(word, start)]
        if any(_LAST_DIGITS.match(text, end) for end in words):
            return True
        runs = range(start + _SHORTEST_RUN, _end_of_run(text, start) + 1)
        ends += [end for end in (*words, *runs) if end not in ends]
    return len(text) > 0 and len(text) in ends


def _end_of_run(text: str, start: int) -> int:
    """Return where the longest run ends that begins in a text."""
    end = start
    while end < len(text) and any(text[start : end + 1] in run for run in _RUNS):
        end += 1
    return max(end, len(text) - len(text[start:].lstrip(text[start : start + 1])))

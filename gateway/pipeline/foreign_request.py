"""What a body in a provider's own API asks for that matters here: its model, and how much of it.

No API is understood; the names are those of all that are served. A number may be written as any of
their servers reads it: as an integer, with a fraction of nothing, or as text.
"""

from math import ceil
from typing import Any

import msgspec

from gateway.core.errors import ApiError
from gateway.core.operations import Operation
from gateway.core.request import Request
from gateway.formats.body import estimate_prompt
from gateway.pipeline.allowance import BODY
from gateway.providers.errors import UNREADABLE

MAX_TOKENS, MAX_CHOICES = 2**31, 128  # of what a request may ask, as in the dialects we know
# Where the most that may be written stands: OpenAI's, Anthropic's, Google's, Bedrock's Converse and
# the models' own there, TGI's, llama.cpp's, Ollama's.
_MOST = (
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample"),
    *("maxOutputTokens", "maxTokens", "maxTokenCount", "max_gen_len", "max_new_tokens"),
    *("n_predict", "num_predict"),
)
_TEXTS = ("n", "best_of", "candidateCount", "candidate_count", "num_generations")
_WITHIN = (
    *("generationConfig", "generation_config", "inferenceConfig", "inference_config"),
    *("textGenerationConfig", "parameters", "options"),
)
# Sound of spoken text: about 15 letters, and 20 tokens, a second.
SOUND_TOKENS_PER_BYTE = 1.5
SPEECH, SOUND = "speech", "audio"

_Fields = msgspec.defstruct(
    "_Fields",
    [(name, Any, None) for name in ("model", "prompt", "background", *_MOST, *_TEXTS, *_WITHIN)],
)
_decode = msgspec.json.Decoder(_Fields).decode


class Asked(msgspec.Struct):
    """What a JSON body says. `most` is 0 where it sets no maximum, `texts` 1 where it says none."""

    model: Any = None
    background: bool = False
    most: int = 0
    texts: int = 1


def asked_in(body: bytes | None, method: str) -> Asked:
    """Return what a body asks for. Raises ApiError where it is posted, and nobody can tell."""
    try:
        if body and not body.isascii():
            body.decode()  # msgspec does not look inside the strings it skips
        fields = msgspec.structs.asdict(_decode(body or b"{}"))
    except UNREADABLE as error:
        no_object = isinstance(error, msgspec.ValidationError) and not _is_object(body)
        if no_object or method != "POST":  # some APIs have such bodies
            return Asked()
        deep = isinstance(error, RecursionError)
        why = "it is nested too deeply" if deep else str(error)
        message = f"The request body is not valid JSON: {why}"
        raise ApiError("invalid_json", message) from None
    inner = [fields[name] for name in _WITHIN if isinstance(fields[name], dict)]
    return Asked(
        fields["model"],
        fields["background"] not in (None, False),
        _largest([fields, *inner], _MOST, MAX_TOKENS),
        max(1, _largest([fields, *inner], _TEXTS, MAX_CHOICES)) * _prompts(fields["prompt"]),
    )


def request_of(
    asked: Asked, model: str, body: bytes | None, *, generates: bool, speaks: bool
) -> Request:
    """Return a request as it is admitted. `speaks`: what is written is sound of the whole input."""
    most, fields = asked.most or None, dict[str, msgspec.Raw]()
    if body and generates:
        fields[BODY] = msgspec.Raw(body)
    if speaks and body:
        most = max(asked.most, ceil(_spoken(body) * SOUND_TOKENS_PER_BYTE))
        fields[SOUND] = msgspec.Raw(b"{}")
    return Request(
        Operation.PASSTHROUGH,
        model,
        False,  # no stream of ours, whatever it is
        True,
        most if generates else 0,
        1,
        estimate_prompt(body) if body and generates else 0,
        fields,
        asked.texts,
    )


def _spoken(body: bytes) -> int:
    """Return how many bytes of text are to be spoken."""
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("input")
    except UNREADABLE:
        return 0
    return len(bytes(found)) if found is not None else 0


def _is_object(body: bytes | None) -> bool:
    return body is not None and body.lstrip().startswith(b"{")


def _prompts(prompt: Any) -> int:
    """Return how many prompts there are: a list of numbers is one."""
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return len(prompt) if several else 1


def _largest(places: list[dict[str, Any]], names: tuple[str, ...], most: int) -> int:
    """Return the largest number by any of these names: which one holds is the server's to say."""
    return max([_count(place.get(name), most) for place in places for name in names])


def _count(value: Any, most: int) -> int:
    """Return how much is asked for, within reason; 0 where it makes no sense."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if type(value) not in (int, float) or value != value:
        return 0
    within: float = min(max(value, 0), most)
    return ceil(within)

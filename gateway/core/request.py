"""A decoded request: what the gateway must know of it, and the raw values of all the rest."""

import msgspec

from gateway.core.operations import Operation


class Request(msgspec.Struct, frozen=True, gc=False):
    """`fields` holds every top-level field's JSON as the client wrote it, known to us or not.

    `prompt_estimate` is tokens; `max_output` is the tokens the client allows for one choice, or
    None; `texts` multiplies it: how many are written, of which the client gets `choices` for each
    of its prompts; `wants_usage` is False where a stream did not ask for usage.
    """

    operation: Operation
    model: str
    stream: bool
    wants_usage: bool
    max_output: int | None
    choices: int
    prompt_estimate: int
    fields: dict[str, msgspec.Raw]
    texts: int = 1

"""LiteLLM's deadlines, which are of one call each, as timeouts of ours. No I/O."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from gateway.config.litellm.source import MAX_SECONDS, Fields
from gateway.config.schema import Retries, Timeouts

_DEFAULT = Timeouts()
_SILENT = (
    "there is none, where LiteLLM waits 6000 s; here a reply that is no stream has "
    f"{_DEFAULT.first_byte:g} s (first_byte), a stream {_DEFAULT.first_token:g} s until it begins "
    f"(first_token) and {_DEFAULT.idle:g} s for each pause (idle), unless server.timeouts or a "
    "provider's says more"
)
_BOTH = "longer than that of a whole reply, which has this one too"


class Waits(msgspec.Struct, frozen=True):
    """How long a whole reply and what a stream has next are waited for; None: nobody says."""

    whole: int | float | None = None
    stream: int | float | None = None

    def timeouts(self) -> dict[str, float]:
        """Return timeouts: the first byte of a reply that is no stream comes when it is complete.

        A stream has the same unless it has its own. Neither a pause in a reply nor the time for all
        of it is shorter.
        """
        if self.whole is None and self.stream is None:
            return {}
        first_byte = max(self.whole or _DEFAULT.first_byte, self.stream or 0)
        found = {"first_byte": first_byte, "first_token": self.stream or self.whole or first_byte}
        usual = {"idle": _DEFAULT.idle, "total": _DEFAULT.total}
        return found | {name: first_byte for name, most in usual.items() if first_byte > most}


def usual_waits(router: Fields, litellm: Fields) -> Waits:
    """Return what holds where a deployment says nothing; the router's word is above the other."""
    whole = litellm.seconds("request_timeout")
    found = own_waits(router, Waits(whole), "timeout")
    if whole not in (None, found.whole):
        litellm.lost("request_timeout", "router_settings.timeout is above it")
    return found


def own_waits(fields: Fields, usual: Waits, *names: str) -> Waits:
    """Return a section's deadlines, each the usual one where it says none itself.

    `names`: the fields that may say that of a whole reply, the best first.
    """
    named = [fields.seconds(name) for name in names]
    whole = next((seconds for seconds in (*named, usual.whole) if seconds is not None), None)
    own = fields.seconds("stream_timeout")
    found = Waits(whole, usual.stream if own is None else own)
    if found != usual and (found.stream or 0) > (whole or math.inf):
        fields.note("stream_timeout", _BOTH)
    return found


def note_silence(router: Fields, found: Iterable[Waits]) -> None:
    """Say what a whole reply has where the source has no deadline for it."""
    if any(one.whole is None for one in found):
        router.note("timeout", _SILENT)


def of_all_attempts(
    models: Iterable[Mapping[str, Any]],
    providers: Mapping[str, Mapping[str, Any]],
    usual: Waits,
    retries: Mapping[str, int],
) -> int | None:
    """Return a time in which every target can be waited for each time it is asked.

    None where the usual one is enough.
    """
    one_call = {
        name: {"first_byte": _DEFAULT.first_byte, **usual.timeouts(), **entry.get("timeouts", {})}
        for name, entry in providers.items()
    }
    courses = [[target["provider"] for target in model["targets"]] for model in models]
    courses += [[name] for name in providers]
    rounds = 1 + retries.get("attempts", Retries().attempts)
    sums = [sum(one_call[name]["first_byte"] for name in course) for course in courses]
    longest = min(rounds * max(sums, default=0), MAX_SECONDS)
    return math.ceil(longest) if longest > _DEFAULT.total else None

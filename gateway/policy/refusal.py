"""Why a provider refuses a prompt, where another model may take it: it is too long, or not wanted.

Providers have no common code for either; these are the words of their own replies. Pure.
"""

import re

from gateway.core.errors import UpstreamError
from gateway.policy.retry import is_clients_fault

CONTEXT_WINDOW, CONTENT_POLICY = "context_window", "content_policy"
MAX_READ_CHARS = 4096

_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|string_above_max_length|model_max_prompt_tokens"
    r"|prompt is too long|input is too long|too many (?:input )?tokens"
    r"|context (?:length|window|limit|size)|input token count.{0,40}exceeds"
    r"|exceeds the maximum number of tokens"
    r"|tokens? .{0,40}too large for model|reduce the length of the (?:messages|prompt)"
    r"|maximum prompt length|tokens \+ .{0,20}max_new_tokens",
    re.IGNORECASE | re.DOTALL,
)
_UNWANTED = re.compile(
    r"content_policy|content_filter|content filter|content management policy|responsibleaipolicy"
    r"|content moderation|moderation_blocked|prohibited_content|usage polic|safety system"
    r"|flagged as potentially violating|data_inspection_failed|guardrail",
    re.IGNORECASE,
)


def refusal_of(error: UpstreamError) -> str | None:
    """Return which of the two a refusal is; None where it is another, or no refusal."""
    if not is_clients_fault(error):
        return None
    said = f"{error.message} {error.body[:MAX_READ_CHARS].decode(errors='replace')}"
    if _UNWANTED.search(said):
        return CONTENT_POLICY
    return CONTEXT_WINDOW if _TOO_LONG.search(said) else None

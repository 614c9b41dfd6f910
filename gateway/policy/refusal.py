"""Why a provider refuses a prompt, where another model may take it: it is too long, or not wanted.

Providers have no common code for either; these are the words of their own replies. So are those by
which an error is told that is the request's own, where no status says so. Pure.
"""

import re
from typing import Any

import msgspec

from gateway.core.errors import UpstreamError
from gateway.policy.retry import HANDED_OVER, is_clients_fault
from gateway.providers.errors import UNREADABLE

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

# Where an error stands inside an event: of Responses' `response.failed`, of all others.
_PLACES = ("response", "error")
# What a provider calls its own trouble; it counts though the error's type is the request's.
_OWN_TROUBLE = frozenset(
    (
        *("insufficient_quota", "rate_limit_exceeded", "rate_limit_error", "quota_exceeded"),
        *("server_error", "internal_error", "internal_server_error", "api_error", "timeout_error"),
        *("overloaded", "overloaded_error", "engine_overloaded", "service_unavailable"),
        *("billing_error", "billing_not_active", "billing_hard_limit_reached", "invalid_api_key"),
        *("authentication_error", "permission_error", "account_deactivated"),
    )
)
# What says that a request cannot be served as it is: types, and codes of OpenAI's Responses.
_OF_REQUEST = frozenset(
    (
        *("invalid_request_error", "invalid_request", "bad_request", "badrequesterror"),
        *("invalid_argument", "validationexception", "request_too_large"),
        *("context_length_exceeded", "string_above_max_length", "invalid_prompt", "invalid_value"),
        *("content_filter", "content_policy_violation", "responsibleaipolicyviolation"),
        *("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
        *("invalid_image_mode", "image_too_large", "image_too_small", "image_parse_error"),
        *("image_content_policy_violation", "image_file_too_large", "image_file_not_found"),
        *("unsupported_image_media_type", "empty_image_file", "failed_to_download_image"),
    )
)
BAD_REQUEST, MAX_STATUS = 400, 599


def refusal_of(error: UpstreamError) -> str | None:
    """Return which of the two a refusal is; None where it is another, or no refusal."""
    if not is_clients_fault(error):
        return None
    said = f"{error.message} {error.body[:MAX_READ_CHARS].decode(errors='replace')}"
    if _UNWANTED.search(said):
        return CONTENT_POLICY
    return CONTEXT_WINDOW if _TOO_LONG.search(said) else None


def request_fault(event: bytes) -> tuple[int, dict[str, Any]] | None:
    """Return the status and the fields of an error that is the request's own fault; None: it isn't.

    An error that a provider tells behind a status of 200: in a stream, or as a whole reply.
    """
    try:
        found = msgspec.json.decode(event)
    except UNREADABLE:
        return None
    for place in _PLACES:
        if isinstance(found, dict) and isinstance(found.get(place), dict):
            found = found[place]
    if not isinstance(found, dict):
        return None
    said = [found.get(name) for name in ("code", "type", "status")]
    words = {one.lower() for one in said if isinstance(one, str)}
    status = next(filter(None, map(_status, said)), 0)
    if status >= 500 or status in HANDED_OVER or not words.isdisjoint(_OWN_TROUBLE):
        return None
    return (status or BAD_REQUEST, found) if status or not words.isdisjoint(_OF_REQUEST) else None


def _status(said: Any) -> int:
    """Return what is a status of an error; 0 for anything else."""
    number = int(said) if isinstance(said, str) and re.fullmatch("[45][0-9]{2}", said) else said
    return number if type(number) is int and BAD_REQUEST <= number <= MAX_STATUS else 0

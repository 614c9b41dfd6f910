"""One entry of LiteLLM's model_list: where its requests go, what they cost, and its rank."""

import re
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any

import msgspec

from gateway.config.litellm.bounds import MAX_COUNT, Bounds, read_bounds
from gateway.config.litellm.deadlines import Waits, own_waits
from gateway.config.litellm.providers import reach
from gateway.config.litellm.services import Reached
from gateway.config.litellm.source import Fields, NotCarried, Note, float_or_whole
from gateway.core.operations import Operation
from gateway.providers import PROVIDERS

MAX_RATE = 1000  # US dollars a token: nobody means more
SMALLEST_EXPONENT = -15  # a nano-dollar per million tokens
_EXACT = Context(prec=100)
_PRICES = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
    "cache_write_1h": "cache_creation_input_token_cost_above_1hr",
}
_UNSERVED = frozenset(
    (
        *("image_generation", "image_edit", "video_generation", "audio_transcription", "ocr"),
        *("audio_speech", "rerank", "moderation", "batch", "realtime", "search", "vector_store"),
    )
)

_LIMITS = "a target's tpm is of the tokens of prompts and answers together"
_RETRY = "retries are the same for all models (see retries)"
_AWS = "Sluice signs with keys alone: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_BUDGET = "budgets are of keys, tenants and everybody (see per_model)"
_LOGS = "Sluice calls no logging service: see ledger, tracing and /metrics"
_COST = re.compile(r"(.*_)?cost(_.*)?|.*pricing")
_PRICE = (
    "this price is left out: prices are by input, output, cached, cache_write and cache_write_1h "
    "tokens"
)
_WHO = "which models a key may use is said with the key"

_BESIDE = dict.fromkeys(("rpm", "tpm", "weight", "order"), "its place is in litellm_params")
_PARAMS = {
    **dict.fromkeys(("itpm", "otpm"), _LIMITS),
    **dict.fromkeys(("num_retries", "max_retries", "retry_policy"), _RETRY),
    "tag_regex": "a target's tags are asked for by name (x-sluice-tags)",
    **dict.fromkeys(("max_budget", "budget_duration"), _BUDGET),
    "cooldown_time": "it is the same for all models (see breaker)",
    "azure_ad_token": "such a token expires: give tenant_id, client_id and client_secret",
    **dict.fromkeys(("azure_username", "azure_password"), "Entra is asked as an application here"),
    **dict.fromkeys(
        (
            *("aws_profile_name", "aws_role_name", "aws_session_name", "aws_sts_endpoint"),
            *("aws_web_identity_token", "aws_external_id", "aws_session_tags"),
        ),
        _AWS,
    ),
    "region_name": "no request is routed by the region of a deployment",
    "litellm_credential_name": "credential_list has no such name",
    **dict.fromkeys(("langfuse_public_key", "langfuse_secret", "langfuse_host"), _LOGS),
    "mock_response": "there are no mocked replies; the kind `demo` answers by itself",
    "base_model": "it only says the price and size of a model: see price",
    "use_in_pass_through": "a provider's own API is at /providers/NAME/",
    "configurable_clientside_auth_params": "clients cannot choose an upstream's address or key",
    "guardrails": "there are no guardrails to call",
    "additional_drop_params": "fields that a provider cannot take are left out all or none",
    "allowed_openai_params": "Sluice passes on what the client sends",
    "merge_reasoning_content_in_choices": "thoughts stay apart from the answer",
}
_REQUEST = "Sluice adds nothing to requests: clients have to send it themselves"
_INFO = {
    **dict.fromkeys(("access_groups", "team_id", "team_public_model_name"), _WHO),
    "health_check_model": "providers are not called to see whether they are well",
    "supported_environments": "the model is there in every environment",
    "max_input_tokens": "see a target's when.max_tokens",
}
_DESCRIPTION = "Sluice keeps no description of models"


class Deployment(msgspec.Struct, frozen=True):
    """A target in the making; a lower `order` is asked first.

    The share of the requests goes by `weight`, or else by the bounds' rpm, or else by their tpm.
    `max_output` is the field that says the longest answer, and its tokens.
    """

    field: str
    name: str
    reached: Reached
    waits: Waits = Waits()
    ids: tuple[str, ...] = ()
    order: int | None = None
    weight: int | None = None
    bounds: Bounds = Bounds()
    price: dict[str, Any] | None = None
    max_output: tuple[str, int] | None = None


class Reading(msgspec.Struct, frozen=True):
    """What holds where a deployment does not say it: credentials by name, deadlines.

    `addresses` are those of environment_variables, `clouds` settings by kind and field.
    `drops`: fields that fit no provider are left out; `by_size`: none gets prompts that are longer
    than it takes.
    """

    credentials: Mapping[str, Mapping[str, object]]
    addresses: Mapping[str, str]
    clouds: Mapping[str, Mapping[str, str]]
    waits: Waits
    drops: bool
    by_size: bool


def read_deployment(
    value: object, field: str, notes: list[Note], usual: Reading
) -> Deployment | None:
    """Read an entry; None where it cannot be carried over, which is noted."""
    own: list[Note] = []  # of what is left out altogether, that alone is said
    entry = Fields(value, field, own)
    given = entry.take("litellm_params")
    if isinstance(given, dict):
        name = given.get("litellm_credential_name")
        if isinstance(name, str) and name in usual.credentials:
            given = {**usual.credentials[name], **given, "litellm_credential_name": None}
    params = Fields(given, entry.at("litellm_params"), own)
    info = entry.fields("model_info")
    try:
        found = _deployment(entry, params, info, usual)
    except NotCarried as error:
        Fields(None, field, notes).lost("", str(error))
        return None
    entry.rest(_BESIDE, "there is no such setting")
    params.rest(_PARAMS | _costs(params), _REQUEST)
    info.rest(_INFO | _costs(info), _DESCRIPTION)
    notes += own
    return found


def _deployment(entry: Fields, params: Fields, info: Fields, usual: Reading) -> Deployment:
    name, mode = entry.literal("model_name"), info.text("mode")
    if name is None:
        raise NotCarried("it has no model_name")
    if mode in _UNSERVED:
        raise NotCarried(f"no {mode} by a model's name: see /providers/NAME/")
    reached = reach(params, usual.addresses, usual.clouds)
    if mode == "embedding" and not _embeds(reached.entry["kind"]):
        raise NotCarried(f"there are no embeddings of kind {reached.entry['kind']}")
    if mode == "responses" and reached.entry["kind"] == "openai":
        reached.entry["api"] = "responses"
    waits = own_waits(params, usual.waits, "timeout", "request_timeout")
    if waits.timeouts() != usual.waits.timeouts():
        reached.entry["timeouts"] = waits.timeouts()
    drops = params.flag("drop_params")
    if drops not in (None, usual.drops):
        reached.entry["unsupported"] = "drop" if drops else "refuse"
    price = _price(params, info, embeds=mode == "embedding")
    base_model = info.text("base_model")
    if base_model and not price and base_model.rpartition("/")[2] != reached.model:
        info.lost("base_model", "prices go by the name at the provider: give the model a price")
    return Deployment(
        field=entry.place,
        name=name,
        reached=reached,
        waits=waits,
        ids=() if (id := info.text("id")) is None else (id,),
        order=params.whole("order"),
        weight=params.whole("weight"),
        bounds=read_bounds(params, info, by_size=usual.by_size),
        price=price,
        max_output=_max_output(params),
    )


def _embeds(kind: str) -> bool:
    adapter = PROVIDERS[kind].adapter
    return adapter.embedding is not None or Operation.EMBEDDINGS in adapter.natives


def _max_output(params: Fields) -> tuple[str, int] | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if 0 < (found := params.whole(name) or 0) <= MAX_COUNT:
            return name, found
    return None


def _price(params: Fields, info: Fields, *, embeds: bool) -> dict[str, Any] | None:
    """Return US dollars per million tokens, exactly; litellm_params are above model_info."""
    found: dict[str, Any] = {}
    place, whole = params, True
    for ours, theirs in _PRICES.items():
        source = params if theirs in params else info
        if theirs not in source:
            continue
        place = source
        rate = source.number(theirs)
        if params is source:
            info.take(theirs)
        usd = None if rate is None else _per_million(rate)
        if usd is None and rate is not None:
            source.lost(theirs, "a price is in whole nano-dollars per million tokens")
        whole = whole and usd is not None
        found[ours] = usd
    if not found or not whole:
        return None
    for ours in ("input", "output"):
        if ours not in found and not (embeds and ours == "output"):
            place.note(_PRICES[ours], "there is none beside the other, so 0 is taken")
    return {"input": 0, "output": 0} | found


def _costs(fields: Fields) -> dict[str, str]:
    """Return why the prices among what is left of a section are not carried over."""
    return {name: _PRICE for name in fields.names() if _COST.fullmatch(name)}


def _per_million(rate: Decimal) -> int | float | str | None:
    """Return a number where it says the amount exactly, or else text; None: not an amount."""
    exponent = _EXACT.normalize(rate).as_tuple().exponent
    if rate > MAX_RATE or not isinstance(exponent, int) or exponent < SMALLEST_EXPONENT:
        return None
    usd = _EXACT.scaleb(rate, 6)
    number = float_or_whole(usd)
    return number if Decimal(repr(number)) == usd else f"{usd:f}"

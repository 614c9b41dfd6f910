"""Where a LiteLLM deployment's requests go: its parameters as a provider entry of ours.

Only what a row of `prefixes` cannot say is a function. No I/O.
"""

import re
from collections.abc import Callable
from itertools import chain

import msgspec

from gateway.config.litellm import clouds
from gateway.config.litellm.prefixes import ANY, ROWS, split
from gateway.config.litellm.services import Call, Entry, Reached, parts_of, plain, put_together
from gateway.config.litellm.source import REFERENCE, Fields, NotCarried
from gateway.config.schema import Timeouts

_SETTING = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # schema.Setting
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OUR_HEADERS = frozenset(
    {"content-length", "transfer-encoding", "connection", "host", "content-type", "te", "upgrade"}
)
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)


def reach(fields: Fields) -> Reached:
    """Take from a deployment's parameters what says where it is. Raises NotCarried."""
    model = fields.literal("model")
    if model is None:
        raise NotCarried("it names no model")
    base = fields.text("api_base") or fields.text("base_url")
    call = Call(fields, ANY, "", model, base)
    prefix, name = split(model, fields.literal("custom_llm_provider"), call.host)
    call = msgspec.structs.replace(call, row=ROWS[prefix], prefix=prefix, model=name)
    build = _BUILDERS.get(prefix) or _BUILDERS.get(call.row.kind) or plain
    reached = build(call)
    _add_headers(fields, reached.entry)
    if timeouts := deadlines(fields, "timeout"):
        reached.entry["timeouts"] = timeouts
    _check(reached.entry)
    return reached


def _openai(call: Call) -> Reached:
    """Reach OpenAI, or with an address of its own any server that speaks its dialect."""
    fields, responds = call.fields, call.model.startswith("responses/")
    call = msgspec.structs.replace(call, model=call.model.removeprefix("responses/"))
    if call.host == "api.openai.com":
        call = msgspec.structs.replace(call, base=None)
    if call.base is not None and not responds:
        if "api_key" not in fields:
            fields.note("api_base", "no api_key stands here, so none is sent to this server")
        call = msgspec.structs.replace(call, row=ANY)
    reached = plain(call)
    if responds:
        reached.entry["api"] = "responses"
    if isinstance(fields.peek("organization"), list):
        fields.take("organization")
        fields.lost("organization", "write a provider for each, with a header OpenAI-Organization")
    elif organization := fields.text("organization"):
        reached.entry["headers"] = {"OpenAI-Organization": organization}
    return reached


def _cohere(call: Call) -> Reached:
    """Reach Cohere, whose address LiteLLM takes with the path of an operation."""
    if call.host:
        parts = parts_of(call.base or "")
        base = put_together(call.fields, parts, re.split(r"/v[12]\b", parts.path)[0])
        call = msgspec.structs.replace(call, base=base)
    return plain(call)


def _fireworks(call: Call) -> Reached:
    """Reach Fireworks, whose own models have an account before their names."""
    if "/" not in call.model and "*" not in call.model:
        call = msgspec.structs.replace(call, model=f"accounts/fireworks/models/{call.model}")
    return plain(call)


def _huggingface(call: Call) -> Reached:
    """Reach the router, which has the provider behind the model's name."""
    maker, _, rest = call.model.partition("/")
    if call.base is None and "/" in rest:
        call = msgspec.structs.replace(call, model=f"{rest}:{maker}")
    return plain(call)


def _in_process(call: Call) -> Reached:
    """Reach a vLLM server; without an address LiteLLM is one itself."""
    if call.base is None:
        raise NotCarried("LiteLLM runs this model in its own process")
    return plain(call)


_BUILDERS: dict[str, Callable[[Call], Reached]] = {
    "openai": _openai,
    "azure": clouds.azure,
    "azure_ai": clouds.azure_ai,
    "bedrock": clouds.bedrock,
    "vertex": clouds.vertex,
    "cohere": _cohere,
    "fireworks": _fireworks,
    "huggingface": _huggingface,
    "vllm": _in_process,
    "hosted_vllm": plain,
}


def _add_headers(fields: Fields, entry: Entry) -> None:
    found: dict[str, str] = dict(entry.get("headers", {}))
    for field in ("headers", "extra_headers"):
        given = fields.fields(field)
        for name in given.names():
            if not _HEADER.fullmatch(name) or name.lower() in _OUR_HEADERS:
                given.take(name)
                given.lost(name, "this header cannot be set")
                continue
            read = given.secret if _SECRET_HEADER.search(name) else given.text
            if (value := read(name)) is not None:
                found[name] = value
    if found:
        entry["headers"] = found


def deadlines(fields: Fields, call: str) -> dict[str, float]:
    """Return timeouts: the first byte of a reply that is no stream comes when it is complete.

    `call` names the field of a call's deadline; a stream has the same unless it has its own.
    """
    whole, stream = fields.seconds(call), fields.seconds("stream_timeout")
    if whole is None and stream is None:
        return {}
    first_byte = max(whole or Timeouts().first_byte, stream or 0)
    return {"first_byte": first_byte, "first_token": stream or whole or first_byte}


def _check(entry: Entry) -> None:
    """Refuse what no provider entry may have. Raises NotCarried."""
    for name in ("region", "project", "location", "api_version"):
        text = entry.get(name, "env:")
        if not text.startswith(REFERENCE) and not _SETTING.fullmatch(text):
            raise NotCarried(f"its {name} holds characters that it cannot have")
    groups = (entry.get(name, {}).values() for name in ("headers", "aws", "entra"))
    for text in (entry.get("api_key", ""), *chain(*groups)):
        if not text.isascii() or not text.isprintable():
            raise NotCarried("a key or header holds characters that HTTP forbids")

"""Where a LiteLLM deployment's requests go: its parameters as a provider entry of ours.

Only what a row of `prefixes` cannot say is a function. No I/O.
"""

import re
from collections.abc import Callable, Mapping
from itertools import chain

import msgspec

from gateway.config.litellm import clouds
from gateway.config.litellm.addresses import variables_of
from gateway.config.litellm.prefixes import ANY, ROWS, split
from gateway.config.litellm.services import Call, Entry, Reached, parts_of, plain, put_together
from gateway.config.litellm.source import REFERENCE, Fields, NotCarried
from gateway.providers import PROVIDERS

_SETTING = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # schema.Setting
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OUR_HEADERS = frozenset(
    {
        *("content-length", "transfer-encoding", "connection", "host", "content-type", "te"),
        *("upgrade", "accept-encoding"),
    }
)
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)


def reach(
    fields: Fields, addresses: Mapping[str, str], clouds: Mapping[str, Mapping[str, str]]
) -> Reached:
    """Take from a deployment's parameters what says where it is. Raises NotCarried.

    `addresses`: those of environment_variables; `clouds`: what holds for all of a kind.
    """
    model = fields.literal("model")
    if model is None:
        raise NotCarried("it names no model")
    base = fields.text("api_base") or fields.text("base_url")
    call = Call(fields, ANY, "", model, base)
    prefix, name = split(model, fields.literal("custom_llm_provider"), call.host)
    variables = variables_of(prefix) if base is None else ()
    stated = next((addresses[one] for one in variables if one in addresses), None)
    row = ROWS[prefix]
    usual = clouds.get(row.kind, {})
    call = Call(fields, row, prefix, name, base or stated, stated is not None, usual)
    build = _BUILDERS.get(prefix) or _BUILDERS.get(call.row.kind) or plain
    reached = build(call)
    _add_headers(fields, reached.entry)
    _check(reached.entry)
    return msgspec.structs.replace(reached, variables=variables)


def _openai(call: Call) -> Reached:
    """Reach OpenAI, or with an address of its own any server that speaks its dialect."""
    fields, responds = call.fields, call.model.startswith("responses/")
    call = msgspec.structs.replace(call, model=call.model.removeprefix("responses/"))
    if call.host == "api.openai.com":
        call = msgspec.structs.replace(call, base=None)
    key = call.row.key
    if call.base is not None and not responds:
        if "api_key" not in fields and not call.stated:
            fields.note("api_base", "no api_key stands here, so none is sent to this server")
        call = msgspec.structs.replace(call, row=ANY)
    reached = plain(call)
    if call.stated:  # such an address is OpenAI's to a client of OpenAI's
        reached.entry.setdefault("api_key", REFERENCE + key)
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
    credential = PROVIDERS[entry["kind"]].credential.lower() if "api_key" in entry else ""
    if entry["kind"] == "vertex" or "aws" in entry or "entra" in entry:
        credential = "authorization"
    for field in ("headers", "extra_headers"):
        given = fields.fields(field)
        for name in given.names():
            if not _HEADER.fullmatch(name) or name.lower() in _OUR_HEADERS:
                given.take(name)
                given.lost(name, "this header cannot be set")
                continue
            if name.lower() == credential:
                given.take(name)
                given.lost(name, "the provider's own credential goes there")
                continue
            read = given.secret if _SECRET_HEADER.search(name) else given.text
            if (value := read(name)) is not None:
                found = {n: v for n, v in found.items() if n.lower() != name.lower()}
                found[name] = value
    if found:
        entry["headers"] = found


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

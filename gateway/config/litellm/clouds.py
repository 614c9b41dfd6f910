"""The clouds, whose providers have more to them than a key and an address."""

import json
import re

from gateway.config.litellm.services import Call, Entry, Reached, parts_of, plain, put_together
from gateway.config.litellm.source import REFERENCE, Fields, NotCarried

_REGION = re.compile(r"[a-z]{2,3}(-[a-z]+)+-\d")
_BEDROCK_ROUTES = frozenset(("converse", "invoke", "converse_like", "llama", "deepseek_r1"))
_BEDROCK_OTHERS = frozenset(("agent", "agentcore", "async_invoke", "mantle"))
_NO_REGION = (
    "there is none, so AWS_REGION has to be set: Sluice does not read AWS_REGION_NAME, nor take "
    "us-west-2 where there is neither"
)
_NO_VERSION = (
    "there is none, so requests go to Azure's undated API (v1): Sluice does not read "
    "AZURE_API_VERSION"
)
_NO_LOCATION = (
    "there is none, so VERTEXAI_LOCATION has to be set where Sluice runs; where it was not set, "
    "LiteLLM took us-central1"
)
_NO_CREDENTIALS = (
    "there are none: Sluice takes those that GOOGLE_APPLICATION_CREDENTIALS names, or the "
    "machine's, and does not read VERTEXAI_CREDENTIALS"
)
_NO_AWS_KEYS = (
    "there is none, so AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY have to be set: Sluice takes no "
    "keys from roles, profiles or the machine"
)
_AZURE_FAMILIES = ("o_series/", "gpt5_series/", "responses/")
_ENTRA = {
    "tenant": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "scope": "azure_scope",
}
_SECRETS = frozenset(("client_secret", "aws_secret_access_key", "aws_session_token"))
_AWS = {
    "access_key": "aws_access_key_id",
    "secret_key": "aws_secret_access_key",
    "session_token": "aws_session_token",
}


def azure(call: Call) -> Reached:
    """Reach a deployment of a resource, by a key or by an application of Entra."""
    fields, model = call.fields, call.model
    for family in _AZURE_FAMILIES:
        model = model.removeprefix(family)
    entra = {ours: value for ours, theirs in _ENTRA.items() if (value := _secret(fields, theirs))}
    key = fields.secret("api_key")
    entry: Entry = {"kind": "azure"}
    if key is None and {"tenant", "client_id", "client_secret"} <= set(entra):
        entry["entra"] = entra
    else:
        entry["api_key"] = key or REFERENCE + call.row.key
        if entra:
            fields.lost("tenant_id", "it takes tenant_id, client_id, client_secret and no api_key")
    version = fields.text("api_version")
    if call.base is None or call.base.startswith(REFERENCE):
        entry["base_url"] = call.base or REFERENCE + call.row.base_variable
    else:
        parts = parts_of(call.base)
        dated = re.search(r"(?:^|&)api-version=([^&]+)", parts.query)
        if dated is not None:
            version, parts = version or dated[1], parts._replace(query="")
        entry["base_url"] = put_together(fields, parts, parts.path.partition("/openai")[0])
    version = version or call.usual.get("api_version")
    if version is None:
        fields.note("api_version", _NO_VERSION)
    elif version not in ("v1", "preview", "latest"):
        entry["api_version"] = version
    return Reached(entry, "azure", model)


def azure_ai(call: Call) -> Reached:
    """Reach a Foundry resource, where Claude has an address of its own; or a serverless server."""
    if not call.host.endswith(".services.ai.azure.com"):
        return plain(call)
    root = f"https://{call.host}"
    key = call.fields.secret("api_key") or REFERENCE + call.row.key
    if call.model.startswith("claude"):
        entry = {"kind": "anthropic", "api_key": key, "base_url": f"{root}/anthropic/v1"}
        return Reached(entry, "azure-anthropic", call.model)
    return Reached({"kind": "azure", "api_key": key, "base_url": root}, "azure", call.model)


def bedrock(call: Call) -> Reached:
    """Reach a region of Bedrock; its models are all asked by Converse."""
    fields, model = call.fields, call.model
    region = fields.text("aws_region_name") or fields.text("region_name")
    model, inside = _bedrock_model(model)
    model, region = fields.literal("model_id") or model, region or inside
    region = region or call.usual.get("region")
    key, base = fields.secret("api_key"), call.base or fields.text("aws_bedrock_runtime_endpoint")
    entry: Entry = {"kind": "bedrock"}
    if key is not None:
        entry["api_key"] = key
    if base is not None and not base.startswith(REFERENCE):
        parts = parts_of(base)
        base = put_together(fields, parts, parts.path)
    if base is not None:
        entry["base_url"] = base
    if region is not None:
        entry["region"] = region
    else:
        fields.note("aws_region_name", _NO_REGION)
    aws = {ours: value for ours, theirs in _AWS.items() if (value := _secret(fields, theirs))}
    if {"access_key", "secret_key"} <= set(aws):
        entry["aws"] = aws
    elif aws:
        raise NotCarried("aws_access_key_id and aws_secret_access_key go together")
    elif key is None:
        fields.note("aws_access_key_id", _NO_AWS_KEYS)
    return Reached(entry, "bedrock", model)


def _bedrock_model(model: str) -> tuple[str, str | None]:
    """Return a model's id and the region in its name, without LiteLLM's own routes."""
    region = None
    while "/" in model and not model.startswith("arn:"):
        first, _, rest = model.partition("/")
        if first in _BEDROCK_OTHERS:
            raise NotCarried(f"Sluice does not speak to bedrock/{first}/")
        if _REGION.fullmatch(first):
            region = first
        elif first not in _BEDROCK_ROUTES:
            break
        model = rest
    return model, region


def vertex(call: Call) -> Reached:
    """Reach a project's Gemini or Claude."""
    fields = call.fields
    if not re.match(r"gemini|claude|text-?(multilingual-)?embedding|\*", call.model):
        raise NotCarried("of Vertex AI's models, Sluice speaks to Gemini and Claude")
    usual = {"project": "env:VERTEXAI_PROJECT", "location": "env:VERTEXAI_LOCATION", **call.usual}
    project = _first(fields, "vertex_project", "vertex_ai_project") or usual["project"]
    location = _first(fields, "vertex_location", "vertex_ai_location", "region_name")
    if location is None and "location" not in call.usual:
        fields.note("vertex_location", _NO_LOCATION)
    location = location or usual["location"]
    entry: Entry = {"kind": "vertex", "project": project, "location": location}
    credentials = _vertex_credentials(fields) or call.usual.get("credentials")
    if credentials is not None:
        entry["credentials"] = credentials
    else:
        fields.note("vertex_credentials", _NO_CREDENTIALS)
    if call.base is not None:
        fields.lost("api_base", "Sluice finds Vertex AI's address by its location")
    return Reached(entry, "vertex", call.model)


def _vertex_credentials(fields: Fields) -> str | None:
    """Return credentials of Google's, a mapping as JSON. Raises NotCarried."""
    given: dict[str, str | None] = {}
    for name in ("vertex_credentials", "vertex_ai_credentials"):
        if not isinstance(mapping := fields.peek(name), dict):
            given[name] = fields.text(name)
            continue
        fields.take(name)
        try:
            given[name] = json.dumps(mapping)
        except (TypeError, ValueError, RecursionError):
            raise NotCarried(f"its {name} cannot be written as JSON") from None
        fields.note(name, "this secret stands in clear in the result too")
    return next((text for text in given.values() if text is not None), None)


def _first(fields: Fields, *names: str) -> str | None:
    """Return the first of several texts that is there, and take them all."""
    return next((text for text in [fields.text(name) for name in names] if text is not None), None)


def _secret(fields: Fields, name: str) -> str | None:
    return fields.secret(name) if name in _SECRETS else fields.text(name)

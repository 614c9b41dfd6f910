"""The clouds, whose providers have more to them than a key and an address."""

import json
import re

from gateway.config.litellm.services import Call, Entry, Reached, parts_of, plain, put_together
from gateway.config.litellm.source import REFERENCE, Fields, NotCarried

_REGION = re.compile(r"[a-z]{2,3}(-[a-z]+)+-\d")
_BEDROCK_ROUTES = frozenset(("converse", "invoke", "converse_like", "llama", "deepseek_r1"))
_BEDROCK_OTHERS = frozenset(("agent", "agentcore", "async_invoke", "mantle"))
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
    if version is None:
        fields.note("api_version", "there is none, so requests go to Azure's undated API (v1)")
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
        fields.note("aws_region_name", "there is none, so AWS_REGION has to be set")
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
    project = fields.text("vertex_project") or "env:VERTEXAI_PROJECT"
    location = fields.text("vertex_location") or fields.text("region_name")
    if location is None:
        location = "us-central1"
        fields.note("vertex_location", "there is none: us-central1, as LiteLLM has it")
    entry: Entry = {"kind": "vertex", "project": project, "location": location}
    if isinstance(credentials := fields.peek("vertex_credentials"), dict):
        fields.take("vertex_credentials")
        try:
            entry["credentials"] = json.dumps(credentials)
        except (TypeError, ValueError, RecursionError):
            raise NotCarried("its vertex_credentials cannot be written as JSON") from None
        fields.note("vertex_credentials", "this secret stands in clear in the result too")
    elif found := fields.text("vertex_credentials"):
        entry["credentials"] = found
    if call.base is not None:
        fields.lost("api_base", "Sluice finds Vertex AI's address by its location")
    return Reached(entry, "vertex", call.model)


def _secret(fields: Fields, name: str) -> str | None:
    return fields.secret(name) if name in _SECRETS else fields.text(name)

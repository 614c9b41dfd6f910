"""The providers that the environment has where the file names none, and what it says of clouds.

Variables are those of the providers' own tools.
"""

from collections.abc import Mapping
from typing import Any

from gateway.providers import PROVIDERS

CLOUD_VARIABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "bedrock": {"region": ("AWS_REGION", "AWS_DEFAULT_REGION")},
    "vertex": {
        "project": ("GOOGLE_CLOUD_PROJECT",),
        "location": ("GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"),
        "credentials": ("GOOGLE_APPLICATION_CREDENTIALS",),
    },
}
# Of a provider that is there without a file: field -> the variables that set it.
FURTHER_VARIABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "openai": {"base_url": ("OPENAI_BASE_URL",)},
    "azure": {"base_url": ("AZURE_OPENAI_ENDPOINT",), "api_version": ("OPENAI_API_VERSION",)},
    "bedrock": CLOUD_VARIABLES["bedrock"],
}
AWS_KEYS = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
# Of a provider whose key is not set: what says that it is meant -> what is missing.
HALVES = {
    "openai": {
        "OPENAI_BASE_URL": "OPENAI_API_KEY is not (any word will do where the server asks for none)"
    },
    "azure": {"AZURE_OPENAI_ENDPOINT": "AZURE_OPENAI_API_KEY is not"},
    "bedrock": {
        AWS_KEYS["access_key"]: f"{AWS_KEYS['secret_key']} is not",
        AWS_KEYS["secret_key"]: f"{AWS_KEYS['access_key']} is not",
    },
}

Origins = dict[str, str]


def providers_from(
    environ: Mapping[str, str], origins: Origins
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return every provider whose key is set, or else the demo provider; and why others are not.

    Which variable sets which field is added to the origins.
    """
    found: dict[str, Any] = {}
    skipped = []
    for name, kind in PROVIDERS.items():
        variable = _key_variable(name, environ)
        if not variable:
            halves = HALVES.get(name, {})
            if half := _first(tuple(halves), environ):
                skipped.append(f"{name} is left out: {half} is set, {halves[half]}")
            continue
        entry = {"kind": name}
        if variable == kind.variable:
            entry["api_key"] = environ[variable]
        further = FURTHER_VARIABLES.get(name, {})
        for field, variables in further.items():
            if source := _first(variables, environ):
                entry[field] = environ[source]
                origins[f"providers.{name}.{field}"] = f"environment {source}"
        needed = kind.settings if kind.base_url is not None else ("base_url",)
        missing = [" or ".join(further[field]) for field in needed if field not in entry]
        if missing:
            unset = ", ".join(missing)
            skipped.append(f"{name} is left out: {variable} is set, {unset} is not")
        else:
            found[name] = entry
            origins[f"providers.{name}"] = f"environment {variable}"
    return found or {"demo": {"kind": "demo"}}, tuple(skipped)


def complete_clouds(providers: object, environ: Mapping[str, str], origins: Origins) -> None:
    """Take what a cloud's own tools would take from the environment, where the file is silent."""
    for name, entry in providers.items() if isinstance(providers, dict) else ():
        if not isinstance(entry, dict):
            continue
        own: Origins = {}
        for field, variables in CLOUD_VARIABLES.get(str(entry.get("kind")), {}).items():
            variable = _first(variables, environ)
            if variable and entry.get(field) is None:
                entry[field] = environ[variable]
                own[field] = variable
        if entry.get("kind") == "bedrock" and not entry.get("aws") and _has_aws_keys(environ):
            given = {field: one for field, one in AWS_KEYS.items() if environ.get(one)}
            entry["aws"] = {field: environ[variable] for field, variable in given.items()}
            own |= {f"aws.{field}": variable for field, variable in given.items()}
        for field, variable in own.items():
            origins.setdefault(f"providers.{name}.{field}", f"environment {variable}")


def _key_variable(name: str, environ: Mapping[str, str]) -> str:
    """Return the variable by which a provider is there; empty where it is not."""
    variable = PROVIDERS[name].variable
    if variable and environ.get(variable):
        return variable
    return AWS_KEYS["access_key"] if name == "bedrock" and _has_aws_keys(environ) else ""


def _has_aws_keys(environ: Mapping[str, str]) -> bool:
    return all(environ.get(AWS_KEYS[field]) for field in ("access_key", "secret_key"))


def _first(variables: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    """Return the first variable that is set and not empty."""
    return next((one for one in variables if environ.get(one)), None)

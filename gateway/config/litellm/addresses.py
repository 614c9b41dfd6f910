"""What LiteLLM takes from variables where a deployment is silent: addresses, and clouds' settings.

No I/O.
"""

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from gateway.config.discovery import AWS_KEYS, CLOUD_VARIABLES
from gateway.config.environment import VARIABLES
from gateway.config.litellm.prefixes import ROWS
from gateway.config.litellm.source import REFERENCE, Fields

_ADDRESS = re.compile(r".+_(API_BASE|BASE_URL)|(AWS|AZURE)_.*ENDPOINT")
# By the prefix of a model, the best first; of others it is PREFIX_API_BASE.
_VARIABLES = {
    **dict.fromkeys(("openai", "text-completion-openai"), ("OPENAI_BASE_URL", "OPENAI_API_BASE")),
    **dict.fromkeys(("anthropic", "anthropic_text"), ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL")),
    "cohere_chat": ("COHERE_API_BASE",),
    "fireworks_ai": ("FIREWORKS_API_BASE",),
    "huggingface": ("HF_API_BASE", "HUGGINGFACE_API_BASE"),
    "ollama_chat": ("OLLAMA_API_BASE",),
}
_CLOUDS = frozenset(("bedrock", "vertex"))  # their addresses are of a region
# By kind: ours -> theirs, the best first.
_CLOUD_SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "azure": {"api_version": ("AZURE_API_VERSION",)},
    "bedrock": {"region": ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION")},
    "vertex": {
        "project": ("VERTEXAI_PROJECT",),
        "location": ("VERTEXAI_LOCATION", "VERTEX_LOCATION"),
        "credentials": ("VERTEXAI_CREDENTIALS",),
    },
}
_ABOVE = "a variable of that name where LiteLLM ran was above it"
_TAKEN = f"carried over as base_url where a deployment has no api_base; {_ABOVE}"
_ELSEWHERE = "no deployment gets its address from it: write it as the base_url of its provider"


_OTHER_CLOUD = "no deployment is at that cloud"
_SET = "set it where Sluice runs"
_UNREAD = "nothing in the result refers to it"


class Clouds(msgspec.Struct, frozen=True):
    """What is said for all deployments of a cloud: by kind and field, and by place in the source.

    A place is a section, a name in it, the kind and the field.
    """

    settings: dict[str, dict[str, str]]
    places: list[tuple[Fields, str, str, str]]


def variables_of(prefix: str) -> tuple[str, ...]:
    """Return the variables that may have a provider's address, by the prefix of its models."""
    row = ROWS[prefix]
    if row.base_variable or row.kind in _CLOUDS:
        return (row.base_variable,) if row.base_variable else ()
    return _VARIABLES.get(prefix) or (f"{prefix.upper()}_API_BASE",)


def stated(variables: Fields) -> dict[str, str]:
    """Take the addresses among environment_variables."""
    names = [name for name in variables.names() if _ADDRESS.fullmatch(name)]
    return {name: text for name in names if (text := variables.text(name)) is not None}


def said_of_clouds(variables: Fields, litellm: Fields) -> Clouds:
    """Take what a cloud's deployments have where they do not say it; a secret as its variable."""
    found = Clouds({}, [])
    for kind, fields in _CLOUD_SETTINGS.items():
        own = found.settings.setdefault(kind, {})
        for field, names in fields.items():
            if field == "credentials":
                if names[0] in variables:
                    own[field] = REFERENCE + names[0]
                continue
            places = [(variables, name) for name in names if name in variables]
            if kind == "vertex" and f"vertex_{field}" in litellm:
                places.insert(0, (litellm, f"vertex_{field}"))
            for source, name in places:
                if (text := source.text(name)) is not None:
                    own[field] = text
                    found.places.append((source, name, kind, field))
                    break
    return found


def note_clouds(variables: Fields, clouds: Clouds, kinds: Collection[str]) -> None:
    """Say which settings of clouds came along; `kinds`: those of the result's providers."""
    for source, name, kind, field in clouds.places:
        if kind not in kinds:
            source.lost(name, _OTHER_CLOUD)
        elif source is variables:
            source.note(name, f"carried over as {field} where a deployment has none; {_ABOVE}")


def note_rest(variables: Fields, referred: Iterable[str], kinds: Collection[str]) -> None:
    """Say which of the other variables Sluice reads: those that the result refers to, and its own.

    `kinds`: those of the result's providers.
    """
    read = {*referred, *VARIABLES}
    for kind in kinds:
        read.update(*CLOUD_VARIABLES.get(kind, {}).values())
    if "bedrock" in kinds:
        read.update(AWS_KEYS.values())
    variables.rest(dict.fromkeys(read, _SET), _UNREAD)


def note_addresses(
    variables: Fields, given: Mapping[str, str], asked: Iterable[tuple[str, ...]]
) -> None:
    """Say which addresses came along, and which variables may have had others.

    `asked`: of each deployment without an api_base, the variables that LiteLLM looks at.
    """
    each = list(asked)
    used = {next((name for name in names if name in given), "") for names in each}
    for name in given:
        if name in used:
            variables.note(name, _TAKEN)
        else:
            variables.lost(name, _ELSEWHERE)
    own = {row.base_variable for row in ROWS.values()}
    unread = [name for names in each if not {*names} & {*given, *own} for name in names]
    if unread:
        listed = ", ".join(dict.fromkeys(unread))
        variables.note(
            "", f"not read: where LiteLLM had {listed}, write it as the provider's base_url"
        )

"""A LiteLLM proxy configuration as one of Sluice's, and notes of what has no counterpart here.

Pure: a parsed document in, a document out. Its shape there:
https://docs.litellm.ai/docs/proxy/config_settings
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.config.litellm import reasons, settings
from gateway.config.litellm.addresses import (
    note_addresses,
    note_clouds,
    note_rest,
    said_of_clouds,
    stated,
)
from gateway.config.litellm.deadlines import note_silence, of_all_attempts, usual_waits
from gateway.config.litellm.deployments import Reading, read_deployment
from gateway.config.litellm.models import Models, Place
from gateway.config.litellm.source import Fields, Note, is_text, label, references
from gateway.core.errors import ConfigError

__all__ = ["Note", "Translation", "translate"]

SETTINGS = ("router_settings", "litellm_settings", "general_settings")
SECTIONS = ("model_list", *SETTINGS, "environment_variables")

# Theirs -> ours: the models that are asked instead of one whose provider refuses a prompt.
INSTEAD = {
    "context_window_fallbacks": "context_window",
    "content_policy_fallbacks": "content_policy",
}

# What follows which group, and what follows those that have nothing of their own.
Followers = tuple[dict[str, list[Place]], list[Place]]


class Translation(msgspec.Struct, frozen=True):
    """A configuration for Sluice, and what the operator should know of it.

    `deployments`: how many model_list has.
    """

    config: dict[str, Any]
    notes: tuple[Note, ...]
    deployments: int


def translate(source: Mapping[str, Any]) -> Translation:
    """Translate a document. Raises ConfigError where it is none of LiteLLM's."""
    notes: list[Note] = []
    top = Fields(source, "", notes)
    if not any(name in top for name in SECTIONS):
        raise ConfigError(f"not a configuration of LiteLLM's: it has none of {', '.join(SECTIONS)}")
    listed = _list(top, "model_list")
    router, litellm, general = (_mapping(top, name) for name in SETTINGS)
    usual = usual_waits(router, litellm)
    drops = bool(litellm.flag("drop_params"))
    by_size = settings.checks_sizes(router)
    variables = _mapping(top, "environment_variables")
    addresses, clouds = stated(variables), said_of_clouds(variables, litellm)
    read = Reading(
        _credentials(top, notes),
        addresses,
        clouds.settings,
        usual,
        drops=drops,
        by_size=by_size,
    )
    each = [read_deployment(one, f"model_list[{i}]", notes, read) for i, one in enumerate(listed)]
    deployments = [one for one in each if one is not None]
    note_silence(router, [one.waits for one in deployments])
    settings.tags(router)
    models = Models(notes, settings.strategy(router))
    models.add(deployments)
    for alias, place in _aliases(router, notes):
        models.add_alias(alias, *place)
    deepest = settings.max_fallbacks(router, litellm)
    models.add_fallbacks(*_fallbacks(router, litellm, notes), deepest)
    for theirs, ours in INSTEAD.items():
        models.add_instead(ours, *_followers(router, litellm, theirs, notes))
    served = models.result()
    retries = settings.retries(router, litellm, served=bool(deployments))
    total = of_all_attempts(served["models"].values(), served["providers"], usual, retries)
    found = {
        "server": settings.server(general, usual, total),
        "redis": settings.redis(router),
        "cache": settings.cache(router, litellm),
        "auth": settings.auth(general),
        **settings.budget(litellm),
        **served,
        "unsupported": "drop" if drops else "",
        "retries": retries,
        "breaker": settings.breaker(router, litellm),
    }
    config = {name: value for name, value in found.items() if value}
    kinds = {entry["kind"] for entry in served["providers"].values()}
    note_addresses(variables, addresses, [one.reached.variables for one in deployments])
    note_clouds(variables, clouds, kinds)
    note_rest(variables, references(config), kinds)
    router.rest(reasons.ROUTER, reasons.NOTHING)
    litellm.rest(reasons.LITELLM, reasons.NOTHING)
    general.rest(reasons.GENERAL, reasons.NOTHING)
    top.rest(reasons.TOP, "Sluice has no such section")
    return Translation(config, tuple(notes), len(listed))


def _list(top: Fields, name: str) -> list[Any]:
    found = top.take(name)
    if found is None:
        top.note(name, "there is none; models that LiteLLM keeps in its database are not read")
        return []
    if not isinstance(found, list):
        raise ConfigError("expected a list", field=name)
    return found


def _mapping(top: Fields, name: str) -> Fields:
    if not isinstance(top.peek(name) or {}, dict):
        raise ConfigError("expected a mapping", field=name)
    return top.fields(name)


def _credentials(top: Fields, notes: list[Note]) -> dict[str, dict[str, Any]]:
    """Return what deployments may name instead of saying it themselves."""
    found = {}
    for place, one in _items(top.take("credential_list"), "credential_list"):
        entry = Fields(one, place, notes)
        name, values = entry.literal("credential_name"), entry.take("credential_values")
        if name is None or not isinstance(values, dict):
            entry.lost("", "it has no credential_name or no credential_values")
        else:
            found[name] = values
        entry.take("credential_info")
        entry.rest({}, reasons.NOTHING)
    return found


def _aliases(router: Fields, notes: list[Note]) -> list[tuple[str, Place]]:
    aliases = router.fields("model_group_alias")
    found = []
    for alias in aliases.names():
        place = aliases.at(alias)
        if isinstance(aliases.peek(alias), dict):
            hidden = aliases.fields(alias)
            group = hidden.literal("model")
            if hidden.flag("hidden"):
                hidden.lost("hidden", "every model of the file is listed")
            hidden.rest({}, reasons.NOTHING)
        elif isinstance(aliases.peek(alias), list):
            aliases.take(alias)
            aliases.lost(alias, "an alias is of one model, in LiteLLM too")
            continue
        else:
            group = aliases.literal(alias)
        if group is not None:
            found.append((alias, (group, place)))
    return found


def _fallbacks(router: Fields, litellm: Fields, notes: list[Note]) -> Followers:
    wanted, default = _followers(router, litellm, "fallbacks", notes)
    for fields in (router, litellm):
        place = fields.at("default_fallbacks")
        default += _names(fields.take("default_fallbacks"), place, notes)
    return wanted, default


def _followers(router: Fields, litellm: Fields, name: str, notes: list[Note]) -> Followers:
    """Read one kind of fallbacks; those of `*` follow where a group has none."""
    wanted: dict[str, list[Place]] = {}
    source = router if name in router else litellm
    if source is router and litellm.take(name):
        litellm.lost(name, f"router_settings.{name} is above it")
    place, given = source.at(name), source.take(name)
    for field, one in _items(given, place):
        if not isinstance(one, dict):
            notes.append(Note(field, "not carried over: it is not a mapping"))
            continue
        for group, names in one.items():
            inner = f"{field}.{label(group)}"
            wanted.setdefault(label(group), []).extend(_names(names, inner, notes))
    default = wanted.pop("*", [])
    return {group: names for group, names in wanted.items() if names}, default


def _items(value: object, place: str) -> list[tuple[str, object]]:
    """Return the entries of a list with their places; a single one is a list of itself."""
    if isinstance(value, list):
        return [(f"{place}[{number}]", one) for number, one in enumerate(value)]
    return [] if value is None else [(place, value)]


def _names(value: object, place: str, notes: list[Note]) -> list[Place]:
    """Return the names of groups in a list; an entry may be a mapping with more than the name."""
    found = []
    for field, one in _items(value, place):
        name = one
        if isinstance(one, dict):
            name = one.get("model")
            if set(one) - {"model"}:
                notes.append(Note(field, "not carried over: only the model of it, nothing beside"))
        if is_text(name):
            found.append((name, field))
        else:
            notes.append(Note(field, "not carried over: it is not the name of a model"))
    return found

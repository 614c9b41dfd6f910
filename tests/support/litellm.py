"""Translates configurations of LiteLLM's for tests; what comes of them must be usable."""

import textwrap
from typing import Any

from gateway.cli.import_litellm import verify
from gateway.config.document import Document
from gateway.config.litellm import Translation, translate


def imported(text: str) -> Translation:
    """Translate YAML; what comes of it must be usable."""
    found = translate(Document(textwrap.dedent(text), "config.yaml").value)
    verify(found.config)
    return found


def deployed(*params: dict[Any, Any], **sections: Any) -> Translation:
    """Translate deployments of a model `m`."""
    listed = [{"model_name": "m", "litellm_params": one} for one in params]
    found = translate({"model_list": listed, **sections})
    verify(found.config)
    return found


def provider(**params: Any) -> tuple[dict[str, Any], str]:
    """The one provider entry of a deployment, and the model's own name there."""
    config = deployed(params).config
    ((name, entry),) = config["providers"].items()
    (target,) = config["models"]["m"]["targets"]
    assert target["provider"] == name
    return entry, target.get("model", "m")


def targets(found: Translation, name: str = "m") -> list[dict[str, Any]]:
    """A model's targets."""
    listed: list[dict[str, Any]] = found.config["models"][name]["targets"]
    return listed


def noted(found: Translation, field: str) -> str:
    """All that is said of a place."""
    return "; ".join(note.text for note in found.notes if note.field == field)


def settled(**sections: Any) -> Translation:
    """Translate settings, without models but for a `model_list` of its own."""
    found = translate({"model_list": [], **sections})
    verify(found.config)
    return found

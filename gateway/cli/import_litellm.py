"""`sluice import litellm`: writes a sluice.yaml that does what a LiteLLM proxy's config.yaml did.

What could not be carried over goes to standard error, each with its place in the source.
"""

import argparse
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from gateway.config.document import Document
from gateway.config.litellm import Note, translate
from gateway.config.litellm.source import REFERENCE, references
from gateway.config.load import load_text
from gateway.core.errors import ConfigError

# What stands for a variable's value when the result is checked, by the field it is in.
_STAND_INS = {
    "base_url": "https://stand-in.invalid",
    "url": "redis://stand-in.invalid",
    "credentials": json.dumps(
        dict.fromkeys(("client_id", "client_secret", "refresh_token"), "stand-in")
        | {"type": "authorized_user"}
    ),
}
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)+")
_STAND_IN = "stand-in-0123456789"
# What the clouds' kinds take from the environment where the file is silent.
_SURROUNDINGS = dict.fromkeys(
    ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "stand-in"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the formats that can be imported."""
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    litellm = formats.add_parser("litellm", help="a LiteLLM proxy's config.yaml")
    litellm.add_argument("file", metavar="FILE", help="the config.yaml")
    litellm.add_argument("--output", metavar="F", help="write here; default: standard output")
    litellm.add_argument("--force", action="store_true", help="overwrite the file that is there")


def run(arguments: argparse.Namespace) -> int:
    """Translate a file. Raises ConfigError."""
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and output.exists() and not arguments.force:
        raise ConfigError("is there already; --force overwrites it", source=str(output))
    document = Document(_read(arguments.file), arguments.file)
    try:
        found = translate(document.value)
    except ConfigError as error:
        if not error.field:
            raise ConfigError(error.message, document.source, 1) from None
        raise document.locate(error) from None
    said = described(found.notes, document)
    print("".join(f"{line}\n" for line in said), end="", file=sys.stderr)
    if found.deployments and "providers" not in found.config:
        message = "none of its deployments can be carried over"
        raise document.locate(ConfigError(message, field="model_list"))
    text = written(found.config, document.source)
    verify(found.config)
    _write(text, output)
    print(_summary(found.config, len(said), output), file=sys.stderr)
    return 0


def described(notes: tuple[Note, ...], document: Document) -> list[str]:
    """Return a line for each thing to be said, with all the lines in the source that it is of."""
    places: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        same = (re.sub(r"\[\d+\]", "[]", note.field), note.text)
        places.setdefault(same, []).append(note.field)
    found = []
    for (_, text), fields in places.items():
        first, *others = sorted({document.line(_place(field)) for field in fields})
        place = f"{document.source}:{first}" if first else document.source
        also = f" (also line {', '.join(map(str, others))})" if others else ""
        found.append((first, _shown(f"{place}: {fields[0]}: {text}{also}")))
    return [line for _, line in sorted(found, key=lambda one: one[0])]


def written(config: dict[str, Any], source: str) -> str:
    """Return a configuration as YAML."""
    body = yaml.dump(
        config,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=100,
    )
    return f"# From {_shown(source)} by `sluice import litellm`.\n{body}"


def verify(config: dict[str, Any]) -> None:
    """Compile a result as `sluice check` does, whatever the environment. Raises ConfigError."""
    # Here, for every command reads this file: 0.2 s and 15 MB, most of it aiohttp's client.
    from gateway.pipeline.catalogue import Catalogue
    from gateway.pipeline.keyring import Keyring
    from gateway.policy.pricing import PriceTable, Table
    from gateway.store.location import parse_url

    text = written(_stood_in(config, ""), "")
    loaded = load_text(text, "the result", _SURROUNDINGS)
    Catalogue(loaded, PriceTable(Table("", ())), "")
    Keyring(loaded)
    if loaded.redis.url is not None:
        parse_url(loaded.redis.url)


class _Dumper(yaml.SafeDumper):
    """Writes what stands twice twice, and `env:NAME` and addresses as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def analyze_scalar(self, scalar: Any) -> Any:
        found = super().analyze_scalar(scalar)
        if _PLAIN.fullmatch(scalar):  # a colon without a space behind it ends nothing
            found.allow_flow_plain = True
        return found


def _place(field: str) -> str:
    """Return the part of a field's path that is one: a key may be any text, brackets too."""
    found = re.match(r"[^.\[]*(\.[^.\[]*|\[\d+\])*", field)
    return found[0] if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=path) from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8", source=path) from None


def _write(text: str, output: Path | None) -> None:
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # it will be a file, whatever the terminal
            sys.stdout.reconfigure(encoding="utf-8")
        print(text, end="")
        return
    try:
        # It may hold what the other configuration held in clear.
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", source=str(output)) from None


def _stood_in(value: Any, field: str) -> Any:
    """Return a configuration with something in place of what the environment says."""
    if isinstance(value, dict):
        return {name: _stood_in(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_stood_in(one, field) for one in value]
    if field == "credentials" or (isinstance(value, str) and value.startswith(REFERENCE)):
        return _STAND_INS.get(field, _STAND_IN)
    return value


def _summary(config: dict[str, Any], said: int, output: Path | None) -> str:
    models, providers = len(config.get("models", ())), len(config.get("providers", ()))
    lines = [f"{models} models, {providers} providers; {said} things to know."]
    if variables := sorted(references(config)):
        lines.append(f"It takes from the environment: {', '.join(variables)}")
    shown = "sluice.yaml" if output is None else output
    lines.append(f"Next: sluice check --config {shown}")
    return _shown("\n".join(lines))


def _shown(text: str) -> str:
    """Return text that a terminal cannot be led astray by."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)

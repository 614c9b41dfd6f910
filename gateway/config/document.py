"""A YAML document that remembers on which line each field stands, so errors can name it."""

import re
from typing import Any

import yaml

from gateway.core.errors import ConfigError

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
# Problems that quote what stands there, which may be a secret: YAML takes it for something else.
_QUOTES = re.compile(r"\b(?:alias|anchor|tag)\b")
_NO_NAMES = (":bool", ":null", ":int", ":float")


class _Loader(yaml.SafeLoader):
    """Reads dates as text: no field is one, and a wrong one would be an error without a place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value. Raises YAMLError with the place of one that is not what its tag says."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            problem = f"this is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Document:
    """Parsed values plus the line of every field (`server.tls.key`, `auth.keys[0].name`)."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self._lines: dict[str, int] = {}
        self._fields: dict[int, str] = {}  # by where their values begin
        if len(text) > MAX_DOCUMENT_BYTES:
            raise ConfigError("the file is larger than 4 MiB", source=source)
        try:
            loader = _Loader(text)
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            raise ConfigError("holds a control character", source=source, line=line) from None
        try:
            root = loader.get_single_node()
            if root is not None:
                self._note(root, "", loader)
            value = loader.construct_document(root) if root is not None else {}
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, at = (mark.line + 1, mark.index) if mark else (0, -1)
            field = self._fields.get(at, "")
            problem = str(error.problem)
            if _QUOTES.search(problem):
                problem = "quote values that begin with ! or *"
            raise ConfigError(f"not YAML: {problem}", source, line, field) from None
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
            line = loader.line + 1 if isinstance(error, ValueError | OverflowError) else 0
            raise ConfigError(f"not YAML: {error}", source=source, line=line) from None
        finally:
            loader.dispose()
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ConfigError("expected a mapping of sections at the top", source=source, line=1)
        self.value: dict[str, Any] = value

    def locate(self, error: ConfigError) -> ConfigError:
        """Add file and line to an error that names only its field."""
        if error.source or not error.field:
            return error
        return ConfigError(error.message, self.source, self.line(error.field), error.field)

    def line(self, field: str) -> int:
        """Return the line of a field, or of the nearest one around it; 0 where there is none."""
        while field and field not in self._lines:
            shorter = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", field)
            # A name that looks like a path is cut where it can be.
            field = (
                shorter if shorter != field else field[: max(field.rfind("."), field.rfind("["), 0)]
            )
        return self._lines.get(field, 0)

    def _note(self, node: yaml.Node, field: str, loader: _Loader) -> None:
        self._fields[node.start_mark.index] = field
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                path = f"{field}.{name}" if field else name
                self._lines[path] = key.start_mark.line + 1
                if name in seen:
                    raise ConfigError("given twice", self.source, self._lines[path], path)
                seen.add(name)
                if key.tag.endswith(_NO_NAMES):
                    # `no` is false to YAML, and errors call it so.
                    read = loader.construct_object(key)
                    self._lines.setdefault(f"{field}.{read}".lstrip("."), self._lines[path])
                self._note(value, path, loader)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                path = f"{field}[{index}]"
                self._lines[path] = value.start_mark.line + 1
                self._note(value, path, loader)

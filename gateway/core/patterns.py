"""Hot path: whether a pattern of model names covers one of them."""

from fnmatch import fnmatchcase


def covers(pattern: str, name: str) -> bool:
    """Tell whether a pattern with wildcards covers a name: its own in any case, whatever is in it.

    `claude-sonnet[1m]` is a name as it stands, and a pattern of two others.
    """
    return pattern == name or fnmatchcase(name, pattern)

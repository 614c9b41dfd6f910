"""Hot path: in which order a model's targets are asked. Pure."""

from typing import Protocol, TypeVar


class Ranked(Protocol):
    """Anything with a priority; 1 comes first."""

    @property
    def priority(self) -> int:
        """Return the rank."""
        ...


_R = TypeVar("_R", bound=Ranked)


def plan(targets: tuple[_R, ...]) -> tuple[_R, ...]:
    """Return the targets in the order to try: by priority, then as written."""
    if len(targets) == 1:
        return targets
    return tuple(sorted(targets, key=lambda target: target.priority))

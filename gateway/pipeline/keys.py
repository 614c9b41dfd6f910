"""Hot path: which of a provider's keys are asked, and which of them rest."""

from collections.abc import Sequence
from time import monotonic

from gateway.core.errors import UpstreamError
from gateway.pipeline.served import Route
from gateway.policy.rotation import resting_seconds


def keyed(route: Route, *, resting_too: bool) -> Sequence[Route]:
    """Return the ways to a target: of a provider with several keys, by whose turn it is."""
    if route.rotation is None:
        return (route,)
    return [route.others[i] for i in route.rotation.order(monotonic(), resting_too=resting_too)]


def rests(route: Route, error: UpstreamError) -> bool:
    """Let a key rest that was refused; tell whether another may do better."""
    seconds = resting_seconds(error.status, error.retry_after)
    if seconds is None or route.rotation is None:
        return False
    route.rotation.rest(route.number, monotonic(), seconds)
    return True

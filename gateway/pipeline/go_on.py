"""Where a stream is cut: whether another target may go on with it, and which."""

from collections.abc import Sequence

from gateway.core.errors import ApiError, Failure, UpstreamError
from gateway.pipeline.call import Call, Spent
from gateway.pipeline.lanes import HubLane
from gateway.pipeline.served import Route, Served
from gateway.pipeline.translation import Translation

# What another target would not change.
_FINAL = frozenset((Failure.TOTAL_TIMEOUT, Failure.STALLED, Failure.SPENT))


class Interrupted(Exception):
    """A stream ended after the client has had a part of it. `told` is what it would be told."""

    def __init__(self, told: ApiError, error: UpstreamError) -> None:
        super().__init__(told.message)
        self.told, self.error = told, error


def may_go_on(served: Served, call: Call, error: Exception) -> bool:
    """Tell whether the stream can be taken up: it is wanted, of text alone, and not finished."""
    if isinstance(error, Interrupted):
        error = error.error
    if isinstance(error, UpstreamError) and error.failure in _FINAL:
        return False
    decoder = call.relay.decoder if call.relay is not None else None
    return (
        served.goes_on
        and call.spent is None
        and isinstance(decoder, Translation)
        and decoder.said is not None
        and not decoder.finished
        and call.request is not None
        and call.request.choices == 1
        and call.client.connected
    )


def successors(order: Sequence[Route], cut: Route, call: Call) -> list[Route]:
    """Return the targets to ask as they were planned, the one that was cut last."""
    able = [one for one in order if isinstance(one.ways[call.operation].stream_lane, HubLane)]
    return sorted(able, key=lambda one: one.name == cut.name)


async def prepare(call: Call) -> None:
    """Note what was used so far; what follows is counted on its own.

    Raises ApiError where a budget does not cover the text so far, and the prompt once more: nobody
    is asked for more then.
    """
    relay, allowance = call.relay, call.allowance
    assert relay is not None
    assert isinstance(relay.decoder, Translation)
    if allowance is not None:
        allowance.close()  # the source for which it may be asking is gone
        while relay.decoder.text_bytes > allowance.text_bytes:
            if (refusal := await allowance.more()) is not None:
                raise refusal
        assert call.request is not None
        again = call.request.prompt_estimate + call.usage.completion_tokens  # what it goes on from
        if (refusal := await allowance.begin_again(call.usage.prompt_tokens + again)) is not None:
            raise refusal
    call.before = Spent(call.usage, call.cost_microusd, call.cost, call.price_version)
    if call.continued and relay.goes_on:
        call.went_on += 1
    call.continued += 1
    relay.decoder.cut(call.usage)
    relay.go_on()

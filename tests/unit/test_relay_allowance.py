"""A relay while more is reserved for its stream, also where another source takes over."""

import json
from collections.abc import Callable

from gateway.core.errors import Failure, UpstreamError
from gateway.pipeline.elsewhere import Elsewhere
from gateway.providers.openai_stream import OpenAIStream
from gateway.upstream.relay import Relay
from tests.support.upstream import delta

HEAD = {b"content-type": b"text/event-stream"}


class Source:
    """A flow that notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def pause(self) -> None:
        self.done.append("pause")

    def resume(self) -> None:
        self.done.append("resume")

    def hold(self) -> None:
        self.done.append("hold")

    def release(self) -> None:
        self.done.append("release")

    def fail(self, error: UpstreamError) -> None:
        self.done.append(error.failure.value)


class Asked:
    """An allowance that is answered by the test."""

    def __init__(self) -> None:
        self.text_bytes = 10.0
        self.granted: list[Callable[[], None]] = []
        self.refused: list[Callable[[UpstreamError], None]] = []

    def extend(self, granted: Callable[[], None], refused: Callable[[UpstreamError], None]) -> None:
        self.granted.append(granted)
        self.refused.append(refused)

    def close(self) -> None:
        pass


def event(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps(delta(text)).encode()


def outgrown(asked: Asked, first: Source) -> Relay:
    """A relay whose source has brought more than is reserved."""
    relay = Relay(OpenAIStream(True), Elsewhere(), bytes, len, lambda: 1.0, lambda _: False, asked)
    assert relay.begin(200, HEAD, first)
    relay.feed(event("a" * 25))
    assert (len(asked.granted), first.done) == (1, ["hold"])
    return relay


def test_another_source_is_bounded_from_its_first_word() -> None:
    asked, second = Asked(), Source()
    relay = outgrown(asked, Source())
    relay.go_on()
    relay.begin(200, HEAD, second)
    relay.feed(event("b"))
    assert (len(asked.granted), second.done) == (2, ["hold"])
    asked.text_bytes = 30.0
    asked.granted[1]()
    assert second.done == ["hold", "release"]


def test_what_comes_late_is_for_the_source_that_there_is() -> None:
    for between in (True, False):
        asked, first, second = Asked(), Source(), Source()
        relay = outgrown(asked, first)
        relay.go_on()
        if between:  # nobody is at work: the one who comes asks
            asked.granted[0]()
        relay.begin(200, HEAD, second)
        relay.feed(event("b"))
        asked.refused[0](UpstreamError(Failure.SPENT, "no more"))
        assert first.done == ["hold"]
        assert second.done[-1] == "spent"

"""The client of a call whose answer nobody takes, or somebody else writes."""

from gateway.upstream.exchange import Flow


class Elsewhere:
    """Takes everything and does nothing; it is always there."""

    connected = True
    chunked = False
    begun = False

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Do nothing."""

    def start(self, headers: bytes) -> None:
        """Do nothing."""

    def write(self, data: bytes) -> None:
        """Do nothing."""

    def write_frame(self, frame: bytes) -> None:
        """Do nothing."""

    def finish(self, data: bytes) -> None:
        """Do nothing."""

    def follow(self, flow: Flow | None) -> None:
        """Do nothing."""

    def expect(self) -> None:
        """Do nothing."""

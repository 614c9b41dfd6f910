"""Calls in a stream of chat completions: which of them a piece belongs to.

OpenAI numbers them. Some servers call all of them 0, or number none; some give all the same id, or
none; some name a call with each of its pieces, or only in a later one, or bit by bit. vLLM names
one that was asked for by name with every piece, also with an empty one at the end, and with no id,
or with another each time.
"""

import msgspec

from gateway.core import events
from gateway.core.call_ids import named
from gateway.core.events import Event
from gateway.providers.chat_wire import ToolCall as WireCall
from gateway.providers.errors import UNREADABLE

_UNBEGUN = -1
_decode_arguments = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode


class _Call(msgspec.Struct):
    """A call. It is begun, and has a number, once it has a name and arguments, or ends without."""

    number: int = _UNBEGUN
    id: str = ""
    name: str = ""
    signature: str = ""
    pieces: list[str] = []
    again: bool = False  # names the one before again: it is a call only if it has arguments

    def has_arguments(self) -> bool:
        """Tell whether it has said anything but its name."""
        return any(piece.strip() for piece in self.pieces)

    def is_whole(self) -> bool:
        """Tell whether the arguments so far are all that there can be."""
        last = next((piece for piece in reversed(self.pieces) if not piece.isspace()), "")
        if not last.rstrip().endswith(("}", "null")):  # most pieces, of which there may be many
            return False
        try:
            _decode_arguments("".join(self.pieces))
        except UNREADABLE:
            return False
        return True

    def named_on(self, name: str, id: str) -> str:
        """Return its name with more of it; empty where that is another's."""
        if self.has_arguments():
            return ""
        if name.startswith(self.name):
            return name
        return self.name + name if self.id and not id else ""


class StreamedCalls:
    """Puts the pieces of a stream's calls together."""

    def __init__(self) -> None:
        # By the number on the wire, or by the id where there is none.
        self._known: dict[int | str | None, _Call] = {}
        self._all: list[_Call] = []
        self._waiting: list[_Call] = []  # those to begin, whatever comes, before the next one
        self._ids: set[str] = set()  # of those that are begun

    def __len__(self) -> int:
        return len(self._all)

    def take(self, piece: WireCall, signature: str, reply_id: str) -> list[Event]:
        """Take a piece of a call."""
        function = piece.function
        name = (function.name if function is not None else None) or ""
        arguments = function.text() if function is not None else ""
        call_id = piece.id or ""
        key = piece.index if piece.index is not None else call_id or None
        call, found = self._known.get(key), list[Event]()
        if key is None and not name and self._all:
            call = self._all[-1]
        if call is None or (name and _is_another(call, key, call_id, name, arguments)):
            found = self._begin_all(reply_id, only_named=True)
            again = call is not None and call.name == name and call.has_arguments()
            call = self._known[key] = _Call(again=again)
            self._all.append(call)
            if not again:
                self._waiting.append(call)
        if call.number == _UNBEGUN and name and name != call.name:
            call.name = call.named_on(name, call_id) if call.name else name
        if arguments:
            call.pieces.append(arguments)
        if call.number != _UNBEGUN:
            return [events.CallDelta(call.number, arguments)] if arguments else []
        call.id, call.signature = call.id or call_id, call.signature or signature
        begins = call.name and call.has_arguments()
        return [*found, *self._begin(call, reply_id)] if begins else found

    def rest(self, reply_id: str) -> list[Event]:
        """Return the calls whose names, or arguments, never came."""
        return self._begin_all(reply_id, only_named=False)

    def _begin_all(self, reply_id: str, *, only_named: bool) -> list[Event]:
        """Begin the calls, or those that have names, that wait for more."""
        left = [call for call in self._waiting if call.number == _UNBEGUN]
        self._waiting = [call for call in left if only_named and not call.name]
        left = [call for call in left if call.name or not only_named]
        return [event for call in left for event in self._begin(call, reply_id)]

    def _begin(self, call: _Call, reply_id: str) -> list[Event]:
        call.number = len(self._ids)
        shown = call.id if call.id not in self._ids else ""
        shown = shown or named(reply_id, call.number)
        self._ids.add(shown)
        begun = events.CallBegun(call.number, shown, call.name, call.signature)
        arguments = "".join(call.pieces)
        return [begun, events.CallDelta(call.number, arguments)] if arguments else [begun]


def _is_another(call: _Call, key: int | str | None, id: str, name: str, arguments: str) -> bool:
    """Tell whether a piece with a name is of another call than the one known by its key."""
    if key is None:
        return True
    renewed = bool(id and call.id and id != call.id)
    if not call.name:
        return renewed
    if name != call.name:
        return renewed or not call.named_on(name, id)
    if not call.has_arguments():
        return renewed
    return call.is_whole() and (bool(arguments.strip()) or not id or id != call.id)

"""Hot path: how batches of asks and settlements are put to Redis. Values in, bytes out."""

import msgspec

from gateway.policy.limits import SLOTS, Grant, Limit, Spec
from gateway.store import names, requests
from gateway.store.lease import Ask, Due, Holding, Settlement

DAY_SECONDS = 86_400
_KEPT = (names.DAY_TTL_SECONDS, names.MONTH_TTL_SECONDS, names.REQUESTS_KEPT)

_pack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode
# (now in Unix microseconds, verdicts), a verdict being (refusing, wait in microseconds, *left)
unpack_verdicts = msgspec.msgpack.Decoder(tuple[int, list[list[int]]]).decode
unpack_counted = msgspec.msgpack.Decoder(list[int]).decode


def pack_asks(tenant: str, asks: list[Ask], lease_ms: int) -> tuple[list[str], bytes, list[Limit]]:
    """Return the keys and the argument of `admit.lua`, and the limits in the order it counts."""
    keys, specs = [*names.leases(tenant)], []
    numbers: dict[str, int] = {}
    limits: list[Limit] = []
    entries = []
    granted: tuple[Grant, ...] = ()
    wants: list[tuple[int, int]] = []
    for ask in asks:
        if ask.grants is not granted:  # those that only count are the same for a whole key
            granted, wants = ask.grants, []
        for grant in () if wants else granted:
            number = numbers.get(grant.key)
            if number is None:
                keys.append(grant.key)
                limits.append(grant.limit)
                specs.append((*grant.spec, grant.limit.shadow))
                number = numbers[grant.key] = len(specs)
            wants.append((number, grant.amount))
        entries.append((ask.lease, ask.holding.decode(), wants, ask.forced))
    keys.append(names.settled(tenant))
    return keys, _pack((lease_ms, specs, entries)), limits


def pack_growth(
    tenant: str,
    lease: str,
    holding: Holding,
    budgets: tuple[tuple[str, Spec, bool], ...],
    *,
    forced: bool,
) -> tuple[list[str], bytes]:
    """Return the keys and the argument of `grow.lua`; a budget is its key, its sort, and shadow."""
    bare = b""
    if forced:
        holds = tuple([hold for hold in holding.holds if hold[1][0] != SLOTS])
        bare = _to_json(msgspec.structs.replace(holding, holds=holds))
    specs = [(*spec, shadow) for _, spec, shadow in budgets]
    data = _pack((lease, _to_json(holding).decode(), specs, forced, bare.decode()))
    return [*names.leases(tenant), *(key for key, _, _ in budgets)], data


def pack_settlements(
    tenant: str, stream: str, due: list[Due], now: float
) -> tuple[list[str], bytes]:
    """Return the keys and the argument of `settle.lua`; `now` is Unix seconds."""
    limit_numbers: dict[str, int] = {}
    limit_keys, specs = [], []
    usage_numbers: dict[tuple[str, int], int] = {}
    numbered: dict[object, list[int]] = {}
    today = int(now) // DAY_SECONDS
    midnight = today * DAY_SECONDS
    entries = []
    marked = False
    for settlement, _ in due:
        gives = []
        for given in settlement.returns:
            number = limit_numbers.get(given.key)
            if number is None:
                limit_keys.append(given.key)
                specs.append(given.spec)
                number = limit_numbers[given.key] = len(specs)
            gives.append((number, given.reserved, given.used))
        at: object = settlement.parts
        day = today
        if 0 < settlement.at < midnight:
            day = settlement.at // DAY_SECONDS
            at = at, day
        hashes = numbered.get(at)
        if hashes is None:
            named = [(part, day) for part in settlement.parts]
            hashes = [usage_numbers.setdefault(one, len(usage_numbers)) for one in named]
            numbered[at] = hashes
        entries.append(_entry(settlement, gives, hashes))
        marked = marked or settlement.marked
    keys = [*names.leases(tenant), stream, *limit_keys]
    for part, day in usage_numbers:
        in_day, in_month = names.periods(day * DAY_SECONDS)
        keys += (names.usage(tenant, in_day, part), names.usage(tenant, in_month, part))
    if marked:
        keys.append(names.settled(tenant))
    return keys, _pack((specs, *_KEPT, requests.FIELDS, entries))


def _entry(
    settlement: Settlement, gives: list[tuple[int, int, int]], hashes: list[int]
) -> tuple[object, ...]:
    counts, line = settlement.counts, settlement.entry
    mark = settlement.marked + settlement.reaped
    return (settlement.lease, gives, hashes, counts, line, mark)

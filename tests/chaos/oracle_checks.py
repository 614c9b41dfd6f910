"""Whether what was written down, and what clients had, is what the providers did.

Each check gives what is wrong, in words; nothing where all is well.
"""

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import accumulate
from math import inf

from gateway.policy.tokens import count_tokens
from tests.chaos.oracle_answers import Figures
from tests.chaos.oracle_books import Books, Record
from tests.chaos.oracle_limits import refuses
from tests.chaos.oracle_traffic import DEFAULT, LEFT, PRICES, SHARED, Asked, Traffic, cost_of
from tests.chaos.oracle_upstream import NAME, Attempt, words_in

KNOWN_SECONDS = 1.5  # until every worker knows of a change
LATE_SECONDS = 0.3  # until what is sent is read
SHARED_BY = {"openai": PRICES["openai", "gpt"], "anthropic": PRICES["anthropic", "claude"]}
EARLY_SECONDS = 0.05  # who leaves before may not have been heard at all


class Checks:
    """Of some traffic. `disturbed`: anything was done to the gateway meanwhile."""

    def __init__(self, traffic: Traffic, books: Books, disturbed: bool) -> None:
        self._traffic, self._books, self._disturbed = traffic, books, disturbed

    def wrong(self) -> Iterator[str]:
        """Everything that is not as it should be."""
        if self._traffic.providers.unknown:
            yield f"what nobody sent reached a provider: {self._traffic.providers.unknown[:3]}"
        for one in self._traffic.asked:
            yield from (f"{what}: {one} {self._did(one)}" for what in self._of_one(one))
        for record in self._books.records:
            yield from (f"{what}: {record}" for what in self._priced(record))
        yield from self._at_once()
        yield from self._bills()

    def _did(self, one: Asked) -> list[tuple[str, str, int, Figures | None, bool]]:
        """What the providers did, in short."""
        attempts = self._traffic.providers.attempts.get(one.name, [])
        return [(a.provider, a.step.do, a.words, a.told, a.left) for a in attempts]

    # -- of one request ----------------------------------------------------------------------

    def _of_one(self, one: Asked) -> Iterator[str]:
        names = {found.decode() for found in NAME.findall(one.body)}
        if names - {one.name}:
            yield f"another request's answer, of {names}"
        if one.failure.startswith("TimeoutError"):
            yield "it hangs"
        if one.failure not in ("", LEFT) and not self._disturbed and one.model != "passed on":
            yield "it broke off"
        yield from self._key_has_ended(one)
        record = self._books.record_of(one)
        if record is None and not self._books.knows_as_nobodys(one):
            early = isinstance(one.leaves, float) and one.leaves < EARLY_SECONDS
            if one.sent and not early and not self._books.killed:
                yield "no record"
        if record is None:
            return
        yield from (f"{what}, {record}" for what in self._of_record(one, record))

    def _key_has_ended(self, one: Asked) -> Iterator[str]:
        began, ended = self._traffic.ended.get(one.key, (inf, inf))
        if one.status == 401 and one.sent_at < began - LATE_SECONDS:
            yield "its key was refused"
        if one.status not in (0, 401) and one.sent_at > ended + KNOWN_SECONDS:
            yield "its key was gone"

    def _of_record(self, one: Asked, record: Record) -> Iterator[str]:
        if (said := one.headers.get("x-request-id", record["id"])) != record["id"]:
            yield f"the client was told of {said}"
        if record["key"] != one.key:
            yield "another key"
        cost = one.headers.get("x-sluice-cost-usd")
        if cost and not one.failure and Fraction(cost) * 1_000_000 != record["cost_microusd"]:
            yield f"the client was told of {cost} USD"
        attempts = self._traffic.providers.attempts.get(one.name, [])
        if record["outcome"] == "refused":
            yield from self._refused(one, record, attempts)
        if one.model == SHARED:
            return
        if record["outcome"] != "refused" and one.model != "hedged":
            # One that is sent again on a new connection, as nobody heard it, is one attempt.
            again = sum(a.step.do == "hang up" for a in attempts)
            least = record["attempts"] if record["outcome"] != "disconnected" else 0
            if not least <= len(attempts) <= record["attempts"] + again:
                yield f"{record['attempts']} attempts, the providers had {len(attempts)}"
        yield from self._tried(record)
        match record["outcome"]:
            case "ok" if not record["error"]:  # else an error that was passed on as it came
                yield from self._answered(one, record, attempts)
            case "disconnected":
                yield from self._left(one, record, attempts)
            case "error":
                yield from self._failed(one, attempts)

    def _refused(self, one: Asked, record: Record, attempts: list[Attempt]) -> Iterator[str]:
        if attempts and one.model != SHARED:
            yield "refused, and sent on all the same"
        if record["error"] == "store_unavailable" and self._disturbed:
            return
        if record["status"] != 429:
            yield "refused for no limit"
        if not any(map(refuses, self._traffic.limits.of(one.tenant, one.key))):
            yield "refused though nothing limits it"

    def _tried(self, record: Record) -> Iterator[str]:
        """Each attempt is in the record, and the one that served the client says so."""
        tries = record["tries"]
        if len(tries) != record["attempts"] and record["outcome"] != "aborted":
            yield f"{record['attempts']} attempts, tries of {len(tries)}"
        served = [one for one in tries if not one["failure"]]
        if record["outcome"] != "ok" or record["error"] or record["continued"]:
            return
        places = [(one["provider"], one["model"]) for one in served]
        if places != [(record["provider"], record["served_model"])]:
            yield f"served by {places}"

    def _answered(self, one: Asked, record: Record, attempts: list[Attempt]) -> Iterator[str]:
        whole = [attempt for attempt in attempts if attempt.whole]
        if not whole:
            yield "nobody gave this answer"
            return
        usage, last = record["usage"], whole[-1]
        told = [attempt.told for attempt in whole]
        if record["continued"]:
            generated = [a for a in attempts if a.words]
            due = sum(a.told.completion if a.told else count_tokens(a.text) for a in generated)
            if abs(usage["completion_tokens"] - due) > 3 + due * 0.1:
                yield f"{due} tokens were generated"
        elif None not in told:
            if _figures(usage) not in told or record["usage_source"] != "provider":
                yield f"the provider told {told}"
        elif told == [None]:
            due = count_tokens(last.text)
            if record["usage_source"] != "estimated":
                yield "no provider told this"
            elif (
                not usage["prompt_tokens"] or abs(usage["completion_tokens"] - due) > 2 + due * 0.1
            ):
                yield f"{due} tokens were generated"
        if not one.failure and one.status == 200:
            missing = set(range(max(a.words for a in whole))) - set(words_in(one.name, one.body))
            if missing and one.model != "hedged":
                yield f"words {sorted(missing)} never came"

    def _left(self, one: Asked, record: Record, attempts: list[Attempt]) -> Iterator[str]:
        had, usage = words_in(one.name, one.body), record["usage"]
        if any(attempt.told == _figures(usage) for attempt in attempts) or one.model == "hedged":
            return
        due = count_tokens("".join(f"{one.name}w{number} " for number in had))
        if usage["completion_tokens"] < due * 0.9 - 1:
            yield f"the client had {due} tokens"

    def _failed(self, one: Asked, attempts: list[Attempt]) -> Iterator[str]:
        script = self._traffic.providers.scripts[one.name]
        if script[0].do == "answer" and not (self._disturbed or one.failure):
            yield f"the gateway's own error, {one.body[-200:]!r}"
        if one.stream and one.status == 200 and not one.failure and one.model != "passed on":
            if b"[DONE]" in one.body[-20:] or b"message_stop" in one.body[-60:]:
                yield "a stream that failed looks whole"
            if not any(word in one.body[-800:] for word in (b"error", b"failed", b"incomplete")):
                yield "a stream that failed does not say so"

    # -- of all ------------------------------------------------------------------------------

    def _priced(self, record: Record) -> Iterator[str]:
        if sum(record["cost"].values()) != record["cost_microusd"]:
            yield "components do not add up"
        if record["continued"] or record["model"] == SHARED or not any(record["usage"].values()):
            return  # several prices, or a part of one
        price = PRICES.get((record["provider"], record["served_model"]), DEFAULT)
        if (due := cost_of(price, record["usage"])) != record["cost_microusd"]:
            yield f"it costs {due}"

    def _at_once(self) -> Iterator[str]:
        """Never more under way than a tenant may have: as providers saw it, who answer within."""
        changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for one in self._traffic.asked:
            if one.follows or one.model in (SHARED, "hedged"):
                continue
            for attempt in self._traffic.providers.attempts.get(one.name, []):
                if attempt.whole:
                    for scope in ("everybody", one.tenant, one.key):
                        changes[scope] += [(attempt.began, 1), (attempt.ended, -1)]
        limits = self._traffic.limits
        for scope, found in {
            **limits.tenants,
            **limits.keys,
            "everybody": limits.everybody,
        }.items():
            peak = max(accumulate(change for _, change in sorted(changes[scope])), default=0)
            most = found.get("concurrency", peak)
            if peak > most * limits.changed and "concurrency" not in found.get("shadow", ()):
                yield f"{peak} requests of {scope} at once, it may have {most}"

    def _bills(self) -> Iterator[str]:
        """A shared answer is paid for once, or by each, as it is configured."""
        groups: dict[str, list[Asked]] = defaultdict(list)
        for one in self._traffic.asked:
            if one.model == SHARED:
                groups[one.name].append(one)
        for name, group in groups.items():
            attempts = self._traffic.providers.attempts.get(name, [])
            records = [record for one in group if (record := self._books.record_of(one))]
            plain = all(a.whole and a.told for a in attempts) and len(records) == len(group)
            if self._disturbed or not plain or any(one.leaves for one in group):
                continue
            if any(record["outcome"] not in ("ok", "refused") for record in records):
                continue
            costs = [cost_of(SHARED_BY[a.provider], _usage(a.told)) for a in attempts if a.told]
            paid = [record["cost_microusd"] for record in records]
            if self._traffic.bill != "each":
                if sum(paid) != sum(costs):
                    yield f"bill {self._traffic.bill}: paid {paid}, due {costs}, {records}"
            elif len(costs) == 1:
                for record in records:
                    due = record["cost_microusd"] + record["saved_microusd"]
                    if record["outcome"] == "ok" and due != costs[0]:
                        yield f"bill each: due {costs}, {record}"


def _figures(usage: dict[str, int]) -> Figures:
    return Figures(
        prompt=usage["prompt_tokens"],
        completion=usage["completion_tokens"],
        cached=usage["cached_tokens"],
        written=usage["cache_write_tokens"],
        reasoning=usage["reasoning_tokens"],
    )


def _usage(told: Figures) -> dict[str, int]:
    return {
        "prompt_tokens": told.prompt,
        "completion_tokens": told.completion,
        "cached_tokens": told.cached,
        "cache_write_tokens": told.written,
    }

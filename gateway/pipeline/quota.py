"""What one target is given at the most, by all workers together: a lease of its own an attempt."""

from itertools import count

from gateway.core.errors import Failure, NotSent, StoreError, UpstreamError
from gateway.pipeline.call import Call
from gateway.pipeline.refusal import limit_error
from gateway.pipeline.served import Route
from gateway.pipeline.services import Services
from gateway.policy.limits import CONCURRENCY, TOKENS, Grant, grants
from gateway.store import names
from gateway.store.lease import Holding, Return, Settlement, holds

_numbers = count()  # a request may have several leases, also at once


class Quota:
    """A part of a target's limits, taken for one attempt."""

    def __init__(self, services: Services, call: Call, route: Route) -> None:
        assert call.request is not None
        assert call.holding is not None
        self._services, self._call, self._route = services, call, route
        self._tokens = call.request.prompt_estimate + call.holding.output
        self._lease = f"{call.id}-{next(_numbers)}"
        self._granted: tuple[Grant, ...] = ()

    async def take(self) -> None:
        """Take it. Raises UpstreamError where the target has had all it is to have."""
        now = self._services.admission.now()
        self._granted = grants(self._route.limits, self._tokens, 0, now)
        target = self._route.target
        holding = Holding(
            key="",
            model=self._route.name,
            provider=target.provider,
            served=target.model,
            operation=self._call.operation.value,
            prompt=0,
            output=0,
            started=int(now),
            holds=holds(self._granted),
        )
        try:
            verdict = await self._services.admission.admit(
                names.TARGETS_TENANT, self._lease, holding, self._granted
            )
        except NotSent as error:
            self._granted = ()
            raise UpstreamError(Failure.NO_STORE, f"its limits are not known: {error}") from None
        except StoreError as error:
            self.give_back(0)
            raise UpstreamError(Failure.NO_STORE, f"its limits are not known: {error}") from None
        except BaseException:
            self.give_back(0)
            raise
        if verdict.refused_by is not None:
            if verdict.unsure:
                self.give_back(0)
            told = limit_error(verdict.refused_by, verdict.wait_seconds, self._tokens)
            raise UpstreamError(Failure.FULL, told.message, retry_after=verdict.wait_seconds)

    def give_back(self, used_tokens: int) -> None:
        """Return what was not used. Once, also where `take` was cancelled."""
        found = []
        for grant in self._granted:
            unit, reserved = grant.limit.unit, grant.amount
            if unit == TOKENS and used_tokens != reserved:
                found.append(Return(grant.key, grant.spec, reserved, used_tokens))
            elif unit == CONCURRENCY:
                found.append(Return(grant.key, grant.spec, reserved, 0))
        self._services.admission.settle(
            Settlement(self._lease, names.TARGETS_TENANT, tuple(found), (), (), ())
        )

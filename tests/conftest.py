"""Fixtures of every layer."""

from collections.abc import AsyncIterator

import hypothesis
import pytest_asyncio

from tests.support.upstream import Upstream

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A provider that answers as OpenAI does until the test says otherwise."""
    async with Upstream() as server:
        yield server

"""Fixtures of every layer."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.upstream import Upstream


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A provider that answers as OpenAI does until the test says otherwise."""
    async with Upstream() as server:
        yield server

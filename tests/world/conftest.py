"""The loop of the tests in this folder."""

from tests.integration import conftest

pytest_asyncio_loop_factories = conftest.pytest_asyncio_loop_factories

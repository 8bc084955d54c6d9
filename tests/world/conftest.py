"""The loop of the tests in this folder."""

from tests.integration.conftest import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories

"""The fixtures of the public cases: proxies that live as long as a module, and what has to hold after every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..conftest import Certificate
from .harness import Setup, Setups


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Setups]:
    """The proxies that the tests of a module share."""
    made = Setups(lambda: tmp_path_factory.mktemp("case"), certificate)
    yield made
    errors = list(made.stop())
    assert not errors, errors


@pytest.fixture
def fw(setups: Setups) -> Iterator[Callable[..., Setup]]:
    """`fw("udp", POLICY)`: a proxy of this kind. After the test each one that was used must be alive, without a
    traceback in its log, and serve a new client."""
    used: list[Setup] = []

    def get(*arguments: Any, **options: Any) -> Setup:
        setup = setups.get(*arguments, **options)
        if setup not in used:
            used.append(setup)
        return setup

    yield get
    for setup in used:
        setup.end_test()
    for setup in used:
        setup.check()

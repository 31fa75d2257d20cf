"""py.typed is a promise: the stubs say what the compiled modules have, and the public types are what they were."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastws

from ..conftest import ROOT

HERE = Path(__file__).parent
PUBLIC_API = HERE / "public_api.py"

pytest.importorskip("mypy")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the three runs share, so that the second and third are quick."""
    return tmp_path_factory.mktemp("mypy")


def checked(module: str, *arguments: str | Path, cache: Path) -> None:
    """Run a module of mypy at the root of the source tree; its report is the failure's text."""
    environment = {**os.environ, "MYPY_CACHE_DIR": str(cache), "MYPY_FORCE_COLOR": "0"}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{module} {' '.join(map(str, arguments))}\n{done.stdout}", pytrace=False)


def stubbed_modules() -> list[str]:
    """The dotted names of all modules that have a stub beside them."""
    stubs = sorted((ROOT / "fastws").rglob("*.pyi"))
    return [".".join(stub.relative_to(ROOT).with_suffix("").parts) for stub in stubs]


def test_the_types_of_the_public_names_are_as_written_down(cache: Path) -> None:
    checked("mypy", "--strict", PUBLIC_API, cache=cache)


def test_the_whole_package_is_typed(cache: Path) -> None:
    checked("mypy", "--strict", "-p", "fastws", cache=cache)


def test_the_stubs_say_what_the_compiled_modules_have(cache: Path) -> None:
    allowed = ("--allowlist", HERE / "allowlist.txt", "--ignore-unused-allowlist")
    checked("mypy.stubtest", "--concise", *allowed, *stubbed_modules(), cache=cache)


def test_every_compiled_module_that_python_imports_has_a_stub() -> None:
    importlib.import_module("fastws.worker")
    compiled = {
        name
        for name, module in list(sys.modules.items())
        if name.startswith("fastws.") and str(getattr(module, "__file__", "")).endswith(".so")
    }
    visible = {name for name in compiled if public_names(name)}
    assert "fastws._core" in visible
    assert visible <= set(stubbed_modules())


def public_names(module: str) -> list[str]:
    """What a compiled module itself defines for Python, without what it has imported."""
    return [
        name
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]


def attributes_of(thing: type) -> Iterator[str]:
    """The public attributes of a class, but not those that every mapping, enumeration or exception has."""
    usual = {"keys", "values", "items", "popitem", "with_traceback", "add_note", "args"}
    for owner in thing.__mro__:
        if owner.__module__.startswith("fastws"):
            yield from (name for name in vars(owner) if not name.startswith("_") and name not in usual)


def test_every_public_name_and_each_of_its_attributes_has_a_line_in_public_api() -> None:
    written = PUBLIC_API.read_text()
    for name in fastws.__all__:
        assert name in written, name
        thing = getattr(fastws, name)
        owner = thing if inspect.isclass(thing) else type(thing)
        for attribute in attributes_of(owner):
            if attribute == "bind":  # the worker's
                continue
            assert f".{attribute}" in written, f"{name}.{attribute}"


def test_fastws_promises_that_it_is_typed() -> None:
    assert (ROOT / "fastws" / "py.typed").exists()

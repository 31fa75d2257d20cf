"""The map of the house, executable: which file may know which, where its tests are, and what no test covers yet."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fastws
from tests.conftest import ROOT

HOUSE = ROOT / "fastws"
TESTS = ROOT / "tests"

# Each file knows files of lower layers only. A name stands for its .py, .pyx and .pxd alike.
LAYERS = [
    ["wire/span", "wire/siphash", "transport/address", "errors", "log", "digest"],
    ["wire/frame", "wire/message", "wire/token", "wire/handshake", "transport/base"],
    ["wire/rewrite", "_connection", "transport/stream", "transport/udp"],
    ["_request", "sip/route", "sip/transaction", "transport/ws"],
    ["_core"],
    ["__init__", "policy", "tls", "sip/registrar"],
    ["admission", "config"],
    ["worker"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Files outside the rooms whose tests have another name, and why.
TESTED_ELSEWHERE = {
    "_core": "test_relay.py",  # what it does shows on the wire of the whole proxy
    "_request": "test_policy_moments.py",  # a Request exists only while a policy is asked
    "worker": "test_cli.py",  # one process: started, asked to stop, reloaded
    "errors": "test_config.py",
    "__init__": "test_house.py",
    "__main__": "test_cli.py",
}
ROOMS = ["wire", "transport", "sip"]

# The checklist has 51 lines. These have no test yet; the list may only become shorter.
OPEN_RULES = {26, 31, 33, 40}
RULES = range(1, 52)


def sources(*endings: str) -> list[Path]:
    """The files of the house with these endings, without the empty ones that only mark a package."""
    found = [path for ending in endings for path in sorted(HOUSE.rglob(f"*{ending}"))]
    return [path for path in found if path.stat().st_size > 0]


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).with_suffix("").as_posix()


def file_of(module: str) -> str | None:
    """The name of a module of ours: `fastws.wire.span` is `wire/span`; None for one of somebody else."""
    if module != "fastws" and not module.startswith("fastws."):
        return None
    return module.partition(".")[2].replace(".", "/") or "__init__"


def with_members(module: str, members: list[str]) -> set[str]:
    """What `from module import members` reaches: the files that are members, and the module for all other members."""
    file = file_of(module)
    if file is None:
        return set()
    base = "" if file == "__init__" else f"{file}/"
    files = {f"{base}{member}" for member in members if f"{base}{member}" in LEVEL}
    return files if len(files) == len(members) else files | {file}


def imports_of(path: Path) -> set[str]:
    """The files of ours that this one imports or cimports, anywhere in it."""
    package = ["fastws", *path.relative_to(HOUSE).parent.parts]
    text = path.read_text(encoding="utf-8")
    found: set[str] = set()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    module = ".".join([*package[: len(package) - node.level + 1], *([module] if module else [])])
                found |= with_members(module, [alias.name for alias in node.names])
            elif isinstance(node, ast.Import):
                found |= {file for alias in node.names if (file := file_of(alias.name))}
    else:
        text = re.sub(r"#.*", "", text)
        for module, members in re.findall(r"^[ \t]*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n]*)", text, re.M):
            assert not module.startswith("."), f"{path}: write the whole name, so that one can grep it"
            names = [part.split()[0] for part in members.strip("() \n").split(",") if part.strip()]
            found |= with_members(module, names)
        for modules in re.findall(r"^[ \t]*c?import\s+([^\n(]+)", text, re.M):
            found |= {file for part in modules.split(",") if (file := file_of(part.split()[0]))}
    return found - {name_of(path)}


def test_every_file_has_its_layer_and_every_name_in_the_list_its_file() -> None:
    names = {name_of(path) for path in sources(".py", ".pyx", ".pxd")}
    assert names == set(LEVEL)


def test_every_import_points_down_the_list_of_layers() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} (layer {LEVEL[name_of(path)]}) imports {target} (layer {LEVEL.get(target)})"
        for path in sources(".py", ".pyx", ".pxd")
        for target in sorted(imports_of(path))
        if target not in LEVEL or LEVEL[target] >= LEVEL[name_of(path)]
    ]
    assert wrong == []


def test_the_imports_are_really_read() -> None:
    # A reader that finds nothing would make every file obedient.
    assert {"wire/message", "wire/rewrite", "wire/span", "wire/token", "transport/address"} <= imports_of(
        HOUSE / "sip/route.pyx"
    )
    assert {"_connection", "sip/route", "transport/base"} <= imports_of(HOUSE / "_core.pyx")
    assert {"policy", "wire/handshake", "log"} <= imports_of(HOUSE / "admission.py")
    assert {"_core", "_connection", "admission", "__init__", "sip/registrar"} <= imports_of(HOUSE / "worker.py")
    assert {"log", "config", "worker"} <= imports_of(HOUSE / "cli.py")
    assert imports_of(HOUSE / "wire/span.pxd") == set()


def test_compiled_files_know_compiled_files_only() -> None:
    compiled = {name_of(path) for path in sources(".pyx", ".pxd")}
    for path in sources(".pyx", ".pxd"):
        assert imports_of(path) <= compiled, path


def test_the_core_knows_no_particular_transport() -> None:
    for path in (HOUSE / "_core.pyx", HOUSE / "_core.pxd"):
        assert not imports_of(path) & {"transport/ws", "transport/stream", "transport/udp"}


def test_a_transport_knows_neither_the_table_nor_what_sip_says() -> None:
    for path in sorted((HOUSE / "transport").glob("*.p[yx]*")):
        assert not {target for target in imports_of(path) if target.startswith(("sip/", "_"))}, path


def test_nothing_of_the_wire_and_of_sip_opens_a_socket_or_reads_a_clock() -> None:
    for room in ("wire", "sip"):
        for path in sources(".pyx", ".pxd"):
            if name_of(path).startswith(f"{room}/"):
                text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
                calls = r"\b(socket|time|random|getrandom|clock_gettime|gettimeofday|recv|recvmmsg|send|sendmmsg) *\("
                assert not re.search(calls, text), path
                assert not re.search(r"^\s*c?import\s+(socket|asyncio|time|random|secrets)\b", text, re.M), path


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_has_its_tests_at_the_same_place(room: str) -> None:
    files = {name_of(path) for path in sources(".py", ".pyx") if name_of(path).startswith(f"{room}/")}
    missing = [name for name in sorted(files) if not (TESTS / room / f"test_{Path(name).name}.py").exists()]
    assert files and missing == []


def test_every_file_outside_the_rooms_has_its_tests() -> None:
    files = {name_of(path) for path in sources(".py", ".pyx") if "/" not in name_of(path)}
    for name in sorted(files):
        expected = TESTED_ELSEWHERE.get(name, f"test_{name.strip('_')}.py")
        assert (TESTS / expected).exists(), f"{name}: no {expected}"
    assert set(TESTED_ELSEWHERE) <= files


def exported() -> dict[str, str]:
    """Each public name and the file that it comes from."""
    origin = {}
    for node in ast.parse((HOUSE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                file = file_of(node.module or "")
                assert file is not None
                origin[alias.asname or alias.name] = file
    return origin


def test_the_public_names_are_there_and_no_others() -> None:
    assert sorted(fastws.__all__) == sorted(set(fastws.__all__))
    assert set(fastws.__all__) == set(exported())
    assert all(getattr(fastws, name) is not None for name in fastws.__all__)
    assert (HOUSE / "py.typed").exists()


def test_every_public_name_has_its_type_in_a_stub_or_a_typed_module() -> None:
    for name, file in exported().items():
        stub, module = HOUSE / f"{file}.pyi", HOUSE / f"{file}.py"
        path = stub if stub.exists() else module
        assert path.exists(), f"{name}: {file} is compiled and has no stub"
        defined: set[str] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                defined.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
        assert name in defined, f"{name} is not in {path.relative_to(ROOT)}"


def covered() -> set[int]:
    """The lines of the checklist that some test claims with @pytest.mark.rule(N)."""
    found: set[int] = set()
    for path in TESTS.rglob("*.py"):
        if "node_modules" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rule":
                assert len(node.args) == 1 and isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
                number = node.args[0].value
                assert isinstance(number, int) and number in RULES, f"{path}:{node.lineno}: no line {number!r}"
                found.add(number)
    return found


def test_every_line_of_the_checklist_has_a_test_or_is_known_to_have_none() -> None:
    numbers = covered()
    assert sorted(set(RULES) - numbers - OPEN_RULES) == [], "no test has these"
    assert sorted(numbers & OPEN_RULES) == [], "these have a test by now: take them out of OPEN_RULES"

"""What README.md and examples/ say is so: every block that can run is run, and the tables are compared with the code.

A block is known by the words behind its fence: ```python policy, ```sh run, ```toml config, ```js jssip, ```js sipjs.

    python -m tests.test_readme          writes the table of settings into README.md anew
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from fastws.cli import main
from fastws.config import Config, guard_open, settings
from fastws.policy import Policy

from .conftest import ROOT, Certificate, ProcessGuard, missing_peer, need_program, wait_for
from .interop.peers import Edge
from .relay import Client, UdpServer, contact, lines, request, status

README = ROOT / "README.md"
EXAMPLE_POLICY = ROOT / "examples" / "policy.py"
EXAMPLE_CONFIG = ROOT / "examples" / "fastws.toml"
PAGE = "https://phone.example.com"
START, END = "<!-- settings -->\n", "<!-- end of settings -->\n"
PACKAGES = ROOT / "tests" / "interop" / "node_modules"


def blocks(kind: str) -> list[str]:
    """The text of every block with these words behind its fence."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The command lines of all shell blocks, continued lines joined, without comments."""
    text = "".join(blocks("sh run")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


# The table of settings


def shown(default: object) -> str:
    """A default as one would write it in TOML, for people; nothing for nothing."""
    if isinstance(default, tuple):
        return ", ".join(getattr(value, "url", str(value)) for value in default)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default else ""


def settings_table() -> str:
    """One row for each setting, as the code has them."""
    plain = Config()
    rows = ["| key | flag | default | what it is |", "|---|---|---|---|"]
    for name, setting in settings().items():
        flag = f"`{setting.flag} {setting.metavar}`" if setting.flag else ""
        default = shown(getattr(plain, name))
        meaning = re.sub(r" \(default: [^)]*\)$", "", setting.help) if default else setting.help
        cells = (cell.replace("|", r"\|") for cell in (f"`{name}`", flag, default, meaning))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_settings_is_the_codes() -> None:
    table = README.read_text().partition(START)[2].partition(END)[0]
    assert table == settings_table()


def test_the_flags_are_keys_of_the_same_name() -> None:
    for name, setting in settings().items():
        assert setting.flag is None or setting.flag == f"--{name.replace('_', '-')}"


# Commands


def test_make_has_the_targets(processes: ProcessGuard) -> None:
    make = need_program("make")
    targets = [words[1] for words in commands() if words[0] == "make"]
    assert targets == ["demo", "test"]
    for target in targets:
        program = processes.start([make, "--dry-run", target])
        assert program.wait() == 0, program.stderr


@pytest.fixture
def workplace(tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that README's commands name, as the current one."""
    shutil.copy(certificate.cert, tmp_path / "fullchain.pem")
    shutil.copy(certificate.key, tmp_path / "privkey.pem")
    [policy] = blocks("python policy")
    (tmp_path / "policy.py").write_text(policy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_fastws_command_is_one_that_would_serve(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = [words[2:] for words in commands() if words[:2] == ["fastws", "serve"]]
    assert len(served) == 2
    for arguments in served:
        assert main(["check", *arguments]) == 0, capsys.readouterr().err
        assert "pbx.example.com" in capsys.readouterr().out


def test_the_one_flag_is_enough(processes: ProcessGuard, port: int) -> None:
    # The same command but for what is taken on this machine: the port to listen on, and a name that is in no DNS.
    program = processes.fastws("serve", "--upstream", "sip:127.0.0.1", "--listen", f"ws://127.0.0.1:{port}")
    line = program.wait_for_line("fastws ready:")
    assert line == f"fastws ready: ws://127.0.0.1:{port} -> sip:127.0.0.1"
    assert program.stop() == 0


def test_the_error_shown_is_the_error_given(capsys: pytest.CaptureFixture[str]) -> None:
    [error] = re.findall(r"^fastws: --upstream: .*$", README.read_text(), re.MULTILINE)
    assert main(["check", "--upstream", "pbx.example.com"]) == 2
    assert capsys.readouterr().err == f"{error}\n"


def test_the_configuration_without_a_sip_server_may_listen_to_the_world(workplace: Path) -> None:
    [text] = blocks("toml config")
    (workplace / "fastws.toml").write_text(text)
    config = Config.from_sources({}, workplace / "fastws.toml")
    guard_open(config, None)
    assert dict(config.users) == {"alice": "a long password", "bob": "another one"}
    assert config.realm == "example.com"


def test_the_example_configuration_is_one_that_would_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(EXAMPLE_CONFIG)]) == 0
    printed = capsys.readouterr()
    assert "IDENTITY = 'user'" in printed.out
    assert printed.err == ""
    config = Config.from_sources({}, EXAMPLE_CONFIG)
    assert config.policy == EXAMPLE_POLICY
    # What is commented out must fit as well, once its files are there.
    hidden = re.findall(r"^# (\w+) = ", EXAMPLE_CONFIG.read_text(), re.MULTILINE)
    assert hidden and set(hidden) <= set(settings())


# The policy


class Office:
    """An edge with one of the policies, the SIP server behind it, and pages that connect to it."""

    def __init__(self, directory: Path, policy: str, stack: ExitStack) -> None:
        self.server = UdpServer()
        stack.callback(self.server.close)
        self.edge = stack.enter_context(Edge(directory, upstream=[self.server.uri], policy=policy))
        self._stack = stack

    def page(self, session: str | None = "s-alice", origin: str = PAGE) -> Client:
        headers = {} if session is None else {"Cookie": f"theme=dark; sid={session}"}
        client = Client(self.edge.url, origin=origin, additional_headers=headers)
        self._stack.callback(client.close)
        return client


def texts() -> dict[str, str]:
    [text] = blocks("python policy")
    return {"README": text, "example": EXAMPLE_POLICY.read_text()}


@pytest.fixture(params=["README", "example"])
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    with ExitStack() as stack:
        yield Office(tmp_path, texts()[request.param], stack)


@pytest.mark.parametrize("name", ["README", "example"])
def test_a_policy_to_begin_with_loads_without_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.py"
    file.write_text(texts()[name])
    policy = Policy.load(file)
    assert policy.on_handshake and policy.on_request and policy.on_close
    assert policy.identity == "user"
    assert caplog.records == []


def test_the_policy_of_the_readme_fits_on_a_screen() -> None:
    assert len([line for line in texts()["README"].splitlines() if line.strip()]) <= 20


def test_a_user_with_a_session_gets_through_and_the_end_is_logged(office: Office) -> None:
    alice = office.page()
    alice.send(request("REGISTER", headers=contact()))
    assert lines(office.server.receive(), "From") == ["<sip:alice@example.com>;tag=falice"]
    alice.send(request("INVITE", 2, call_id="c2", headers=contact()))
    assert office.server.receive().startswith("INVITE sip:bob@example.com ")
    alice.close()
    wait_for(lambda: re.search(r"alice.*closed by client", office.edge.log()), what="the line of on_close")


def test_another_page_is_refused_with_403(office: Office) -> None:
    with pytest.raises(InvalidStatus) as refused:
        office.page(origin="https://evil.example.net")
    assert refused.value.response.status_code == 403
    wait_for(lambda: "refused 403" in office.edge.log())


@pytest.mark.parametrize("session", [None, "s-mallory"])
def test_a_user_without_a_session_sees_a_close_code(office: Office, session: str | None) -> None:
    assert office.page(session).closed() == (4401, "log in first")


def test_nobody_speaks_in_anothers_name(office: Office) -> None:
    impostor = office.page("s-bob")
    impostor.send(request("MESSAGE", user="alice"))
    assert status(impostor.receive()) == 403
    assert impostor.closed()[0] == 1008
    assert office.server.silent()


def test_what_may_not_be_called_is_not_called(office: Office) -> None:
    alice = office.page()
    alice.send(request("INVITE", to="0044123", headers=contact()))
    answer = alice.receive()
    assert status(answer) == 403 and "No International Calls" in answer
    assert office.server.silent()


def test_the_example_tells_the_server_whose_call_it_is(tmp_path: Path) -> None:
    with ExitStack() as stack:
        office = Office(tmp_path, texts()["example"], stack)
        office.page().send(request("INVITE", headers=contact() + "X-Account: bob@example.com\r\n"))
        assert lines(office.server.receive(), "X-Account") == ["alice@example.com"]


# The page

BROWSER = """
import { WebSocket } from "ws";
globalThis.WebSocket = WebSocket;
globalThis.window = globalThis;
console.log = console.log.bind(console);
"""


@pytest.mark.parametrize(
    ("library", "imported"),
    [("jssip", 'import JsSIP from "jssip";'), ("sipjs", 'import * as SIP from "sip.js";')],
)
def test_the_url_is_all_that_a_page_needs(
    library: str, imported: str, tmp_path: Path, processes: ProcessGuard, edge: Callable[..., Edge]
) -> None:
    node = need_program("node")
    if not (PACKAGES / "ws" / "package.json").exists():
        missing_peer("the npm packages of tests/interop")
    server = edge()
    [text] = blocks(f"js {library}")
    assert len(text.splitlines()) == 5
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    page = tmp_path / "page.mjs"
    page.write_text(imported + BROWSER + text.replace("ws://127.0.0.1:8080", server.url))
    program = processes.start([node, page])
    program.wait_for_line("registered")
    program.stop()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Edge(tmp_path, **options))


# The table of choices

TAGGED = "<sip:alice@example.com>;tag=falice"


@pytest.fixture
def choices(tmp_path: Path) -> Iterator[tuple[Client, UdpServer, Edge]]:
    policy = 'IDENTITY = "user"\ndef on_handshake(handshake):\n    return handshake.accept(user="alice")\n'
    with ExitStack() as stack:
        server = UdpServer()
        stack.callback(server.close)
        edge = stack.enter_context(Edge(tmp_path, upstream=[server.uri], policy=policy))
        client = Client(edge.url)
        stack.callback(client.close)
        yield client, server, edge


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (request("OPTIONS").replace(TAGGED, "<sip:alice@example.com>"), 400),
        (request("OPTIONS").replace(TAGGED, "<sip:alice:secret@example.com>;tag=falice"), 400),
        (request("OPTIONS", headers="Route: <sip:203.0.113.1;lr>\r\n"), 403),
        (request("OPTIONS", uri="sips:bob@example.com"), 416),
        (request("OPTIONS", uri="mailto:bob@example.com"), 416),
        (request("OPTIONS", headers="Proxy-Require: nothing\r\n"), 420),
        (request("INVITE").replace("Max-Forwards: 70", "Max-Forwards: 0"), 483),
        (request("MESSAGE", body="x" * 65_450), 1009),
        (request("MESSAGE", body="x" * 65_300), 513),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else value.split()[0],
)
def test_a_choice_of_the_table_is_what_happens(
    choices: tuple[Client, UdpServer, Edge], message: str, code: int
) -> None:
    client, server, _ = choices
    client.send(message)
    if code == 1009:
        assert client.closed()[0] == 1009
    else:
        assert status(client.receive()) == code
    assert server.silent()
    assert str(code) in README.read_text()


def test_what_passes_passes(choices: tuple[Client, UdpServer, Edge]) -> None:
    client, server, _ = choices
    preferred = "P-Preferred-Identity: <sip:alice@example.com>\r\n"
    client.send(
        request("INVITE", uri="tel:+4912", headers=f"{preferred}P-Asserted-Identity: <sip:ceo@example.com>\r\n")
    )
    received = server.receive()
    assert received.startswith("INVITE tel:+4912 ")
    assert lines(received, "P-Preferred-Identity") == ["<sip:alice@example.com>"]
    assert lines(received, "P-Asserted-Identity") == []


def test_what_a_handshake_is_refused_with(tmp_path: Path, processes: ProcessGuard, port: int) -> None:
    import http.client

    program = processes.fastws("serve", "--listen", f"ws://127.0.0.1:{port}/sip")
    program.wait_for_line("fastws ready:")
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }

    def answered(method: str, path: str, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request(method, path, headers=headers)
        code: int = connection.getresponse().status
        connection.close()
        return code

    sip: dict[str, Any] = {**upgrade, "Sec-WebSocket-Protocol": "sip"}
    assert answered("GET", "/elsewhere", sip) == 404
    assert answered("GET", "/sip", {}) == 426
    assert answered("POST", "/sip", {}) == 405
    assert answered("GET", "/sip", upgrade) == 400
    assert answered("GET", "/sip", sip) == 101  # and no Origin


# ARCHITECTURE.md

ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`([\w/.-]+\.(?:py|pyx|pxd|md|toml))`", README.read_text() + ARCHITECTURE.read_text()))
    named |= set(re.findall(r"\]\(([\w/.-]+)\)", README.read_text()))
    yours = {"policy.py", "transport/X.pyx"}
    missing = {name for name in named - yours if not (ROOT / name).exists() and not (ROOT / "fastws" / name).exists()}
    assert not missing


def layers() -> list[set[str]]:
    text = ARCHITECTURE.read_text().partition("## Layers")[2].partition("## ")[0]
    return [set(line.split()) for line in text.splitlines() if line.startswith("    ")]


def imports(path: Path) -> set[str]:
    """What a source file imports or cimports of fastws, as `wire/span`; the package itself is none of its rooms."""
    found = set()
    package = path.relative_to(ROOT / "fastws").parts[:-1]
    for dots, name in re.findall(r"^\s*(?:from|import|cimport) (fastws\.|\.*)([\w.]+)", path.read_text(), re.MULTILINE):
        if dots == "fastws." or dots == "." * (len(package) + 1):
            found.add(name.replace(".", "/"))
        elif dots:
            found.add("/".join([*package[: len(package) + 1 - len(dots)], *name.split(".")]))
    return found


def test_each_module_imports_from_the_layers_above_it_only() -> None:
    above: set[str] = set()
    for layer in layers():
        for module in layer:
            sources = [
                path for suffix in (".py", ".pyx", ".pxd") if (path := ROOT / "fastws" / f"{module}{suffix}").exists()
            ]
            assert sources, module
            for source in sources:
                assert imports(source) <= above | {module}, source
        above |= layer
    package = ROOT / "fastws"
    files = [file for suffix in ("py", "pyx", "pxd") for file in package.rglob(f"*.{suffix}")]
    modules = {file.relative_to(package).with_suffix("").as_posix() for file in files}
    assert {module for module in modules if "__" not in module} == above


if __name__ == "__main__":
    before, _, rest = README.read_text().partition(START)
    README.write_text(before + START + settings_table() + END + rest.partition(END)[2])

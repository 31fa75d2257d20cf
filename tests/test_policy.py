# The policy module: found, checked, asked, limited in time. Whatever goes wrong refuses the client and is logged.
from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

from fastws.errors import PolicyError
from fastws.policy import Policy
from fastws.wire.handshake import Accept, Handshake, HeadReader, Limits, Refuse, Reject

HEAD = (
    b"GET /?token=hidden HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nCookie: sid=hidden\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
)


def handshake() -> Handshake:
    reader = HeadReader(Limits())
    assert reader.feed(HEAD) == b""
    return Handshake(reader, ("192.0.2.1", 4711), ("192.0.2.2", 443), False)


@pytest.fixture(autouse=True)
def same_path(monkeypatch):
    """A policy's folder is put on sys.path; after the test it is gone again."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def write(tmp_path):
    """Write a policy file and give its path."""

    def write(source: str, name: str = "policy.py") -> Path:
        file = tmp_path / name
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return file

    return write


@pytest.fixture
def load(write):
    def load(source: str, timeout: float = 5.0) -> Policy:
        return Policy.load(write(source), timeout=timeout)

    return load


def problem(path: os.PathLike[str] | str) -> str:
    """The one line that a policy which cannot be used gives."""
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def ask(policy: Policy) -> object:
    """The answer of a plain on_handshake: given before decide returns, and no task left."""
    answers: list[object] = []
    assert policy.decide(handshake(), answers.append) is None
    [answer] = answers
    return answer


def ask_async(policy: Policy) -> object:
    """The answer of an async on_handshake."""

    async def run() -> object:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        task = policy.decide(handshake(), future.set_result)
        assert task is not None
        assert not future.done()
        return await asyncio.wait_for(future, 10)

    return asyncio.run(run())


# Loading


def test_no_policy_accepts_everyone_and_says_so():
    policy = Policy.load(None)
    assert ask(policy) == Accept({})
    assert (policy.path, policy.module, policy.on_request, policy.on_close) == (None, None, None, None)
    assert policy.describe() == "no policy: everyone who speaks sip is accepted"
    policy.closed(object(), "client", 1000, "")


def test_a_module_has_its_hooks_settings_and_description(load):
    policy = load(
        """
        IDENTITY = "user"
        ON_REQUEST_METHODS = {"REGISTER", "INVITE"}
        def on_handshake(handshake): return handshake.accept(user="alice")
        async def on_request(request, connection): pass
        def on_close(connection, terminator, code, reason): pass
        """
    )
    assert policy.identity == "user"
    assert policy.request_methods == frozenset({"INVITE", "REGISTER"})
    assert policy.on_request is policy.module.on_request
    assert policy.on_close is policy.module.on_close
    assert ask(policy) == Accept({"user": "alice"})
    hooks = "on_handshake, on_request (INVITE, REGISTER), on_close, IDENTITY = 'user'"
    assert policy.describe() == f"{policy.path}: {hooks}"


def test_a_module_without_on_handshake_says_that_everyone_is_accepted(load):
    policy = load("def on_request(request, connection): pass")
    assert ask(policy) == Accept({})
    assert policy.describe().endswith("no on_handshake (everyone who speaks sip is accepted), on_request")
    assert policy.request_methods is None
    assert policy.identity is None


def test_the_module_may_hold_dataclasses_and_import_its_neighbours(write):
    write("ANSWER = 451", "neighbour_of_policy.py")
    file = write(
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from neighbour_of_policy import ANSWER
        @dataclass
        class Session:
            user: str
        def on_handshake(handshake): return handshake.reject(ANSWER, Session("gone").user)
        """
    )
    try:
        assert ask(Policy.load(file)) == handshake().reject(451, "gone")
    finally:
        sys.modules.pop("neighbour_of_policy", None)


def test_a_reload_reads_the_file_anew_even_within_the_same_second(write):
    old = Policy.load(write("IDENTITY = 'one'"))
    file = write("IDENTITY = 'two'")
    stamp = os.stat(file)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    new = Policy.load(str(file))
    assert (old.identity, new.identity) == ("one", "two")
    assert old.module.__name__ != new.module.__name__
    assert sys.modules[new.module.__name__] is new.module


def test_a_policy_that_is_no_longer_used_leaves_nothing_behind(load):
    name = load("X = 1").module.__name__
    gc.collect()
    assert name not in sys.modules


def test_a_policy_that_cannot_be_used_leaves_nothing_behind(write):
    before = set(sys.modules)
    problem(write("1/0"))
    problem(write("IDENTITY = 5"))
    assert set(sys.modules) == before


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "No such file" in problem(tmp_path / "none.py")
    assert "directory" in problem(tmp_path)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\ndef on_handshake(:\n", ":2: SyntaxError: "),
        ("x = 1\n  y = 2\n", ":2: IndentationError: "),
        ("x = 1\n\n1/0\n", ":3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('a\\n  b')\n\nf()\n", ":2: ValueError: a b"),
        ("import nothing_of_this_name\n", ":1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("\nimport sys\nsys.exit(3)\n", ":3: SystemExit: 3"),
        ("raise KeyError\n", ":1: KeyError"),
        ("x = '\0'\n", "SyntaxError: "),
    ],
)
def test_what_goes_wrong_at_import_is_one_line_with_file_line_and_cause(write, source, expected):
    assert expected in problem(write(source))


def test_a_mistake_in_a_neighbour_names_both_places(write):
    write("x = 1\n)\n", "neighbour_in_trouble.py")
    text = problem(write("\nimport neighbour_in_trouble\n"))
    assert text.startswith(":2: SyntaxError: ")
    assert "neighbour_in_trouble.py, line 2" in text


def test_text_that_is_no_utf_8_is_one_line(tmp_path):
    file = tmp_path / "policy.py"
    file.write_bytes(b"x = '\xff'\n")
    assert "SyntaxError" in problem(file)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("on_handshake = 5", ("on_handshake is int", "(handshake)")),
        ("on_close = 'x'", ("on_close is str", "(connection, terminator, code, reason)")),
        ("def on_handshake(): pass", ("on_handshake takes ()", "1 (handshake)")),
        ("def on_handshake(a, b): pass", ("on_handshake takes (a, b)", "1 (handshake)")),
        ("def on_request(request): pass", ("on_request takes (request)", "2 (request, connection)")),
        ("def on_request(request, *, connection): pass", ("on_request takes", "2 (request, connection)")),
        ("def on_close(connection, code): pass", ("on_close takes", "4 (connection, terminator, code, reason)")),
        ("async def on_close(a, b, c, d, e): pass", ("on_close takes (a, b, c, d, e)", "4 (")),
        ("def on_handshake(h): yield h", ("on_handshake is a generator", "yield")),
        ("async def on_request(r, c): yield", ("on_request is a generator", "yield")),
        ("IDENTITY = ''", ("IDENTITY is ''", "name of an attribute")),
        ("IDENTITY = ['user']", ("IDENTITY is ['user']", "name of an attribute")),
        ("ON_REQUEST_METHODS = 'INVITE'", ("ON_REQUEST_METHODS is str", "set of method names")),
        ("ON_REQUEST_METHODS = {'INVITE': 1}", ("ON_REQUEST_METHODS is dict", "set of method names")),
        ("ON_REQUEST_METHODS = {'INVITE', 5}", ("ON_REQUEST_METHODS holds 5", "set of method names")),
        ("ON_REQUEST_METHODS = ['IN VITE']", ("ON_REQUEST_METHODS holds 'IN VITE'", "set of method names")),
        ("ON_REQUEST_METHODS = ['']", ("ON_REQUEST_METHODS holds ''", "set of method names")),
    ],
)
def test_a_hook_or_setting_of_the_wrong_shape_says_which_and_what_was_expected(write, source, words):
    text = problem(write(source))
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    "source",
    [
        "def on_handshake(*args): pass",
        "def on_handshake(h, more=1, **rest): pass",
        "class P:\n    def ask(self, h): pass\non_handshake = P().ask",
        "class P:\n    def __call__(self, h): pass\non_handshake = P()",
        "import functools\ndef f(x, h): pass\non_handshake = functools.partial(f, 1)",
        "on_close = print",
        "on_handshake = dict",
        "on_request = None",
        "ON_REQUEST_METHODS = []",
    ],
)
def test_anything_that_can_be_called_that_way_will_do(load, source):
    load(source)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def on_handshakes(handshake): pass", "on_handshakes is never called"),
        ("def onhandshake(handshake): pass", "onhandshake is never called"),
        ("def On_Request(request, connection): pass", "On_Request is never called"),
        ("def on_register(request, connection): pass", "on_register is never called"),
        ("IDENTTITY = 'user'", "IDENTTITY is never read; did you mean IDENTITY?"),
        ("identity = 'user'", "identity is never read; did you mean IDENTITY?"),
        ("ON_REQUEST_METHOD = {'INVITE'}", "ON_REQUEST_METHOD is never read; did you mean ON_REQUEST_METHODS?"),
        ("ON_REQUEST_METHODS = {'INVITE'}", "ON_REQUEST_METHODS without on_request does nothing"),
        ("ON_REQUEST_METHODS = {'invite'}\ndef on_request(r, c): pass", "ON_REQUEST_METHODS holds invite"),
    ],
)
def test_what_looks_misspelt_is_a_warning(load, caplog, source, word):
    load(source)
    assert any(word in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_what_is_nothing_of_ours_is_no_warning(load, caplog):
    load(
        """
        import logging, json
        ORIGINS = {"https://app.example.com"}
        IDENTITIES = {}
        def _once(x): pass
        class Session: pass
        def on_handshake(handshake): return handshake.accept()
        """
    )
    assert not caplog.records


# Deciding


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("handshake.accept(user='alice')", Accept({"user": "alice"})),
        ("handshake.refuse(4401, 'who?')", Refuse(4401, "who?")),
        ("handshake.reject(404)", Reject(404, why="rejected by the policy")),
    ],
)
def test_the_three_answers_arrive_from_plain_and_async_policies(load, kind, answer, expected):
    policy = load(f"{kind} on_handshake(handshake): return {answer}")
    assert (ask if kind == "def" else ask_async)(policy) == expected


RETURNS = ["True", "None", "200", "'secret'", "{'user': 'secret'}", "handshake", "handshake.accept"]
RAISES = ["raise ValueError('secret')", "1/0", "handshake.headers['X-None']", "raise SystemExit('secret')",
          "handshake.reject(200)", "handshake.reject(403, 'a\\r\\nb')", "raise asyncio.CancelledError"]  # fmt: skip


def asked_in_vain(load, caplog, kind: str, body: str) -> None:
    policy = load(f"import asyncio\n{kind} on_handshake(handshake):\n    {body}")
    answer = (ask if kind == "def" else ask_async)(policy)
    assert isinstance(answer, Reject)
    assert (answer.status, answer.reason, answer.headers, answer.body) == (500, "", (), b"")
    [record] = caplog.records
    assert (record.name, record.levelname) == ("fastws.policy", "ERROR")
    assert "192.0.2.1:4711" in record.getMessage()
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("value", RETURNS)
def test_an_answer_that_is_none_of_the_three_is_a_500_and_its_text_is_nowhere(load, caplog, kind, value):
    asked_in_vain(load, caplog, kind, f"return {value}")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("body", RAISES)
@pytest.mark.case("C111")
def test_an_exception_is_a_500_without_a_word_of_it_and_its_traceback_is_in_the_log(load, caplog, kind, body):
    asked_in_vain(load, caplog, kind, body)
    assert caplog.records[0].exc_info is not None


def test_a_policy_that_takes_too_long_is_a_500_at_the_deadline_and_the_log_says_where_it_waited(load, caplog):
    policy = load(
        """
        import asyncio
        async def look_up(user):
            await asyncio.get_running_loop().create_future()
        async def on_handshake(handshake):
            await look_up("alice")
        """,
        timeout=0.02,
    )
    answer = ask_async(policy)
    assert isinstance(answer, Reject)
    assert answer.status == 500
    [record] = caplog.records
    assert "192.0.2.1:4711" in record.getMessage()
    assert "policy_timeout" in record.getMessage()
    assert record.exc_info is not None
    assert [frame.name for frame in traceback.extract_tb(record.exc_info[2])][-2:] == ["on_handshake", "look_up"]


def test_a_policy_that_ignores_its_cancellation_is_refused_once_and_at_the_deadline(load):
    policy = load(
        """
        import asyncio
        GO_ON = asyncio.Event()
        async def on_handshake(handshake):
            while not GO_ON.is_set():
                try:
                    await GO_ON.wait()
                except asyncio.CancelledError:
                    asyncio.current_task().uncancel()
            return handshake.accept()
        """,
        timeout=0.02,
    )

    async def run() -> list[object]:
        answers: list[object] = []
        first = asyncio.Event()
        task = policy.decide(handshake(), lambda answer: (answers.append(answer), first.set()))
        assert task is not None
        await asyncio.wait_for(first.wait(), 10)
        assert not task.done()
        policy.module.GO_ON.set()
        await asyncio.wait_for(task, 10)
        return answers

    [answer] = asyncio.run(run())
    assert isinstance(answer, Reject)


def test_nobody_waits_for_another_clients_policy(load):
    policy = load(
        """
        import asyncio
        GO_ON = asyncio.Event()
        ASKED = []
        async def on_handshake(handshake):
            ASKED.append(handshake)
            if len(ASKED) == 1:
                await GO_ON.wait()
            return handshake.accept(number=ASKED.index(handshake))
        """
    )

    async def run() -> list[int]:
        order: list[int] = []
        tasks = [policy.decide(handshake(), lambda answer: order.append(answer.attributes["number"])) for _ in range(3)]
        await asyncio.wait_for(asyncio.wait(tasks[1:]), 10)
        assert order == [1, 2]
        policy.module.GO_ON.set()
        await asyncio.wait_for(tasks[0], 10)
        return order

    assert asyncio.run(run()) == [1, 2, 0]


def test_a_client_that_leaves_ends_its_policy_and_nothing_is_answered_or_logged(load, caplog):
    policy = load(
        """
        import asyncio
        SEEN = []
        async def on_handshake(handshake):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                SEEN.append("cancelled")
                raise
        """
    )

    async def run() -> None:
        task = policy.decide(handshake(), lambda answer: pytest.fail("answered"))
        assert task is not None
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(asyncio.wait([task]), 10)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert policy.module.SEEN == ["cancelled"]
    assert not caplog.records


def test_follow_reports_the_result_or_the_error_exactly_once(caplog):
    policy = Policy.load(None, timeout=5)

    async def fine() -> int:
        return 7

    async def broken() -> None:
        raise ValueError("broken")

    async def run() -> list[tuple[object, object]]:
        heard: list[tuple[object, object]] = []
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(8)
        for awaitable in (fine(), future, broken()):
            task = policy.follow(awaitable, lambda result, error: heard.append((result, error)), "on_request for x")
            await asyncio.wait([task])
            await asyncio.sleep(0)
        return heard

    first, second, third = asyncio.run(run())
    assert first == (7, None)
    assert second == (8, None)
    assert third[0] is None
    assert isinstance(third[1], ValueError)
    [record] = caplog.records
    assert record.getMessage() == "on_request for x failed"
    assert "Traceback" in caplog.text


def test_the_deadline_of_an_answer_that_came_in_time_does_nothing(load, caplog):
    policy = load("async def on_handshake(handshake): return handshake.accept()", timeout=0.02)

    async def run() -> list[object]:
        answers: list[object] = []
        loop = asyncio.get_running_loop()
        task = policy.decide(handshake(), answers.append)
        assert task is not None
        later = loop.create_future()  # timers fire in the order of their times
        loop.call_later(2 * policy.timeout, later.set_result, None)
        await asyncio.wait_for(asyncio.gather(task, later), 10)
        return answers

    assert asyncio.run(run()) == [Accept({})]
    assert not caplog.records


def test_a_policy_may_use_its_own_time_limits(load):
    policy = load(
        """
        import asyncio
        async def on_handshake(handshake):
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                return handshake.refuse(4408, "slow")
        """
    )
    assert ask_async(policy) == Refuse(4408, "slow")


# Closing


class Connection(dict):
    source = ("2001:db8::1", 4711)


def test_on_close_is_told_who_ended_which_connection(load):
    policy = load(
        """
        SEEN = []
        def on_close(connection, terminator, code, reason):
            SEEN.append((connection["user"], terminator, code, reason))
        """
    )
    policy.closed(Connection(user="alice"), "network", 1006, "reset")
    assert policy.module.SEEN == [("alice", "network", 1006, "reset")]


@pytest.mark.parametrize("body", ["1/0", "raise SystemExit"])
def test_what_on_close_raises_is_logged_with_the_address_and_goes_no_further(load, caplog, body):
    policy = load(f"def on_close(connection, terminator, code, reason): {body}")
    policy.closed(Connection(), "client", 1000, "")
    policy.closed(object(), "client", 1000, "")
    assert [record.getMessage() for record in caplog.records] == [
        "on_close failed for [2001:db8::1]:4711",
        "on_close failed for unknown peer",
    ]
    assert caplog.records[0].exc_info is not None


def test_an_async_on_close_is_waited_for_at_the_end_and_its_errors_are_logged(load, caplog):
    policy = load(
        """
        import asyncio
        SEEN = []
        async def on_close(connection, terminator, code, reason):
            await asyncio.sleep(0)
            SEEN.append(code)
            if code == 1001:
                1/0
        """
    )

    async def run() -> None:
        for code in (1000, 1001, 1002):
            policy.closed(Connection(), "shutdown", code, "")
        gc.collect()
        assert policy.module.SEEN == []
        await policy.drain(10)
        assert policy.module.SEEN == [1000, 1001, 1002]
        await policy.drain(10)

    asyncio.run(run())
    [record] = caplog.records
    assert record.getMessage() == "on_close for [2001:db8::1]:4711 failed"


def test_drain_does_not_wait_longer_than_it_may(load, caplog):
    policy = load(
        """
        import asyncio
        async def on_close(connection, terminator, code, reason):
            await asyncio.get_running_loop().create_future()
        """
    )

    async def run() -> None:
        policy.closed(Connection(), "shutdown", 1001, "")
        await policy.drain(0.02)
        await policy.drain(0)

    asyncio.run(run())
    assert "1 on_close calls did not end" in caplog.text


def test_an_on_close_that_never_ends_is_ended_at_the_time_limit(load, caplog):
    policy = load(
        """
        import asyncio
        async def on_close(connection, terminator, code, reason):
            await asyncio.get_running_loop().create_future()
        """,
        timeout=0.02,
    )

    async def run() -> None:
        policy.closed(Connection(), "client", 1000, "")
        await policy.drain(10)

    asyncio.run(run())
    assert "policy_timeout" in caplog.text
    assert "did not end" not in caplog.text


def test_log_failure_has_the_traceback_of_the_exception_at_hand(caplog):
    policy = Policy.load(None)
    try:
        raise LookupError("nobody")
    except LookupError:
        policy.log_failure("on_request", ("192.0.2.1", 4711))
    [record] = caplog.records
    assert (record.name, record.levelno) == ("fastws.policy", logging.ERROR)
    assert record.getMessage() == "on_request failed for 192.0.2.1:4711"
    assert "LookupError: nobody" in caplog.text

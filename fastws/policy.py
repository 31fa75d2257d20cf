# HOOKS: the three functions of a policy module, found, checked, called, time-limited; whatever goes wrong, the client
# is refused and the log has the traceback. Asked once for each connection, request or close; nothing per byte.
# What the answers look like belongs to wire/handshake.py and to the compiled half, which is never imported here.
from __future__ import annotations

import asyncio
import difflib
import importlib.util
import inspect
import itertools
import logging
import os
import re
import sys
import traceback
import weakref
from collections.abc import Awaitable, Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any

from .errors import PolicyError
from .log import address_text
from .wire.handshake import Accept, Handshake, Refuse, Reject

__all__ = ["HOOKS", "Policy"]

# Each hook with the positional arguments it is called with. There are no others: the three are the contract.
HOOKS = {
    "on_handshake": ("handshake",),
    "on_request": ("request", "connection"),
    "on_close": ("connection", "terminator", "code", "reason"),
}
SETTINGS = ("IDENTITY", "ON_REQUEST_METHODS")

TIMEOUT_S = 5.0
_METHOD = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+")  # token, RFC 3261 25.1
_VERDICTS = (Accept, Reject, Refuse)
_FAILED = Reject(500, why="the policy failed")
_EVERYONE = "everyone who speaks sip is accepted"

_log = logging.getLogger("fastws.policy")
_numbers = itertools.count(1)


def _peer(source: tuple[str, int] | None) -> str:
    return "unknown peer" if source is None else address_text(source)


class Policy:
    """The policy module and how it is asked. Made by `Policy.load`; a reload makes a new one.

    `path` and `module` are None without a policy; `on_handshake`, `on_request`, `on_close` are the module's functions,
    None where it has none. `identity` is its IDENTITY, `request_methods` its ON_REQUEST_METHODS (None: every method).
    `timeout` is in seconds and holds for each call of an `async` function; a plain function cannot be interrupted.
    """

    __slots__ = ("__weakref__", "_closing", "_following", "identity", "module", "on_close", "on_handshake",
                 "on_request", "path", "request_methods", "timeout")  # fmt: skip

    def __init__(
        self, path: str | None = None, module: ModuleType | None = None, *, timeout: float = TIMEOUT_S
    ) -> None:
        self.path = path
        self.module = module
        self.timeout = timeout
        self._closing: set[asyncio.Task[Any]] = set()
        self._following: set[asyncio.Task[Any]] = set()  # a loop holds its tasks weakly
        self.on_handshake: Callable[..., Any] | None = None
        self.on_request: Callable[..., Any] | None = None
        self.on_close: Callable[..., Any] | None = None
        self.identity: str | None = None
        self.request_methods: frozenset[str] | None = None
        if path is not None and module is not None:
            self.on_handshake = _hook(path, module, "on_handshake")
            self.on_request = _hook(path, module, "on_request")
            self.on_close = _hook(path, module, "on_close")
            self.identity = _identity(path, module)
            self.request_methods = _request_methods(path, module)
            for warning in _doubts(module):
                _log.warning("%s: %s", path, warning)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None, *, timeout: float = TIMEOUT_S) -> Policy:
        """Import the file `path` as a module of its own; None gives a policy that accepts everyone.

        The file's folder is put on sys.path, so that it can import its neighbours. They are imported once; a reload
        reads the file itself anew. PolicyError, one line with file and line number, if it cannot be read, does not
        compile, raises, or if a hook or setting has the wrong shape. What is misspelt, as far as one can tell, is a
        warning in the log.
        """
        if path is None:
            return cls(timeout=timeout)
        name = os.fspath(path)
        module = _import(name)
        try:
            policy = cls(name, module, timeout=timeout)
        except BaseException:
            sys.modules.pop(module.__name__, None)
            raise
        # As long as it is in use: pickle and typing look a class's module up by name.
        weakref.finalize(policy, sys.modules.pop, module.__name__, None)
        return policy

    def describe(self) -> str:
        """One line for the start of the log: the hooks, what they are limited to, and what the absence of one means."""
        if self.path is None:
            return f"no policy: {_EVERYONE}"
        parts = ["on_handshake" if self.on_handshake is not None else f"no on_handshake ({_EVERYONE})"]
        if self.on_request is not None:
            methods = self.request_methods
            limit = "" if methods is None else f" ({', '.join(sorted(methods)) or 'no method'})"
            parts.append(f"on_request{limit}")
        if self.on_close is not None:
            parts.append("on_close")
        if self.identity is not None:
            parts.append(f"IDENTITY = {self.identity!r}")
        return f"{self.path}: {', '.join(parts)}"

    def decide(
        self, handshake: Handshake, done: Callable[[Accept | Reject | Refuse], None]
    ) -> asyncio.Task[Any] | None:
        """Ask on_handshake and hand its answer to `done`: before this returns, or later if it is `async`.

        In the latter case the task is returned: cancel it when the client leaves, and `done` is not called. Anything
        but one of the three answers, an exception, and `timeout` seconds without an answer are a 500, and are logged
        with a traceback: it never fails open.
        """
        hook = self.on_handshake
        if hook is None:
            done(handshake.accept())
            return None
        try:
            result = hook(handshake)
        except (Exception, SystemExit, asyncio.CancelledError):
            self.log_failure("on_handshake", handshake.source)
            done(_FAILED)
            return None
        if isinstance(result, _VERDICTS):
            done(result)
            return None
        if not inspect.isawaitable(result):
            done(_not_a_verdict(result, handshake))
            return None

        def settle(result: object, error: BaseException | None) -> None:
            if error is not None:
                done(_FAILED)
            elif isinstance(result, _VERDICTS):
                done(result)
            else:
                done(_not_a_verdict(result, handshake))

        return self.follow(result, settle, f"on_handshake for {_peer(handshake.source)}")

    def follow(
        self, awaitable: Awaitable[Any], done: Callable[[object, BaseException | None], None], what: str
    ) -> asyncio.Task[Any]:
        """Run what an `async` hook returned, for `timeout` seconds at most.

        Then calls ``done(result, None)``, or ``done(None, error)`` after logging `what` with the traceback: exactly
        once, at the deadline even if the hook clings to life, and never if the task was cancelled by its owner.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(_await(awaitable))
        settled = False

        def expired() -> None:
            nonlocal settled
            settled = True
            error = TimeoutError("it was waiting here").with_traceback(_where(task))
            _log.error("%s took longer than %g s (policy_timeout)", what, self.timeout, exc_info=error)
            task.cancel()
            done(None, error)

        def ended(task: asyncio.Task[Any]) -> None:
            nonlocal settled
            self._following.discard(task)
            deadline.cancel()
            error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
            if settled or task.cancelling():  # expired, or cancelled by the owner of the task
                return
            settled = True
            if error is None:
                done(task.result(), None)
            else:
                # also when the hook itself was cancelled by something it awaited
                _log.error("%s failed", what, exc_info=error)
                done(None, error)

        deadline = loop.call_later(self.timeout, expired)
        self._following.add(task)
        task.add_done_callback(ended)
        return task

    def closed(self, connection: Any, terminator: Any, code: int, reason: str) -> None:
        """Call on_close. Nothing it does is raised here; an `async` one goes on as a task, see `drain`."""
        hook = self.on_close
        if hook is None:
            return
        try:
            result = hook(connection, terminator, code, reason)
            if inspect.isawaitable(result):
                what = f"on_close for {_peer(getattr(connection, 'source', None))}"
                task = self.follow(result, lambda result, error: None, what)
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        except (Exception, SystemExit, asyncio.CancelledError):
            self.log_failure("on_close", getattr(connection, "source", None))

    async def drain(self, seconds: float) -> None:
        """Wait for the `async` on_close calls that are still running, for this many seconds at most."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._closing:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                _log.warning("%d on_close calls did not end within %g s", len(self._closing), seconds)
                return
            await asyncio.wait(tuple(self._closing), timeout=left)

    def log_failure(self, what: str, source: tuple[str, int] | None) -> None:
        """Log the exception that is being handled, with its traceback and whose connection it was."""
        _log.exception("%s failed for %s", what, _peer(source))


async def _await(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except SystemExit as error:  # would end the loop and with it every connection
        raise RuntimeError("the policy called sys.exit()") from error


def _where(task: asyncio.Task[Any]) -> TracebackType | None:
    """Where a suspended task waits, as a traceback; Task.get_stack() knows only the outermost frame, which is ours."""
    frames: list[FrameType] = []
    step: Any = task.get_coro()
    while (frame := getattr(step, "cr_frame", None)) is not None:
        frames.append(frame)
        step = step.cr_await
    where: TracebackType | None = None
    for frame in reversed(frames):
        where = TracebackType(where, frame, frame.f_lasti, frame.f_lineno)
    return where


def _not_a_verdict(result: object, handshake: Handshake) -> Reject:
    _log.error(
        "on_handshake for %s returned %s, expected handshake.accept(), reject(), challenge() or refuse()",
        _peer(handshake.source),
        "nothing" if result is None else f"an object of type {type(result).__name__}",  # its text may be a secret
    )
    return _FAILED


def _import(path: str) -> ModuleType:
    """Run the file as a new module. Its source is compiled here: the cache of bytecode that the import system keeps
    compares times by the second, and a reload must not get the version before."""
    file = Path(path)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise PolicyError(path, f"cannot be read: {error.strerror or type(error).__name__}") from None
    absolute = str(file.resolve())
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"_fastws_policy_{next(_numbers)}"
    loader = SourceFileLoader(name, absolute)  # tracebacks ask it for the source
    module = importlib.util.module_from_spec(ModuleSpec(name, loader, origin=absolute))
    module.__file__ = absolute
    sys.modules[name] = module  # dataclasses look their module up while the class is being made
    try:
        exec(compile(source, absolute, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        line = _line_of(error, absolute)
        # str() of a neighbour's SyntaxError has the neighbour's file and line; of our own only the line is wanted
        text = error.msg if isinstance(error, SyntaxError) and error.filename == absolute else str(error)
        text = " ".join(text.split())
        where = path if line is None else f"{path}:{line}"
        raise PolicyError(where, f"{type(error).__name__}: {text}" if text else type(error).__name__) from error
    return module


def _line_of(error: BaseException, file: str) -> int | None:
    """The line of `file` where `error` arose, or from which it was called for; None if it never came so far."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return lines[-1] if lines else None


def _hook(path: str, module: ModuleType, name: str) -> Callable[..., Any] | None:
    hook: Callable[..., Any] | None = getattr(module, name, None)
    if hook is None:
        return None
    arguments = HOOKS[name]
    wanted = f"expected a function of {len(arguments)} ({', '.join(arguments)}), plain or async"
    if not callable(hook):
        raise PolicyError(path, f"{name} is {type(hook).__name__}, {wanted}")
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        raise PolicyError(path, f"{name} is a generator (it holds a yield), {wanted}")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # compiled, and says nothing about itself
        return hook
    try:
        signature.bind(*arguments)
    except TypeError:
        raise PolicyError(path, f"{name} takes {signature}, {wanted}") from None
    return hook


def _identity(path: str, module: ModuleType) -> str | None:
    identity = getattr(module, "IDENTITY", None)
    if identity is not None and (not isinstance(identity, str) or not identity):
        raise PolicyError(path, f'IDENTITY is {identity!r}, expected the name of an attribute, such as "user"')
    return identity


def _request_methods(path: str, module: ModuleType) -> frozenset[str] | None:
    methods = getattr(module, "ON_REQUEST_METHODS", None)
    if methods is None:
        return None
    wanted = 'expected a set of method names, such as {"INVITE", "REGISTER"}'
    if not isinstance(methods, (set, frozenset, list, tuple)):
        raise PolicyError(path, f"ON_REQUEST_METHODS is {type(methods).__name__}, {wanted}")
    for method in methods:
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise PolicyError(path, f"ON_REQUEST_METHODS holds {method!r}, {wanted}")
    return frozenset(methods)


def _doubts(module: ModuleType) -> list[str]:
    """What looks like a hook or a setting but is none, for a policy that is never asked fails open in silence."""
    doubts = []
    for name, value in vars(module).items():
        if name in HOOKS or name in SETTINGS or name.startswith("__"):
            continue
        if str(getattr(value, "__module__", "")).partition(".")[0] == "fastws":
            continue  # Handshake, Request and the like, imported for annotations
        if callable(value):
            near = difflib.get_close_matches(name.lower(), HOOKS, 1, 0.8)
            if near or name.startswith("on_"):
                doubts.append(f"{name} is never called; the hooks are {', '.join(HOOKS)}")
        elif isinstance(value, (str, set, frozenset, list, tuple)):
            wanted = "IDENTITY" if isinstance(value, str) else "ON_REQUEST_METHODS"
            if difflib.get_close_matches(name, [wanted], 1, 0.8) or name.upper() == wanted:
                doubts.append(f"{name} is never read; did you mean {wanted}?")
    methods = getattr(module, "ON_REQUEST_METHODS", None)
    if methods is not None:
        if getattr(module, "on_request", None) is None:
            doubts.append("ON_REQUEST_METHODS without on_request does nothing")
        for method in sorted(methods):
            if method != method.upper():
                doubts.append(f"ON_REQUEST_METHODS holds {method}: methods differ in case (RFC 3261 7.1)")
    return doubts

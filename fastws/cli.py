"""The command `fastws`: reads its arguments and calls who does the work.

A mistake of the user, whatever it is, ends as one line on stderr and exit status 2. What a command needs is imported
when it is asked for, so that `fastws --version` does not load an event loop. No rule about settings here: they are in
config.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fastws import __version__
from fastws.errors import FastwsError
from fastws.log import one_line

__all__ = ["main"]

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130  # what a shell reports for a program that SIGINT ended

SHORT_HELP = """\
fastws, the SIP edge for browsers: SIP over WebSocket (RFC 7118) to the SIP server you have

  fastws demo                                      watch it work in this terminal
  fastws serve                                     browsers register with fastws itself: ws://127.0.0.1:8080
  fastws serve --upstream sip:pbx.example.com      browsers reach your SIP server

fastws serve --help lists the options, fastws check tries them without serving."""


class UsageError(FastwsError):
    """Arguments that no command takes."""


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"fastws {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 2 for a mistake of the user, or what the command says."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except FastwsError as error:
        print(f"fastws: {one_line(str(error))}", file=sys.stderr)
        return USAGE_STATUS
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader of stdout has left (fastws check | head). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # stdout cannot take it, such as on a full disk
        print(f"fastws: {one_line(error.strerror or str(error))}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: list[str]) -> int:
    if not argv:
        print(SHORT_HELP, flush=True)
        return 0
    try:
        arguments, unknown = _parser(argv).parse_known_args(argv)
    except SystemExit:  # --help or --version, which are printed by now
        sys.stdout.flush()
        return 0
    if unknown:
        raise UsageError(_unknown(unknown[0], arguments.command))
    status: int = arguments.call(arguments)
    sys.stdout.flush()
    return status


def _parser(argv: list[str]) -> _Parser:
    parser = _Parser(prog="fastws", allow_abbrev=False, description=SHORT_HELP.splitlines()[0])
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name, call, help in (
        ("serve", _serve, "run the proxy"),
        ("check", _check, "load configuration and policy, print what would run, exit 0 or 2"),
        ("demo", _demo, "the proxy, two clients and an impostor in one terminal, with what each saw"),
    ):
        command = commands.add_parser(
            name,
            allow_abbrev=False,
            help=help,
            description=help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call)
        if name in argv and name != "demo":  # the table of settings is loaded for those who use it
            from fastws.config import add_flags, key_help

            add_flags(command)
            command.epilog = key_help()
    return parser


def _unknown(argument: str, command: str) -> str:
    """One line for an argument that is no option, with the option that was probably meant."""
    import difflib

    name = argument.partition("=")[0]
    options = ["--help"]
    if command != "demo":
        from fastws.config import settings

        options += ["--config", *(setting.flag for setting in settings().values() if setting.flag)]
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: expected a known option, got an unknown one{hint}"


def _serve(arguments: argparse.Namespace) -> int:
    from fastws import log
    from fastws.config import guard_open, load_config

    config = load_config(arguments)
    log.setup(config.log_format, config.log_level)
    from fastws.policy import Policy

    policy = Policy.load(config.policy, timeout=config.policy_timeout)
    guard_open(config, policy)
    from fastws.worker import run

    return run(config, policy)


def _check(arguments: argparse.Namespace) -> int:
    from fastws import log
    from fastws.config import describe, guard_open, load_config

    config = load_config(arguments)
    log.setup(config.log_format, config.log_level)
    if config.policy is None:
        guard_open(config, None)
        hooks = "none: everyone who speaks sip is accepted"
    else:
        from fastws.policy import Policy

        policy = Policy.load(config.policy, timeout=config.policy_timeout)
        guard_open(config, policy)
        hooks = policy.describe()
    for subject, text in [*describe(config), ("policy", hooks)]:
        print(f"{subject:<9} {one_line(text)}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from fastws.demo import main as demo

    status: int | None = demo()
    return status or 0

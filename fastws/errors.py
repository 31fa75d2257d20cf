"""What can go wrong by the hand of the person who runs fastws. Each is one line for people, and ends the program with
status 2; what a peer sends never raises any of these."""

from __future__ import annotations

__all__ = ["ConfigError", "FastwsError", "PolicyError"]


class FastwsError(Exception):
    """Base of all errors that fastws raises to its user. str() is one line."""


class ConfigError(FastwsError):
    """A flag, a key of the TOML file, a file or an address cannot be used.

    `where` is the flag (``--listen``), the file or ``file: key``; `problem` says what was found and what was expected.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class PolicyError(ConfigError):
    """The policy module cannot be imported, or a function of it has the wrong shape."""

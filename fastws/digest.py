# RFC 7616 (HTTP), RFC 3261 22.4 and RFC 8760 (SIP): digest access authentication, the server's side of it.
# Shared by the handshake and the embedded registrar. Knows no socket and no message: header values go in and come out,
# the clock is passed in, and nothing is stored between a challenge and its answer.
from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

__all__ = ["Digest", "DigestResult", "realm_of"]

NONCE_LIFETIME_S = 300.0
CLOCK_SKEW_S = 60.0  # machines that share a secret: a nonce may come from this far ahead of our clock
_MAX_FIELDS = 32  # RFC 7616 3.4 knows thirteen; the rest is somebody's extension
_MAC_DIGITS = 32  # hex digits of the nonce's HMAC: 128 bits

# Without a secret of its own a Digest signs with this one: good within one process and those forked from it.
_PROCESS_SECRET = secrets.token_bytes(32)


def _hash_md5(data: bytes) -> str:
    # RFC 7616 keeps MD5 for clients that know nothing else; the flag lets it work where OpenSSL runs in FIPS mode.
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _hash_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_HASHES: dict[str, Callable[[bytes], str]] = {"SHA-256": _hash_sha256, "MD5": _hash_md5}

#   credentials = "Digest" LWS auth-param *( COMMA auth-param )         RFC 7616 3.4, RFC 3261 25.1
# Read more kindly than written there: blanks around "=" and empty list elements pass, and any value may be quoted or
# not, for clients disagree about algorithm, qop and nc. Possessive, so that no input makes the matcher step back.
_FIELD = re.compile(r'[\s,]*+([^\s=,"]++)\s*+=\s*+("(?:[^"\\]|\\.)*+"|[^\s,"]*+)', re.DOTALL)
_REST = re.compile(r"[\s,]*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NC = re.compile(r"[0-9A-Fa-f]{1,8}")
_NONCE = re.compile(rf"([0-9a-f]{{8}})([0-9a-f]{{{_MAC_DIGITS}}})")


@dataclass(frozen=True, slots=True)
class DigestResult:
    """What an Authorization header proved.

    `user` is the name whose password the client knows, or None. `stale` is True only without a user: the password was
    right but the nonce is too old or was signed with another key, so the client should be challenged again with
    ``stale=True`` and need not ask a person for the password (RFC 7616 3.3).
    """

    user: str | None = None
    stale: bool = False


_NOBODY = DigestResult()


def _fields(authorization: str) -> dict[str, str] | None:
    """The auth-params by lower-case name; None if this is no Digest, is malformed, or names a parameter twice."""
    scheme, _, rest = authorization.strip().partition(" ")
    if scheme.lower() != "digest":
        return None
    try:
        authorization.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    fields: dict[str, str] = {}
    position = 0
    while (match := _FIELD.match(rest, position)) is not None:
        name, value = match[1].lower(), match[2]
        if name in fields or len(fields) == _MAX_FIELDS:
            return None
        fields[name] = _ESCAPE.sub(r"\1", value[1:-1]) if value.startswith('"') else value
        position = match.end()
        if position < len(rest) and rest[position] not in " \t\r\n,":
            return None
    return fields if _REST.fullmatch(rest, position) else None


def _user_name(fields: dict[str, str]) -> str | None:
    """username, or username* for a name that needs more than a quoted-string can hold (RFC 7616 3.4, RFC 8187)."""
    plain, extended = fields.get("username"), fields.get("username*")
    if extended is None:
        name = plain
    elif plain is not None:
        return None
    else:
        charset, _, rest = extended.partition("'")
        if charset.lower() != "utf-8":
            return None
        name = unquote_to_bytes(rest.partition("'")[2]).decode("utf-8", "surrogateescape")
    try:
        return name if name and name.encode("utf-8") else None
    except UnicodeEncodeError:  # bytes that are no UTF-8: no name that a policy could look up
        return None


def realm_of(authorization: str) -> str | None:
    """The realm that an Authorization header claims; None if it has none or is malformed. Proves nothing by itself."""
    fields = _fields(authorization)
    return fields.get("realm") if fields else None


class Digest:
    """Challenges with, and verifies answers to, HTTP and SIP digest of one realm. RFC 7616, RFC 3261 22.4, RFC 8760.

    `realm` is text without control characters (ValueError). `secret` signs the nonces: give the same bytes to every
    process that may see the answer to another's challenge; None takes one that is random for this process.
    `nonce_lifetime` is in seconds. `algorithms` are offered in that order, best first as RFC 8760 2.4 has it.

    A nonce is a time and an HMAC over time and realm, so nothing is stored for a client that has not answered. For
    the same reason the nonce count is not remembered: whoever overhears an answer can repeat it, for the same method
    and URI, until the nonce expires. On a wss connection nobody can.
    """

    __slots__ = ("_algorithms", "_lifetime", "_secret", "realm")

    def __init__(
        self,
        realm: str,
        *,
        secret: bytes | None = None,
        nonce_lifetime: float = NONCE_LIFETIME_S,
        algorithms: Sequence[str] = ("SHA-256", "MD5"),
    ) -> None:
        if not isinstance(realm, str):
            raise TypeError("realm must be a str")
        if any(character < " " or character == "\x7f" for character in realm):
            raise ValueError("realm holds a control character")
        realm.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        if not algorithms or any(algorithm not in _HASHES for algorithm in algorithms):
            raise ValueError(f"algorithms must be some of {', '.join(_HASHES)}")
        self.realm = realm
        self._secret = _PROCESS_SECRET if secret is None else secret
        self._lifetime = nonce_lifetime
        self._algorithms = tuple(algorithms)

    def challenge(self, now: float, *, stale: bool = False) -> list[str]:
        """The values of the WWW-Authenticate (or Proxy-Authenticate) lines, one for each algorithm, in order.

        `now` is Unix time in seconds. `stale` tells the client that its password was right and only the nonce was not.
        """
        realm = self.realm.replace("\\", "\\\\").replace('"', '\\"')
        nonce = self._nonce(f"{int(now) & 0xFFFFFFFF:08x}")
        end = ", stale=true" if stale else ""
        return [
            f'Digest realm="{realm}", qop="auth", algorithm={algorithm}, nonce="{nonce}"{end}'
            for algorithm in self._algorithms
        ]

    def verify(
        self,
        authorization: str,
        method: str,
        password_of: Callable[[str], str | None],
        now: float,
        uri: str | None = None,
    ) -> DigestResult:
        """Check the value of an Authorization (or Proxy-Authorization) header.

        `method` is that of the request. `password_of` gives a user's password, None for an unknown user. `uri` is the
        request's target, which the header's uri must then equal; None takes any. `now` is Unix time in seconds.
        Accepts qop=auth, and the form without qop of RFC 2069 that SIP clients still send, with SHA-256 and MD5, each
        also as -sess. Whatever a peer sends gives a result and no exception; what `password_of` raises passes through.
        """
        fields = _fields(authorization)
        if fields is None or fields.get("realm") != self.realm:
            return _NOBODY
        user = _user_name(fields)
        nonce, digest_uri, response = fields.get("nonce"), fields.get("uri"), fields.get("response")
        if user is None or not nonce or not digest_uri or not response or (uri is not None and digest_uri != uri):
            return _NOBODY
        algorithm = fields.get("algorithm", "MD5").upper()
        session = algorithm.endswith("-SESS")
        algorithm = algorithm.removesuffix("-SESS")
        if algorithm not in self._algorithms:
            return _NOBODY
        qop, nc, cnonce = fields.get("qop"), fields.get("nc", ""), fields.get("cnonce", "")
        if qop is not None and (qop.lower() != "auth" or not _NC.fullmatch(nc) or not cnonce):
            return _NOBODY
        if session and not cnonce:
            return _NOBODY

        password: Any = password_of(user)
        known = password is not None
        if not known:
            password = secrets.token_hex(8)  # an unknown user takes as long as a wrong password
        elif not isinstance(password, str):
            raise TypeError(f"password_of must return str or None, got {type(password).__name__}")

        def hashed(text: str) -> str:
            # surrogateescape gives back the very bytes that the client hashed, whatever they were
            return _HASHES[algorithm](text.encode("utf-8", "surrogateescape"))

        a1 = hashed(f"{user}:{self.realm}:{password}")
        if session:
            a1 = hashed(f"{a1}:{nonce}:{cnonce}")
        a2 = hashed(f"{method}:{digest_uri}")
        middle = nonce if qop is None else f"{nonce}:{nc}:{cnonce}:{qop}"
        expected = hashed(f"{a1}:{middle}:{a2}")
        given = response.lower().encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(expected.encode(), given) or not known:
            return _NOBODY
        return DigestResult(user=user) if self._fresh(nonce, now) else DigestResult(stale=True)

    def _nonce(self, time_hex: str) -> str:
        mac = hmac.digest(self._secret, f"{time_hex}:{self.realm}".encode(), "sha256").hex()
        return time_hex + mac[:_MAC_DIGITS]

    def _fresh(self, nonce: str, now: float) -> bool:
        match = _NONCE.fullmatch(nonce)
        if match is None or not hmac.compare_digest(self._nonce(match[1]), nonce):
            return False
        age = now - int(match[1], 16)
        return -CLOCK_SKEW_S <= age <= self._lifetime

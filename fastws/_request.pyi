"""What policy sees of a SIP request, and the verdicts that it may give."""

from collections.abc import Iterator, Mapping
from typing import Never, TypeVar, overload

from typing_extensions import disjoint_base

from fastws.wire.message import URI

_T = TypeVar("_T")

PROTECTED: frozenset[str]
"""Header fields that route and delimit a message, in lower case: no policy may write them."""
COMPACT: dict[str, str]
"""Compact header names and their full forms, in lower case. RFC 3261 7.3.3."""
EXPANDED: dict[str, str]
TOKEN: frozenset[str]

def full_name(name: str) -> str:
    """The full form of a header name, in lower case (RFC 3261 7.3.3)."""

@disjoint_base
class Verdict:
    """What ``request.reject`` and ``request.drop`` make; to be returned from ``on_request``."""

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raises TypeError."""

@disjoint_base
class Request:
    """A SIP request of a client, before it goes upstream. Its parts are parsed when they are touched.

    Return None from ``on_request`` to let it through, or :meth:`reject` or :meth:`drop`. It may be kept: then it stands
    on a copy of its own.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raises TypeError: requests come from clients."""

    @property
    def method(self) -> str:
        """The method, as written: ``"INVITE"``."""

    @property
    def uri(self) -> URI:
        """The Request-URI."""

    @property
    def from_uri(self) -> URI:
        """The URI in From: whom the client claims to be. Its ``user`` is unescaped, None where there is none."""

    @property
    def to_uri(self) -> URI:
        """The URI in To: in a REGISTER the address of record."""

    @property
    def contact_uri(self) -> URI | None:
        """The URI of the first Contact; None without one, or for ``*``."""

    @property
    def call_id(self) -> str:
        """The Call-ID."""

    @property
    def cseq(self) -> int:
        """The number in CSeq, 0..2**31-1."""

    @property
    def in_dialog(self) -> bool:
        """True inside a dialog that fastws itself has seen begin over this connection: proven by a sealed token in
        Route, not claimed by a To tag."""

    @property
    def headers(self) -> RequestHeaders:
        """The header fields as they came; a case-insensitive mapping that takes compact names too."""

    @property
    def body(self) -> bytes:
        """The body."""

    def reject(
        self, status: int, reason: str | None = None, headers: Mapping[str, str] | None = None, close: bool = False
    ) -> Verdict:
        """Answer with this SIP status (300..699) instead of sending it on; with ``close`` the connection is closed
        after the answer. ``headers``: a mapping of names to values for the answer. ValueError for a CR, LF or NUL in
        any of them. An ACK has no answer: rejecting one drops it.
        """

    def drop(self) -> Verdict:
        """Let it vanish: no answer, nothing upstream."""

    def add_header(self, name: str, value: str) -> None:
        """Add a header field to what goes upstream, behind those that are there. ValueError for a name that is no
        token, a field that is not the policy's to write (Via, Route, From, ...), or a CR, LF or NUL."""

    def set_header(self, name: str, value: str) -> None:
        """Replace all header fields of this name by one. ValueError as in :meth:`add_header`."""

    def remove_header(self, name: str) -> None:
        """Remove all header fields of this name, in full or compact form, as well as what was added before."""

    def forward(self, uri: str | URI) -> None:
        """Send it to this SIP URI instead of the upstream: an IP address or an upstream's name, with port and
        ``;transport=`` if need be. The Request-URI stays. ValueError where the URI cannot be used."""

@disjoint_base
class RequestHeaders(Mapping[str, str]):
    """The header fields of a request: ``headers["From"]`` finds ``f:`` too. A field that is there more than once comes
    joined with ", " (RFC 3261 7.3.1); :meth:`get_all` has them apart."""

    def __new__(cls, request: Request) -> RequestHeaders: ...
    def get_all(self, name: str) -> list[str]:
        """The values of this name, in order; an empty list without one."""

    def __getitem__(self, name: str, /) -> str: ...
    def __contains__(self, name: object, /) -> bool: ...
    @overload
    def get(self, name: str, default: None = None) -> str | None:
        """The value, or ``default``."""
    @overload
    def get(self, name: str, default: str | _T) -> str | _T: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]:  # type: ignore[override]
        """The names, each once, as they were written first."""

    def values(self) -> list[str]:  # type: ignore[override]
        """The values in the order of :meth:`keys`."""

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """(name, value) in the order of :meth:`keys`."""

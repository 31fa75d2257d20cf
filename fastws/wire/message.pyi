"""SIP values as policy and registrar see them (RFC 3261 7, 19.1, 20.10). Made when asked, never per message."""

from typing import Never, final

@final
class URI:
    """A URI, immutable; made by :func:`parse_uri`.

    ``str(uri)`` is the URI as it was sent; two are equal when those texts are. That is stricter than RFC 3261 19.1.4:
    compare ``user`` and ``host`` where only these matter. Text that is not UTF-8 holds lone surrogates
    (``surrogateescape``), so that no byte is lost.
    """

    @property
    def scheme(self) -> str:
        """In lower case: ``sip``, ``sips``, ``tel``, ..."""

    @property
    def user(self) -> str | None:
        """Escapes decoded, without the password; None where there is no user, as in every scheme but sip and sips."""

    @property
    def host(self) -> str:
        """As written, an IPv6 address with its brackets; of other schemes: all that follows the colon."""

    @property
    def port(self) -> int | None:
        """1..65535, or None where none is written."""

    @property
    def parameters(self) -> dict[str, str | None]:
        """Names in lower case, escapes decoded; None for one without ``=``. The first of two with one name counts.

        Made anew for each call, so changing it changes nothing.
        """

    @property
    def headers(self) -> str:
        """What follows the ``?``, as written; empty where there is none."""

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raises TypeError."""

    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

class NameAddr:
    """One value of From, To, Contact, Route and their like, immutable; made by :func:`parse_name_addrs`."""

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raises TypeError."""

    @property
    def display(self) -> str:
        """The display name, without quotes and backslashes; empty where there is none."""

    @property
    def uri(self) -> bytes:
        """What stands between the brackets, or the URI that has none; for :func:`parse_uri`."""

    @property
    def raw(self) -> bytes:
        """The whole value as written, without the comma that ends it."""

    @property
    def parameters(self) -> dict[str, str | None]:
        """Header parameters: names in lower case, quoted values without their quotes; None for one without ``=``.

        The first of two with one name counts. Made anew for each call.
        """

def parse_uri(data: bytes) -> URI:
    """Read a URI (RFC 3261 19.1.1): sip and sips in full, of other schemes the name and the rest.

    Raises ValueError with a fixed text; what was sent is not quoted in it.
    """

def parse_name_addrs(value: bytes) -> list[NameAddr]:
    """Read a comma-separated list of name-addr or addr-spec (RFC 3261 20.10): at least one.

    The URIs themselves are not read: give each ``uri`` to :func:`parse_uri`. Raises ValueError with a fixed text, also
    for ``*``.
    """

def parse_headers(message: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """Read one SIP message: its start line, its headers in order (name and value as written, folds kept), its body.

    The body ends where Content-Length says. Raises ValueError with the reason, a fixed text, for a message that would
    be refused or dropped: see message_scan in message.pxd.
    """

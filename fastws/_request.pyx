# Request: a SIP request as policy sees it, read only where it is touched. While the policy function runs it looks straight
# into the core's buffer; whoever keeps it longer, an async policy for one, has it on a copy of its own.
# Loads no policy and calls none.

from collections.abc import Mapping

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport free, malloc

from fastws.wire.message cimport (
    HEADER_CALL_ID,
    HEADER_CONTACT,
    HEADER_FROM,
    HEADER_OTHER,
    HEADER_TO,
    Message,
    NameAddr,
    header_identify,
    message_free,
    message_init,
    message_scan,
    name_addr_parse,
)
from fastws.wire.span cimport Span, span_equal_span_nocase, span_make

from fastws.wire.message import parse_uri

# Fields that route and delimit a message, or that a dialog is made of: they are fastws's to write, or nobody's.
PROTECTED = frozenset({
    "via", "max-forwards", "content-length", "call-id", "cseq", "route", "record-route", "path", "from", "to",
})

COMPACT = {
    "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length", "c": "content-type",
    "k": "supported", "e": "content-encoding", "s": "subject", "o": "event", "r": "refer-to", "b": "referred-by",
    "u": "allow-events", "x": "session-expires", "y": "identity", "n": "identity-info", "a": "accept-contact",
    "j": "reject-contact", "d": "request-disposition",
}
EXPANDED = {full: short for short, full in COMPACT.items()}

TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.!%*_+`'~")


def full_name(str name):
    """The full form of a header name, in lower case (RFC 3261 7.3.3)."""
    lowered = name.lower()
    return COMPACT.get(lowered, lowered)


cdef bytes header_line(object name, object value):
    # RFC 3261 7.3.1: what a policy hands over must not end a line, and so begin another.
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError("a header's name and value are str")
    if not name or not TOKEN.issuperset(name):
        raise ValueError("a header's name is a token (RFC 3261 25.1)")
    return name.encode("ascii") + b": " + plain_text(value, "a header's value")


cdef bytes plain_text(object text, str what):
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str")
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError(f"{what} may not hold CR, LF or NUL")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not text that UTF-8 can carry") from None


cdef str text_of(Span span):
    # Bytes that are no UTF-8 survive as surrogates; a fold becomes one blank (RFC 3261 7.3.1).
    cdef bytes raw = span.start[:span.length]
    if b"\n" in raw:
        parts = [part.strip(b" \t") for part in raw.split(b"\r\n")]
        raw = b" ".join(part for part in parts if part)
    return raw.decode("utf-8", "surrogateescape")


cdef class Verdict:
    """What ``request.reject`` and ``request.drop`` make; to be returned from ``on_request``."""

    def __init__(self):
        raise TypeError("a verdict comes from request.reject() or request.drop()")

    def __repr__(self):
        return f"<reject {self.status}>" if self.action == VERDICT_REJECT else "<drop>"


cdef Request request_make(Message* message, bint in_dialog):
    cdef Request request = Request.__new__(Request)
    request.message = message
    request.in_dialog = in_dialog
    return request


cdef class Request:
    """A SIP request of a client, before it goes upstream. Its parts are parsed when they are touched.

    Return None from ``on_request`` to let it through, or :meth:`reject` or :meth:`drop`.
    """

    def __init__(self):
        raise TypeError("requests come from clients")

    def __dealloc__(self):
        if self.owned:
            message_free(self.message)
            free(self.message)

    cdef int detach(self) except -1:
        if self.data is None:
            self.data = self.message.data[:self.message.length]
            self.message = NULL
        return 0

    cdef Message* read(self) except NULL:
        if self.message == NULL:
            self.message = <Message*>malloc(sizeof(Message))
            if self.message == NULL or message_init(self.message, 24) != 0:
                free(self.message)
                self.message = NULL
                raise MemoryError
            self.owned = True
            message_scan(self.message, PyBytes_AS_STRING(self.data), <size_t>PyBytes_GET_SIZE(self.data))
        return self.message

    @property
    def method(self):
        """The method, as written: ``"INVITE"``."""
        cdef Message* message = self.read()
        return text_of(message.method)

    @property
    def uri(self):
        """The Request-URI."""
        cdef Message* message = self.read()
        return parse_uri(message.uri.start[:message.uri.length])

    cdef object address(self, int header):
        cdef Message* message = self.read()
        cdef NameAddr parsed
        cdef int32_t at = message.first[header]
        if at < 0:
            return None
        if name_addr_parse(message.headers[at].value, &parsed) != 0:
            return None
        return parse_uri(parsed.uri.start[:parsed.uri.length])

    @property
    def from_uri(self):
        """The URI in From: whom the client claims to be. Its ``user`` is unescaped, None where there is none."""
        return self.address(HEADER_FROM)

    @property
    def to_uri(self):
        """The URI in To: in a REGISTER the address of record."""
        return self.address(HEADER_TO)

    @property
    def contact_uri(self):
        """The URI of the first Contact; None without one, or for ``*``."""
        return self.address(HEADER_CONTACT)

    @property
    def call_id(self):
        """The Call-ID."""
        cdef Message* message = self.read()
        return text_of(message.headers[message.first[<int>HEADER_CALL_ID]].value)

    @property
    def cseq(self):
        """The number in CSeq, 0..2**31-1."""
        cdef Message* message = self.read()
        return message.cseq

    @property
    def headers(self):
        """The header fields as they came; a case-insensitive mapping that takes compact names too."""
        return RequestHeaders.__new__(RequestHeaders, self)

    @property
    def body(self):
        """The body, in bytes."""
        cdef Message* message = self.read()
        return <bytes>message.body.start[:message.body.length]

    def reject(self, status, reason=None, headers=None, close=False):
        """Answer with this SIP status (300..699) instead of sending it on; with ``close`` the connection is closed after
        the answer. ``headers``: a mapping of names to values for the answer. ValueError for a CR, LF or NUL in any
        of them. An ACK has no answer: rejecting one drops it.
        """
        cdef Verdict verdict
        if not isinstance(status, int):
            raise TypeError("status must be an int")
        if not 300 <= status <= 699:
            raise ValueError("a rejection has a status from 300 to 699")
        verdict = Verdict.__new__(Verdict)
        verdict.action = VERDICT_REJECT
        verdict.status = status
        verdict.reason = None if reason is None else plain_text(reason, "a reason")
        verdict.close = bool(close)
        verdict.headers = b""
        if headers:
            lines = []
            for name, value in headers.items():
                line = header_line(name, value)
                if full_name(name) in PROTECTED:
                    raise ValueError(f"{name} of an answer is not the policy's to set")
                lines.append(line + b"\r\n")
            verdict.headers = b"".join(lines)
        return verdict

    def drop(self):
        """Let it vanish: no answer, nothing upstream."""
        cdef Verdict verdict = Verdict.__new__(Verdict)
        verdict.action = VERDICT_DROP
        return verdict

    cdef str changeable(self, object name):
        if not isinstance(name, str):
            raise TypeError("a header's name is a str")
        full = full_name(name)
        if full in PROTECTED:
            raise ValueError(f"{name} is not the policy's to change")
        return full

    def add_header(self, name, value):
        """Add a header field to what goes upstream, behind those that are there. ValueError for a name that is no token,
        a field that is not the policy's to write (Via, Route, From, ...), or a CR, LF or NUL."""
        line = header_line(name, value)
        self.changeable(name)
        if self.added is None:
            self.added = []
        self.added.append(line)

    def set_header(self, name, value):
        """Replace all header fields of this name by one."""
        line = header_line(name, value)
        self.remove_header(name)
        self.added = [*(self.added or ()), line]

    def remove_header(self, name):
        """Remove all header fields of this name, in full or compact form, as well as what was added before."""
        if isinstance(name, str) and (not name or not TOKEN.issuperset(name)):
            raise ValueError("a header's name is a token (RFC 3261 25.1)")
        full = self.changeable(name)
        if self.removed is None:
            self.removed = []
        self.removed.append(full.encode("ascii"))
        if full in EXPANDED:
            self.removed.append(EXPANDED[full].encode("ascii"))
        if self.added:
            self.added = [line for line in self.added
                          if full_name(line.split(b":", 1)[0].decode("ascii")) != full]

    def forward(self, uri):
        """Send it to this SIP URI instead of the upstream: an IP address or an upstream's name, with port and
        ``;transport=`` if need be. The Request-URI stays. ValueError where the URI cannot be used."""
        raw = plain_text(uri if isinstance(uri, str) else str(uri), "a URI")
        parsed = parse_uri(raw)
        if parsed.scheme != "sip":
            raise ValueError("expected a sip: URI")
        if any(c in raw for c in b" \t<>\""):
            raise ValueError("expected a bare sip: URI")
        self.target = raw

    def __repr__(self):
        return f"<Request {self.method} {self.call_id}>"


cdef class RequestHeaders:
    """The header fields of a request: ``headers["From"]`` finds ``f:`` too. A field that is there more than once comes
    joined with ", " (RFC 3261 7.3.1); :meth:`get_all` has them apart."""

    cdef Request request

    def __cinit__(self, Request request):
        self.request = request

    def get_all(self, name):
        """The values of this name, in order; an empty list without one."""
        cdef Message* message = self.request.read()
        cdef bytes raw
        cdef Span wanted
        cdef uint16_t id
        cdef size_t i
        if not isinstance(name, str):
            raise TypeError("a header's name is a str")
        full = full_name(name)
        raw = full.encode("utf-8", "surrogateescape")
        wanted = span_make(PyBytes_AS_STRING(raw), <size_t>PyBytes_GET_SIZE(raw))
        id = header_identify(wanted)
        found = []
        short = EXPANDED.get(full)
        for i in range(message.count):
            if id != HEADER_OTHER:
                if message.headers[i].id == id:
                    found.append(text_of(message.headers[i].value))
            elif span_equal_span_nocase(message.headers[i].name, wanted):
                found.append(text_of(message.headers[i].value))
            elif short is not None and message.headers[i].name.length == 1 and \
                    chr(message.headers[i].name.start[0]).lower() == short:
                found.append(text_of(message.headers[i].value))
        return found

    def __getitem__(self, name):
        found = self.get_all(name)
        if not found:
            raise KeyError(name)
        return ", ".join(found)

    def __contains__(self, name):
        return isinstance(name, str) and bool(self.get_all(name))

    def get(self, name, default=None):
        """The value, or ``default``."""
        found = self.get_all(name)
        return ", ".join(found) if found else default

    def __iter__(self):
        cdef Message* message = self.request.read()
        cdef size_t i
        names = {}
        for i in range(message.count):
            name = text_of(message.headers[i].name)
            names.setdefault(full_name(name), name)
        return iter(list(names.values()))

    def __len__(self):
        return len(list(iter(self)))

    def keys(self):
        """The names, each once, as they were written first."""
        return list(self)

    def values(self):
        """The values in the order of :meth:`keys`."""
        return [self[name] for name in self]

    def items(self):
        """(name, value) in the order of :meth:`keys`."""
        return [(name, self[name]) for name in self]

    def __repr__(self):
        return f"<headers {self.items()!r}>"


Mapping.register(RequestHeaders)

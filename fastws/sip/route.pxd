# RFC 3261 16.3-16.7, RFC 3327, RFC 5626 5: what a proxy checks, where a message goes, and the edits on the way.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastws.transport.address cimport Address
from fastws.wire.message cimport Message, NameAddr, Uri, Via
from fastws.wire.rewrite cimport Buffer, Rewrite
from fastws.wire.span cimport Span
from fastws.wire.token cimport Token

cdef enum:
    POPPED_MAX = 16              # Routes of ours on one message: more is a loop

# A name that means this fastws.
cdef struct Name:
    Span host
    uint32_t port                # 0: any

cdef struct Node:
    uint8_t key[16]
    uint8_t worker
    uint32_t epoch
    Span advertised              # "host:port" in Via, Path and Record-Route
    Name* names                  # owned by the core
    size_t name_count

# What was read of a request while it was checked.
cdef struct Facts:
    Uri uri                      # Request-URI
    NameAddr sender              # From
    Uri sender_uri
    Span sender_tag
    NameAddr target              # To
    Uri target_uri
    Span target_tag
    Via via                      # the topmost
    int reject                   # SIP status to answer with, or 0
    const char* reason           # static text for it, or NULL
    Span unsupported             # for 420: what Proxy-Require asked for
    # Routes:
    const char* cut_at[16]       # Routes of ours, popped from the top
    size_t cut_length[16]
    size_t cut_count
    bint has_token               # the first Route of ours carried a sealed token
    Token token
    bint has_next                # a Route is left
    Uri next_route
    bint next_is_own             # and is a token of another flow of this fastws
    uint8_t next_kind

# Where a request goes and what is added to it.
cdef struct Forward:
    const char* via_transport    # "UDP"
    const char* out_parameter    # ";transport=udp": of the side it goes to, in Record-Route and Path
    const char* in_parameter     # of the side that it came from; NULL where that is the same
    Token branch
    bint record_route
    Token dialog
    bint path
    bint outbound                # Path with ;ob
    Token flow
    bint strip_asserted          # P-Asserted-Identity goes (RFC 3325 5)
    const Address* received_from # fill in received and rport of the topmost Via (RFC 3581); NULL: leave it

# Check a scanned request (RFC 3261 16.3): facts.reject is 0, 400, 416, 420, 483. `secured`: over TLS, for sips.
cdef void request_check(const Message* message, bint secured, Facts* facts) noexcept nogil
# Pop our own topmost Routes (16.4). From a client only those of its own connection are ours to pop; `host` is the Host of
# its handshake. facts.reject: 400 for a broken Route, 403 for a token that is not ours.
cdef void routes_read(const Node* node, const Message* message, bint from_client, uint32_t slot, uint32_t generation,
                      Span host, Facts* facts) noexcept nogil
cdef bint uri_is_own(const Node* node, const Uri* uri, Span host) noexcept nogil
# IDENTITY: True if the URI is that user: "alice" compares the user part (unescaped, byte for byte), "alice@example.com" the
# host too (without case), with ":port" the port too.
cdef bint identity_match(const Uri* uri, const char* identity, size_t length) noexcept nogil
cdef bint is_anonymous(const Uri* uri) noexcept nogil
# True if this method may form a dialog, so that we stay on its path.
cdef bint forms_dialog(const Message* message, const Facts* facts) noexcept nogil
# True if a Contact of this REGISTER has reg-id and came over one hop: outbound applies (RFC 5626 5.1).
cdef bint asks_outbound(const Message* message, const Facts* facts) noexcept nogil
# Make the edits of 16.6 on rewrite, which has been begun with the message.
cdef void forward_edits(const Node* node, const Message* message, const Facts* facts, const Forward* forward,
                        Rewrite* rewrite) noexcept nogil
# Pop the topmost Via, which has been parsed, from a response; adds a missing Content-Length.
cdef void response_edits(const Message* message, const Via* via, Rewrite* rewrite) noexcept nogil
cdef void length_edit(const Message* message, Rewrite* rewrite) noexcept nogil
cdef void asserted_edits(const Message* message, Rewrite* rewrite) noexcept nogil
# Write an answer to a request: status line, its Vias, From, To (with `tag` where it has none), Call-ID, CSeq, `extra`
# (whole lines), Content-Length: 0. Works with what a broken request has. `received_from` as in Forward.
# `own`: the request is one that we sent, so the topmost Via is ours and left out.
cdef void answer_write(const Message* message, int status, Span reason, Span tag, Span extra,
                       const Address* received_from, bint own, Buffer* out) noexcept nogil
# Write the CANCEL (9.1) or the ACK to a final response (17.1.1.3) that belongs to an INVITE that we sent: its Request-URI,
# topmost Via, Routes, From, Call-ID, CSeq number; To from `to_line`, whole with its CR LF.
cdef void derived_write(const Message* invite, const char* method, Span to_line, Buffer* out) noexcept nogil
# True if Privacy asks that the identity be kept from the far end (RFC 3323 4.2, RFC 3325 9.3).
cdef bint asks_privacy(const Message* message) noexcept nogil
cdef const char* reason_phrase(int status) noexcept nogil

# The heart: see _core.pyx.

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastws._connection cimport ConnectionTable, Slot
from fastws._request cimport Request, Verdict
from fastws.sip.route cimport Facts, Forward, Name, Node
from fastws.sip.transaction cimport TransactionTable
from fastws.transport.address cimport Address
from fastws.transport.base cimport Receiver, Transport
from fastws.wire.message cimport Message, Uri, Via
from fastws.wire.rewrite cimport Buffer, Rewrite
from fastws.wire.span cimport Span
from fastws.wire.token cimport Token

cdef enum:
    PEER_NONE = 0
    PEERS_MAX = 4096             # addresses of the SIP side that are remembered; the longest unused goes first
    HOST_LENGTH_MAX = 255        # characters of a host name (RFC 1035 2.3.4); a longer one names nothing

# One address of the SIP side, to which answers and requests of a dialog go back. What leaves the process is its index and
# its generation, sealed.
cdef struct Peer:
    uint16_t generation          # 1..65535
    uint8_t kind                 # TransportKind, 0: free
    bint configured              # an upstream
    Address address              # where to send to, for UDP
    uint64_t used                # when it was last used, in a count of uses
    PyObject* transport          # owned reference

cdef struct Network:
    Address address
    int bits                     # of the prefix

cdef struct Counters:
    uint64_t accepted
    uint64_t closed[8]           # by TerminatorId
    uint64_t client_requests
    uint64_t client_responses
    uint64_t upstream_requests
    uint64_t upstream_responses
    uint64_t answered            # requests that fastws answered itself
    uint64_t dropped             # messages that could neither be sent on nor answered
    uint64_t late                # responses for a connection that is gone
    uint64_t untrusted           # SIP from an address that is neither an upstream nor trusted
    uint64_t repeated            # requests that the SIP side repeated
    uint64_t resent              # requests that we repeated towards UDP
    uint64_t identity            # IDENTITY did not match

cdef class Edge(Receiver):
    cdef ConnectionTable table
    cdef Node node
    cdef Counters counters
    cdef Message message
    cdef Message spare                   # for what is made of a kept request, while message is in use
    cdef Buffer spare_text
    cdef bint turning                    # the wheel's timer runs
    cdef Rewrite rewrite
    cdef Buffer text
    cdef TransactionTable transactions
    cdef uint32_t transactions_limit     # of one connection
    cdef uint32_t serial
    cdef Peer* peers                     # owned: PEERS_MAX
    cdef uint32_t peer_count             # entries that were ever used
    cdef uint64_t peer_uses
    cdef uint32_t upstream               # peer
    cdef Address* hosts_upstream         # owned
    cdef size_t hosts_upstream_count
    cdef Network* trusted                # owned
    cdef size_t trusted_count
    cdef Transport udp                   # the SIP side's socket, or None
    cdef list kept                       # the bytes that spans in node and names point into
    cdef Name* names                     # owned
    cdef bytes upstream_name             # host of the upstream as configured
    cdef uint32_t upstream_port
    cdef object loop
    cdef object policy
    cdef object on_request
    cdef object on_close
    cdef frozenset methods
    cdef bint identity
    cdef bint privacy
    cdef object report
    cdef object flow_ended
    cdef list handshake_hosts            # bytes
    cdef list handshake_host_uses        # how many connections have that Host
    cdef list handshake_hosts_free       # numbers
    cdef dict handshake_host_index
    cdef uint64_t ping_interval_ms
    cdef uint64_t ping_timeout_ms
    cdef uint64_t message_timeout_ms

    cdef bint from_client(self, Transport transport, const char* data, size_t length) except -1
    cdef bint client_request(self, Transport transport, Request request, Verdict verdict) except -1
    cdef bint carry_out(self, Transport transport, Verdict verdict) except -1
    cdef int policy_edits(self, Request request) except -1
    cdef int host_release(self, uint32_t number) except -1
    cdef uint32_t host_number(self, str host) except? 0xFFFFFFFF
    cdef uint32_t peer_of_target(self, bytes target) noexcept
    cdef int response(self, Transport transport, const Token* token, const Via* top, const Address* source) except -1
    cdef int pass_on(self, const Token* token, const Via* top, uint32_t server) except -1
    cdef uint32_t begin(self, uint8_t kind, bint reliable, bint upward, uint64_t key, uint32_t slot,
                        uint32_t generation) noexcept
    cdef void end(self, uint32_t number) noexcept
    cdef void pair(self, uint32_t client, uint32_t server, uint32_t peer) noexcept
    cdef void branch_make(self, Token* token, uint8_t kind, uint32_t slot, uint32_t generation, uint32_t peer,
                          uint32_t client) noexcept
    cdef void flow_make(self, Forward* forward) noexcept
    cdef bint sent(self, uint32_t client, const char* data, size_t length, uint64_t now) noexcept
    cdef void started(self, uint32_t number, uint64_t now) noexcept
    cdef uint32_t client_of(self, const Token* token) noexcept
    cdef bint is_open(self, const Token* token) noexcept
    cdef uint64_t cancel_key(self, uint32_t client, uint32_t serial) noexcept
    cdef bint acknowledged(self, uint32_t server) noexcept
    cdef int cancelled(self, Transport transport, const Address* to, const Address* received_from,
                       uint32_t server) except -1
    cdef int cancel(self, uint32_t client) except -1
    cdef int acknowledge(self, uint32_t client) except -1
    cdef bint send_kept(self, uint32_t number, uint32_t generation) noexcept
    cdef bint send_bytes(self, bint to_peer, uint32_t slot_number, uint32_t generation, uint32_t peer_number,
                         const char* data, size_t length) noexcept
    cdef void resend(self, uint32_t number) noexcept
    cdef int fail(self, uint32_t client, int status, bytes extra) except -1
    cdef int abandon(self, Slot* slot) except -1
    cdef void orphan(self, uint32_t number, Slot* slot) noexcept
    cdef bint ask(self, Transport transport, Slot* slot, Facts* facts, bint in_dialog) except -1
    cdef int client_forward(self, Transport transport, Slot* slot, Facts* facts, bint in_dialog,
                            Request request) except -1
    cdef int client_response(self, Transport transport, Slot* slot) except -1
    cdef int from_sip_side(self, Transport transport, const char* data, size_t length, const Address* source) except -1
    cdef int upstream_request(self, Transport transport, int scanned, const Address* source) except -1
    cdef int upstream_response(self, Transport transport, const Address* source) except -1
    cdef int identity_check(self, Slot* slot, Facts* facts) noexcept
    cdef Slot* slot_of(self, Transport transport) noexcept
    cdef Span host_of(self, Slot* slot) noexcept
    cdef int answer(self, Transport transport, const Address* to, const Address* received_from, int status,
                    Span reason, bytes extra) except -1
    cdef void tag_make(self, Span branch, Span call_id, char* tag) noexcept
    cdef bint acks_own_answer(self, const Facts* facts) noexcept
    cdef int drop(self, Transport transport, str text, const Address* source) except -1
    cdef bint is_trusted(self, const Address* source) noexcept
    cdef bint uri_is_upstream(self, const Uri* uri) noexcept
    cdef Peer* peer_get(self, uint32_t number) noexcept
    cdef uint32_t peer_for(self, Transport transport, const Address* address) noexcept
    cdef uint32_t peer_enter(self, uint8_t kind, const Address* address, Transport transport, bint configured) noexcept
    cdef uint32_t peer_of_uri(self, const Uri* uri) noexcept
    cdef bytes path_token(self, uint32_t number, uint32_t generation)

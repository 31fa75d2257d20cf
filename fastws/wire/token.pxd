# Every reference that leaves the process: sealed, and never an address.
#
#   token = 48 characters of base64url over 36 bytes:
#     kind 1, worker 1, loop 2, epoch 4, slot 4, generation 4, peer 4, serial 4, transaction 4 (big endian), and 8 of
#     SipHash-2-4 over these
#
# A dialog token is sealed over the Call-ID too, so that it proves one dialog and opens in no other.
# base64url has only characters that may stand in a user part and in a branch (RFC 3261 25.1).

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastws.wire.span cimport Span

cdef enum:
    TOKEN_LENGTH = 48            # characters
    TOKEN_PACKED = 28            # bytes without the MAC
    TOKEN_BYTES = 36

cdef enum TokenKind:
    TOKEN_PATH = 1               # a flow, in Path: honoured from the SIP side only
    TOKEN_DIALOG = 2             # a flow and a Call-ID, in Record-Route
    TOKEN_BRANCH_UP = 3          # our Via on a request of a client
    TOKEN_BRANCH_DOWN = 4        # our Via on a request to a client

cdef struct Token:
    uint8_t kind                 # TokenKind
    uint8_t worker
    uint16_t loop                # of a branch: a hash of what a loop would repeat (RFC 5393 4.2)
    uint32_t epoch               # of the process that sealed it
    uint32_t slot
    uint32_t generation
    uint32_t peer                # the SIP side: index and generation in the table of peers; 0 in a Path
    uint32_t serial              # makes a branch unique; 0 elsewhere
    uint32_t transaction         # of a branch: its number in the transaction table; 0 elsewhere

# Write TOKEN_LENGTH characters to out. `call_id` counts for TOKEN_DIALOG only.
cdef void token_seal(const Token* token, const uint8_t* key, Span call_id, char* out) noexcept nogil
# 0 and *out, or -1: not a token, or not sealed with this key (for this Call-ID). The compare of the MAC takes the same
# time wherever it differs.
cdef int token_open(Span text, const uint8_t* key, Span call_id, Token* out) noexcept nogil

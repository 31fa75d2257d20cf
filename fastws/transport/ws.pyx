# RFC 6455 4-7 and RFC 7118: the WebSocket of one client on a uvloop transport.
#
# Reads go into the buffer that the worker's connections share and are used up before the next read; an idle connection
# owns no buffer. The life of a connection: WS_HEAD -> WS_OPEN -> WS_CLOSING -> WS_GONE, never backwards, and closed() is
# told exactly once, at the step out of WS_OPEN. No policy and no SIP headers in here.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from fastws.transport.address cimport Address
from fastws.transport.base cimport (
    KIND_WS,
    KIND_WSS,
    TERMINATOR_CLIENT,
    TERMINATOR_NETWORK,
    TERMINATOR_OVERLOAD,
    TERMINATOR_PROTOCOL,
    ReadBuffer,
    Receiver,
    Transport,
)
from fastws.wire.frame cimport (
    FRAME_CLOSE,
    FRAME_ERROR,
    FRAME_MESSAGE,
    FRAME_MORE,
    FRAME_PING,
    OPCODE_BINARY,
    OPCODE_CLOSE,
    OPCODE_PING,
    OPCODE_PONG,
    OPCODE_TEXT,
    FrameEvent,
    FrameEventKind,
    frame_free,
    frame_header_length,
    frame_header_write,
    frame_init,
    frame_next,
    frame_partial,
    utf8_valid,
)

cdef enum:
    LINGER_MS = 2000             # for the close frame to arrive before the socket goes
    QUEUE_CHECK = 32768          # bytes written between two looks at the queue


cdef class WsListener:
    """What the connections of one listener share. Calling it makes a protocol for uvloop.

    ``max_message_bytes``: of a SIP message, 1..2**31. ``max_queue_bytes``: what may wait for a client that reads slowly.
    ``head_timeout``: seconds for the whole HTTP head.
    """

    def __init__(self, loop, Receiver receiver not None, ReadBuffer buffer not None, admission, *, bint secure,
                 uint64_t max_message_bytes, size_t max_queue_bytes, double head_timeout, uint32_t control_limit=100):
        self.loop = loop
        self.receiver = receiver
        self.buffer = buffer
        self.admission = admission
        self.secure = secure
        self.max_message_bytes = max_message_bytes
        self.max_queue_bytes = max_queue_bytes
        self.head_timeout_ms = <uint64_t>(head_timeout * 1000)
        self.control_limit = control_limit
        self.waiting = {}
        self.closing = {}

    def __call__(self):
        return WsConnection(self)

    def tick(self):
        """End what has passed its deadline: heads that did not come, closes that were not answered."""
        cdef uint64_t now = self.receiver.clock_ms()
        cdef WsConnection connection
        for connection in due(self.waiting, now):
            if connection.task is None and connection.state == WS_HEAD:
                self.admission.expired(connection)
        for connection in due(self.closing, now):
            connection.transport.abort()

    def counts(self):
        """(connections that exist in any state, heads awaited, closes awaited)."""
        return self.connections, len(self.waiting), len(self.closing)

    def abort_waiting(self):
        """Drop the connections that are still in the handshake."""
        for connection in list(self.waiting):
            (<WsConnection>connection).transport.abort()


cdef list due(dict deadlines, uint64_t now):
    # All deadlines of one dict have the same length, so the first to come are the first to go.
    cdef list found = []
    for connection, deadline in deadlines.items():
        if deadline > now:
            break
        found.append(connection)
    for connection in found:
        del deadlines[connection]
    return found


cdef class WsConnection(Transport):

    def __init__(self, WsListener listener not None):
        self.listener = listener
        self.receiver = listener.receiver
        self.kind = KIND_WSS if listener.secure else KIND_WS
        self.state = WS_HEAD
        frame_init(&self.frames, listener.max_message_bytes)

    def __dealloc__(self):
        frame_free(&self.frames)
        free(self.stash)

    # -- what uvloop calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport):
        cdef WsListener listener = self.listener
        listener.connections += 1
        self.transport = transport
        peer = transport.get_extra_info("peername")
        local = transport.get_extra_info("sockname")
        if not peer or not local:
            # Reset before it was accepted: there is nobody to talk to.
            self.state = WS_GONE
            transport.abort()
            return
        self.source = (peer[0], peer[1])
        self.local = (local[0], local[1])
        if listener.secure:
            self.tls = transport.get_extra_info("peercert") or None
        # uvloop tells a writer to pause at 64 KiB by default; here the queue is looked at instead.
        transport.set_write_buffer_limits(high=listener.max_queue_bytes * 2)
        listener.waiting[self] = self.receiver.clock_ms() + listener.head_timeout_ms

    def get_buffer(self, sizehint):
        return self.listener.buffer.view

    def buffer_updated(self, size_t count):
        cdef char* data = self.listener.buffer.data
        if self.state == WS_OPEN:
            if self.held:
                self.keep(data, count)   # read before the pause took effect
            else:
                self.eat(data, count)
        elif self.state == WS_HEAD:
            self.listener.admission.feed(self, data[:count])

    def eof_received(self):
        if self.state == WS_OPEN and not self.held:
            # RFC 6455 7.1.5: closed without a close frame is 1006.
            self.end(TERMINATOR_NETWORK, 1006, b"", False)
        return False

    def connection_lost(self, error):
        cdef uint8_t state = self.state
        self.listener.waiting.pop(self, None)
        self.listener.closing.pop(self, None)
        self.listener.connections -= 1
        self.state = WS_GONE
        if state == WS_OPEN:
            self.leave(TERMINATOR_OVERLOAD if self.overloaded else TERMINATOR_NETWORK, 1006, b"")
        elif state == WS_HEAD:
            self.listener.admission.lost(self)
        self.reader = self.task = None
        frame_free(&self.frames)
        free(self.stash)
        self.stash = NULL
        self.stash_length = 0

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass

    # -- what the admission calls --------------------------------------------------------------------------------------

    @property
    def gone(self):
        """True when there is nobody left to answer."""
        return self.state != WS_HEAD

    def hold(self):
        """Stop reading while an async policy thinks: what follows waits in the kernel."""
        self.held = True
        self.transport.pause_reading()

    def accept(self, bytes response, dict attributes, str host, bytes rest):
        """Send the 101 and enter the connection in the table; ``rest`` is what came behind the GET. False: the table has
        no room, and nothing was sent."""
        if self.state != WS_HEAD:
            return True
        if not self.receiver.opened(self, self.source, self.local, attributes, host):
            return False
        self.admitted = True
        self.state = WS_OPEN
        self.listener.waiting.pop(self, None)
        self.reader = self.task = None
        self.write(response)
        if rest:
            self.keep(PyBytes_AS_STRING(rest), <size_t>PyBytes_GET_SIZE(rest))
        self.resume()
        return True

    def refuse(self, bytes response):
        """Send an HTTP answer and close."""
        if self.state != WS_HEAD:
            return
        self.write(response)
        self.end(TERMINATOR_PROTOCOL, 0, b"", False)

    def refuse_with_code(self, bytes response, int code, str reason):
        """Complete the 101 and close at once: the only refusal that a page can read (RFC 6455 7.4.2)."""
        if self.state != WS_HEAD:
            return
        self.write(response)
        self.end(TERMINATOR_PROTOCOL, code, reason.encode("utf-8"), True)

    # -- reading -------------------------------------------------------------------------------------------------------

    cdef int eat(self, char* data, size_t length) except -1:
        cdef FrameEvent event
        cdef FrameEventKind kind
        cdef size_t cursor = 0
        while True:
            kind = frame_next(&self.frames, data, length, &cursor, &event)
            if kind == FRAME_MORE:
                break
            if kind == FRAME_MESSAGE:
                self.message(event.payload, event.length)
                if self.state != WS_OPEN:
                    return 0
                if self.held:
                    self.keep(data + cursor, length - cursor)
                    break
            elif kind == FRAME_ERROR:
                self.receiver.note(self, "frame", FRAME_FAULTS.get(event.close_code, "broken frame"), NULL)
                self.end(TERMINATOR_PROTOCOL, <int>event.close_code, b"", True)
                return 0
            elif kind == FRAME_CLOSE:
                # The same code goes back (RFC 6455 5.5.1); where there was none, none.
                reason = event.payload[:event.length]
                self.end(TERMINATOR_CLIENT, <int>event.close_code, reason, True)
                return 0
            else:
                if self.flooded():
                    self.receiver.note(self, "flood", "more control frames than a keep-alive needs", NULL)
                    self.end(TERMINATOR_PROTOCOL, 1008, b"too many control frames", True)
                    return 0
                if kind == FRAME_PING:
                    self.send_control(OPCODE_PONG, event.payload, event.length)
                    if self.state != WS_OPEN:
                        return 0
        self.receiver.heard(self, frame_partial(&self.frames))
        return 0

    cdef int message(self, char* data, size_t length) except -1:
        cdef size_t i
        cdef bytes answer
        if length < 64:
            # RFC 7118 6 and RFC 5626 4.4.1: CR LF CR LF is a ping, answered with one CR LF, as text, for a browser takes
            # anything else for a broken message. Whatever else holds no letter is a keep-alive of somebody's own making.
            for i in range(length):
                if data[i] != c'\r' and data[i] != c'\n' and data[i] != 0:
                    break
            else:
                if length >= 4 and data[0] == c'\r' and data[1] == c'\n' and data[2] == c'\r' and data[3] == c'\n':
                    answer = b"\x81\x02\r\n"
                    self.write(answer)
                    self.check_queue()
                return 0
        if self.receiver.received(self, data, length, NULL) and self.state == WS_OPEN:
            self.hold()
        return 0

    cdef int keep(self, const char* data, size_t length) except -1:
        # Reading is paused, so this is at most what one read and the bytes behind the GET brought.
        cdef char* grown
        if length == 0:
            return 0
        grown = <char*>realloc(self.stash, self.stash_length + length)
        if grown == NULL:
            raise MemoryError
        memcpy(grown + self.stash_length, data, length)
        self.stash = grown
        self.stash_length += length
        return 0

    cdef void resume(self) noexcept:
        cdef char* data = self.stash
        cdef size_t length = self.stash_length
        cdef bint was_held = self.held
        self.held = False
        if self.state != WS_OPEN:
            return
        self.stash = NULL
        self.stash_length = 0
        try:
            if length > 0:
                self.eat(data, length)
            if was_held and not self.held and self.state == WS_OPEN:
                self.transport.resume_reading()
        finally:
            free(data)

    # -- writing -------------------------------------------------------------------------------------------------------

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        if self.state != WS_OPEN or self.overloaded:
            return NULL
        self.out_header = frame_header_length(length)
        try:
            self.out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(self.out_header + length))
        except MemoryError:
            return NULL
        return PyBytes_AS_STRING(self.out) + self.out_header

    cdef void commit(self) noexcept:
        # A message with a byte that is no UTF-8 goes as binary (RFC 7118 4.2).
        cdef char* data = PyBytes_AS_STRING(self.out)
        cdef size_t length = <size_t>PyBytes_GET_SIZE(self.out) - self.out_header
        cdef bytes out = self.out
        self.out = None
        frame_header_write(data, OPCODE_TEXT if utf8_valid(data + self.out_header, length) else OPCODE_BINARY, length)
        self.write(out)
        self.check_queue()

    cdef void write(self, bytes data) noexcept:
        try:
            self.transport.write(data)
        except Exception:
            # uvloop reports a broken transport through connection_lost as well.
            pass
        self.unchecked += <size_t>PyBytes_GET_SIZE(data)

    cdef void check_queue(self) noexcept:
        cdef size_t waiting
        if self.unchecked < QUEUE_CHECK and self.unchecked < self.listener.max_queue_bytes:
            return
        try:
            waiting = self.transport.get_write_buffer_size()
        except Exception:
            waiting = 0
        self.unchecked = 0
        if waiting > self.listener.max_queue_bytes and self.state == WS_OPEN and not self.overloaded:
            # Nothing more goes to it. The core hears of it in the next turn: it is in the middle of a message now.
            self.overloaded = True
            try:
                self.listener.loop.call_soon(self._overloaded)
            except Exception:
                pass

    cdef void send_control(self, uint8_t opcode, const char* payload, size_t length) noexcept:
        cdef char frame[140]
        cdef size_t header = frame_header_write(frame, opcode, length)
        memcpy(frame + header, payload, length)
        self.write(frame[:header + length])
        self.check_queue()

    cdef bint flooded(self) noexcept:
        cdef uint64_t now = self.receiver.clock_ms()
        if now - self.control_ms >= 1000:
            self.control_ms = now
            self.control_frames = 0
        self.control_frames += 1
        return self.control_frames > self.listener.control_limit

    cdef void ping(self) noexcept:
        if self.state == WS_OPEN:
            self.send_control(OPCODE_PING, b"", 0)

    # -- the end -------------------------------------------------------------------------------------------------------

    cdef void finish(self, int code, bytes reason, int terminator) noexcept:
        if self.state == WS_OPEN:
            self.end(terminator, code, reason, True)

    cdef void end(self, int terminator, int code, bytes reason, bint tell) noexcept:
        # `tell`: send a close frame first.
        cdef bint was_open = self.state == WS_OPEN
        cdef char payload[125]
        cdef size_t length = 0
        if self.state >= WS_CLOSING:
            return
        self.state = WS_CLOSING
        if tell:
            if code != 1005:
                payload[0] = <char>(code >> 8)
                payload[1] = <char>(code & 0xFF)
                length = <size_t>PyBytes_GET_SIZE(reason)
                if length > 123:
                    # RFC 6455 5.5: 125 bytes, and the reason is UTF-8 to its end.
                    length = 123
                    while length > 0 and (<uint8_t>PyBytes_AS_STRING(reason)[length] & 0xC0) == 0x80:
                        length -= 1
                memcpy(payload + 2, PyBytes_AS_STRING(reason), length)
                length += 2
            self.send_control(OPCODE_CLOSE, payload, length)
        if was_open:
            self.leave(terminator, code, reason)
        self.linger()

    def _overloaded(self):
        # One that is only slow still gets whole frames, and the reason behind them; one that does not read at all is
        # dropped with its queue when the deadline of closes has come.
        if self.state == WS_OPEN:
            self.end(TERMINATOR_OVERLOAD, 1008, b"reads too slowly", True)

    def leave(self, int terminator, int code, bytes reason):
        """Tell the receiver, once."""
        if self.admitted:
            self.admitted = False
            self.receiver.closed(self, terminator, code, reason)

    cdef void linger(self) noexcept:
        # A close() with unread bytes in the socket would reset it, and the reset would overtake the close frame: so our
        # side is shut, what still comes is thrown away, and the client's end or the deadline closes it.
        # The reader keeps its memory until the connection is lost: policy may be looking at a message in it right now.
        self.listener.waiting.pop(self, None)
        try:
            if self.held:
                self.held = False
                self.transport.resume_reading()
            self.listener.closing[self] = self.receiver.clock_ms() + LINGER_MS
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()
        except Exception:
            self.transport.abort()


FRAME_FAULTS = {
    1002: "frame against RFC 6455 5",
    1007: "text that is not UTF-8",
    1009: "message above max_message_bytes",
    1011: "no memory",
}

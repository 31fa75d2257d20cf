# SIP over TCP towards the SIP side: framing by Content-Length (RFC 3261 18.3), and the one connection to a TCP upstream
# that is dialled again when it ends. Which message goes where is not known here.

import asyncio

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from fastws.transport.address cimport Address, address_parse_host
from fastws.transport.base cimport KIND_TCP, ReadBuffer, Receiver, Transport
from fastws.wire.message cimport message_frame

cdef enum:
    REST_DEADLINE_MS = 10000     # for a message that has begun to come whole
    QUEUE_CHECK = 65536          # bytes written between two looks at the queue
    STEADY_MS = 5000             # a connection that lasted so long may be dialled again without a pause

# RFC 3261 18.4 says no more than "as soon as possible"; these are ours: at once, then doubling.
FIRST_DELAY = 0.1                # seconds
LAST_DELAY = 5.0


cdef class StreamConnection(Transport):
    """One TCP connection of the SIP side, dialled or accepted. ``on_lost(connection)`` is called when it has ended."""

    def __init__(self, Receiver receiver not None, ReadBuffer buffer not None, *, size_t max_message_bytes,
                 size_t max_queue_bytes, on_lost=None, on_made=None):
        self.receiver = receiver
        self.buffer = buffer
        self.kind = KIND_TCP
        self.max_message_bytes = max_message_bytes
        self.max_queue_bytes = max_queue_bytes
        self.on_lost = on_lost
        self.on_made = on_made

    def __dealloc__(self):
        free(self.rest)

    @property
    def remote_pair(self):
        """(address, port) of the other end."""
        return self.transport.get_extra_info("peername")[:2]

    def connection_made(self, transport):
        self.transport = transport
        peer = transport.get_extra_info("peername")
        host = peer[0].encode("ascii") if peer else b""
        if not peer or not address_parse_host(&self.remote, host, len(host)):
            transport.abort()
            return
        self.remote.port = peer[1]
        self.open = True
        self.loop = asyncio.get_running_loop()
        self.turn = []
        transport.set_write_buffer_limits(high=self.max_queue_bytes * 2)
        if self.on_made is not None:
            self.on_made(self)

    def get_buffer(self, sizehint):
        return self.buffer.view

    def buffer_updated(self, size_t count):
        cdef size_t used = 0
        cdef size_t left
        if not self.open:
            return
        if self.rest_length == 0:
            self.eat(self.buffer.data, count, &used)
            if self.open and used < count:
                self.keep(self.buffer.data + used, count - used)
            return
        if not self.keep(self.buffer.data, count):
            return
        self.eat(self.rest, self.rest_length, &used)
        if not self.open:
            return
        left = self.rest_length - used
        if left == 0:
            self.drop_rest()
        elif used > 0:
            memmove(self.rest, self.rest + used, left)
            self.rest_length = left
            self.rest_since_ms = self.receiver.clock_ms()

    cdef bint keep(self, const char* data, size_t length) except -1:
        cdef char* grown
        cdef size_t wanted = self.rest_length + length
        if wanted > self.rest_capacity:
            wanted = wanted * 2
            grown = <char*>realloc(self.rest, wanted)
            if grown == NULL:
                self.abort()
                return False
            self.rest = grown
            self.rest_capacity = wanted
        if self.rest_length == 0:
            self.rest_since_ms = self.receiver.clock_ms()
        memcpy(self.rest + self.rest_length, data, length)
        self.rest_length += length
        return True

    cdef void drop_rest(self) noexcept:
        free(self.rest)
        self.rest = NULL
        self.rest_length = self.rest_capacity = 0
        self.scanned = 0

    cdef int eat(self, char* data, size_t length, size_t* used) except -1:
        cdef size_t at = 0
        cdef int64_t whole
        cdef bint answered = False
        while at < length and self.open:
            # CR LF between messages is a keep-alive (RFC 5626 3.5.1): two are a ping, answered with one. A flood of them
            # gets one answer a read.
            if self.scanned == 0:
                while length - at >= 2 and data[at] == c'\r' and data[at + 1] == c'\n':
                    at += 2
                    self.crlfs += 1
                if self.crlfs >= 2:
                    self.crlfs = 0
                    if not answered:
                        answered = True
                        self.transport.write(b"\r\n")
                if at == length or (length - at == 1 and data[at] == c'\r'):
                    break
            whole = message_frame(data + at, length - at, self.max_message_bytes, &self.scanned)
            if whole == 0:
                break
            self.scanned = 0
            self.crlfs = 0
            if whole < 0:
                self.receiver.note(self, "stream", "no SIP message that fits max_message_bytes: connection closed",
                                   &self.remote)
                self.abort()
                break
            self.receiver.received(self, data + at, <size_t>whole, &self.remote)
            at += <size_t>whole
        used[0] = at
        return 0

    def tick(self):
        """Close the connection when a message that has begun does not come whole in time."""
        if self.open and self.rest_length and self.receiver.clock_ms() - self.rest_since_ms > REST_DEADLINE_MS:
            self.receiver.note(self, "stream", "unfinished message: connection closed", &self.remote)
            self.abort()

    def eof_received(self):
        self._ended()
        if self.turn:
            # Nobody took it over to another connection, and the other end may have closed its half only.
            self.transport.writelines(self.take())
        return False

    def connection_lost(self, error):
        self.drop_rest()
        self._ended()

    def _ended(self):
        self.open = False
        if self.on_lost is not None:
            on_lost, self.on_lost = self.on_lost, None
            on_lost(self)

    def take(self):
        """What this loop turn was to send and has not sent: the other end cannot have seen it."""
        turn, self.turn = self.turn, []
        self.turn_bytes = 0
        return turn

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass

    def close(self):
        """Send what waits, then close."""
        if self.transport is not None:
            self._flush()
            self.transport.close()

    cdef void abort(self) noexcept:
        self.open = False
        try:
            self.transport.abort()
        except Exception:
            pass

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        if not self.open:
            return NULL
        try:
            if self.unchecked >= QUEUE_CHECK:
                # Above the limit it is looked at again for each message, until the other end has read.
                if <size_t>self.transport.get_write_buffer_size() + self.turn_bytes > self.max_queue_bytes:
                    return NULL
                self.unchecked = 0
            self.out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        except Exception:
            return NULL
        return PyBytes_AS_STRING(self.out)

    cdef void commit(self) noexcept:
        cdef bytes out = self.out
        self.out = None
        self.unchecked += <size_t>PyBytes_GET_SIZE(out)
        self.turn.append(out)
        self.turn_bytes += <size_t>PyBytes_GET_SIZE(out)
        if not self.scheduled:
            self.scheduled = True
            try:
                self.loop.call_soon(self._flush)
            except Exception:
                # The loop is closing: send now what was to be sent in this turn.
                self._flush()

    def _flush(self):
        """One write for all that a loop turn sends."""
        self.scheduled = False
        if self.open and self.turn:
            self.transport.writelines(self.take())


cdef class StreamUpstream(Transport):
    """The way to a TCP upstream: dials it, dials it again when the connection ends, keeps what is sent while a first
    try is under way, and refuses while it is down.

    ``make(on_lost)`` makes the protocol; ``on_failed(messages)`` gets what was kept when a try fails; ``on_ended(self, unsent)``
    is called when the connection has ended, and with it all that was asked over it but for what is sent again.
    """

    def __init__(self, loop, Receiver receiver not None, host, port, *, make, on_failed, on_ended, size_t max_queue_bytes,
                 double connect_timeout=3.0):
        self.loop = loop
        self.receiver = receiver
        self.kind = KIND_TCP
        self.host = host
        self.port = port
        self.make = make
        self.on_failed = on_failed
        self.on_ended = on_ended
        self.max_queue_bytes = max_queue_bytes
        self.connect_timeout = connect_timeout
        self.queue = []
        self.delay = 0.0

    def start(self):
        """Dial now, unless connected or dialling."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not self.closed and self.task is None and self.current is None:
            self.task = self.loop.create_task(self._dial())

    def close(self):
        """Stop dialling and close the connection."""
        self.closed = True
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()
        if self.current is not None:
            self.current.close()

    @property
    def connected(self):
        return self.current is not None

    async def _dial(self):
        try:
            _, connection = await asyncio.wait_for(
                self.loop.create_connection(lambda: self.make(self._lost), self.host, self.port), self.connect_timeout)
        except (OSError, asyncio.TimeoutError):
            self.task = None
            self._failed()
            return
        self.task = None
        if self.closed:
            connection.close()
            return
        if not (<StreamConnection>connection).open:
            self._failed()
            return
        self.current = connection
        (<StreamConnection>connection).peer = self.peer
        self.connected_ms = self.receiver.clock_ms()
        if self.down:
            self.down = False
            self.receiver.note(self, "upstream", "upstream is up again", NULL)
        queue, self.queue = self.queue, []
        self.queue_bytes = 0
        for message in queue:
            (<StreamConnection>connection).transport.write(message)

    def _failed(self):
        if not self.down:
            self.down = True
            self.receiver.note(self, "upstream", "upstream cannot be reached, tried again until it can", NULL)
        self._later()
        queue, self.queue = self.queue, []
        self.queue_bytes = 0
        if queue:
            self.on_failed(queue)

    def _later(self):
        self.delay = min(LAST_DELAY, self.delay * 2) if self.delay else FIRST_DELAY
        self.timer = self.loop.call_later(self.delay, self.start)

    def _lost(self, connection):
        if self.current is not connection:
            return
        self.current = None
        if self.closed:
            return
        unsent = connection.take()
        self.queue = unsent + self.queue
        self.queue_bytes += sum(map(len, unsent))
        if self.receiver.clock_ms() - self.connected_ms >= STEADY_MS:
            self.delay = 0.0
        if self.delay == 0.0:
            self.delay = FIRST_DELAY / 2
            self.start()
        else:
            # It accepts and hangs up: dialling it at once each time would be a loop without a pause.
            self._later()
        self.on_ended(self, unsent)

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        cdef char* room
        self.through = None
        if self.current is not None and self.current.open:
            room = self.current.reserve(length, to)
            if room != NULL:
                self.through = self.current
            return room
        if self.down or self.closed or self.queue_bytes + length > self.max_queue_bytes:
            return NULL
        try:
            self.out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        except MemoryError:
            return NULL
        return PyBytes_AS_STRING(self.out)

    cdef void commit(self) noexcept:
        if self.through is not None:
            self.through.commit()
            self.through = None
            return
        self.queue.append(self.out)
        self.queue_bytes += <size_t>PyBytes_GET_SIZE(self.out)
        self.out = None
        if self.task is None and self.timer is None:
            self.start()

# What policy sees of a request, and its verdict as data.

from fastws.wire.message cimport Message

cdef enum VerdictAction:
    VERDICT_REJECT = 1
    VERDICT_DROP = 2

cdef class Verdict:
    cdef VerdictAction action
    cdef int status
    cdef bytes reason            # None: the usual phrase
    cdef bytes headers           # whole lines
    cdef bint close

cdef class Request:
    cdef Message* message        # the core's while the policy runs, later its own; NULL until needed again
    cdef bint owned
    cdef bytes data              # the message's own bytes, once detached
    cdef readonly bint in_dialog
    cdef list removed            # names in lower case and full form, of set_header and remove_header; None without any
    cdef list added              # whole lines, without CR LF
    cdef bytes target            # of forward(): the URI, or None
    # Let go of the core's buffer: from now on the request stands on its own copy.
    cdef int detach(self) except -1
    cdef Message* read(self) except NULL
    cdef object address(self, int header)
    cdef str changeable(self, object name)

cdef Request request_make(Message* message, bint in_dialog)

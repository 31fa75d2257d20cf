# What SIP says a proxy must check and change; see route.pxd. Sends nothing, keeps nothing, knows no clock and no Python.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset, strlen

from fastws.transport.address cimport ADDRESS_TEXT, Address, address_host_text, address_parse_host, address_same_host
from fastws.wire.message cimport (
    HEADER_CALL_ID,
    HEADER_CONTACT,
    HEADER_CSEQ,
    HEADER_FROM,
    HEADER_MAX_FORWARDS,
    HEADER_P_ASSERTED_IDENTITY,
    HEADER_PRIVACY,
    HEADER_PROXY_REQUIRE,
    HEADER_ROUTE,
    HEADER_SUPPORTED,
    HEADER_TO,
    HEADER_VIA,
    METHOD_INVITE,
    METHOD_NOTIFY,
    METHOD_REFER,
    METHOD_SUBSCRIBE,
    Header,
    Message,
    NameAddr,
    Uri,
    Via,
    list_has_token,
    message_next,
    name_addr_parse,
    parameter_find,
    unescape,
    uri_parse,
    via_parse,
)
from fastws.wire.rewrite cimport (
    Buffer,
    Rewrite,
    buffer_add,
    buffer_add_span,
    buffer_add_uint,
    rewrite_close,
    rewrite_cut,
    rewrite_open,
)
from fastws.wire.span cimport Span, span_end, span_equal, span_equal_nocase, span_equal_span_nocase, span_make, span_to_uint, span_trim
from fastws.wire.token cimport TOKEN_DIALOG, TOKEN_LENGTH, TOKEN_PATH, Token, token_open, token_seal


cdef inline void refuse(Facts* facts, int status, const char* reason) noexcept nogil:
    if facts.reject == 0:
        facts.reject = status
        facts.reason = reason


cdef inline void add_text(Buffer* buffer, const char* text) noexcept nogil:
    buffer_add(buffer, text, strlen(text))


cdef void request_check(const Message* message, bint secured, Facts* facts) noexcept nogil:
    cdef int32_t at
    memset(facts, 0, sizeof(Facts))
    at = message.first[<int>HEADER_VIA]
    if via_parse(message.headers[at].value, &facts.via) != 0:
        refuse(facts, 400, b"Bad Via")
    # 16.3 item 2: the scheme.
    if uri_parse(message.uri, &facts.uri) != 0:
        refuse(facts, 400, b"Bad Request-URI")
    elif not facts.uri.is_sip:
        if not span_equal_nocase(facts.uri.scheme, b"tel", 3):
            refuse(facts, 416, b"Unsupported URI Scheme")
    elif facts.uri.headers.length > 0:
        # 19.1.1: header components may not stand in a Request-URI.
        refuse(facts, 400, b"Headers In Request-URI")
    elif facts.uri.is_sips and not secured:
        refuse(facts, 416, b"SIPS Needs TLS On Both Sides")
    at = message.first[<int>HEADER_FROM]
    if name_addr_parse(message.headers[at].value, &facts.sender) != 0 or facts.sender.rest.start != NULL:
        refuse(facts, 400, b"Bad From")
    else:
        if uri_parse(facts.sender.uri, &facts.sender_uri) != 0:
            refuse(facts, 400, b"Bad From")
        if not parameter_find(facts.sender.parameters, b"tag", 3, &facts.sender_tag):
            facts.sender_tag = span_make(NULL, 0)
    at = message.first[<int>HEADER_TO]
    if name_addr_parse(message.headers[at].value, &facts.target) != 0 or facts.target.rest.start != NULL:
        refuse(facts, 400, b"Bad To")
    else:
        if uri_parse(facts.target.uri, &facts.target_uri) != 0:
            refuse(facts, 400, b"Bad To")
        if not parameter_find(facts.target.parameters, b"tag", 3, &facts.target_tag):
            facts.target_tag = span_make(NULL, 0)
    at = message.first[<int>HEADER_PROXY_REQUIRE]
    if at >= 0:
        # 16.3 item 5: this proxy has no extension that a client could require of it.
        facts.unsupported = message.headers[at].value
        refuse(facts, 420, b"Bad Extension")


cdef bint uri_is_own(const Node* node, const Uri* uri, Span host) noexcept nogil:
    cdef size_t i
    cdef Address literal
    if not uri.is_sip:
        return False
    for i in range(node.name_count):
        if (node.names[i].port == 0 or uri.port == 0 or node.names[i].port == uri.port) and \
                span_equal_span_nocase(uri.host, node.names[i].host):
            return True
    # A name under which the client has reached us is ours whatever the port: a balancer may stand before it. An address
    # is another matter: the same one may carry other servers.
    if host.length > 0 and span_equal_span_nocase(uri.host, host):
        return not address_parse_host(&literal, host.start, host.length)
    return False


cdef void routes_read(const Node* node, const Message* message, bint from_client, uint32_t slot, uint32_t generation,
                      Span host, Facts* facts) noexcept nogil:
    cdef int32_t at = -1
    cdef Span value, call_id, first
    cdef NameAddr route
    cdef Uri uri
    cdef Token token
    cdef bint own, popped_here
    call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
    while True:
        at = message_next(message, <uint16_t>HEADER_ROUTE, at)
        if at < 0:
            return
        value = message.headers[at].value
        first = value
        popped_here = False
        while True:
            if name_addr_parse(value, &route) != 0 or uri_parse(route.uri, &uri) != 0:
                refuse(facts, 400, b"Bad Route")
                return
            own = False
            if uri.user.length == TOKEN_LENGTH and token_open(uri.user, node.key, call_id, &token) == 0:
                if token.kind != TOKEN_PATH and token.kind != TOKEN_DIALOG:
                    refuse(facts, 403, b"Bad Flow Token")
                    return
                own = True
                if facts.has_token:
                    if token.slot != facts.token.slot or token.generation != facts.token.generation:
                        # The other half of a call that goes through here twice: it is for the next pass.
                        facts.next_is_own = True
                        own = False
                elif from_client and (token.slot != slot or token.generation != generation or
                                      token.epoch != node.epoch or token.worker != node.worker):
                    if token.kind == TOKEN_PATH:
                        # A Path token is a way to somebody: a client that has learnt it may not go it.
                        refuse(facts, 403, b"Bad Flow Token")
                        return
                    # The dialog was formed over a connection that this client had before, or has heard of: it proves
                    # nothing, and leads nowhere but here.
                else:
                    facts.has_token = True
                    facts.token = token
            elif uri_is_own(node, &uri, host):
                if uri.user.start != NULL:
                    # RFC 5626 5.3: a flow token that was tampered with.
                    refuse(facts, 403, b"Bad Flow Token")
                    return
                own = True
            if not own:
                facts.has_next = True
                facts.next_route = uri
                facts.next_kind = token.kind if facts.next_is_own else 0
                if popped_here:
                    if facts.cut_count == POPPED_MAX:
                        refuse(facts, 482, b"Loop Detected")
                        return
                    facts.cut_at[facts.cut_count] = first.start
                    facts.cut_length[facts.cut_count] = <size_t>(route.whole.start - first.start)
                    facts.cut_count += 1
                return
            popped_here = True
            if route.rest.start == NULL:
                break
            value = route.rest
        if facts.cut_count == POPPED_MAX:
            refuse(facts, 482, b"Loop Detected")
            return
        facts.cut_at[facts.cut_count] = message.headers[at].line.start
        facts.cut_length[facts.cut_count] = message.headers[at].line.length
        facts.cut_count += 1


cdef bint identity_match(const Uri* uri, const char* identity, size_t length) noexcept nogil:
    cdef char user[256]
    cdef Py_ssize_t decoded
    cdef size_t user_length = length
    cdef size_t i
    cdef Span host, port_text
    cdef uint64_t port = 0
    if not uri.is_sip or uri.user.start == NULL or length == 0 or uri.user.length > sizeof(user):
        return False
    for i in range(length):
        if identity[length - 1 - i] == c'@':
            user_length = length - 1 - i
            break
    decoded = unescape(uri.user, user)
    if decoded < 0 or <size_t>decoded != user_length or memcmp(user, identity, user_length) != 0:
        return False
    if user_length == length:
        return True
    host = span_make(identity + user_length + 1, length - user_length - 1)
    for i in range(host.length):
        if host.start[host.length - 1 - i] == c']':
            break
        if host.start[host.length - 1 - i] == c':':
            port_text = span_make(host.start + host.length - i, i)
            if not span_to_uint(port_text, 65535, &port) or uri.port != port:
                return False
            host.length = host.length - 1 - i
            break
    return span_equal_span_nocase(uri.host, host)


cdef bint is_anonymous(const Uri* uri) noexcept nogil:
    # RFC 3323 4.1.1.3, RFC 3325 9.1
    return uri.is_sip and span_equal(uri.user, b"anonymous", 9) and \
        span_equal_nocase(uri.host, b"anonymous.invalid", 17)


cdef bint forms_dialog(const Message* message, const Facts* facts) noexcept nogil:
    # A NOTIFY may be what forms the dialog of a subscription, and has a To tag then (RFC 6665 4.4.1).
    if message.method_id == METHOD_NOTIFY:
        return True
    return facts.target_tag.start == NULL and (
        message.method_id == METHOD_INVITE or message.method_id == METHOD_SUBSCRIBE or message.method_id == METHOD_REFER)


cdef bint asks_outbound(const Message* message, const Facts* facts) noexcept nogil:
    cdef int32_t at = -1
    cdef Span value, found
    cdef NameAddr contact
    if facts.via.rest.start != NULL or message.times[<int>HEADER_VIA] > 1:
        return False                 # we are not the first hop
    while True:
        at = message_next(message, <uint16_t>HEADER_CONTACT, at)
        if at < 0:
            return False
        value = message.headers[at].value
        while name_addr_parse(value, &contact) == 0:
            if parameter_find(contact.parameters, b"reg-id", 6, &found):
                return True
            if contact.rest.start == NULL:
                break
            value = contact.rest


cdef void add_token_uri(const Node* node, const char* name, const Token* token, Span call_id, const char* transport,
                        const char* tail, Buffer* out) noexcept nogil:
    cdef char sealed[TOKEN_LENGTH]
    token_seal(token, node.key, call_id, sealed)
    add_text(out, name)
    buffer_add(out, b": <sip:", 7)
    buffer_add(out, sealed, TOKEN_LENGTH)
    buffer_add(out, b"@", 1)
    buffer_add_span(out, node.advertised)
    add_text(out, transport)
    add_text(out, tail)
    buffer_add(out, b">\r\n", 3)


cdef void add_received(const Via* via, const Address* source, Buffer* out) noexcept nogil:
    # The Via value with rport and received filled in (RFC 3581 4, RFC 3261 18.2.1).
    cdef char text[ADDRESS_TEXT]
    cdef size_t length
    cdef const char* end = span_end(via.whole)
    cdef const char* at = via.whole.start
    cdef Span received
    if via.has_rport and via.rport.length == 0:
        at = via.rport.start
        buffer_add(out, via.whole.start, <size_t>(at - via.whole.start))
        if (at - 1)[0] != c'=':
            buffer_add(out, b"=", 1)
        buffer_add_uint(out, source.port)
    buffer_add(out, at, <size_t>(end - at))
    if needs_received(via, source) and not parameter_find(via.parameters, b"received", 8, &received):
        length = address_host_text(source, text)
        buffer_add(out, b";received=", 10)
        buffer_add(out, text, length)


cdef bint needs_received(const Via* via, const Address* source) noexcept nogil:
    cdef Address host
    if via.has_rport:
        return True
    return not (address_parse_host(&host, via.host.start, via.host.length) and address_same_host(&host, source))


cdef void length_edit(const Message* message, Rewrite* rewrite) noexcept nogil:
    # 18.3: over a stream there must be one; a body must never be mistaken for the next message.
    if not message.has_content_length:
        rewrite_open(rewrite, span_end(message.head), 0)
        buffer_add(&rewrite.text, b"Content-Length: ", 16)
        buffer_add_uint(&rewrite.text, message.body.length)
        buffer_add(&rewrite.text, b"\r\n", 2)
        rewrite_close(rewrite)


cdef void asserted_edits(const Message* message, Rewrite* rewrite) noexcept nogil:
    cdef int32_t at = message_next(message, <uint16_t>HEADER_P_ASSERTED_IDENTITY, -1)
    while at >= 0:
        rewrite_cut(rewrite, message.headers[at].line.start, message.headers[at].line.length)
        at = message_next(message, <uint16_t>HEADER_P_ASSERTED_IDENTITY, at)


cdef bint supports_path(const Message* message) noexcept nogil:
    cdef int32_t at = message_next(message, <uint16_t>HEADER_SUPPORTED, -1)
    while at >= 0:
        if list_has_token(message.headers[at].value, b"path", 4):
            return True
        at = message_next(message, <uint16_t>HEADER_SUPPORTED, at)
    return False


cdef void forward_edits(const Node* node, const Message* message, const Facts* facts, const Forward* forward,
                        Rewrite* rewrite) noexcept nogil:
    cdef char branch[TOKEN_LENGTH]
    cdef Buffer* text = &rewrite.text
    cdef const Header* header
    cdef Span call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
    cdef size_t i
    if not span_equal(message.version, b"SIP/2.0", 7):
        rewrite_open(rewrite, message.version.start, message.version.length)
        buffer_add(text, b"SIP/2.0", 7)
        rewrite_close(rewrite)
    rewrite_open(rewrite, message.head.start, 0)
    # 16.6 item 8
    buffer_add(text, b"Via: SIP/2.0/", 13)
    add_text(text, forward.via_transport)
    buffer_add(text, b" ", 1)
    buffer_add_span(text, node.advertised)
    buffer_add(text, b";branch=z9hG4bK", 15)
    token_seal(&forward.branch, node.key, call_id, branch)
    buffer_add(text, branch, TOKEN_LENGTH)
    if forward.via_transport[0] == c'U':
        buffer_add(text, b";rport", 6)
    buffer_add(text, b"\r\n", 2)
    if forward.record_route:
        # 16.6 item 4; RFC 5658: one for each side where the transport changes, that of the next hop on top.
        add_token_uri(node, b"Record-Route", &forward.dialog, call_id, forward.out_parameter, b";lr", text)
        if forward.in_parameter != NULL:
            add_token_uri(node, b"Record-Route", &forward.dialog, call_id, forward.in_parameter, b";lr", text)
    if forward.path:
        # RFC 3327 5.2, RFC 5626 5.1
        add_token_uri(node, b"Path", &forward.flow, call_id, forward.out_parameter,
                      b";lr;ob" if forward.outbound else b";lr", text)
        if not supports_path(message):
            # RFC 3327 5.3: a registrar may refuse (420) or ignore a Path that the client did not say it understands. It
            # need not: only this proxy ever reads it.
            buffer_add(text, b"Supported: path\r\n", 17)
    if message.times[<int>HEADER_MAX_FORWARDS] == 0:
        buffer_add(text, b"Max-Forwards: 70\r\n", 18)
    rewrite_close(rewrite)
    if message.times[<int>HEADER_MAX_FORWARDS] != 0:
        header = &message.headers[message.first[<int>HEADER_MAX_FORWARDS]]
        rewrite_open(rewrite, header.value.start, header.value.length)
        buffer_add_uint(text, message.max_forwards - 1)
        rewrite_close(rewrite)
    for i in range(facts.cut_count):
        rewrite_cut(rewrite, facts.cut_at[i], facts.cut_length[i])
    if forward.received_from != NULL and needs_received(&facts.via, forward.received_from):
        rewrite_open(rewrite, facts.via.whole.start, facts.via.whole.length)
        add_received(&facts.via, forward.received_from, text)
        rewrite_close(rewrite)
    if forward.strip_asserted:
        asserted_edits(message, rewrite)
    length_edit(message, rewrite)


cdef void response_edits(const Message* message, const Via* via, Rewrite* rewrite) noexcept nogil:
    cdef const Header* header = &message.headers[message.first[<int>HEADER_VIA]]
    if via.rest.start == NULL:
        rewrite_cut(rewrite, header.line.start, header.line.length)
    else:
        rewrite_cut(rewrite, header.value.start, <size_t>(via.rest.start - header.value.start))
    length_edit(message, rewrite)


cdef void answer_write(const Message* message, int status, Span reason, Span tag, Span extra,
                       const Address* received_from, bint own, Buffer* out) noexcept nogil:
    cdef size_t i
    cdef const Header* header
    cdef Via via
    cdef NameAddr target
    cdef Span found
    cdef bint first_via = True
    buffer_add(out, b"SIP/2.0 ", 8)
    buffer_add_uint(out, <uint64_t>status)
    buffer_add(out, b" ", 1)
    buffer_add_span(out, reason)
    buffer_add(out, b"\r\n", 2)
    # 8.2.6.2: the Vias unchanged and in their order.
    for i in range(message.count):
        header = &message.headers[i]
        if header.id == HEADER_VIA:
            if first_via and own:
                pass
            elif first_via and received_from != NULL and via_parse(header.value, &via) == 0:
                buffer_add(out, b"Via: ", 5)
                add_received(&via, received_from, out)
                buffer_add(out, span_end(via.whole), <size_t>(span_end(header.line) - span_end(via.whole)))
            else:
                buffer_add_span(out, header.line)
            first_via = False
    for i in range(message.count):
        header = &message.headers[i]
        if header.id == HEADER_FROM or header.id == HEADER_CALL_ID or header.id == HEADER_CSEQ:
            if message.first[header.id] == <int32_t>i:
                buffer_add_span(out, header.line)
        elif header.id == HEADER_TO and message.first[<int>HEADER_TO] == <int32_t>i:
            if tag.length > 0 and name_addr_parse(header.value, &target) == 0 and \
                    not parameter_find(target.parameters, b"tag", 3, &found):
                buffer_add(out, b"To: ", 4)
                buffer_add_span(out, header.value)
                buffer_add(out, b";tag=", 5)
                buffer_add_span(out, tag)
                buffer_add(out, b"\r\n", 2)
            else:
                buffer_add_span(out, header.line)
    buffer_add_span(out, extra)
    buffer_add(out, b"Content-Length: 0\r\n\r\n", 21)


cdef void derived_write(const Message* invite, const char* method, Span to_line, Buffer* out) noexcept nogil:
    cdef size_t i
    cdef const Header* header
    cdef bint first_via = True
    add_text(out, method)
    buffer_add(out, b" ", 1)
    buffer_add_span(out, invite.uri)
    buffer_add(out, b" SIP/2.0\r\n", 10)
    for i in range(invite.count):
        header = &invite.headers[i]
        if header.id == HEADER_VIA:
            if first_via:
                buffer_add_span(out, header.line)
            first_via = False
        elif header.id == HEADER_ROUTE or header.id == HEADER_FROM or header.id == HEADER_CALL_ID:
            buffer_add_span(out, header.line)
        elif header.id == HEADER_TO:
            buffer_add_span(out, to_line)
    buffer_add(out, b"Max-Forwards: 70\r\nCSeq: ", 24)
    buffer_add_uint(out, invite.cseq)
    buffer_add(out, b" ", 1)
    add_text(out, method)
    buffer_add(out, b"\r\nContent-Length: 0\r\n\r\n", 23)


cdef bint asks_privacy(const Message* message) noexcept nogil:
    cdef int32_t at = message_next(message, <uint16_t>HEADER_PRIVACY, -1)
    cdef Span value, part
    cdef size_t start, i
    while at >= 0:
        value = message.headers[at].value
        start = 0
        for i in range(value.length + 1):
            if i == value.length or value.start[i] == c';' or value.start[i] == c',':
                part = span_trim(span_make(value.start + start, i - start))
                if span_equal_nocase(part, b"id", 2):
                    return True
                start = i + 1
        at = message_next(message, <uint16_t>HEADER_PRIVACY, at)
    return False


cdef const char* reason_phrase(int status) noexcept nogil:
    if status == 100: return b"Trying"
    if status == 200: return b"OK"
    if status == 400: return b"Bad Request"
    if status == 401: return b"Unauthorized"
    if status == 402: return b"Payment Required"
    if status == 403: return b"Forbidden"
    if status == 404: return b"Not Found"
    if status == 405: return b"Method Not Allowed"
    if status == 406: return b"Not Acceptable"
    if status == 407: return b"Proxy Authentication Required"
    if status == 408: return b"Request Timeout"
    if status == 410: return b"Gone"
    if status == 413: return b"Request Entity Too Large"
    if status == 416: return b"Unsupported URI Scheme"
    if status == 420: return b"Bad Extension"
    if status == 423: return b"Interval Too Brief"
    if status == 430: return b"Flow Failed"
    if status == 480: return b"Temporarily Unavailable"
    if status == 481: return b"Call/Transaction Does Not Exist"
    if status == 482: return b"Loop Detected"
    if status == 483: return b"Too Many Hops"
    if status == 486: return b"Busy Here"
    if status == 487: return b"Request Terminated"
    if status == 488: return b"Not Acceptable Here"
    if status == 500: return b"Server Internal Error"
    if status == 501: return b"Not Implemented"
    if status == 503: return b"Service Unavailable"
    if status == 505: return b"Version Not Supported"
    if status == 513: return b"Message Too Large"
    if status == 603: return b"Decline"
    if status == 301: return b"Moved Permanently"
    if status == 302: return b"Moved Temporarily"
    if status == 305: return b"Use Proxy"
    if status == 380: return b"Alternative Service"
    if status == 600: return b"Busy Everywhere"
    if status == 604: return b"Does Not Exist Anywhere"
    if status == 606: return b"Not Acceptable"
    return b"Error"

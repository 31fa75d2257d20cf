// One browser phone without a browser: JsSIP or SIP.js on the `ws` package, driven by JSON lines.
//
//     node phone.mjs jssip|sipjs '{"url": "ws://127.0.0.1:8080", "uri": "sip:alice@example.com"}'
//
// Options: url and uri; headers (of the WebSocket handshake: Origin, Cookie); ca (file of the only certificate that
// this phone trusts); sdp_bytes (pad offer and answer to at least so many bytes); keepalive_s (SIP.js: seconds between
// its CRLFCRLF keep-alives, 0 for none).
//
// stdin takes one command a line, {"do": "call", "target": "sip:bob@example.com"}:
//     register, unregister, call {target}, answer, reject {code}, hangup, cancel, message {target, text},
//     drop (the tab is gone: no close frame, no FIN handshake of SIP), quit
// stdout gives one event a line, {"event": "incoming", ...}, and nothing else:
//     connected; refused {status}: the handshake got another status than 101; disconnected {code, reason}
//     registered {contact}; registration_failed {code, cause}; unregistered {code}
//     incoming {from, sdp}; progress {code}; accepted {sdp}; confirmed; ended {by, cause}; failed {code, cause}
//     message {from, text}; message_sent {code}; message_failed {code}
//     received {code, method, reason}: what came over the wire, whatever the library makes of it; keepalive
//     error {command, text}: the library refused a command
//
// Nothing here knows the proxy: both libraries are used through their public interfaces and keep their defaults,
// except that they do not reconnect, so that a closed connection is seen as one.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";

const [library, optionsText] = process.argv.slice(2);
const options = { headers: {}, ca: null, sdp_bytes: 0, keepalive_s: 0, ...JSON.parse(optionsText) };
const NEVER_S = 86400;

function emit(event, fields = {}) {
    process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

// The libraries may talk, but not on the channel of the events.
console.log = console.info = console.debug = console.error;

// ---- what a browser gives the libraries -------------------------------------------------------------------------

const sockets = new Set();

function wire(data) {
    const text = data.toString();
    if (text === "\r\n") {
        emit("keepalive");
        return;
    }
    const [start, ...rest] = text.split("\r\n");
    const cseq = rest.find((line) => /^cseq\s*:/i.test(line)) ?? "";
    const response = /^SIP\/2\.0 (\d{3}) ?(.*)$/.exec(start);
    emit("received", {
        code: response ? Number(response[1]) : null,
        method: response ? cseq.split(/\s+/).pop() : start.split(" ")[0],
        reason: response ? response[2] : null,
    });
}

class BrowserSocket extends WebSocket {
    constructor(url, protocols) {
        super(url, protocols, {
            headers: options.headers,
            ca: options.ca === null ? undefined : readFileSync(options.ca),
        });
        sockets.add(this);
        this.on("message", wire);
        this.on("close", (code, reason) => {
            sockets.delete(this);
            emit("disconnected", { code, reason: reason.toString() });
        });
        // A page cannot see the status of a refused handshake; a test may.
        this.on("error", (error) => {
            const status = /Unexpected server response: (\d+)/.exec(error.message);
            if (status) {
                emit("refused", { status: Number(status[1]) });
            } else {
                console.error(`websocket: ${error.message}`);
            }
        });
    }
}

function sessionDescription() {
    const lines = [
        "v=0",
        "o=- 2718281828 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 127.0.0.1",
        "a=rtpmap:111 opus/48000/2",
        "a=sendrecv",
    ];
    const length = () => lines.reduce((sum, line) => sum + line.length + 2, 0);
    for (let port = 10000; length() < options.sdp_bytes; port += 1) {
        lines.push(`a=candidate:${port} 1 udp 2122260223 127.0.0.1 ${port} typ host generation 0`);
    }
    return lines.join("\r\n") + "\r\n";
}

// JsSIP reads signalingState to tell an answer after early media from the first one, so the states are kept as in WebRTC.
class PeerConnection {
    iceGatheringState = "complete";
    iceConnectionState = "new";
    signalingState = "stable";
    localDescription = null;

    addEventListener() {}
    removeEventListener() {}
    addTrack() {}
    close() {}

    getSenders() {
        return [];
    }

    async createOffer() {
        return { type: "offer", sdp: sessionDescription() };
    }

    async createAnswer() {
        return { type: "answer", sdp: sessionDescription() };
    }

    async setLocalDescription(description) {
        this.localDescription = description;
        this.signalingState = description.type === "offer" ? "have-local-offer" : "stable";
    }

    async setRemoteDescription(description) {
        this.signalingState = description.type === "offer" ? "have-remote-offer" : "stable";
    }
}

globalThis.WebSocket = BrowserSocket;
globalThis.window = globalThis;
globalThis.RTCPeerConnection = PeerConnection;
globalThis.RTCSessionDescription = class {
    constructor(description) {
        Object.assign(this, description);
    }
};
globalThis.MediaStream = class {};

// ---- JsSIP ------------------------------------------------------------------------------------------------------

async function jssip() {
    const { default: JsSIP } = await import("jssip");
    const media = { mediaConstraints: { audio: false, video: false } };
    const agent = new JsSIP.UA({
        sockets: [new JsSIP.WebSocketInterface(options.url)],
        uri: options.uri,
        register: false,
        register_expires: 120,
        session_timers: false,
        connection_recovery_min_interval: NEVER_S,
        connection_recovery_max_interval: NEVER_S,
    });
    let session = null;

    agent.on("connected", () => emit("connected"));
    agent.on("registered", () => emit("registered", { contact: agent.contact.uri.toString() }));
    agent.on("registrationFailed", ({ response, cause }) =>
        emit("registration_failed", { code: response?.status_code ?? null, cause }),
    );
    agent.on("unregistered", ({ response }) => emit("unregistered", { code: response?.status_code ?? null }));
    agent.on("newMessage", ({ originator, message, request }) => {
        if (originator === "remote") {
            emit("message", { from: request.from.uri.toString(), text: request.body });
        }
    });
    agent.on("newRTCSession", ({ originator, session: created, request }) => {
        session = created;
        const incoming = originator === "remote";
        session.on("progress", ({ response }) => {
            if (response) {
                emit("progress", { code: response.status_code });
            }
        });
        session.on("accepted", ({ response }) => emit("accepted", { sdp: response?.body ?? null }));
        session.on("confirmed", () => emit("confirmed"));
        session.on("ended", ({ originator: by, cause }) => emit("ended", { by, cause }));
        session.on("failed", ({ originator: by, message, cause }) => {
            if (incoming) {
                emit("ended", { by, cause });
            } else {
                emit("failed", { code: message?.status_code ?? null, cause });
            }
        });
        if (incoming) {
            emit("incoming", { from: request.from.uri.toString(), sdp: request.body });
        }
    });
    agent.start();

    return {
        register: () => agent.register(),
        unregister: () => agent.unregister(),
        call: ({ target }) => agent.call(target, media),
        answer: () => session.answer(media),
        reject: ({ code = 486 }) => session.terminate({ status_code: code }),
        hangup: () => session.terminate(),
        cancel: () => session.terminate(),
        message: ({ target, text }) => {
            const sent = agent.sendMessage(target, text);
            sent.on("succeeded", ({ response }) => emit("message_sent", { code: response.status_code }));
            sent.on("failed", ({ response }) => emit("message_failed", { code: response?.status_code ?? null }));
        },
    };
}

// ---- SIP.js -----------------------------------------------------------------------------------------------------

async function sipjs() {
    const { Inviter, Messager, Registerer, RegistererState, SessionState, UserAgent } = await import("sip.js");
    const code = (response) => response.message.statusCode;
    let session = null;

    function watch(created, incoming) {
        session = created;
        let how = null;     // who ended it and why, once that is known
        session.delegate = {
            onAck: () => emit("confirmed"),
            onBye: (bye) => {
                how = { by: "remote", cause: "BYE" };
                bye.accept();
            },
            onCancel: () => {
                how = { by: "remote", cause: "CANCEL" };
            },
        };
        session.stateChange.addListener((state) => {
            if (state === SessionState.Established) {
                session.established = true;
            } else if (state === SessionState.Terminated && (incoming || created.established)) {
                emit("ended", how ?? { by: "local", cause: state });
            }
        });
    }

    const agent = new UserAgent({
        uri: UserAgent.makeURI(options.uri),
        transportOptions: { server: options.url, keepAliveInterval: options.keepalive_s },
        logBuiltinEnabled: false,
        logConnector: (level, category, label, content) => {
            if (level === "error" || level === "warn") {
                console.error(`${category}: ${content}`);
            }
        },
        sessionDescriptionHandlerFactory: () => ({
            close() {},
            hasDescription: (contentType) => contentType === "application/sdp",
            getDescription: async () => ({ body: sessionDescription(), contentType: "application/sdp" }),
            setDescription: async () => {},
            sendDtmf: () => false,
        }),
        delegate: {
            onConnect: () => emit("connected"),
            onInvite: (invitation) => {
                watch(invitation, true);
                const { from, body } = invitation.request;
                emit("incoming", { from: from.uri.toString(), sdp: body });
            },
            onMessage: (message) => {
                emit("message", { from: message.request.from.uri.toString(), text: message.request.body });
                message.accept();
            },
        },
    });
    const registerer = new Registerer(agent);
    registerer.stateChange.addListener((state) => {
        if (state === RegistererState.Registered) {
            emit("registered", { contact: agent.contact.uri.toString() });
        }
    });
    agent.start().catch((error) => console.error(`start: ${error.message}`));

    return {
        register: () =>
            registerer.register({
                requestDelegate: {
                    onReject: (response) =>
                        emit("registration_failed", { code: code(response), cause: response.message.reasonPhrase }),
                },
            }),
        unregister: () =>
            registerer.unregister({
                requestDelegate: { onAccept: (response) => emit("unregistered", { code: code(response) }) },
            }),
        call: ({ target }) => {
            const inviter = new Inviter(agent, UserAgent.makeURI(target));
            watch(inviter, false);
            return inviter.invite({
                requestDelegate: {
                    onProgress: (response) => emit("progress", { code: code(response) }),
                    // SIP.js calls this when the ACK has left.
                    onAccept: (response) => {
                        emit("accepted", { sdp: response.message.body });
                        emit("confirmed");
                    },
                    onReject: (response) =>
                        emit("failed", { code: code(response), cause: response.message.reasonPhrase }),
                },
            });
        },
        answer: () => session.accept(),
        reject: ({ code: statusCode = 486 }) => session.reject({ statusCode }),
        hangup: () => session.bye(),
        cancel: () => session.cancel(),
        message: ({ target, text }) =>
            new Messager(agent, UserAgent.makeURI(target), text).message({
                requestDelegate: {
                    onAccept: (response) => emit("message_sent", { code: code(response) }),
                    onReject: (response) => emit("message_failed", { code: code(response) }),
                },
            }),
    };
}

// ---- the commands -----------------------------------------------------------------------------------------------

function quit() {
    // A well-behaved page: the closing handshake, and no longer wait for it than a second.
    setTimeout(() => process.exit(0), sockets.size ? 1000 : 0);
    for (const socket of sockets) {
        socket.once("close", () => process.exit(0));
        socket.close(1000);
    }
}

function drop() {
    for (const socket of sockets) {
        socket.terminate();
    }
}

const commands = { ...(await { jssip, sipjs }[library]()), quit, drop };

const input = createInterface({ input: process.stdin });
input.on("line", async (line) => {
    const { do: command, ...fields } = JSON.parse(line);
    try {
        await commands[command](fields);
    } catch (error) {
        emit("error", { command, text: String(error?.message ?? error) });
    }
});
input.on("close", quit);

"""One process: the loop, the listeners, the SIP side, the one timer, and the way out.

It builds what the configuration says and hands each part to the others. Rules live elsewhere: what a message may do in
_core and sip/, what a client may do in the policy.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

import uvloop

import fastws
from fastws._connection import ConnectionTable
from fastws._core import Edge
from fastws.admission import Admission
from fastws.config import Config, Listen, Upstream, guard_open
from fastws.errors import ConfigError
from fastws.log import address_text
from fastws.policy import Policy
from fastws.transport.base import LocalTransport, ReadBuffer
from fastws.transport.stream import StreamConnection, StreamUpstream
from fastws.transport.udp import UdpTransport
from fastws.transport.ws import WsListener
from fastws.wire.handshake import Limits

__all__ = ["Worker", "run"]

SIP_SIDE_PORT = 5070
BACKLOG = 4096
DRAIN_S = 3.0  # for close frames to go out and be answered
CLOSE_POLICY_S = 5.0  # for async on_close calls at the end

_log = logging.getLogger("fastws")


def run(config: Config, policy: Policy, ready: Callable[[Worker], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status. ConfigError for what cannot be bound or resolved.

    `ready` is called when connections are accepted, in place of the line on stderr.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, policy, ready))


async def _serve(config: Config, policy: Policy, ready: Callable[[Worker], None] | None) -> int:
    worker = Worker(config, policy)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, worker.reload)
    try:
        await worker.start()
        _log.info("policy: %s", policy.describe())
        # What lives now lives until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        if ready is None:
            print(worker.ready_line(), file=sys.stderr, flush=True)
        else:
            ready(worker)
        await stop.wait()
        _log.info("stopping: %d connections", len(fastws.connections))
    finally:
        await worker.stop()
    return 0


class Reporter:
    """The core's way to the log: one line for each event, and no more than `limit` of one kind within `window` seconds,
    so that whoever sends rubbish cannot fill a disk. What was left out is counted in the next line."""

    def __init__(self, limit: int = 20, window: float = 10.0) -> None:
        self._limit = limit
        self._window = window
        self._kinds: dict[str, list[float]] = {}

    def __call__(self, kind: str, who: tuple[str, int] | None, text: str) -> None:
        now = time.monotonic()
        state = self._kinds.setdefault(kind, [now, 0])
        if now - state[0] >= self._window:
            if state[1] > self._limit:
                _log.warning("%s: %d more like it within %g s", kind, state[1] - self._limit, self._window)
            state[0], state[1] = now, 0
        state[1] += 1
        if state[1] <= self._limit:
            _log.warning("%s %s: %s", kind, address_text(who) if who else "-", text)


class Worker:
    """All parts of one process. :meth:`start` binds and opens everything, :meth:`stop` ends it in order."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self.config = config
        self.policy = policy
        self.edge: Edge
        self.refused = 0
        self.listeners: list[WsListener] = []
        self._servers: list[asyncio.Server] = []
        self._urls: list[str] = []
        self._udp: UdpTransport | None = None
        self._upstream: StreamUpstream | None = None
        self._streams: set[StreamConnection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._registrar: Any = None
        self._admissions: list[Admission] = []
        self._tls: ssl.SSLContext | None = None
        self.sip: tuple[str, int] | None = None

    # -- start ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the SIP side, then the listeners; ConfigError where an address cannot be had."""
        config = self.config
        self._loop = asyncio.get_running_loop()
        sockets = self._listening_sockets()
        try:
            upstream = config.upstream[0] if config.upstream else None
            addresses = await self._resolve(upstream) if upstream else []
            sip_sockets = self._sip_sockets(upstream, addresses)
            self._build(upstream, addresses, sockets, sip_sockets)
            await self._open(sockets, sip_sockets)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self._period = max(0.05, min(1.0, config.ping_interval / 4, config.ping_timeout / 4, config.head_timeout / 4))
        self._timer = self._loop.call_later(self._period, self._tick)

    def ready_line(self) -> str:
        """What is printed when connections are accepted."""
        behind = self.config.upstream[0].uri if self.config.upstream else "embedded registrar"
        return f"fastws ready: {' '.join(self._urls)} -> {behind}"

    def _listening_sockets(self) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for listen in self.config.listen:
                sockets.append(_bind(f"--listen {listen.url}", listen.host, listen.port, socket.SOCK_STREAM))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    async def _resolve(self, upstream: Upstream) -> list[str]:
        kind = socket.SOCK_DGRAM if upstream.transport == "udp" else socket.SOCK_STREAM
        try:
            found = await self._loop.getaddrinfo(upstream.host, upstream.port, type=kind)
        except OSError as error:
            raise ConfigError(
                "--upstream", f"expected a host that resolves, got {upstream.host}: {error.strerror or error}"
            ) from None
        addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
        if self.config.sip is not None:
            # One socket speaks one family: its own address says which.
            family = ipaddress.ip_address(_literal(self.config.sip[0])).version
            addresses = [text for text in addresses if ipaddress.ip_address(text).version == family]
            if not addresses:
                raise ConfigError(
                    "--upstream", f"expected an IPv{family} address as --sip has, got none for {upstream.host}"
                )
        return addresses

    def _sip_sockets(self, upstream: Upstream | None, addresses: list[str]) -> list[socket.socket]:
        if upstream is None:
            return []
        host, port = self.config.sip or (_local_address_towards(addresses[0], upstream.port), SIP_SIDE_PORT)
        udp = _bind(f"--sip {host}:{port}", host, port, socket.SOCK_DGRAM)
        try:
            tcp = _bind(f"--sip {host}:{port}", host, udp.getsockname()[1], socket.SOCK_STREAM)
        except BaseException:
            udp.close()
            raise
        self.sip = udp.getsockname()[:2]
        return [udp, tcp]

    def _build(
        self,
        upstream: Upstream | None,
        addresses: list[str],
        sockets: list[socket.socket],
        sip_sockets: list[socket.socket],
    ) -> None:
        config = self.config
        first = sockets[0].getsockname()[:2]
        base = self.sip or first
        if ipaddress.ip_address(base[0]).is_unspecified:
            # "Any address" is nothing that a Via could say.
            towards = addresses[0] if addresses else ("127.0.0.1" if ":" not in base[0] else "::1")
            base = (_local_address_towards(towards, 9), base[1])
        advertise = config.advertise or address_text(base)
        if not _has_port(advertise):
            advertise = f"{advertise}:{base[1]}"
        names = [(_bracketed(sock.getsockname()[0]), sock.getsockname()[1]) for sock in sockets]
        names.append((_bracketed(base[0]), base[1]))
        host, _, port = advertise.rpartition(":")
        # An advertised name means this edge on any port, for what stands before it may listen elsewhere; an address
        # is ours on the port that we have.
        names.append((host, int(port) if _is_literal(host) else 0))
        if config.secret_file is not None:
            secret = hashlib.sha256(config.secret_file.read_bytes()).digest()[:16]
        else:
            secret = secrets.token_bytes(16)
        self.table = ConnectionTable(config.max_connections, self.policy.identity)
        fastws.connections.bind(self.table)
        self.buffer = ReadBuffer()
        if upstream is None:
            from fastws.sip.registrar import Registrar

            self._registrar = Registrar(
                domains=config.domains,
                min_expires=config.min_expires,
                max_expires=config.max_expires,
                default_expires=config.default_expires,
                realm=config.realm,
                users=config.users or None,
            )
        self.edge = Edge(
            self._loop,
            self.table,
            self.policy,
            advertise=advertise.encode("ascii"),
            names=names,
            secret=secret,
            epoch=secrets.randbits(32),
            privacy=config.privacy,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
            report=Reporter(),
            flow_ended=self._registrar.flow_ended if self._registrar is not None else None,
        )
        self.edge.set_trusted([(str(network.network_address), network.prefixlen) for network in config.trusted])
        if self._registrar is not None:
            registrar, clock = self._registrar, self._loop.time
            local = LocalTransport(self._loop, lambda message: registrar.receive(message, clock()), self.edge)
            self.edge.set_upstream(local, "fastws.invalid", 5060, [])
            return
        assert upstream is not None
        self._udp = UdpTransport(self._loop, sip_sockets[0], self.edge)
        self.edge.set_udp(self._udp)
        if upstream.transport == "udp":
            self.edge.set_upstream(self._udp, upstream.host, upstream.port, addresses)
        else:
            self._upstream = StreamUpstream(
                self._loop,
                self.edge,
                addresses[0],
                upstream.port,
                make=self._make_stream,
                on_failed=self.edge.undelivered,
                on_ended=self.edge.lost,
                max_queue_bytes=config.max_queue_bytes,
            )
            self.edge.set_upstream(self._upstream, upstream.host, upstream.port, addresses)
            self._upstream.start()

    def _make_stream(self, on_lost: Callable[[Any], None] | None = None) -> StreamConnection:
        accepted = on_lost is None

        def made(connection: StreamConnection) -> None:
            self._streams.add(connection)
            if accepted and not self.edge.add_stream(connection):
                connection.close()

        def lost(connection: StreamConnection) -> None:
            self._streams.discard(connection)
            if on_lost is None:
                self.edge.drop_stream(connection)
            else:
                on_lost(connection)

        return StreamConnection(
            self.edge,
            self.buffer,
            max_message_bytes=self.config.max_message_bytes + 4096,  # what our own headers may add
            max_queue_bytes=self.config.max_queue_bytes,
            on_lost=lost,
            on_made=made,
        )

    async def _open(self, sockets: list[socket.socket], sip_sockets: list[socket.socket]) -> None:
        config = self.config
        if sip_sockets:
            self._servers.append(await self._loop.create_server(self._make_stream, sock=sip_sockets[1], backlog=128))
        limits = Limits(max_head_bytes=config.max_head_bytes, max_headers=config.max_headers)
        for listen, sock in zip(config.listen, sockets, strict=True):
            if listen.secure and self._tls is None:
                from fastws.tls import server_context

                assert config.tls_cert is not None and config.tls_key is not None
                self._tls = server_context(config.tls_cert, config.tls_key)
            admission = Admission(
                self.policy,
                path=listen.path,
                secure=listen.secure,
                limits=limits,
                proxies=config.proxies,
                on_outcome=self._outcome,
            )
            self._admissions.append(admission)
            listener = WsListener(
                self._loop,
                self.edge,
                self.buffer,
                admission,
                secure=listen.secure,
                max_message_bytes=config.max_message_bytes,
                max_queue_bytes=config.max_queue_bytes,
                head_timeout=config.head_timeout,
            )
            tls: dict[str, Any] = {}
            if listen.secure:
                tls = {"ssl": self._tls, "ssl_handshake_timeout": config.tls_timeout, "ssl_shutdown_timeout": DRAIN_S}
            self.listeners.append(listener)
            self._servers.append(await self._loop.create_server(listener, sock=sock, backlog=BACKLOG, **tls))
            self._urls.append(_url(listen, sock))

    # -- while it runs -------------------------------------------------------------------------------------------------

    def _outcome(self, outcome: int) -> None:
        if outcome != 101:
            self.refused += 1

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period, self._tick)
        self.edge.tick()
        for listener in self.listeners:
            listener.tick()
        for stream in self._streams:
            stream.tick()
        if self._registrar is not None:
            self._registrar.expire(self._loop.time())

    def reload(self) -> None:
        """Load policy and certificate anew, for who comes from now on; what cannot be loaded stays as it was."""
        config = self.config
        try:
            policy = Policy.load(config.policy, timeout=config.policy_timeout)
            guard_open(config, policy)
        except ConfigError as error:
            _log.error("policy not reloaded, the old one stays: %s", error)
        else:
            self.policy = policy
            self.edge.set_policy(policy)
            for admission in self._admissions:
                admission.policy = policy
            _log.info("policy reloaded: %s", policy.describe())
        if self._tls is not None:
            from fastws.tls import server_context

            assert config.tls_cert is not None and config.tls_key is not None
            try:
                # Tried on a context of its own first: half a new certificate would be none.
                server_context(config.tls_cert, config.tls_key)
                self._tls.load_cert_chain(config.tls_cert, config.tls_key)
            except (ConfigError, ssl.SSLError, OSError) as error:
                _log.error("certificate not reloaded, the old one stays: %s", error)
            else:
                _log.info("certificate reloaded")

    def state(self) -> dict[str, Any]:
        """Counts of everything that is open, for the tests and the log."""
        counts = [listener.counts() for listener in self.listeners]
        return {
            **self.edge.state(),
            "refused": self.refused,
            "sockets": sum(count[0] for count in counts),
            "waiting": sum(count[1] for count in counts),
            "streams": len(self._streams),
            "bindings": len(self._registrar) if self._registrar is not None else 0,
        }

    # -- stop ----------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """No new connections; 1001 to all; on_close for each; then the SIP side."""
        for server in self._servers:
            server.close()
        if self.listeners:
            for listener in self.listeners:
                listener.abort_waiting()
            self.edge.close_all(1001, b"going away")
            deadline = self._loop.time() + DRAIN_S
            while any(listener.connections for listener in self.listeners) and self._loop.time() < deadline:
                await asyncio.sleep(0.02)
            await self.policy.drain(CLOSE_POLICY_S)
        if self._timer is not None:
            self._timer.cancel()
        if self._upstream is not None:
            self._upstream.close()
        for stream in list(self._streams):
            stream.close()
        if self._udp is not None:
            self._udp.close()


def _bind(where: str, host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    host = _literal(host)
    sock = None
    try:
        family, _, protocol, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
        raise ConfigError(where, f"cannot listen on {address_text((host, port))}: {reason.lower()}") from None
    return sock


def _local_address_towards(address: str, port: int) -> str:
    # Connecting a datagram socket sends nothing; it makes the system choose the local address.
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError as error:
            raise ConfigError("--upstream", f"expected an address with a route to it, got {address}: {error}") from None
        found: str = probe.getsockname()[0]
        return found


def _literal(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(_literal(host))
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _has_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and not (":" in host and not host.endswith("]"))


def _url(listen: Listen, sock: socket.socket) -> str:
    scheme = "wss" if listen.secure else "ws"
    return f"{scheme}://{address_text(sock.getsockname()[:2])}{listen.path or ''}"

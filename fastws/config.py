"""The configuration: one frozen dataclass whose fields are the flags, the TOML keys, their defaults, ranges and help.

`Config` is the only table. The flags of `fastws serve`, the reader of FILE.toml and what `fastws check` prints are made
from its fields; whoever adds a setting adds one field. A flag wins over the same key of the file. Everything wrong is a
ConfigError of one line: `FILE.toml: key: expected ..., got ...` or `--flag: expected ..., got ...`.

Files that are named here are looked at, so that a mistake is found before anything starts. No socket is opened, no name
resolved, no policy loaded, and no other file reads flags or TOML.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fastws.errors import ConfigError

if TYPE_CHECKING:
    import argparse

__all__ = [
    "Config",
    "Listen",
    "Setting",
    "Upstream",
    "add_flags",
    "describe",
    "guard_open",
    "key_help",
    "load_config",
    "settings",
]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

SIP_PORT = 5060  # RFC 3261 19.1.2: the default for sip: over UDP and TCP
SECRET_BYTES = 16  # the length of a SipHash key


@dataclass(frozen=True, slots=True)
class Listen:
    """One address to listen on. `host` has no brackets; `path` is None for any path, else exactly this one."""

    url: str
    secure: bool
    host: str
    port: int
    path: str | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One SIP server. `transport` is `udp` or `tcp`, `host` a name or an address without brackets.

    `keys` is what its table in the file says beside `uri`; this version knows no such key, so it is empty.
    """

    uri: str
    scheme: str
    transport: str
    host: str
    port: int
    keys: tuple[tuple[str, object], ...] = ()


# Readers: a value from a flag (always text) or from the file (any TOML value), and the folder that a relative path of
# the file starts from, which is None for a flag -> the value of the field. They look at the value alone; what needs the
# file system or another field is in _verify.

Reader: TypeAlias = Callable[[Any, Path | None], object]


class _Unfit(Exception):
    """The value is not what its key takes. Completes "expected ..., got ..."; `got` is the value if not given."""

    def __init__(self, expected: str, got: str | None = None) -> None:
        super().__init__(expected)
        self.expected = expected
        self.got = got


def _shown(value: object) -> str:
    """A value as people know it from TOML, on one line, cut where it gets long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value) if len(value) <= 100 else f"{value[:97]!r}..."
    if isinstance(value, (int, float)):
        return f"{value}" if abs(value) < 10**15 or value != value else "a number too large"
    if isinstance(value, list):
        return "an array"
    return "a table" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _flag_or(value: bool, _: Path | None) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("true or false")
    return value


def _proxy_protocol(value: bool, _: Path | None) -> bool:
    if value is not False:
        raise _Unfit("false, as this version does not read PROXY protocol")
    return value


def _seconds(value: float, _: Path | None) -> float:
    # At least a millisecond, the unit of every deadline; at most a day, so that no deadline overflows 32 bits.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.001 <= value <= 86_400:
        raise _Unfit("seconds from 0.001 to 86400")
    return float(value)


def _integer(low: int, high: int) -> Reader:
    def read(value: int, _: Path | None) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _Unfit(f"an integer from {low} to {high}")
        return value

    return read


def _workers(value: int | str, _: Path | None) -> int:
    if isinstance(value, bool) or value not in (1, "1"):
        raise _Unfit("1, as this version runs one worker")
    return 1


def _choice(*names: str) -> Reader:
    def read(value: str, _: Path | None) -> str:
        if not isinstance(value, str) or value.lower() not in names:
            raise _Unfit(f"{', '.join(names[:-1])} or {names[-1]}")
        return value.lower()

    return read


def _file(value: str, folder: Path | None) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _Unfit("the path of a file")
    return Path(value) if folder is None else folder / value


def _realm(value: str, _: Path | None) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or '"' in value or "\\" in value:
        raise _Unfit("printable text without quotes and backslashes")
    return value


def _many(read: Reader, at_least_one: bool = False) -> Callable[[Any, Path | None], tuple[object, ...]]:
    """A tuple: a flag given many times, or one value or an array of values in the file."""

    def read_all(value: Any, folder: Path | None) -> tuple[object, ...]:
        if not isinstance(value, (list, tuple)):
            value = [value]
        if at_least_one and not value:
            raise _Unfit("at least one", "none")
        found = []
        for item in value:
            try:
                found.append(read(item, folder))
            except _Unfit as unfit:
                raise _Unfit(unfit.expected, unfit.got or _shown(item)) from None
        return tuple(found)

    return read_all


_HOST_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"/[A-Za-z0-9/._~!$&'()*+,;=:@%-]*")  # RFC 3986 3.3


def _host_port(text: str) -> tuple[str, int | None] | None:
    """HOST, HOST:PORT, [V6] or [V6]:PORT -> the host without brackets and the port 1..65535 or None; else None."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        return None
    host, port = match[1], int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65_535:
        return None
    try:
        if host.startswith("["):
            return str(ipaddress.IPv6Address(host[1:-1])), port
        if re.fullmatch(r"[0-9.]*", host):  # a name has a letter in its last label; this is or would be an address
            return str(ipaddress.IPv4Address(host)), port
    except ValueError:
        return None
    labels = host.removesuffix(".").split(".")
    return (host, port) if len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listen(value: str, _: Path | None) -> Listen:
    expected = "ws://HOST:PORT[/PATH] or wss://HOST:PORT[/PATH]"
    scheme, colon, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not colon or scheme.lower() not in ("ws", "wss"):
        raise _Unfit(expected)
    authority, slash, path = rest.partition("/")
    address = _host_port(authority)
    if address is None or address[1] is None or not _PATH.fullmatch("/" + path):
        raise _Unfit(expected)
    return Listen(value, scheme.lower() == "wss", address[0], address[1], slash + path if slash else None)


_SERVED = "sip:HOST[:PORT][;transport=udp|tcp]"
_NOT_SERVED = "one udp or tcp upstream, which is what this version serves"
_UPSTREAM_SCHEMES = frozenset({"sip", "sips", "ws", "wss"})


def _upstream(value: str | Mapping[str, object], _: Path | None) -> Upstream:
    if isinstance(value, Mapping):
        for name in value:
            if name != "uri":
                raise _Unfit("a table with the key uri alone", f"the key {name!r}")
        uri = value.get("uri")
        if not isinstance(uri, str):
            raise _Unfit(f"a table with uri = {_SERVED!r}", "none" if uri is None else _shown(uri))
        try:
            return _upstream(uri, None)
        except _Unfit as unfit:
            raise _Unfit(unfit.expected, unfit.got or _shown(uri)) from None
    if not isinstance(value, str):
        raise _Unfit(_SERVED)
    scheme, colon, rest = value.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in _UPSTREAM_SCHEMES:
        raise _Unfit(_SERVED)
    if scheme != "sip":
        raise _Unfit(_NOT_SERVED)
    authority, *parameters = rest.split(";")
    address = _host_port(authority)
    if address is None:
        raise _Unfit(_SERVED)
    transport = "udp"
    for position, parameter in enumerate(parameters):
        name, _equals, transport = parameter.lower().partition("=")
        if name != "transport" or position > 0:
            raise _Unfit(_SERVED)
        if transport in ("tls", "ws", "wss"):
            raise _Unfit(_NOT_SERVED)
        if transport not in ("udp", "tcp"):
            raise _Unfit(_SERVED)
    return Upstream(value, scheme, transport, address[0], address[1] or SIP_PORT)


def _upstreams(value: Any, folder: Path | None) -> tuple[object, ...]:
    found = _many(_upstream)(value, folder)
    if len(found) > 1:
        raise _Unfit(_NOT_SERVED, f"{len(found)} of them")
    return found


def _address(value: str, _: Path | None) -> tuple[str, int]:
    address = _host_port(value) if isinstance(value, str) else None
    if address is None or address[1] is None:
        raise _Unfit("HOST:PORT")
    return address[0], address[1]


def _sent_by(value: str, _: Path | None) -> str:
    """sent-by = host [ COLON port ], as it will stand in Via. RFC 3261 25.1."""
    address = _host_port(value) if isinstance(value, str) else None
    if address is None:
        raise _Unfit("HOST or HOST:PORT")
    host, port = address
    return _bracketed(host) if port is None else f"{_bracketed(host)}:{port}"


def _network(value: str, _: Path | None) -> Network:
    try:
        if isinstance(value, str):
            return ipaddress.ip_network(value)
    except ValueError:
        pass
    raise _Unfit("a network such as 192.0.2.0/24, without bits behind its prefix, or an address")


def _domain(value: str, _: Path | None) -> str:
    """The host part of a SIP URI, in lower case (RFC 3261 19.1.4 compares it without case)."""
    address = _host_port(value) if isinstance(value, str) else None
    if address is None or address[1] is not None:
        raise _Unfit("a domain such as example.com, without port")
    return _bracketed(address[0]).lower()


def _users(value: Mapping[str, object], _: Path | None) -> Mapping[str, str]:
    expected = 'a table of user = "password"'
    if not isinstance(value, Mapping):
        raise _Unfit(expected)
    for name, password in value.items():
        # A colon or a control character cannot be part of what RFC 7616 3.4.2 hashes: user:realm:password.
        if not name or not name.isprintable() or ":" in name:
            raise _Unfit(expected, f"the user {name!r}")
        if not isinstance(password, str) or not password:  # the password itself must not be shown
            got = "an empty one" if password == "" else "something else"
            raise _Unfit(f"a password in quotes for {name!r}", got)
    return MappingProxyType({str(name): str(password) for name, password in value.items()})


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a field of Config beside its name, type and default. A setting without `flag` is a key only."""

    read: Reader
    help: str
    flag: str | None = None
    metavar: str | None = None
    many: bool = False
    told: bool = False  # `check` tells it in a line of its own


def _key(
    read: Reader,
    help: str,
    flag: str | None = None,
    metavar: str | None = None,
    many: bool = False,
    told: bool = False,
) -> dict[str, Setting]:
    return {"setting": Setting(read, help, flag, metavar, many, told)}


_ANYWHERE: Listen = Listen("ws://127.0.0.1:8080", False, "127.0.0.1", 8080, None)
_NOBODY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set. The name of a field is the name of its key in FILE.toml."""

    listen: tuple[Listen, ...] = field(
        default=(_ANYWHERE,),
        metadata=_key(
            _many(_listen, at_least_one=True),
            "where clients connect: ws:// or wss://HOST:PORT[/PATH]; any path if none is given; may be repeated "
            "(default: ws://127.0.0.1:8080)",
            flag="--listen", metavar="URL", many=True, told=True,
        ),
    )
    upstream: tuple[Upstream, ...] = field(
        default=(),
        metadata=_key(
            _upstreams,
            "the SIP server behind: sip:HOST[:PORT][;transport=udp|tcp]; without one, clients register with fastws",
            flag="--upstream", metavar="URI", many=True, told=True,
        ),
    )
    policy: Path | None = field(
        default=None,
        metadata=_key(
            _file, "the policy: a Python file with on_handshake, on_request, on_close",
            flag="--policy", metavar="FILE.py", told=True,
        ),
    )
    sip: tuple[str, int] | None = field(
        default=None,
        metadata=_key(
            _address,
            "the local address of the SIP side, UDP and TCP "
            "(default: port 5070 on the address from which the upstream is reached)",
            flag="--sip", metavar="HOST:PORT", told=True,
        ),
    )
    advertise: str | None = field(
        default=None,
        metadata=_key(_sent_by, "host or host:port for Via, Path and Record-Route instead of sip", told=True),
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=_key(
            _file, "certificate chain in PEM, for wss://",
            flag="--tls-cert", metavar="FILE", told=True,
        ),
    )
    tls_key: Path | None = field(
        default=None,
        metadata=_key(_file, "its private key in PEM", flag="--tls-key", metavar="FILE", told=True),
    )
    workers: int = field(
        default=1,
        metadata=_key(_workers, "processes; this version runs 1", flag="--workers", metavar="N"),
    )
    ping_interval: float = field(
        default=30.0, metadata=_key(_seconds, "seconds of silence before a client is sent a WebSocket ping")
    )
    ping_timeout: float = field(
        default=10.0, metadata=_key(_seconds, "seconds for its pong; then the connection is closed")
    )
    head_timeout: float = field(default=10.0, metadata=_key(_seconds, "seconds for a client to send its HTTP request"))
    policy_timeout: float = field(default=5.0, metadata=_key(_seconds, "seconds for a function of the policy"))
    tls_timeout: float = field(default=10.0, metadata=_key(_seconds, "seconds for a TLS handshake"))
    max_message_bytes: int = field(
        default=65_536, metadata=_key(_integer(1024, 16 << 20), "longest SIP message accepted; beyond it: close 1009")
    )
    max_head_bytes: int = field(
        default=8192, metadata=_key(_integer(512, 1 << 20), "longest HTTP request of a handshake")
    )
    max_headers: int = field(
        default=64, metadata=_key(_integer(8, 1024), "most header fields in the HTTP request of a handshake")
    )
    max_queue_bytes: int = field(
        default=1_048_576,
        metadata=_key(_integer(1024, 1 << 30), "what may wait for one slow client; beyond it the client is closed"),
    )
    max_connections: int = field(
        default=100_000, metadata=_key(_integer(1, 1_000_000), "most connections at the same time")
    )
    trusted: tuple[Network, ...] = field(
        default=(), metadata=_key(_many(_network), "networks whose SIP is accepted beside the upstream's")
    )
    proxies: tuple[Network, ...] = field(
        default=(), metadata=_key(_many(_network), "networks whose X-Forwarded-For is believed")
    )
    proxy_protocol: bool = field(
        default=False, metadata=_key(_proxy_protocol, "listeners expect PROXY protocol; this version: false")
    )
    domains: tuple[str, ...] = field(
        default=(), metadata=_key(_many(_domain), "the SIP domains of the embedded registrar; none: any")
    )
    open: bool = field(
        default=False, metadata=_key(_flag_or, "let anyone register with the embedded registrar, beyond loopback too")
    )
    secret_file: Path | None = field(
        default=None,
        metadata=_key(_file, "at least 16 random bytes that seal references, so that these outlive a restart"),
    )
    privacy: bool = field(default=False, metadata=_key(_flag_or, "honour Privacy: id (RFC 3323, 3325)"))
    min_expires: int = field(
        default=60, metadata=_key(_integer(1, 604_800), "seconds; a registration for less gets 423")
    )
    max_expires: int = field(
        default=3600, metadata=_key(_integer(1, 604_800), "seconds; a registration for more gets this")
    )
    default_expires: int = field(
        default=600, metadata=_key(_integer(1, 604_800), "seconds; a registration that does not say gets this")
    )
    realm: str | None = field(
        default=None,
        metadata=_key(_realm, "realm of the embedded registrar (default: the first domain, or fastws)", told=True),
    )
    users: Mapping[str, str] = field(
        default_factory=lambda: _NOBODY,
        repr=False,  # passwords
        metadata=_key(_users, 'user = "password": who may register with the embedded registrar', told=True),
    )
    log_format: str = field(
        default="text",
        metadata=_key(
            _choice("text", "json"), "form of a log line (default: text)",
            flag="--log-format", metavar="text|json",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_key(
            _choice("debug", "info", "warning", "error", "critical"), "least level that is logged (default: info)",
            flag="--log-level", metavar="LEVEL",
        ),
    )

    @classmethod
    def from_sources(cls, flags: Mapping[str, object], file: Path | None = None) -> Config:
        """The configuration of `flags` (field name -> text, list of texts, or None for not given) over `file`.

        Raises ConfigError for the first thing that is wrong: in the file from top to bottom, then in the flags, then
        in what they say together.
        """
        known = settings()
        values: dict[str, Any] = {}
        labels: dict[str, str] = {}
        sources: list[tuple[Mapping[str, object], Path | None]] = [(flags, None)]
        if file is not None:
            sources.insert(0, (_read_toml(file), file))
        for table, origin in sources:
            for name, value in table.items():
                setting = known.get(name)
                label = _label(name, origin, setting)
                if setting is None:
                    raise ConfigError(label, _unknown(name, known))
                if value is None:
                    continue
                try:
                    values[name] = setting.read(value, None if origin is None else origin.parent)
                except _Unfit as unfit:
                    raise ConfigError(label, f"expected {unfit.expected}, got {unfit.got or _shown(value)}") from None
                labels[name] = label
        return _verify(_completed(values), labels)


def settings() -> dict[str, Setting]:
    """Field name -> Setting, in the order of Config."""
    return {entry.name: entry.metadata["setting"] for entry in fields(Config)}


def _label(name: str, origin: Path | None, setting: Setting | None) -> str:
    if origin is not None:
        return f"{origin}: {name}"
    return setting.flag if setting is not None and setting.flag else name


def _unknown(name: str, known: Iterable[str]) -> str:
    import difflib  # only for those who mistype

    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1)
    return "expected a known key, got an unknown one" + (f"; did you mean {near[0]}?" if near else "")


def _read_toml(file: Path) -> dict[str, object]:
    import tomllib

    text = _readable(file, str(file), "a TOML file")
    try:
        return tomllib.loads(text.decode())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(file), f"expected TOML, got a syntax error: {error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(file), f"expected TOML in UTF-8, got other bytes (at line {line})") from None
    except RecursionError:
        raise ConfigError(str(file), "expected TOML, got arrays or tables nested too deeply") from None
    except ValueError as error:  # what tomllib lets through: an integer of thousands of digits
        raise ConfigError(str(file), f"expected TOML, got a value that cannot be read: {error}") from None


def _readable(path: Path, label: str, what: str, length: int = -1) -> bytes:
    """The first `length` bytes of a file, all of them for -1; ConfigError if it cannot be read."""
    at = "" if label == str(path) else f" ({path})"
    try:
        with open(path, "rb") as stream:
            return stream.read(length)
    except OSError as error:
        raise ConfigError(label, f"expected {what}, got: {error.strerror}{at}") from None
    except ValueError:
        raise ConfigError(label, f"expected {what}, got a path with a NUL in it") from None


def _completed(values: dict[str, Any]) -> Config:
    """Fill in what follows from other settings, where the user did not say."""
    if "default_expires" not in values:
        low = values.get("min_expires", 60)
        values["default_expires"] = max(low, min(600, values.get("max_expires", 3600)))
    if values.get("users") and "realm" not in values:
        values["realm"] = next(iter(values.get("domains", ())), "fastws")
    return Config(**values)


def _verify(config: Config, labels: Mapping[str, str]) -> Config:
    """Check what no value shows alone: files, and settings that must fit each other."""

    def wrong(name: str, expected: str, got: str) -> ConfigError:
        return ConfigError(labels.get(name, name), f"expected {expected}, got {got}")

    seen: dict[tuple[str, int], str] = {}
    for listen in config.listen:
        # Two paths of one address would need one socket for both; each listener has its own.
        address = (listen.host.lower(), listen.port)
        if address in seen:
            raise wrong("listen", "each address once", f"{seen[address]!r} and {listen.url!r}")
        seen[address] = listen.url

    if config.policy is not None:
        _readable(config.policy, labels["policy"], "a Python file", 1)
    for present, absent in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(config, present) is not None and getattr(config, absent) is None:
            raise wrong(present, f"{absent} beside it", "none")
    secure = next((listen for listen in config.listen if listen.secure), None)
    if secure is not None and config.tls_cert is None:
        raise wrong("listen", f"tls_cert and tls_key for {secure.url!r}", "none")
    if config.tls_cert is not None and config.tls_key is not None:
        from fastws.tls import server_context  # costs OpenSSL's start; not everyone listens on wss://

        try:
            server_context(config.tls_cert, config.tls_key)
        except ConfigError as error:
            name = "tls_key" if error.where == str(config.tls_key) else "tls_cert"
            raise ConfigError(labels[name], f"{error.problem} ({error.where})") from None

    if config.secret_file is not None:
        _verify_secret(config.secret_file, labels["secret_file"])
    if config.min_expires > config.max_expires:
        name = "min_expires" if "min_expires" in labels else "max_expires"
        raise wrong(name, "min_expires <= max_expires", f"{config.min_expires} > {config.max_expires}")
    if not config.min_expires <= config.default_expires <= config.max_expires:
        expected = f"an integer from min_expires {config.min_expires} to max_expires {config.max_expires}"
        raise wrong("default_expires", expected, str(config.default_expires))
    # Someone who wrote down passwords must not be left believing that they are asked for.
    if config.users and config.upstream:
        raise wrong("users", "no upstream beside it, as an upstream authenticates itself", config.upstream[0].uri)
    if config.realm is not None and not config.users:
        raise wrong("realm", "a users table beside it", "none")
    return config


def _verify_secret(path: Path, label: str) -> None:
    what = f"a file of at least {SECRET_BYTES} bytes"
    length = len(_readable(path, label, what, SECRET_BYTES))
    if length < SECRET_BYTES:
        raise ConfigError(label, f"expected {what}, got {length} ({path})")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(label, f"expected a file that others cannot read or write, got mode {mode:04o} ({path})")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser --config and the flag of each setting that has one. They keep texts; from_sources reads them."""
    parser.add_argument("--config", metavar="FILE.toml", help="the same settings and more as keys; a flag wins")
    for name, setting in settings().items():
        if setting.flag is not None:
            parser.add_argument(
                setting.flag,
                dest=name,
                metavar=setting.metavar,
                action="append" if setting.many else "store",
                help=setting.help.replace("%", "%%"),
            )


def key_help() -> str:
    """The keys of FILE.toml that have no flag, one a line with its default, for the end of --help."""
    plain = Config()
    lines = ["keys of FILE.toml that have no flag, with their defaults:"]
    for name, setting in settings().items():
        if setting.flag is None:
            default = getattr(plain, name)
            shown = _toml(default) if default is not None and default != _NOBODY else ""
            lines.append(f"  {name:<17} {shown:<8} {setting.help}")
    return "\n".join(lines)


def load_config(arguments: argparse.Namespace) -> Config:
    """The configuration of what a parser made by add_flags has read. Raises ConfigError."""
    flags = {name: getattr(arguments, name, None) for name, setting in settings().items() if setting.flag is not None}
    return Config.from_sources(flags, None if arguments.config is None else Path(arguments.config))


class Hooks(Protocol):
    """The part of a loaded policy that guard_open looks at."""

    @property
    def on_handshake(self) -> object | None: ...


def guard_open(config: Config, policy: Hooks | None) -> None:
    """Refuse to offer the world a registrar that asks nobody who they are.

    Raises ConfigError if the embedded registrar would serve (no upstream) beyond loopback while neither the policy has
    on_handshake nor users are configured, unless `open = true` says that it is meant.
    """
    if config.upstream or config.users or config.open or (policy is not None and policy.on_handshake is not None):
        return
    beyond = next((listen for listen in config.listen if not _is_loopback(listen.host)), None)
    if beyond is not None:
        raise ConfigError(
            "open",
            "expected `open = true`, a users table or a policy with on_handshake, as anyone could register "
            f"at {beyond.url}, got none",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"  # RFC 6761 6.3


def describe(config: Config) -> list[tuple[str, str]]:
    """What would run, as (subject, text) pairs; settings that differ from their defaults come last. No passwords."""
    lines = []
    for listen in config.listen:
        where = "any path" if listen.path is None else f"path {listen.path} only"
        lines.append(("listen", f"{listen.url} ({where})"))
    if any(listen.secure for listen in config.listen):
        lines.append(("tls", f"certificate {config.tls_cert}, key {config.tls_key}"))
    for upstream in config.upstream:
        lines.append(("upstream", f"{upstream.uri} ({upstream.transport} to {upstream.host}, port {upstream.port})"))
    if not config.upstream:
        who = f"users of realm {config.realm}: {len(config.users)}" if config.users else "no passwords"
        lines.append(("upstream", f"none: the embedded registrar, {who}"))
    if not config.upstream:
        side = "none, as there is no upstream"
    elif config.sip is not None:
        side = f"{_bracketed(config.sip[0])}:{config.sip[1]}"
    else:
        side = "port 5070 of the address from which the upstream is reached"
    lines.append(("sip", side + (f", advertised as {config.advertise}" if config.advertise else "")))
    plain = Config()
    for name, setting in settings().items():
        value, default = getattr(config, name), getattr(plain, name)
        if not setting.told and value != default:
            lines.append(("setting", f"{name} = {_toml(value)} (default {_toml(default)})"))
    return lines


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return "none" if value is None else f'"{value}"'

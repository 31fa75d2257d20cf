"""Configuration: every key and flag, what each refuses, and in which words."""

from __future__ import annotations

import argparse
import ipaddress
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastws.config import (
    Config,
    Listen,
    Upstream,
    add_flags,
    describe,
    guard_open,
    key_help,
    load_config,
    settings,
)
from fastws.errors import ConfigError
from tests.conftest import Certificate, make_certificate


def from_toml(folder: Path, text: str, **flags: object) -> Config:
    file = folder / "edge.toml"
    file.write_text(text)
    return Config.from_sources(flags, file)


def refusal(folder: Path | None, text: str, **flags: object) -> str:
    """What is said of a configuration, which must be one line; without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        if folder is None:
            Config.from_sources(flags)
        else:
            from_toml(folder, text, **flags)
    said = str(caught.value)
    assert "\n" not in said
    return said if folder is None else said.replace(f"{folder}/", "")


# Defaults and where values come from


def test_without_flags_and_file_the_defaults_of_the_contract_hold() -> None:
    config = Config.from_sources({})
    assert config == Config()
    assert config.listen == (Listen("ws://127.0.0.1:8080", False, "127.0.0.1", 8080, None),)
    assert {entry.name: getattr(config, entry.name) for entry in fields(Config) if entry.name != "listen"} == {
        "upstream": (), "policy": None, "sip": None, "advertise": None, "tls_cert": None, "tls_key": None, "workers": 1,
        "ping_interval": 30, "ping_timeout": 10, "head_timeout": 10, "policy_timeout": 5, "tls_timeout": 10,
        "max_message_bytes": 65536, "max_head_bytes": 8192, "max_headers": 64, "max_queue_bytes": 1048576,
        "max_connections": 100000, "trusted": (), "proxies": (), "proxy_protocol": False, "domains": (), "open": False,
        "secret_file": None, "privacy": False, "min_expires": 60, "max_expires": 3600, "default_expires": 600,
        "realm": None, "users": {}, "log_format": "text", "log_level": "info",
    }  # fmt: skip


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().workers = 2  # type: ignore[misc]


def test_a_flag_wins_over_the_file_and_replaces_its_list(tmp_path: Path) -> None:
    text = 'listen = ["ws://127.0.0.1:1", "ws://127.0.0.1:2"]\nlog_level = "debug"\nlog_format = "json"\n'
    config = from_toml(tmp_path, text, listen=["ws://127.0.0.1:3"], log_level="error", log_format=None)
    assert [listen.port for listen in config.listen] == [3]
    assert (config.log_level, config.log_format) == ("error", "json")


def test_every_flag_is_a_key_of_the_same_name() -> None:
    flags = {name: setting.flag for name, setting in settings().items() if setting.flag is not None}
    assert flags == {
        name: "--" + name.replace("_", "-")
        for name in ("listen", "upstream", "policy", "sip", "tls_cert", "tls_key", "workers", "log_format", "log_level")
    }


def test_the_flags_of_a_parser_reach_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "p.py").touch()
    (tmp_path / "edge.toml").write_text("ping_interval = 5\n")
    parser = argparse.ArgumentParser()
    add_flags(parser)
    arguments = parser.parse_args(
        [
            "--config", str(tmp_path / "edge.toml"), "--listen", "ws://[::1]:8080/ws", "--listen", "ws://127.0.0.1:81",
            "--upstream", "sip:pbx.example.com", "--policy", str(tmp_path / "p.py"), "--sip", "[::1]:5070",
            "--workers", "1", "--log-format", "JSON", "--log-level", "Warning",
        ]
    )  # fmt: skip
    config = load_config(arguments)
    assert config.listen == (
        Listen("ws://[::1]:8080/ws", False, "::1", 8080, "/ws"),
        Listen("ws://127.0.0.1:81", False, "127.0.0.1", 81, None),
    )
    assert config.upstream == (Upstream("sip:pbx.example.com", "sip", "udp", "pbx.example.com", 5060),)
    assert config.policy == tmp_path / "p.py"
    assert config.sip == ("::1", 5070)
    assert (config.ping_interval, config.workers, config.log_format, config.log_level) == (5.0, 1, "json", "warning")


def test_paths_in_the_file_start_from_its_folder_and_paths_in_flags_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc, here = tmp_path / "etc", tmp_path / "here"
    etc.mkdir()
    here.mkdir()
    (etc / "policy.py").touch()
    (here / "other.py").touch()
    monkeypatch.chdir(here)
    assert from_toml(etc, 'policy = "policy.py"').policy == etc / "policy.py"
    assert from_toml(etc, 'policy = "policy.py"', policy="other.py").policy == Path("other.py")
    assert from_toml(etc, f'policy = "{here}/other.py"').policy == here / "other.py"


def test_every_key_of_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "secret").chmod(0o600)
    config = from_toml(
        tmp_path,
        """
        listen = "ws://0.0.0.0:8080/"
        sip = "10.0.0.1:5060"
        advertise = "edge.example.com:5060"
        workers = 1
        ping_interval = 0.5
        ping_timeout = 1
        head_timeout = 2
        policy_timeout = 3
        tls_timeout = 4
        max_message_bytes = 1024
        max_head_bytes = 4096
        max_headers = 32
        max_queue_bytes = 2048
        max_connections = 10
        trusted = ["10.0.0.0/8", "2001:db8::/32"]
        proxies = "192.0.2.1"
        proxy_protocol = false
        domains = ["Example.com", "192.0.2.1", "[2001:DB8::1]"]
        open = true
        secret_file = "secret"
        privacy = true
        min_expires = 10
        max_expires = 20
        default_expires = 15
        realm = "example"
        log_format = "json"
        log_level = "debug"
        [users]
        alice = "wonder"
        """,
    )
    assert config.listen == (Listen("ws://0.0.0.0:8080/", False, "0.0.0.0", 8080, "/"),)
    assert config.advertise == "edge.example.com:5060"
    assert config.trusted == (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32"))
    assert config.proxies == (ipaddress.ip_network("192.0.2.1/32"),)
    assert config.domains == ("example.com", "192.0.2.1", "[2001:db8::1]")
    assert config.secret_file == tmp_path / "secret"
    assert config.users == {"alice": "wonder"}
    assert config.realm == "example"
    assert (config.open, config.privacy) == (True, True)
    assert (config.ping_interval, config.ping_timeout, config.head_timeout) == (0.5, 1.0, 2.0)
    assert (config.policy_timeout, config.tls_timeout) == (3.0, 4.0)
    assert (config.max_message_bytes, config.max_head_bytes, config.max_headers) == (1024, 4096, 32)
    assert (config.max_queue_bytes, config.max_connections) == (2048, 10)
    assert (config.min_expires, config.default_expires, config.max_expires) == (10, 15, 20)


# Values


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://127.0.0.1:8080", (False, "127.0.0.1", 8080, None)),
        ("ws://127.0.0.1:8080/", (False, "127.0.0.1", 8080, "/")),
        ("ws://edge.example.com:80/ws/sip", (False, "edge.example.com", 80, "/ws/sip")),
        ("WS://[::]:65535", (False, "::", 65535, None)),
        ("ws://[2001:DB8:0::1]:1/%20", (False, "2001:db8::1", 1, "/%20")),
    ],
)
def test_a_listen_url_is_taken_apart(url: str, expected: tuple[Any, ...]) -> None:
    assert Config.from_sources({"listen": [url]}).listen == (Listen(url, *expected),)


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:8080", "http://127.0.0.1:8080", "ws:127.0.0.1:8080", "ws://127.0.0.1", "ws://:8080",
        "ws://127.0.0.1:", "ws://127.0.0.1:0", "ws://127.0.0.1:65536", "ws://127.0.0.1:80a", "ws://127.0.0.1:-1",
        "ws://127.0.0.1:٨٠", "ws://::1:8080", "ws://[::1]", "ws://[::1]8080", "ws://[::g]:80", "ws://[127.0.0.1]:80",
        "ws://1.2.3:80", "ws://256.0.0.1:80", "ws://user@h:80", "ws://h:80/?q", "ws://h:80/#f", "ws://h:80/a b",
        "ws://h:80?q", "ws://h:80/\n", "ws://-h:80", "ws://h-:80", "ws://a..b:80", f"ws://{'a' * 64}:80",
        f"ws://{'a.' * 127}b:80", " ws://h:80", "ws://h:80 ",
    ],
)  # fmt: skip
def test_a_listen_url_that_is_none_is_refused(url: str) -> None:
    assert refusal(None, "", listen=[url]).startswith(
        "--listen: expected ws://HOST:PORT[/PATH] or wss://HOST:PORT[/PATH], got '"
    )


@pytest.mark.parametrize(
    ("uri", "transport", "host", "port"),
    [
        ("sip:pbx.example.com", "udp", "pbx.example.com", 5060),
        ("sip:10.0.0.1:5070;transport=udp", "udp", "10.0.0.1", 5070),
        ("SIP:[::1];transport=TCP", "tcp", "::1", 5060),
        ("sip:[::1]:5071;Transport=tcp", "tcp", "::1", 5071),
    ],
)
def test_an_upstream_may_be_a_string_an_array_a_table_or_an_array_of_tables(
    tmp_path: Path, uri: str, transport: str, host: str, port: int
) -> None:
    expected = (Upstream(uri, "sip", transport, host, port, ()),)
    assert Config.from_sources({"upstream": [uri]}).upstream == expected
    assert from_toml(tmp_path, f'upstream = "{uri}"').upstream == expected
    assert from_toml(tmp_path, f'upstream = ["{uri}"]').upstream == expected
    assert from_toml(tmp_path, f'[upstream]\nuri = "{uri}"').upstream == expected
    assert from_toml(tmp_path, f'[[upstream]]\nuri = "{uri}"').upstream == expected


@pytest.mark.parametrize(
    "uri",
    [
        "", "pbx.example.com", "sip:", "sip://pbx", "sip:alice@pbx", "sip:pbx:0", "sip:pbx:70000", "sip:pbx;lr",
        "sip:pbx;transport", "sip:pbx;transport=", "sip:pbx;transport=sctp", "sip:pbx;transport=udp;transport=tcp",
        "sip:pbx?x=y", "sip:::1", "tel:123", "http://pbx",
    ],
)  # fmt: skip
def test_an_upstream_that_is_no_sip_uri_is_refused(uri: str) -> None:
    assert refusal(None, "", upstream=[uri]) == (
        f"--upstream: expected sip:HOST[:PORT][;transport=udp|tcp], got {uri!r}"
    )


@pytest.mark.parametrize(
    "uri",
    ["sip:pbx;transport=tls", "sip:pbx;transport=ws", "sips:pbx", "ws://pbx:8088/ws", "wss://pbx/ws", "WSS://pbx/ws"],
)
def test_an_upstream_that_this_version_does_not_serve_is_refused_in_words_that_say_so(uri: str) -> None:
    assert refusal(None, "", upstream=[uri]) == (
        f"--upstream: expected one udp or tcp upstream, which is what this version serves, got {uri!r}"
    )


def test_a_second_upstream_is_refused(tmp_path: Path) -> None:
    expected = "expected one udp or tcp upstream, which is what this version serves, got 2 of them"
    assert refusal(None, "", upstream=["sip:a", "sip:b"]) == f"--upstream: {expected}"
    assert refusal(tmp_path, 'upstream = ["sip:a", "sip:b"]') == f"edge.toml: upstream: {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[upstream]", "a table with uri = 'sip:HOST[:PORT][;transport=udp|tcp]', got none"),
        ("[upstream]\nuri = 1", "a table with uri = 'sip:HOST[:PORT][;transport=udp|tcp]', got 1"),
        ('[upstream]\nuri = "pbx"', "sip:HOST[:PORT][;transport=udp|tcp], got 'pbx'"),
        ('[upstream]\nuri = "sip:a"\nweight = 1', "a table with the key uri alone, got the key 'weight'"),
        ('upstream = ["sip:a", 5]', "sip:HOST[:PORT][;transport=udp|tcp], got 5"),
        ("upstream = 5", "sip:HOST[:PORT][;transport=udp|tcp], got 5"),
    ],
)
def test_what_is_wrong_inside_an_upstream_is_said(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text) == f"edge.toml: upstream: expected {expected}"


@pytest.mark.parametrize(
    ("text", "advertised"),
    [
        ("edge.example.com", "edge.example.com"), ("192.0.2.1:5060", "192.0.2.1:5060"),
        ("[2001:DB8::1]", "[2001:db8::1]"), ("[2001:db8::1]:5061", "[2001:db8::1]:5061"),
    ],
)  # fmt: skip
def test_advertise_is_a_sent_by(tmp_path: Path, text: str, advertised: str) -> None:
    assert from_toml(tmp_path, f'advertise = "{text}"').advertise == advertised


BETWEEN = "an integer from min_expires 60 to max_expires 3600"
NO_PROXY = "false, as this version does not read PROXY protocol"
SECONDS = "seconds from 0.001 to 86400"
NETWORK = "a network such as 192.0.2.0/24, without bits behind its prefix, or an address"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen = 8080", "listen: expected ws://HOST:PORT[/PATH] or wss://HOST:PORT[/PATH], got 8080"),
        ("listen = []", "listen: expected at least one, got none"),
        ("sip = '10.0.0.1'", "sip: expected HOST:PORT, got '10.0.0.1'"),
        ("sip = 5060", "sip: expected HOST:PORT, got 5060"),
        ("sip = '10.0.0.1:0'", "sip: expected HOST:PORT, got '10.0.0.1:0'"),
        ("sip = '::1:5060'", "sip: expected HOST:PORT, got '::1:5060'"),
        ("advertise = 'a b'", "advertise: expected HOST or HOST:PORT, got 'a b'"),
        ("advertise = true", "advertise: expected HOST or HOST:PORT, got true"),
        ("workers = 2", "workers: expected 1, as this version runs one worker, got 2"),
        ("workers = 'auto'", "workers: expected 1, as this version runs one worker, got 'auto'"),
        ("workers = true", "workers: expected 1, as this version runs one worker, got true"),
        ("proxy_protocol = true", f"proxy_protocol: expected {NO_PROXY}, got true"),
        ("proxy_protocol = 0", f"proxy_protocol: expected {NO_PROXY}, got 0"),
        ("ping_interval = 0", f"ping_interval: expected {SECONDS}, got 0"),
        ("ping_timeout = -1.5", f"ping_timeout: expected {SECONDS}, got -1.5"),
        ("head_timeout = nan", f"head_timeout: expected {SECONDS}, got nan"),
        ("policy_timeout = inf", f"policy_timeout: expected {SECONDS}, got a number too large"),
        ("tls_timeout = '5'", f"tls_timeout: expected {SECONDS}, got '5'"),
        ("tls_timeout = true", f"tls_timeout: expected {SECONDS}, got true"),
        ("tls_timeout = 86401", f"tls_timeout: expected {SECONDS}, got 86401"),
        ("max_message_bytes = 1023", "max_message_bytes: expected an integer from 1024 to 16777216, got 1023"),
        ("max_message_bytes = 16777217", "max_message_bytes: expected an integer from 1024 to 16777216, got 16777217"),
        ("max_message_bytes = 2048.0", "max_message_bytes: expected an integer from 1024 to 16777216, got 2048.0"),
        ("max_head_bytes = 0", "max_head_bytes: expected an integer from 512 to 1048576, got 0"),
        ("max_headers = true", "max_headers: expected an integer from 8 to 1024, got true"),
        ("max_queue_bytes = []", "max_queue_bytes: expected an integer from 1024 to 1073741824, got an array"),
        ("max_connections = 0", "max_connections: expected an integer from 1 to 1000000, got 0"),
        ("trusted = '10.0.0.1/8'", f"trusted: expected {NETWORK}, got '10.0.0.1/8'"),
        ("trusted = [1]", f"trusted: expected {NETWORK}, got 1"),
        ("proxies = ['10.0.0.0/33']", f"proxies: expected {NETWORK}, got '10.0.0.0/33'"),
        ("domains = ['a:5060']", "domains: expected a domain such as example.com, without port, got 'a:5060'"),
        ("domains = ['']", "domains: expected a domain such as example.com, without port, got ''"),
        ("open = 1", "open: expected true or false, got 1"),
        ("open = 'true'", "open: expected true or false, got 'true'"),
        ("privacy = {}", "privacy: expected true or false, got a table"),
        ("policy = ''", "policy: expected the path of a file, got ''"),
        ("policy = 1979-05-27", "policy: expected the path of a file, got a date"),
        ("policy = \"a\\u0000b\"", "policy: expected the path of a file, got 'a\\x00b'"),
        ("min_expires = 0", "min_expires: expected an integer from 1 to 604800, got 0"),
        ("min_expires = 4000", "min_expires: expected min_expires <= max_expires, got 4000 > 3600"),
        ("max_expires = 30", "max_expires: expected min_expires <= max_expires, got 60 > 30"),
        ("default_expires = 3601", f"default_expires: expected {BETWEEN}, got 3601"),
        ("default_expires = 59", f"default_expires: expected {BETWEEN}, got 59"),
        ("log_format = 'xml'", "log_format: expected text or json, got 'xml'"),
        ("log_level = 3", "log_level: expected debug, info, warning, error or critical, got 3"),
        ("realm = 'r'", "realm: expected a users table beside it, got none"),
        ("realm = 'a\"b'", "realm: expected printable text without quotes and backslashes, got 'a\"b'"),
        ("users = ['alice']", "users: expected a table of user = \"password\", got an array"),
        ("[users]\n'a:b' = 'x'", "users: expected a table of user = \"password\", got the user 'a:b'"),
        ("[users]\n'' = 'x'", "users: expected a table of user = \"password\", got the user ''"),
        ("[users]\nalice = ''", "users: expected a password in quotes for 'alice', got an empty one"),
        ("[users]\nalice = 5", "users: expected a password in quotes for 'alice', got something else"),
        ("lisen = 'ws://h:1'", "lisen: expected a known key, got an unknown one; did you mean listen?"),
        ("log-level = 'info'", "log-level: expected a known key, got an unknown one; did you mean log_level?"),
        ("zzz = 1", "zzz: expected a known key, got an unknown one"),
    ],
)  # fmt: skip
def test_a_bad_value_names_file_key_what_was_expected_and_what_came(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text) == f"edge.toml: {expected}"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"sip": "5060"}, "--sip: expected HOST:PORT, got '5060'"),
        ({"workers": "0"}, "--workers: expected 1, as this version runs one worker, got '0'"),
        ({"log_format": ""}, "--log-format: expected text or json, got ''"),
        ({"policy": ""}, "--policy: expected the path of a file, got ''"),
        ({"tls_cert": "\0"}, "--tls-cert: expected the path of a file, got '\\x00'"),
        ({"no_such": "1"}, "no_such: expected a known key, got an unknown one"),
    ],
)
def test_a_bad_flag_is_named_as_it_was_given(flags: dict[str, object], expected: str) -> None:
    assert refusal(None, "", **flags) == expected


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    said = refusal(tmp_path, f"log_level = '{'x' * 5000}'")
    assert len(said) < 250 and said.endswith("x'...")


def test_a_bad_key_of_the_file_is_told_though_a_flag_would_win(tmp_path: Path) -> None:
    assert refusal(tmp_path, "sip = 5", sip="127.0.0.1:5070") == "edge.toml: sip: expected HOST:PORT, got 5"


# The file itself


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = \nb = 1", "edge.toml: expected TOML, got a syntax error: Invalid value (at line 1, column 5)"),
        (b"a = 1\n\nb 2", "edge.toml: expected TOML, got a syntax error: "),
        (b"open = true\nopen = true", "edge.toml: expected TOML, got a syntax error: Cannot overwrite a value (at"),
        (b"# \xff", "edge.toml: expected TOML in UTF-8, got other bytes (at line 1)"),
        (b"a = 1\n# \xff", "edge.toml: expected TOML in UTF-8, got other bytes (at line 2)"),
        (b"a = " + b"9" * 5000, "edge.toml: expected TOML, got a value that cannot be read: "),
        (b"a = " + b"[" * 20000, "edge.toml: expected TOML, got arrays or tables nested too deeply"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "edge.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Config.from_sources({}, file)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(said)


def test_the_line_of_a_syntax_error_is_said(tmp_path: Path) -> None:
    assert "line 3" in refusal(tmp_path, "open = true\n\nopen true\n")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_sources({}, tmp_path / "none.toml")
    assert str(caught.value) == f"{tmp_path}/none.toml: expected a TOML file, got: No such file or directory"
    with pytest.raises(ConfigError, match="expected a TOML file, got: Is a directory"):
        Config.from_sources({}, tmp_path)
    with pytest.raises(ConfigError, match="got a path with a NUL in it"):
        Config.from_sources({}, Path("a\0b"))


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.symlink_to(file)  # unlike a file without permissions, root cannot open this either
    with pytest.raises(ConfigError, match="expected a TOML file, got: Too many levels of symbolic links"):
        Config.from_sources({}, file)


# What no value shows alone


def test_the_same_address_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(None, "", listen=["ws://H:80/a", "ws://h:80/b"]) == (
        "--listen: expected each address once, got 'ws://H:80/a' and 'ws://h:80/b'"
    )
    assert refusal(tmp_path, 'listen = ["ws://[::1]:80", "ws://[0::1]:80"]').startswith("edge.toml: listen: expected ")
    assert len(Config.from_sources({"listen": ["ws://127.0.0.1:80", "ws://127.0.0.1:81"]}).listen) == 2


def test_wss_needs_certificate_and_key(certificate: Certificate) -> None:
    wss = ["wss://127.0.0.1:8443"]
    assert refusal(None, "", listen=wss) == (
        "--listen: expected tls_cert and tls_key for 'wss://127.0.0.1:8443', got none"
    )
    assert refusal(None, "", listen=wss, tls_cert=str(certificate.cert)) == (
        "--tls-cert: expected tls_key beside it, got none"
    )
    assert refusal(None, "", tls_key=str(certificate.key)) == "--tls-key: expected tls_cert beside it, got none"
    config = Config.from_sources({"listen": wss, "tls_cert": str(certificate.cert), "tls_key": str(certificate.key)})
    assert config.listen[0].secure
    assert (config.tls_cert, config.tls_key) == (certificate.cert, certificate.key)


def test_a_certificate_that_does_not_load_or_match_is_told_by_the_key_that_names_it(
    certificate: Certificate, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path, "other")
    assert refusal(tmp_path, "tls_cert = 'other.crt'", tls_key=str(certificate.key)) == (
        f"--tls-key: expected the key of the certificate in other.crt, got another one ({certificate.key})"
    )
    (tmp_path / "bad.crt").write_text("nothing")
    assert refusal(tmp_path, f"tls_cert = 'bad.crt'\ntls_key = '{other.key}'") == (
        "edge.toml: tls_cert: expected a certificate chain in PEM, got a file without one (bad.crt)"
    )


def test_a_policy_that_does_not_exist_is_refused_unless_a_flag_replaces_it(tmp_path: Path) -> None:
    assert refusal(tmp_path, "policy = 'none.py'") == (
        "edge.toml: policy: expected a Python file, got: No such file or directory (none.py)"
    )
    assert refusal(None, "", policy=str(tmp_path)) == (
        f"--policy: expected a Python file, got: Is a directory ({tmp_path})"
    )
    (tmp_path / "p.py").touch()
    assert from_toml(tmp_path, "policy = 'none.py'", policy=str(tmp_path / "p.py")).policy == tmp_path / "p.py"


def test_a_secret_is_long_enough_and_not_for_everybody(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    text = "secret_file = 'secret'"
    said = "edge.toml: secret_file: expected a file"
    assert refusal(tmp_path, text) == f"{said} of at least 16 bytes, got: No such file or directory (secret)"
    secret.write_bytes(bytes(15))
    secret.chmod(0o600)
    assert refusal(tmp_path, text) == f"{said} of at least 16 bytes, got 15 (secret)"
    secret.write_bytes(bytes(16))
    assert from_toml(tmp_path, text).secret_file == secret
    for mode in (0o604, 0o602):
        secret.chmod(mode)
        assert refusal(tmp_path, text) == f"{said} that others cannot read or write, got mode {mode:04o} (secret)"
    secret.chmod(0o640)
    assert from_toml(tmp_path, text).secret_file == secret


def test_the_default_expiry_follows_limits_that_leave_it_out(tmp_path: Path) -> None:
    assert from_toml(tmp_path, "max_expires = 120").default_expires == 120
    assert from_toml(tmp_path, "min_expires = 900").default_expires == 900


def test_the_realm_is_the_first_domain_or_fastws(tmp_path: Path) -> None:
    assert from_toml(tmp_path, "[users]\nalice = 'x'").realm == "fastws"
    assert from_toml(tmp_path, "domains = ['a.example', 'b.example']\n[users]\nalice = 'x'").realm == "a.example"
    assert from_toml(tmp_path, "domains = ['a.example']").realm is None


def test_passwords_that_an_upstream_would_never_ask_for_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "upstream = 'sip:pbx'\n[users]\nalice = 'x'") == (
        "edge.toml: users: expected no upstream beside it, as an upstream authenticates itself, got sip:pbx"
    )


# The open registrar

BEYOND = ["ws://0.0.0.0:8080", "ws://[::]:8080", "ws://192.0.2.1:8080", "ws://edge.example.com:8080"]
LOOPBACK = ["ws://127.0.0.1:8080", "ws://127.9.9.9:8080", "ws://[::1]:8080", "ws://localhost:8080"]


@pytest.mark.parametrize("url", BEYOND)
@pytest.mark.parametrize("policy", [None, SimpleNamespace(on_handshake=None)])
def test_an_open_registrar_beyond_loopback_does_not_start(url: str, policy: Any) -> None:
    config = Config.from_sources({"listen": ["ws://127.0.0.1:80", url]})
    with pytest.raises(ConfigError) as caught:
        guard_open(config, policy)
    assert str(caught.value) == (
        "open: expected `open = true`, a users table or a policy with on_handshake, as anyone could register "
        f"at {url}, got none"
    )


@pytest.mark.parametrize("url", LOOPBACK)
def test_an_open_registrar_on_loopback_starts(url: str) -> None:
    guard_open(Config.from_sources({"listen": [url]}), None)


@pytest.mark.parametrize("text", ["open = true", "upstream = 'sip:pbx'", "[users]\nalice = 'x'"])
def test_a_registrar_meant_to_be_open_guarded_or_elsewhere_starts(tmp_path: Path, text: str) -> None:
    guard_open(from_toml(tmp_path, text, listen=["ws://0.0.0.0:8080"]), None)


def test_a_policy_that_looks_at_the_handshake_guards_the_registrar() -> None:
    policy = SimpleNamespace(on_handshake=lambda handshake: None)
    guard_open(Config.from_sources({"listen": ["ws://0.0.0.0:8080"]}), policy)


# What is printed


def test_what_would_run_is_described(certificate: Certificate) -> None:
    config = Config.from_sources(
        {
            "listen": ["wss://[::1]:8443/ws", "ws://127.0.0.1:8080"],
            "tls_cert": str(certificate.cert),
            "tls_key": str(certificate.key),
            "upstream": ["sip:pbx.example.com;transport=tcp"],
        }
    )
    assert describe(config) == [
        ("listen", "wss://[::1]:8443/ws (path /ws only)"),
        ("listen", "ws://127.0.0.1:8080 (any path)"),
        ("tls", f"certificate {certificate.cert}, key {certificate.key}"),
        ("upstream", "sip:pbx.example.com;transport=tcp (tcp to pbx.example.com, port 5060)"),
        ("sip", "port 5070 of the address from which the upstream is reached"),
    ]


def test_a_sip_side_of_its_own_is_described() -> None:
    config = Config.from_sources({"upstream": ["sip:[2001:db8::1]"], "sip": "[::1]:5070"})
    assert ("sip", "[::1]:5070") in describe(config)


def test_settings_that_differ_from_their_defaults_are_described_and_passwords_never(tmp_path: Path) -> None:
    text = """
        sip = "[::1]:5070"
        advertise = "edge.example.com"
        ping_interval = 12.5
        max_headers = 65
        max_head_bytes = 8192
        trusted = ["10.0.0.0/8"]
        privacy = true
        [users]
        alice = "wonderland"
        """
    config = from_toml(tmp_path, text)
    assert describe(config) == [
        ("listen", "ws://127.0.0.1:8080 (any path)"),
        ("upstream", "none: the embedded registrar, users of realm fastws: 1"),
        ("sip", "none, as there is no upstream, advertised as edge.example.com"),
        ("setting", "ping_interval = 12.5 (default 30)"),
        ("setting", "max_headers = 65 (default 64)"),
        ("setting", 'trusted = ["10.0.0.0/8"] (default [])'),
        ("setting", "privacy = true (default false)"),
    ]
    assert "wonderland" not in repr(config)


def test_every_key_without_a_flag_is_in_the_help_with_its_default() -> None:
    lines = key_help().splitlines()[1:]
    assert [line.split()[0] for line in lines] == [name for name, setting in settings().items() if not setting.flag]
    assert any(line.split()[:2] == ["max_message_bytes", "65536"] for line in lines)

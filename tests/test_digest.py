# RFC 7616, RFC 2069 and RFC 8760: challenges, answers to them, and everything that is not quite an answer.
from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

import pytest

from fastws.digest import Digest, DigestResult, realm_of

NOW = 1_800_000_000.0
PASSWORDS = {"alice": "secret", "Mufasa": "Circle of Life"}
HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}

digest = Digest("example.com", secret=b"s" * 32)


def nonce_of(challenges: list[str]) -> str:
    found = re.search(r'nonce="([^"]+)"', challenges[0])
    assert found
    return found[1]


def answer(
    user: str = "alice",
    password: str = "secret",
    *,
    method: str = "REGISTER",
    uri: str = "sip:example.com",
    algorithm: str | None = "MD5",
    qop: bool = True,
    quality: str = "auth",
    cnonce: str = "0a4f113b",
    realm: str = "example.com",
    nonce: str | None = None,
    edit: Callable[[dict[str, str]], None] = lambda fields: None,
) -> str:
    """What a client makes of a challenge, by the formulas of RFC 7616 3.4.1; `edit` changes the fields at the end."""
    nonce = nonce_of(digest.challenge(NOW)) if nonce is None else nonce
    name = "MD5" if algorithm is None else algorithm.removesuffix("-sess")

    def h(text: str) -> str:
        return HASHES[name](text.encode()).hexdigest()

    a1 = h(f"{user}:{realm}:{password}")
    if algorithm is not None and algorithm.endswith("-sess"):
        a1 = h(f"{a1}:{nonce}:{cnonce}")
    a2 = h(f"{method}:{uri}")
    middle = f"{nonce}:00000001:{cnonce}:{quality}" if qop else nonce
    fields = {
        "username": f'"{user}"',
        "realm": f'"{realm}"',
        "nonce": f'"{nonce}"',
        "uri": f'"{uri}"',
        "response": '"' + h(f"{a1}:{middle}:{a2}") + '"',
    }
    if algorithm is not None:
        fields["algorithm"] = algorithm
    if qop:
        fields |= {"qop": quality, "nc": "00000001", "cnonce": f'"{cnonce}"'}
    elif algorithm is not None and algorithm.endswith("-sess"):
        fields["cnonce"] = f'"{cnonce}"'
    edit(fields)
    return "Digest " + ", ".join(f"{name}={value}" for name, value in fields.items())


def verify(authorization: str, method: str = "REGISTER", now: float = NOW, uri: str | None = None) -> DigestResult:
    return digest.verify(authorization, method, PASSWORDS.get, now, uri)


def test_a_challenge_has_a_line_for_sha_256_and_then_one_for_md5():
    sha, md5 = digest.challenge(NOW)
    nonce = nonce_of([sha])
    assert sha == f'Digest realm="example.com", qop="auth", algorithm=SHA-256, nonce="{nonce}"'
    assert md5 == f'Digest realm="example.com", qop="auth", algorithm=MD5, nonce="{nonce}"'
    assert all(line.endswith(", stale=true") for line in digest.challenge(NOW, stale=True))


def test_the_algorithms_can_be_chosen_and_no_other_is_then_taken():
    only = Digest("example.com", secret=b"s" * 32, algorithms=("MD5",))
    assert len(only.challenge(NOW)) == 1
    assert only.verify(answer(algorithm="MD5"), "REGISTER", PASSWORDS.get, NOW).user == "alice"
    assert only.verify(answer(algorithm="SHA-256"), "REGISTER", PASSWORDS.get, NOW).user is None
    for wrong in ((), ("SHA-1",), ("md5",)):
        with pytest.raises(ValueError):
            Digest("example.com", algorithms=wrong)


@pytest.mark.parametrize("qop", [True, False])
@pytest.mark.parametrize("algorithm", [None, "MD5", "SHA-256", "MD5-sess", "SHA-256-sess"])
def test_a_right_answer_names_its_user_with_and_without_qop(algorithm, qop):
    right = answer(algorithm=algorithm, qop=qop)
    assert verify(right) == DigestResult("alice")
    assert verify(right, uri="sip:example.com").user == "alice"
    assert verify(right, uri="sip:other.example.com").user is None
    assert verify(right, method="INVITE").user is None
    assert verify(answer("alice", "wrong", algorithm=algorithm, qop=qop)) == DigestResult()
    assert verify(answer("bob", "secret", algorithm=algorithm, qop=qop)) == DigestResult()


def test_the_example_of_rfc_7616_has_the_right_hashes_under_a_nonce_that_is_not_ours():
    # RFC 7616 3.9.1. The nonce is not of our making, so it can prove no more than the password: stale.
    other = Digest("http-auth@example.org")
    for algorithm, response in (
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ):
        header = (
            'Digest username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", '
            f"algorithm={algorithm}, "
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, '
            'cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, '
            f'response="{response}", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
        )
        assert other.verify(header, "GET", PASSWORDS.get, NOW, "/dir/index.html") == DigestResult(stale=True)
        assert other.verify(header, "POST", PASSWORDS.get, NOW) == DigestResult()


def test_a_nonce_is_good_for_its_lifetime_and_stale_afterwards():
    brief = Digest("example.com", secret=b"s" * 32, nonce_lifetime=10.0)
    right = answer()
    assert brief.verify(right, "REGISTER", PASSWORDS.get, NOW + 10) == DigestResult("alice")
    assert brief.verify(right, "REGISTER", PASSWORDS.get, NOW + 11) == DigestResult(stale=True)
    assert brief.verify(answer("alice", "wrong"), "REGISTER", PASSWORDS.get, NOW + 11) == DigestResult()
    assert brief.verify(answer("bob", "secret"), "REGISTER", PASSWORDS.get, NOW + 11) == DigestResult()


def test_a_nonce_from_another_clock_may_be_a_little_early_but_not_from_far_ahead():
    assert verify(answer(), now=NOW - 30).user == "alice"
    assert verify(answer(), now=NOW - 3600) == DigestResult(stale=True)


def test_a_nonce_is_bound_to_secret_realm_and_time():
    genuine = nonce_of(digest.challenge(NOW))
    for forged in (
        nonce_of(Digest("example.com", secret=b"x" * 32).challenge(NOW)),
        nonce_of(Digest("example.org", secret=b"s" * 32).challenge(NOW)),
        f"{int(NOW) + 1:08x}" + genuine[8:],
        genuine[:-1],
        genuine + "0",
        genuine.upper(),
        "0",
    ):
        assert verify(answer(nonce=forged)) == DigestResult(stale=True)
    assert nonce_of(digest.challenge(NOW + 0.4)) == genuine
    assert nonce_of(digest.challenge(NOW + 1)) != genuine


def test_without_a_secret_one_of_the_process_is_shared():
    line = Digest("example.com").challenge(NOW)
    right = answer(nonce=nonce_of(line))
    assert Digest("example.com").verify(right, "REGISTER", PASSWORDS.get, NOW).user == "alice"


@pytest.mark.parametrize("field", ["username", "realm", "nonce", "uri", "response", "nc", "cnonce"])
def test_an_answer_that_lacks_a_field_names_nobody(field):
    def drop(fields):
        del fields[field]

    assert verify(answer(edit=drop)) == DigestResult()


@pytest.mark.parametrize(
    "changes",
    [
        {"realm": '"example.org"'},
        {"realm": '"Example.com"'},
        {"username": '""'},
        {"nonce": '""'},
        {"uri": '""'},
        {"response": '""'},
        {"response": "0"},
        {"response": '"\u20ac"'},
        {"algorithm": "SHA-1"},
        {"algorithm": "MD5-sess-sess"},
        {"algorithm": "-sess"},
        {"algorithm": ""},
        {"qop": "auth-int"},
        {"qop": ""},
        {"nc": "x"},
        {"nc": "000000001"},
        {"nc": ""},
        {"cnonce": '""'},
        {"cnonce": "other"},
        {"nc": "00000002"},
        {"username*": "UTF-8''alice"},
        {"userhash": "true", "username": '"0123"'},
    ],
)
def test_an_answer_with_a_wrong_field_names_nobody(changes):
    assert verify(answer(edit=lambda fields: fields.update(changes))) == DigestResult()


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256-sess"])
def test_an_answer_that_is_right_in_a_way_we_do_not_offer_names_nobody(algorithm):
    assert verify(answer(algorithm=algorithm, quality="auth")).user == "alice"
    assert verify(answer(algorithm=algorithm, quality="auth-int")) == DigestResult()
    assert verify(answer(algorithm=algorithm, cnonce="")) == DigestResult()
    assert verify(answer(algorithm="MD5-sess", qop=False, cnonce="")) == DigestResult()
    assert verify(answer(algorithm=algorithm).replace(', realm="', 'realm="')) == DigestResult()


def test_a_field_given_twice_names_nobody():
    assert verify(answer() + ', username="alice"') == DigestResult()
    assert verify(answer() + ", Realm=example.com") == DigestResult()


def test_fields_are_read_as_clients_write_them():
    def quote(fields):
        fields.update(algorithm='"md5"', qop='"auth"', nc='"00000001"')

    assert verify(answer(edit=quote)).user == "alice"
    assert verify(answer().replace(", ", ",").replace("=", " = ", 3)).user == "alice"
    assert verify(answer().replace(", ", " ,\t, ").replace("username", "USERNAME")).user == "alice"
    assert verify(answer().replace("Digest ", "dIGEST   ") + ", ").user == "alice"
    assert verify("  " + answer() + '  , opaque="a,b=\\"c\\"", x=').user == "alice"
    assert verify(answer(edit=lambda fields: fields.update(response=fields["response"].upper()))).user == "alice"


def test_a_name_may_hold_quotes_or_come_in_percent_code():
    names = {'al"ice\\': "secret", "j\xe9r\xf4me": "secret"}

    def escape(fields):
        fields["username"] = '"al\\"ice\\\\"'

    def extend(fields):
        del fields["username"]
        fields["username*"] = "UTF-8'fr'j%C3%A9r%C3%B4me"

    assert digest.verify(answer('al"ice\\', edit=escape), "REGISTER", names.get, NOW).user == 'al"ice\\'
    assert digest.verify(answer("j\xe9r\xf4me", edit=extend), "REGISTER", names.get, NOW).user == "j\xe9r\xf4me"
    assert digest.verify(answer("j\xe9r\xf4me"), "REGISTER", names.get, NOW).user == "j\xe9r\xf4me"


def test_a_name_that_is_no_utf_8_is_nobodys_and_is_not_asked_about():
    def never(user: str) -> str | None:
        raise AssertionError(user)

    for value in ('"\udcff"', '"\ud800"'):
        header = answer(edit=lambda fields, value=value: fields.update(username=value))
        assert digest.verify(header, "REGISTER", never, NOW) == DigestResult()
    header = answer(edit=lambda fields: (fields.pop("username"), fields.update({"username*": "UTF-8''%ff"})))
    assert digest.verify(header, "REGISTER", never, NOW) == DigestResult()


@pytest.mark.parametrize(
    "header",
    ["", " ", "Digest", "Digest ", "Basic YTpi", "Digest ,,,", "Digest =", 'Digest "', "Digest username",
     'Digest realm="', 'Digest realm="example.com', 'Digest realm="example.com\\"', "Digest realm=a b",
     'Digest realm="a"b', "Digest\0", "Digest " + "," * 60000, "Digest " + "a" * 60000,
     'Digest a="' + "\\" * 60001, "Digest " + "a=1," * 20000, "Digest " + " " * 60000 + "=",
     'Digest a="' + 'x"' * 30000],
)  # fmt: skip
def test_what_is_malformed_names_nobody_however_long_it_is(header):
    assert verify(header) == DigestResult()


def test_whatever_a_peer_sends_there_is_a_result():
    dice = random.Random(7616)
    right = answer()
    pieces = ['"', "\\", ",", "=", " ", "\0", "\udc80", "\ud83d", "\u20ac", "\r\n", "auth", "MD5", "'"]
    for _ in range(3000):
        text = list(right)
        for _ in range(dice.randrange(1, 5)):
            at = dice.randrange(len(text))
            text[at : at + dice.randrange(3)] = dice.choice(pieces)
        mutated = "".join(text)
        result = verify(mutated)
        assert result.user in (None, "alice")
        realm_of(mutated)


def test_what_the_password_function_does_is_the_callers_affair():
    def broken(user: str) -> str | None:
        raise KeyError(user)

    with pytest.raises(KeyError):
        digest.verify(answer(), "REGISTER", broken, NOW)
    with pytest.raises(TypeError):
        digest.verify(answer(), "REGISTER", lambda user: b"secret", NOW)


def test_an_empty_password_is_a_password():
    assert digest.verify(answer(password=""), "REGISTER", {"alice": ""}.get, NOW).user == "alice"
    assert digest.verify(answer(password="None"), "REGISTER", {}.get, NOW).user is None


def test_the_realm_is_quoted_and_cannot_end_the_line():
    odd = Digest('a "b" \\c', secret=b"s")
    assert 'realm="a \\"b\\" \\\\c", qop' in odd.challenge(NOW)[0]
    for realm in ("a\r\nb", "a\0", "a\x7f", "\ud800"):
        with pytest.raises(ValueError):
            Digest(realm)
    with pytest.raises(TypeError):
        Digest(None)


def test_realm_of_tells_the_claimed_realm():
    assert realm_of(answer()) == "example.com"
    assert realm_of("Digest username=a") is None
    assert realm_of("Basic YTpi") is None
    assert realm_of('Digest realm="a"b') is None

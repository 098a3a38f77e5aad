"""Decoding of query strings and forms."""

import random
import time
from urllib.parse import quote, quote_plus, urlencode

import pytest

from nova import exception
from nova.wire.query import MAX_PARAMETERS, parse_pairs


def test_pairs_in_order():
    assert parse_pairs(b"b=2&a=1&b=3&&c&d=&=e&f=g=h") == [
        ("b", "2"), ("a", "1"), ("b", "3"), ("c", ""), ("d", ""), ("", "e"), ("f", "g=h")]


def test_plus_is_a_space():
    assert parse_pairs(b"GroupDescription=acceptance+run%2B%20x") == [
        ("GroupDescription", "acceptance run+ x")
    ]


def test_utf8_raw_and_escaped():
    assert parse_pairs("a=é%C3%A9".encode()) == [("a", "éé")]


def test_round_trip():
    rng = random.Random(3)
    for _ in range(60):
        pairs = [
            (
                "".join(rng.choices("ab%+&= é\u4e2d\0", k=5)),
                "".join(rng.choices("2Bb%+/=F3D é", k=rng.choice((8, 9000)))),
            )
            for _ in range(2)
        ]
        for encode in (quote, quote_plus):
            assert parse_pairs(urlencode(pairs, quote_via=encode).encode()) == pairs


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"a=%ff", b"a=%C3", b"a=%", b"a=%zz", b"%4=", b"a=%u0041",
                                 b"a=" + b"b" * 5000 + b"%2", b"a=%ED%A0%80"])
def test_malformed(raw):
    with pytest.raises(exception.MalformedQueryString):
        parse_pairs(raw)


def test_too_many():
    with pytest.raises(exception.MalformedQueryString):
        parse_pairs(b"a=1&" * MAX_PARAMETERS)
    assert len(parse_pairs(b"&".join([b"a=1"] * MAX_PARAMETERS))) == MAX_PARAMETERS


def test_megabytes_of_base64_are_fast():
    raw = b"UserData=" + b"ab%2Bc%2Fd%3D" * 1_000_000
    start = time.perf_counter()
    assert parse_pairs(raw)[0][1] == "ab+c/d=" * 1_000_000
    assert time.perf_counter() - start < 2

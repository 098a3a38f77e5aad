"""Making inputs from valid ones, and making the ones that fail smaller."""

import math
import random
import re
from collections.abc import Callable, Sequence

#: bytes that the largest input has
LARGEST = 64 << 10
_TOKEN = re.compile(rb"[A-Za-z0-9_]+|\s+|.", re.DOTALL)
#: what any parser may be wrong about
_WORDS = (
    b"", b"0", b"-1", b"1", b"2147483647", b"2147483648", b"9223372036854775808", b"9" * 20, b"9" * 400, b"1e999",
    b"0x10", b"NaN", b"\r\n", b"\n", b"\r", b"\t", b" ", b"\x0b", b"\x1c", b"\x00", b"\x7f", b"\x85", b"\xa0", b"\xff",
    b"\xc3\xa9", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xd9\xa3", b"\xf0\x9f\x98\x80",
    b"\xc4\xb0", b"%",
    b"%2", b"%zz", b"%00", b"%2F", b"%ff", b"%C3%A9", b"%ED%A0%80", b"+", b"&", b"=", b"?", b"/", b"//", b"..", b":",
    b";", b",", b"*", b"$", b"${", b"}", b"{", b"[", b"]", b"\"", b"'", b"\\", b"\\ud800", b"\\u0000", b"<", b">",
    b"&#0;", b"&#x10ffff;", b"&lt;", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?x?>", b"<!DOCTYPE a>", b"0001-01-01",
    b"9999-12-31T23:59:59Z", b"Mon, 01 Jan 0001 00:00:00 GMT", b"+99999999999999999999", b"+2359", b"null", b"true")
_NESTS = ((b"[", b"]"), (b"{\"a\":", b"}"), (b"<a>", b"</a>"), (b"\"", b"\""), (b"(", b")"))


class Mutator:
    """Gives inputs without end.

    :param seeds: valid inputs
    :param words: pieces that are special to what is tested
    :param rng: all that is random comes from it
    """

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], rng: random.Random):
        self._random, self._bytes = rng.random, rng.randbytes
        self._seeds = [_TOKEN.findall(seed) for seed in seeds]
        self._words = (*_WORDS, *words, *words)

    def next(self) -> bytes:
        """The next input."""
        chance = self._random()
        if chance < 0.02:
            return self._bytes(int(self._random() ** 2 * 200))
        tokens = list(self._one(self._seeds))
        if chance < 0.06:
            return b"".join(tokens)
        if chance < 0.0604:
            return self._large(tokens)
        if chance < 0.065:
            return self._nested(tokens)
        for _ in range(1 + int(self._random() ** 2 * 3)):
            self._change(tokens)
        data = b"".join(tokens)
        return self._damage(data) if chance > 0.85 else data

    def _one(self, items: Sequence) -> object:
        return items[int(self._random() * len(items))]

    def _at(self, items: Sequence) -> int:
        return int(self._random() * (len(items) + 1))

    def _change(self, tokens: list[bytes]) -> None:
        """One change of the tokens: some are taken out, doubled, moved, replaced, or come from another seed."""
        start, kind = self._at(tokens), int(self._random() * 8)
        end = start + int(self._random() ** 3 * 12) + 1
        if kind == 0:
            del tokens[start:end]
        elif kind == 1:
            tokens[start:start] = tokens[start:end]
        elif kind == 2:
            moved = tokens[start:end]
            del tokens[start:end]
            at = self._at(tokens)
            tokens[at:at] = moved
        elif kind == 3:
            other = self._one(self._seeds)
            at = self._at(other)
            tokens[start:end] = other[at:at + int(self._random() ** 2 * 12) + 1]
        elif kind == 4:
            tokens.insert(start, self._one(self._words))
        elif kind == 5 and tokens:
            tokens[start % len(tokens)] = self._one(tokens)
        else:
            tokens[start:start + 1] = [self._one(self._words)]

    def _damage(self, data: bytes) -> bytes:
        """Some bytes are lost or others than they were."""
        start = self._at(data)
        if self._random() < 0.3:
            return data[:start] + data[start + int(self._random() * 4) + 1:]
        return data[:start] + self._bytes(1) + data[start + 1:]

    def _large(self, tokens: list[bytes]) -> bytes:
        """A few tokens are repeated, which shows what takes time that grows faster than the input."""
        start = self._at(tokens)
        piece = self._one(self._words) if self._random() < 0.5 else b"".join(tokens[start:start + int(
            self._random() * 8) + 1])
        head, tail = b"".join(tokens[:start]), b"".join(tokens[start:])
        room = max(0, LARGEST - len(head) - len(tail))
        return (head + piece * (room // max(1, len(piece))) + tail)[:LARGEST]

    def _nested(self, tokens: list[bytes]) -> bytes:
        """Something is put into brackets many times."""
        opening, closing = self._one(_NESTS)
        start, depth = self._at(tokens), int(math.exp(self._random() * math.log(2000)))
        return b"".join((*tokens[:start], opening * depth, *tokens[start:start + 1], closing * depth,
                         *tokens[start + 1:]))


def shrunk(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """A smaller input that fails as well: what can be left out is left out, large pieces first.

    :param fails: whether an input does; it is asked until it has nothing left to say, or says so by StopIteration
    """
    size = max(1, len(data) // 2)
    try:
        while True:
            at, before = 0, len(data)
            while at < len(data):
                less = data[:at] + data[at + size:]
                if fails(less):
                    data = less
                else:
                    at += size
            if size == 1 and len(data) == before:
                return data
            size = max(1, size // 2)
    except StopIteration:
        return data

"""The pure parts of the object store: aws-chunked bodies, ranges, targets, listings, checksums, XML."""

import hashlib
import random
from bisect import bisect_left, bisect_right

import pytest

from nova import exception
from nova.objectstore import checksums, conditions, errors, listing, multipart, request
from nova.objectstore.buckets import check_name
from nova.objectstore.chunked import Decoder
from nova.objectstore.files import Files
from nova.objectstore.models import Object, Part, object_id, part_id
from nova.objectstore.storage import owner_of

# -- aws-chunked ------------------------------------------------------------------------------------------------------

BODY = b"5\r\nhello\r\n6;chunk-signature=" + b"0" * 64 + b"\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n"
NAMES = frozenset(("x-amz-checksum-crc32",))


def decoded(decoder: Decoder, body: bytes, size: int) -> bytes:
    return b"".join(piece for at in range(0, len(body), size) for piece in decoder.feed(body[at:at + size]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_in_pieces_of_any_size(size):
    decoder = Decoder(11, NAMES)
    assert decoded(decoder, BODY, size) == b"hello world"
    decoder.finish()
    assert decoder.trailers == {"x-amz-checksum-crc32": "DUoRhQ=="}


def test_every_cut_is_incomplete():
    for end in range(len(BODY)):
        decoder = Decoder(11, NAMES)
        with pytest.raises(exception.S3Error):
            decoded(decoder, BODY[:end], 5)
            decoder.finish()


def test_random_damage_never_passes_for_the_body_nor_loops():
    rng = random.Random(4711)
    for _ in range(3000):
        damaged = bytearray(BODY)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        decoder = Decoder(11, NAMES)
        try:
            data = decoded(decoder, bytes(damaged), rng.randrange(1, 50))
            decoder.finish()
        except exception.S3Error:
            continue
        assert len(data) == 11


def test_a_body_without_trailers_may_leave_out_the_last_empty_line():
    for end in (b"0\r\n", b"0\r\n\r\n"):
        decoder = Decoder(5)
        assert decoded(decoder, b"5\r\nhello\r\n" + end, 4) == b"hello"
        decoder.finish()


def test_a_chunk_beyond_the_length_is_refused_before_its_data():
    with pytest.raises(errors.IncompleteBody):
        decoded(Decoder(5), b"ffffffff\r\n", 100)


# -- ranges -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("header, expected", [
    (None, None), ("", None), ("bytes=0-0", (0, 1)), ("bytes=0-", (0, 10)), ("bytes=3-5", (3, 3)), ("bytes=-4", (6, 4)),
    ("bytes=-40", (0, 10)), ("bytes=9-100", (9, 1)), ("bytes=5-3", None), ("bytes=1-2,4-5", None), ("bytes=", None),
    ("bytes=-", None), ("items=0-1", None), ("bytes=a-b", None), ("bytes=٣-٤", None), ("BYTES=0-1", (0, 2))])
def test_ranges(header, expected):
    assert conditions.parse_range(header, 10) == expected


@pytest.mark.parametrize("header, size", [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_ranges_that_cannot_be(header, size):
    with pytest.raises(errors.InvalidRange):
        conditions.parse_range(header, size)


# -- targets ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("uri, bucket, key", [
    ("/", "", ""), ("/b", "b", ""), ("/b/", "b", ""), ("/b/k", "b", "k"), ("/b//k", "b", "/k"),
    ("/b/../x", "b", "../x"),
    ("/b/a+b", "b", "a+b"), ("/b/a%2Bb%20c", "b", "a+b c"), ("/b/%C3%BC", "b", "ü"), ("/b/\xc3\xbc", "b", "ü"),
    ("/b/%2541", "b", "%41"), ("/b/a%2Fb", "b", "a/b"), ("http://host:1/b/k", "b", "k"), ("http://host", "", "")])
def test_targets(uri, bucket, key):
    target = request.read(uri, "host")
    assert (target.bucket, target.key) == (bucket, key)


@pytest.mark.parametrize("uri", ["/b/%", "/b/%4", "/b/%zz", "/b/%ff", "/b/\xff", "b", "*", "/b?x=%ff"])
def test_targets_that_are_none(uri):
    with pytest.raises(errors.InvalidURI):
        request.read(uri, "host")


def test_parameters_and_sub_resources():
    target = request.read("/b?prefix=a+b%2B&uploads=&x-id=Y", "h")
    assert target.params == {"prefix": "a b+", "uploads": "", "x-id": "Y"} and target.sub_resource == "uploads"
    assert request.read("/k?acl", "Bucket.s3.x:80", "s3.x").bucket == "bucket"
    assert request.read("/b/k", "s3.x", "s3.x").bucket == "b"


@pytest.mark.parametrize("header, expected", [
    ("b/k", ("b", "k", None)), ("/b/k%20x", ("b", "k x", None)), ("b%2Fk", ("b", "k", None)),
    ("b/k?versionId=null", ("b", "k", "null")), ("b/k%3FversionId=1", ("b", "k?versionId=1", None)),
    ("b/k?versionId=", ("b", "k", ""))])
def test_copy_sources(header, expected):
    assert request.copy_source(header) == expected


@pytest.mark.parametrize("header", ["", "b", "/b/", "/%ff/k"])
def test_copy_sources_that_are_none(header):
    with pytest.raises(errors.InvalidArgument):
        request.copy_source(header)


@pytest.mark.parametrize("name", ["abc", "a.b-c", "My_Bucket", "1ab"])
def test_bucket_names(name):
    check_name(name)


# -- listings ---------------------------------------------------------------------------------------------------------

def index(members: list[bytes], reads: list[int]):
    def bound(text: bytes, lower: bool) -> int:
        if text in (b"-", b"+"):
            return 0 if lower else len(members)
        find = bisect_left if (text[:1] == b"[") == lower else bisect_right
        return find(members, text[1:])

    async def fetch(lower: bytes, upper: bytes, count: int) -> list[bytes]:
        reads.append(count)
        return members[bound(lower, True):bound(upper, False)][:count]
    return fetch


def listed_plainly(keys: list[bytes], prefix: bytes, delimiter: bytes) -> list[bytes]:
    items = []
    for key in keys:
        if key.startswith(prefix):
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            item = key[:end + len(delimiter)] if end >= 0 else key
            if item not in items:
                items.append(item)
    return items


async def test_walk_gives_what_a_plain_listing_gives():
    rng = random.Random(11)
    for _ in range(300):
        keys = sorted({bytes(rng.choice(b"ab/-") for _ in range(rng.randrange(1, 7))) for _ in range(30)})
        prefix, delimiter = rng.choice((b"", b"a", b"a/", b"b-")), rng.choice((b"", b"/", b"-", b"a/"))
        limit, after, found = rng.randrange(1, 8), b"", []
        while True:
            page = await listing.walk(index(keys, []), prefix, delimiter, after, limit)
            assert len(page) <= limit
            found += sorted(page.keys + page.prefixes)
            if not page.next:
                break
            after = page.next
        assert found == listed_plainly(keys, prefix, delimiter), (keys, prefix, delimiter, limit)


async def test_a_large_group_is_skipped_not_read():
    keys = sorted([b"a/%06d" % n for n in range(20000)] + [b"b"])
    reads: list[int] = []
    page = await listing.walk(index(keys, reads), b"", b"/", b"", 1000)
    assert (page.prefixes, page.keys, page.next) == ([b"a/"], [b"b"], b"") and len(reads) == 2


def test_continuation_tokens():
    assert listing.read_token(listing.token("ä/x".encode())) == "ä/x".encode()
    for bogus in ("x", "####", "", "/w=="):
        with pytest.raises(errors.InvalidArgument):
            listing.read_token(bogus)


# -- checksums and parts ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("algorithm, hex_digest", [
    ("CRC32", "cbf43926"), ("CRC32C", "e3069283"), ("CRC64NVME", "ae8b14860a799888"),
    ("SHA1", hashlib.sha1(b"123456789").hexdigest()), ("SHA256", hashlib.sha256(b"123456789").hexdigest())])
def test_checksums(algorithm, hex_digest):
    hasher = checksums.hasher(algorithm)
    for piece in (b"1234", b"", b"56789"):
        hasher.update(piece)
    assert hasher.digest().hex() == hex_digest and len(hasher.digest()) == checksums.DIGEST_SIZES[algorithm]


def part(number: int, size: int, md5: str = "m") -> Part:
    return Part(part_id("u", number), upload_id="u", number=number, file="f", size=size, md5=md5, modified=0.0)


def test_parts_are_chosen_by_number_and_etag():
    parts = [part(n, multipart.MIN_PART) for n in (1, 2, 5)]
    listed = [multipart.Listed(n, "m", {}) for n in (1, 5)]
    assert [p.number for p in multipart.choose(parts, listed)] == [1, 5]
    with pytest.raises(errors.InvalidPart):
        multipart.choose(parts, [multipart.Listed(1, "other", {})])
    with pytest.raises(errors.InvalidPartOrder):
        multipart.choose(parts, listed[::-1])
    with pytest.raises(errors.EntityTooSmall):
        multipart.choose([part(1, 1), part(5, 1)], listed)


# -- files ------------------------------------------------------------------------------------------------------------

def an_object(file: str) -> Object:
    return Object(owner_of(file)[1], bucket="b", key="k", project_id="p", file=file, size=5, md5="m", sha256="s",
                  etag="m", modified=1.5, metadata={"a": "ä"})


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    files = Files(str(tmp_path))
    owner = f"o-{object_id('b', 'k')}"
    with files.new(owner) as writer:
        writer.write(b"hello")
    assert list(files.names(-1)) == []
    with files.new(owner) as writer:
        writer.write(b"hello")
        writer.publish(an_object(writer.name))
    assert list(files.names(-1)) == [writer.name] and owner_of(writer.name) == ("o", owner[2:])
    assert b"".join(files.read(writer.name, 1, 3)) == b"ell"
    copy = files.name(f"o-{object_id('b', 'other')}")
    files.link(writer.name, an_object(copy))
    files.remove(writer.name, writer.name)
    assert list(files.names(-1)) == [copy] and b"".join(files.read(copy)) == b"hello"
    assert list(files.names(100)) == []
    files.close()


def test_files_where_the_file_system_has_no_unnamed_ones(tmp_path, monkeypatch):
    import os
    real = os.open

    def without(path, flags, *rest, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **named)
    monkeypatch.setattr(os, "open", without)
    files = Files(str(tmp_path))
    with files.new("o-" + "a" * 64) as writer:
        writer.write(b"x")
    assert list(files.names(-1)) == []
    with files.new("o-" + "a" * 64) as writer:
        writer.write(b"x")
        writer.publish(an_object(writer.name))
    assert list(files.names(-1)) == [writer.name]
    files.close()

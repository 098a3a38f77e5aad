"""The aws-chunked content encoding: a decoder without input or output.

A body is a row of chunks, ``<hex size>[;chunk-signature=<hex>]\\r\\n<data>\\r\\n``, the last of them empty, and then
perhaps trailing headers.  Rules: Amazon S3 API reference, "Signature calculations ... transferring payload in
multiple chunks" and "... including trailing headers".
"""

import hashlib
import re
from collections.abc import Callable, Iterator

from nova.auth.signer import ChunkVerifier
from nova.objectstore import errors

_MAX_LINE = 4096
_MAX_TRAILERS = 16
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER_LINE = re.compile(rb"([A-Za-z0-9-]{1,128}):([\x20-\x7e\t]*)")


class Decoder:
    """Takes the body in pieces of any size and gives the data in it.

    :param length: of the data, in bytes, as x-amz-decoded-content-length says
    :param trailers: lower-case names of the trailing headers that x-amz-trailer announces
    :param verifier: checks the chunks' signatures; None for unsigned chunks
    """

    def __init__(self, length: int, trailers: frozenset[str] = frozenset(), verifier: ChunkVerifier | None = None):
        self._length, self._names, self._verifier = length, trailers, verifier
        self._buffer = bytearray()
        self._received = 0
        self._left = 0
        self._signature = ""
        self._chunk_hash = hashlib.sha256()
        self._state: Callable[[], bytes | None] = self._size_line
        #: the trailing headers, once :meth:`finish` has returned
        self.trailers: dict[str, str] = {}

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Give the data that the next piece of the body completes.

        :raises InvalidRequest, IncompleteBody, MalformedTrailer, SignatureDoesNotMatch:
        """
        self._buffer += data
        while True:
            before = len(self._buffer), self._state
            piece = self._state()
            if piece:
                yield piece
            if before == (len(self._buffer), self._state):
                return

    def finish(self) -> None:
        """The body is over.

        :raises IncompleteBody: it ended in the middle, or has not the length that was announced
        :raises MalformedTrailer: an announced trailing header is missing
        """
        if self._state == self._trailer_line and not self._buffer and not self._names and not self.trailers:
            self._state = self._over  # some clients leave out the empty line when there are no trailers
        if self._state != self._over or self._received != self._length:
            raise errors.IncompleteBody()

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, _MAX_LINE)
        if end < 0:
            if len(self._buffer) >= _MAX_LINE:
                raise errors.InvalidRequest(reason="The body is not aws-chunked: a line is too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end + 2]
        return line

    def _size_line(self) -> None:
        line = self._line()
        if line is None:
            return
        found = _CHUNK_LINE.fullmatch(line)
        if not found:
            raise errors.InvalidRequest(reason="The body is not aws-chunked: not the size of a chunk")
        self._left = int(found[1], 16)
        if self._received + self._left > self._length:
            raise errors.IncompleteBody("The chunks have more bytes than x-amz-decoded-content-length says.")
        if self._verifier:
            if not found[2]:
                raise errors.InvalidRequest(reason="A chunk has no signature")
            self._signature = found[2].decode()
            self._chunk_hash = hashlib.sha256()
        if self._left:
            self._state = self._data
        else:
            self._check_signature()
            self._state = self._trailer_line

    def _data(self) -> bytes:
        piece = bytes(self._buffer[:self._left])
        del self._buffer[:len(piece)]
        self._left -= len(piece)
        self._received += len(piece)
        if self._verifier:
            self._chunk_hash.update(piece)
        if not self._left:
            self._state = self._data_end
        return piece

    def _data_end(self) -> None:
        if len(self._buffer) < 2:
            return
        if self._buffer[:2] != b"\r\n":
            raise errors.InvalidRequest(reason="The body is not aws-chunked: a chunk is longer than it says")
        del self._buffer[:2]
        self._check_signature()
        self._state = self._size_line

    def _check_signature(self) -> None:
        if self._verifier:
            self._verifier.chunk(self._chunk_hash.hexdigest(), self._signature)

    def _trailer_line(self) -> None:
        line = self._line()
        if line is None:
            return
        if line:
            self._add_trailer(line.strip(b"\n"))
        elif self._names and not self._names <= self.trailers.keys():
            raise errors.MalformedTrailer()
        else:
            self._finish_trailers()

    def _add_trailer(self, line: bytes) -> None:
        found = _TRAILER_LINE.fullmatch(line)
        name = found[1].decode().lower() if found else ""
        allowed = name in self._names or (name == "x-amz-trailer-signature" and self._verifier)
        if not found or not allowed or name in self.trailers or len(self.trailers) > _MAX_TRAILERS:
            raise errors.MalformedTrailer()
        self.trailers[name] = found[2].decode().strip()

    def _finish_trailers(self) -> None:
        signature = self.trailers.pop("x-amz-trailer-signature", None)
        if self._verifier and self._names:
            if signature is None:
                raise errors.MalformedTrailer()
            self._verifier.trailer(list(self.trailers.items()), signature)
        self._state = self._over

    def _over(self) -> None:
        if self._buffer:
            raise errors.InvalidRequest(reason="The body goes on after its last chunk")

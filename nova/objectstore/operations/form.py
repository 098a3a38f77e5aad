"""POST bucket: an object from a browser's form.

The form is taken apart while it arrives.  When its fields are there, its policy and signature are checked, and the
file then goes the way of every object that is put.  Rules: Amazon S3 API reference, "POST Object".
"""

import dataclasses
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from tornado.httputil import HTTPHeaders

from nova.auth import signer
from nova.objectstore import checksums, errors, post_policy, tags
from nova.objectstore.body import MAX_UPLOAD, Expected, Received, Receiver
from nova.objectstore.forms import Field, FileBegins, Parser
from nova.objectstore.operations.base import Call, Response
from nova.objectstore.operations.object import PutObject
from nova.objectstore.post_policy import Policy
from nova.objectstore.request import MAX_KEY, Target
from nova.wire import rest_xml

#: bytes that a form may have beside its file
ENVELOPE = 1 << 20
#: fields that are the headers of the same name; so are those that begin with x-amz-
_CONTENT = frozenset(("cache-control", "content-disposition", "content-encoding", "content-language", "content-md5",
                      "content-type", "expires"))
_NOT_HEADERS = frozenset(("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-security-token",
                          "x-amz-signature"))
_META = "x-amz-meta-"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass
class Form:
    """What comes before the file.  `fields` have names in lower case, ``${filename}`` is replaced in their values."""

    fields: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of the new object; :raises InvalidArgument, KeyTooLong:"""
        if "key" not in self.fields:
            raise errors.InvalidArgument(reason="Bucket POST must contain a field named 'key'.  If it is specified, "
                                                "please check the order of the fields.")
        key = self.fields["key"]
        if not key:
            raise errors.InvalidArgument(reason="User key must have a length greater than 0.")
        if len(key.encode()) > MAX_KEY:
            raise errors.KeyTooLong()
        return key

    def add(self, item: Field) -> None:
        """Take a field; :raises InvalidArgument: it was given before"""
        name = item.name.lower()
        if name not in self.fields:
            self.fields[name] = item.value
        elif name.startswith(_META):
            self.fields[name] += f",{item.value}"
        else:
            raise errors.InvalidArgument(reason=f"POST requires exactly one field named {name[:64]!r}")

    def close(self, filename: str) -> None:
        """The file comes."""
        for name, value in self.fields.items():
            if name not in ("policy", "signature", "x-amz-signature", "awsaccesskeyid"):
                self.fields[name] = value.replace("${filename}", filename)

    def headers(self) -> HTTPHeaders:
        """What a PUT of the object would have as headers; text stands for bytes, as everywhere in headers.

        :raises InvalidArgument, MalformedXML, InvalidTag, BadRequest:
        """
        found = HTTPHeaders()
        for name, value in self.fields.items():
            if name in _CONTENT or (name.startswith("x-amz-") and name not in _NOT_HEADERS):
                if _CONTROL.search(value) or not _TOKEN.fullmatch(name):
                    raise errors.InvalidArgument(reason=f"The field {name[:64]!r} cannot be a header")
                found[name] = value.strip().encode().decode("latin-1")
        if "acl" in self.fields:
            found["x-amz-acl"] = self.fields["acl"]
        if "x-amz-checksum-algorithm" in self.fields:
            found["x-amz-sdk-checksum-algorithm"] = self.fields["x-amz-checksum-algorithm"]
        if "tagging" in self.fields:
            document = rest_xml.read_body("PutObjectTagging", self.fields["tagging"].encode())
            found["x-amz-tagging"] = tags.to_header(tags.from_set(document, tags.MAX_OBJECT_TAGS))
        return found

    def policy(self) -> Policy | None:
        """The policy; None without one; :raises InvalidPolicyDocument:"""
        return post_policy.read(self.fields["policy"]) if "policy" in self.fields else None

    def claim(self, request: signer.SignedRequest, policy: Policy | None) -> signer.Claim | None:
        """Who signed it; None if it is neither signed nor has a policy.

        :raises S3Error: it is signed by halves
        """
        claim = signer.read_s3_form(request, self.fields, policy.expiration if policy else datetime.now(UTC))
        if claim is None and policy is not None:
            raise errors.InvalidArgument(reason="Bucket POST must contain a field named 'AWSAccessKeyId'.  If it is "
                                                "specified, please check the order of the fields.")
        return claim


class FormReceiver:
    """Takes a form piece by piece, as nova.objectstore.body.Receiver takes a body.

    :param boundary: of its parts
    :param begin: is told of the form when its fields are there, and gives what receives the file
    """

    def __init__(self, boundary: bytes, begin: Callable[[Form], Awaitable[Receiver]]):
        self._parser, self._begin, self._form = Parser(boundary), begin, Form()
        self._file: Receiver | None = None

    async def feed(self, piece: bytes) -> None:
        """Take a piece; :raises S3Error: the form cannot be taken"""
        for event in self._parser.feed(piece):
            if isinstance(event, bytes):
                if event and self._file:
                    await self._file.feed(event)
            elif isinstance(event, Field):
                self._form.add(event)
            elif isinstance(event, FileBegins):
                self._form.close(event.filename)
                self._file = await self._begin(self._form)

    async def finish(self) -> Received:
        """The body is over; :raises S3Error: the form is not, or its file is not what its fields say"""
        self._parser.finish()
        if self._file is None:
            raise errors.MalformedPOSTRequest()
        return await self._file.finish()

    async def close(self) -> None:
        """Wait until nothing more goes to the file, of a form that may have broken off."""
        if self._file:
            await self._file.close()


def is_form(method: str, target: Target) -> bool:
    """Whether a request can only be a form."""
    return bool(method == "POST" and target.bucket and not target.key and not target.sub_resource)


class PostObject(PutObject):
    """POST bucket.

    :param call: without a key and with the headers of the form as a whole
    """

    action = "PutObject"

    def __init__(self, call: Call, form: Form, policy: Policy | None):
        target = dataclasses.replace(call.target, key=form.key)
        super().__init__(dataclasses.replace(call, target=target, headers=form.headers()))
        self._fields, self._policy = form.fields, policy

    async def receiver(self) -> Receiver:
        """What receives the file.

        :raises S3Error: the policy does not allow the form, or the object cannot be put
        """
        largest = MAX_UPLOAD
        if self._policy:
            post_policy.check(self._policy, self._fields, self.target.bucket)
            largest = min(largest, MAX_UPLOAD if self._policy.largest is None else self._policy.largest)
        md5 = self.headers.get("Content-MD5")
        expected = Expected(None, checksums=checksums.given(self.headers),
                            md5=None if md5 is None else checksums.decode(md5, 16, "Content-MD5"))
        place = await self.prepare()
        expected.wanted = self.wanted_checksums
        return Receiver(expected, place, self.call.files.pool, largest)

    async def run(self, received: Received) -> Response:
        if self._policy:
            post_policy.check_size(self._policy, received.size)
        response = await super().run(received)
        etag = response.headers["ETag"]
        redirect = self._redirect(etag)
        if redirect:
            return Response(303, {**response.headers, "Location": redirect})
        bucket = "" if self.target.virtual else "/" + quote(self.target.bucket)
        location = f"{self.call.url}{bucket}/{quote(self.target.key)}"
        response.headers["Location"] = location
        response.status = {"200": 200, "201": 201}.get(self._fields.get("success_action_status", ""), 204)
        if response.status == 201:
            response.headers["Content-Type"] = "application/xml"
            response.body = rest_xml.write_elements("PostResponse", {
                "Location": location, "Bucket": self.target.bucket, "Key": self.target.key, "ETag": etag})
        return response

    def _redirect(self, etag: str) -> str:
        """Where the browser is sent; '' if the form does not say, or says what is no address."""
        wanted = self._fields.get("success_action_redirect") or self._fields.get("redirect") or ""
        try:
            parts = urlsplit(wanted)
        except ValueError:
            return ""
        if parts.scheme not in ("http", "https") or not parts.netloc or _CONTROL.search(wanted):
            return ""
        told = urlencode({"bucket": self.target.bucket, "key": self.target.key, "etag": etag})
        query = f"{parts.query}&{told}" if parts.query else told
        return urlunsplit(parts._replace(query=query)).encode().decode("latin-1")

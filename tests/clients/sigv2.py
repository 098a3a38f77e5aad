"""EC2 and S3 spoken by hand: Signature Version 2 with nothing but the standard library, written after Amazon's pages.

"Signature Version 2 signing process" (query requests of EC2) and "Signing and authenticating REST requests" (S3).  It
shares no code with Nova, so that the two cannot be wrong in the same way.
"""

import base64
import hashlib
import hmac
import http.client
import time
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def xml(self) -> ElementTree.Element:
        """The body's root, the namespace taken off all names."""
        root = ElementTree.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    @property
    def code(self) -> str:
        """The error code, '' when there is none."""
        return self.xml().findtext(".//Error/Code") or ""


class Refused(Exception):
    """An answer that is an error; `answer` has it."""

    def __init__(self, answer: Answer):
        super().__init__(f"{answer.status}: {answer.body[:500]!r}")
        self.answer = answer


def send(port: int, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """One request to 127.0.0.1, as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, target, body=body or None, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


@dataclass(frozen=True)
class Ec2:
    """A client of the EC2 endpoint.

    :param digest: SHA1 or SHA256
    """

    port: int
    access: str
    secret: str
    digest: str = "SHA256"
    path: str = "/services/Cloud"
    version: str = "2010-08-31"

    def signed(self, method: str, params: dict[str, str]) -> str:
        """The query, signed as the parameters say and where they say nothing as it should be."""
        given = {"Version": self.version, "AWSAccessKeyId": self.access, "SignatureVersion": "2",
                 "SignatureMethod": f"Hmac{self.digest}", **params}
        if "Expires" not in given:
            given.setdefault("Timestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        query = "&".join(f"{_encode(name)}={_encode(given[name])}" for name in sorted(given))
        text = f"{method}\n127.0.0.1:{self.port}\n{self.path}\n{query}"
        signature = hmac.new(self.secret.encode(), text.encode(), self.digest.lower()).digest()
        return f"{query}&Signature={_encode(base64.b64encode(signature).decode())}"

    def ask(self, action: str, method: str = "GET", **params: str) -> Answer:
        """The answer, whatever it is; `_` in a parameter's name stands for a dot."""
        query = self.signed(method, {"Action": action, **{k.replace("_", "."): v for k, v in params.items()}})
        if method == "GET":
            return send(self.port, "GET", f"{self.path}?{query}")
        return send(self.port, method, self.path, query.encode(),
                    {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"})

    def call(self, action: str, method: str = "GET", **params: str) -> ElementTree.Element:
        """The root of a good answer.

        :raises Refused: for another
        """
        answer = self.ask(action, method, **params)
        if answer.status != 200:
            raise Refused(answer)
        return answer.xml()


@dataclass(frozen=True)
class S3:
    """A client of the S3 endpoint."""

    port: int
    access: str
    secret: str

    def ask(self, method: str, target: str, body: bytes = b"", content_type: str = "") -> Answer:
        """The answer, whatever it is; `target` is a path without a query."""
        date = formatdate(usegmt=True)
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode() if body else ""
        text = f"{method}\n{md5}\n{content_type}\n{date}\n{target}"
        signature = base64.b64encode(hmac.new(self.secret.encode(), text.encode(), "sha1").digest()).decode()
        headers = {"Date": date, "Authorization": f"AWS {self.access}:{signature}"}
        headers |= {"Content-MD5": md5} if md5 else {}
        headers |= {"Content-Type": content_type} if content_type else {}
        return send(self.port, method, target, body, headers)

    def call(self, method: str, target: str, body: bytes = b"", content_type: str = "") -> Answer:
        """A good answer.

        :raises Refused: for another
        """
        answer = self.ask(method, target, body, content_type)
        if answer.status not in (200, 204):
            raise Refused(answer)
        return answer

    def put_file(self, target: str, path: Path) -> Answer:
        return self.call("PUT", target, path.read_bytes(), "application/octet-stream")


def _encode(text: str) -> str:
    return quote(text, safe="-_.~")

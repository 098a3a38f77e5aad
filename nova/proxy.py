"""What nginx in front tells of a request: that it came through it, from whom, over what, and whether it sends files.

nginx puts a header into each request that only it can make, because it begins with a secret, and replaces one that a
client sends.  A request without the right secret came directly: nothing that it says of itself is believed.
"""

import hmac
from typing import Protocol

from tornado.httputil import HTTPHeaders

from nova.flags import FLAGS, DEFINE_string, check

HEADER = "X-Nova-Proxy"
DEFINE_string("proxy_secret", "", "by which requests are known that come through the nginx in front; none is "
              "when empty")
check("proxy_secret", lambda secret: " " not in secret, "it must not have spaces")


class Request(Protocol):
    """What is told anew; Tornado's HTTPServerRequest is one."""

    protocol: str
    remote_ip: str | None

    @property
    def headers(self) -> HTTPHeaders: ...


def read(request: Request) -> bool:
    """Set the address and protocol of a request to those of nginx's client, if it came through nginx.

    The header is ``SECRET PROTOCOL ADDRESS [sendfile]``.

    :returns: whether nginx gives files out for Nova (X-Accel-Redirect)
    """
    words = request.headers.get(HEADER, "").split(" ")
    secret = FLAGS.proxy_secret.encode()
    if not secret or len(words) < 3 or not hmac.compare_digest(words[0].encode("latin-1", "replace"), secret):
        return False
    request.protocol, request.remote_ip = words[1], words[2]
    return "sendfile" in words[3:]

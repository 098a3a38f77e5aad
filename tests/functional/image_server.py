"""A server that hands out images as the object store does, and does otherwise when a test wants it."""

import asyncio
import hashlib

import tornado.httpserver
import tornado.netutil
import tornado.web

from nova.datastore import Store
from nova.image import models


class Server:
    """Hands out one content as any image, or what a test wants instead.

    `fetched` has the images asked for, `asked` the headers, `sent` the bytes of whole answers.  While `gate` is shut,
    nothing is answered.  Each of `cuts` is an answer that ends after so many bytes; without `ranges`, parts are not
    given; `etag` is another than the content's.
    """

    def __init__(self, store: Store, content: bytes) -> None:
        self.store = store
        self.fetched: list[str] = []
        self.sent = 0
        self.content, self.code = content, 200
        self.etag = ""
        self.ranges = True
        self.asked: list[dict[str, str]] = []
        self.cuts: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        [socket] = tornado.netutil.bind_sockets(0, "127.0.0.1")
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}/_images/"
        server = self

        class Handler(tornado.web.RequestHandler):
            async def get(self, image_id: str) -> None:
                token = self.request.headers.get("X-Nova-Token", "")
                assert models.token_is_valid(await models.fetch_secret(server.store), image_id, token)
                server.fetched.append(image_id)
                server.asked.append(dict(self.request.headers))
                server.began.set()
                await server.gate.wait()
                self.set_status(server.code)
                etag = server.etag or f'"{hashlib.sha256(server.content).hexdigest()}"'
                self.set_header("ETag", etag)
                start = 0
                if server.ranges and "Range" in self.request.headers:
                    if self.request.headers["If-Match"] != etag:
                        self.set_status(412)
                        return
                    start = int(self.request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    if start >= len(server.content):
                        self.set_status(416)
                        return
                    self.set_status(206)
                    self.set_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
                self.set_header("Content-Length", str(len(server.content) - start))
                if server.cuts:
                    self.write(server.content[start:start + server.cuts.pop(0)])
                    await self.flush()
                    self.request.connection.stream.close()  # type: ignore[union-attr]
                    return
                self.write(server.content[start:])
                server.sent += len(server.content) - start
        self.http = tornado.httpserver.HTTPServer(tornado.web.Application([(r"/_images/(.+)", Handler)]))
        self.http.add_socket(socket)

    async def stop(self) -> None:
        self.gate.set()
        self.http.stop()
        await self.http.close_all_connections()

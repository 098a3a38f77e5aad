"""A compute host's cache of image files, against a server that hands out good and bad ones."""

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import tornado.httpserver
import tornado.netutil
import tornado.web

from nova import exception
from nova.datastore import Store
from nova.flags import FLAGS
from nova.image import models
from nova.image.cache import ImageCache

CONTENT = random.Random(3).randbytes(3 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Hands out CONTENT as any image, or what a test wants instead."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fetched: list[str] = []
        self.content, self.code = CONTENT, 200
        self.cut = False
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
                server.began.set()
                await server.gate.wait()
                self.set_status(server.code)
                self.set_header("Content-Length", str(len(server.content)))
                if server.cut:
                    self.write(server.content[:100_000])
                    await self.flush()
                    self.request.connection.stream.close()  # type: ignore[union-attr]
                    return
                self.write(server.content)
        self.http = tornado.httpserver.HTTPServer(tornado.web.Application([(r"/_images/(.+)", Handler)]))
        self.http.add_socket(socket)

    async def stop(self) -> None:
        self.gate.set()
        self.http.stop()
        await self.http.close_all_connections()


@pytest.fixture
async def server(store: Store) -> AsyncIterator[Server]:
    server = Server(store)
    yield server
    await server.stop()


@pytest.fixture
def cache(store: Store, server: Server, tmp_path: Path) -> ImageCache:
    cache = ImageCache(str(tmp_path / "cache"), store, lambda: server.url)
    cache.start()
    return cache


@pytest.fixture
def files(cache: ImageCache, tmp_path: Path) -> Callable[[], list[str]]:
    return lambda: sorted(os.listdir(tmp_path / "cache"))


async def test_an_image_is_fetched_and_called_after_its_hash(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    assert Path(path).read_bytes() == CONTENT
    assert files() == [SHA]


async def test_a_fetched_file_cannot_be_written_by_accident(cache: ImageCache) -> None:
    assert os.stat(await cache.fetch("ami-1", SHA)).st_mode & 0o222 == 0


async def test_an_image_is_fetched_once_however_many_wait_for_it(cache: ImageCache, server: Server) -> None:
    await asyncio.gather(*(cache.fetch("ami-1", SHA) for _ in range(8)))
    await cache.fetch("ami-1", SHA)
    assert server.fetched == ["ami-1"]


async def test_images_of_the_same_content_share_one_file(cache: ImageCache, server: Server, files: Callable) -> None:
    assert await cache.fetch("ami-1", SHA) == await cache.fetch("ami-2", SHA)
    assert server.fetched == ["ami-1"] and files() == [SHA]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""], ids=["short", "flipped", "empty"])
async def test_a_damaged_image_is_refused_and_leaves_nothing(cache: ImageCache, server: Server, files: Callable,
                                                             content: bytes) -> None:
    server.content = content
    with pytest.raises(exception.ImageUnavailable, match="ami-1 is damaged"):
        await cache.fetch("ami-1", SHA)
    assert files() == []


async def test_an_image_that_is_gone_will_not_come_back(cache: ImageCache, server: Server, files: Callable) -> None:
    server.code = 404
    with pytest.raises(exception.ImageUnavailable, match="not in the object store any more"):
        await cache.fetch("ami-1", SHA)
    assert files() == []


@pytest.mark.parametrize("code", [403, 500, 503])
async def test_an_object_store_in_trouble_is_no_reason_to_give_up(cache: ImageCache, server: Server, files: Callable,
                                                                  code: int) -> None:
    server.code = code
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)
    assert files() == []
    server.code = 200
    await cache.fetch("ami-1", SHA)


async def test_a_connection_that_breaks_is_no_reason_to_give_up(cache: ImageCache, server: Server,
                                                                files: Callable) -> None:
    server.cut = True
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)
    assert files() == []


async def test_an_object_store_that_is_away_is_no_reason_to_give_up(cache: ImageCache, server: Server) -> None:
    await server.stop()
    with pytest.raises(exception.NovaError) as error:
        await cache.fetch("ami-1", SHA)
    assert not isinstance(error.value, exception.LaunchFailed)


async def test_a_fetch_that_takes_too_long_ends(cache: ImageCache, server: Server, files: Callable) -> None:
    FLAGS.image_fetch_timeout = 1.0
    server.gate.clear()
    with pytest.raises(exception.NovaError, match="cannot fetch ami-1"):
        await cache.fetch("ami-1", SHA)
    assert files() == []


async def test_a_cancelled_fetch_leaves_nothing_and_can_be_repeated(cache: ImageCache, server: Server,
                                                                    files: Callable) -> None:
    server.gate.clear()
    task = asyncio.ensure_future(cache.fetch("ami-1", SHA))
    await server.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files() == []
    server.gate.set()
    await cache.fetch("ami-1", SHA)


async def test_what_a_dead_process_left_half_fetched_is_removed_at_the_start(cache: ImageCache, tmp_path: Path,
                                                                             files: Callable) -> None:
    (tmp_path / "cache/.part-x").write_bytes(b"x")
    (tmp_path / "cache" / SHA).write_bytes(CONTENT)
    cache.start()
    assert files() == [SHA]


async def test_a_file_that_nobody_used_for_long_is_swept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (time.time() - FLAGS.image_cache_age - 60,) * 2)
    await cache.sweep(set())
    assert files() == []


async def test_a_file_that_an_instance_uses_is_kept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (0, 0))
    await cache.sweep({SHA})
    assert files() == [SHA]


async def test_a_file_that_was_used_lately_is_kept(cache: ImageCache, files: Callable) -> None:
    path = await cache.fetch("ami-1", SHA)
    os.utime(path, (0, 0))
    await cache.fetch("ami-2", SHA)
    await cache.sweep(set())
    assert files() == [SHA]


async def test_a_sweep_touches_nothing_else(cache: ImageCache, tmp_path: Path, files: Callable) -> None:
    (tmp_path / "cache/README").write_bytes(b"x")
    os.utime(tmp_path / "cache/README", (0, 0))
    await cache.sweep(set())
    assert files() == ["README"]

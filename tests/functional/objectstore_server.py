"""An object store in a process of its own, for the tests: python -m tests.functional.objectstore_server FLAGS."""

import sys

from nova import datastore, exception, flags, service
from nova.auth.manager import AuthManager
from nova.flags import FLAGS
from nova.image import manager as image_manager
from nova.objectstore.service import ObjectStoreService
from nova.rpc import Bus


async def _no_object(bucket: str, key: str):
    raise exception.NoSuchKey()


def main() -> int:
    flags.parse(sys.argv)
    service.set_up_logging()
    store = datastore.open_store(FLAGS.redis_url)
    manager = image_manager.ImageManager(store, Bus("memory://", "tests"), _no_object, "")  # gives out files, no more
    server = ObjectStoreService(store, AuthManager(store), extra_handlers=image_manager.handlers(manager, store))

    async def ready() -> None:
        print(f"listening {server.port}", flush=True)
    return service.serve([server], ready)


if __name__ == "__main__":
    raise SystemExit(main())

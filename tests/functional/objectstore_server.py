"""An object store in a process of its own, for the tests: python -m tests.functional.objectstore_server FLAGS."""

import sys

from nova import datastore, flags, service
from nova.auth.manager import AuthManager
from nova.flags import FLAGS
from nova.objectstore import images
from nova.objectstore.driver import open_files
from nova.objectstore.service import ObjectStoreService


def main() -> int:
    flags.parse(sys.argv)
    service.set_up_logging()
    store = datastore.open_store(FLAGS.redis_url)
    handlers = images.handlers(images.ImageFiles(store, open_files()), store)
    server = ObjectStoreService(store, AuthManager(store), extra_handlers=handlers)

    async def ready() -> None:
        print(f"listening {server.port}", flush=True)
    return service.serve([server], ready)


if __name__ == "__main__":
    raise SystemExit(main())

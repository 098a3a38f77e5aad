"""Steps of a pipeline in threads of their own: each an iterator that works ahead of who takes from it.

Hashing, inflating and writing let other threads run meanwhile, so that a chain of steps takes as long as its slowest
one, if there are processors enough.  What waits between two steps is bounded.
"""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: how often a step that waits looks whether it is still wanted, in seconds
_LOOK = 0.1


@contextlib.contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """Have a thread take from `items`, at most `depth` of them ahead of who uses what this gives.

    An error of `items` is raised where its item would have come.  At the end of the context the thread has ended.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    wanted = threading.Event()
    wanted.set()

    def put(is_item: bool, what: T | BaseException | None) -> bool:
        while wanted.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((is_item, what), timeout=_LOOK)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
        except BaseException as error:  # it is raised again in the other thread
            put(False, error)
        else:
            put(False, None)

    def results() -> Iterator[T]:
        while True:
            is_item, what = waiting.get()
            if not is_item:
                if isinstance(what, BaseException):
                    raise what
                return
            yield what  # type: ignore[misc]
    thread = threading.Thread(target=work, name="pipeline", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        wanted.clear()
        thread.join()

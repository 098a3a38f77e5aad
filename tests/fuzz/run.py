"""Running a target on many inputs, and telling what came of them."""

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nova import exception
from nova.wire import errors as ec2_errors
from nova.wire import rest_xml
from tests.fuzz.mutation import Mutator, shrunk

#: seconds of computing that an input may take
LIMIT = 1.0
#: different failures after which a target is given up
_MAX_FAILURES = 5
#: seconds that making a failing input smaller may take
_SHRINKING = 20
#: statuses that are no failures of the server's: a client's fault, or something that Nova does not offer
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True)
class Target:
    """Something to test.

    :param check: takes an input and gives the kind of the outcome; a ClientError is an outcome as well, all else that
        is raised is a failure
    :param words: pieces of inputs that are special to it
    """

    check: Callable[[bytes], str]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()


@dataclass
class Failure:
    """What went wrong, with the smallest input found that makes it go wrong."""

    kind: str
    data: bytes
    details: str


@dataclass
class Report:
    """What came of a target's inputs: how many there were, in how many seconds, and how often each outcome."""

    target: str
    seed: int
    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


def outcome(target: Target, data: bytes) -> str:
    """The kind of an input's outcome.

    :raises Exception: what no input may cause
    """
    try:
        return target.check(data)
    except exception.ClientError as error:
        if error.status >= 500 and error.status != _NOT_IMPLEMENTED:
            raise
        # the answer must be possible to write, too
        if isinstance(error, exception.S3Error):
            rest_xml.write_error({"Code": error.code, "Message": error.message})
        else:
            ec2_errors.write(error.code, error.message, "")
        return error.code


def failure_of(target: Target, data: bytes, limit: float = LIMIT) -> tuple[str, str] | None:
    """The kind of an input's failure, and where it is; None if all is well."""
    start = time.thread_time()
    try:
        outcome(target, data)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {frame.name}", "".join(
            traceback.format_exception(error, limit=-3, chain=False))
    seconds = time.thread_time() - start
    return (f"slower than {limit:g} s", f"{seconds:.1f} s for {len(data)} bytes") if seconds > limit else None


def run(name: str, target: Target, inputs: int, seed: int, progress: Callable[[Report], None] | None = None,
        limit: float = LIMIT) -> Report:
    """Give a target inputs; it is given up after some different failures.

    :param progress: told about every second
    :param limit: seconds of computing that an input may take
    """
    report = Report(name, seed)
    mutator = Mutator(target.seeds, target.words, random.Random(f"{seed} {name}"))
    begin = before = told = time.perf_counter()
    for _ in range(inputs):
        data = mutator.next()
        report.inputs += 1
        try:
            report.outcomes[outcome(target, data)] += 1
        except Exception:
            _fail(report, target, data, limit)
        now = time.perf_counter()
        if now - before > report.slowest:
            report.slowest = now - before
            if report.slowest > limit:  # if it was not the machine that had other things to do
                _fail(report, target, data, limit)
                now = time.perf_counter()
        before = now
        if progress and now - told > 1:
            told, report.seconds = now, now - begin
            progress(report)
        if len(report.failures) >= _MAX_FAILURES:
            break
    report.seconds = time.perf_counter() - begin
    return report


def _fail(report: Report, target: Target, data: bytes, limit: float) -> None:
    found = failure_of(target, data, limit)
    if found is None:
        return
    kind, details = found
    report.outcomes[kind] += 1
    if any(known.kind == kind for known in report.failures):
        return
    until = time.monotonic() + _SHRINKING

    def fails(less: bytes) -> bool:
        if time.monotonic() > until:
            raise StopIteration
        again = failure_of(target, less, limit)
        return again is not None and again[0] == kind
    report.failures.append(Failure(kind, shrunk(data, fails), details))

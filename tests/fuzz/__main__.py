"""Give the parsers generated inputs and see that they raise nothing but what clients are answered with.

Exit code 1 if an input makes a parser raise something else, break a rule of its own (such as that a chunked body gives
the same data however it is cut), or compute for longer than a second; the smallest such input found is printed.
"""

import argparse
import dataclasses
import json
import sys

from tests.fuzz.run import Report, run
from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (all of them)")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs each gets (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="other seed, other inputs (%(default)s)")
    parser.add_argument("--json", action="store_true", help="write one line of JSON for each target")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    reports = []
    for name in chosen.targets or TARGETS:
        report = run(name, TARGETS[name](), chosen.inputs, chosen.seed, _progress if sys.stderr.isatty() else None)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr)
        reports.append(report)
        print(_as_json(report) if chosen.json else _as_text(report), flush=True)
    return 1 if any(report.failures for report in reports) else 0


def _progress(report: Report) -> None:
    print(f"\r\x1b[K{report.target}: {report.inputs:,} inputs in {report.seconds:.0f} s", end="", file=sys.stderr,
          flush=True)


def _as_json(report: Report) -> str:
    failures = [{"kind": f.kind, "input": f.data.decode("latin-1"), "details": f.details} for f in report.failures]
    return json.dumps({**dataclasses.asdict(report), "failures": failures})


def _as_text(report: Report) -> str:
    lines = [f"{report.target}: {report.inputs:,} inputs in {report.seconds:.1f} s, "
             f"{report.inputs / max(report.seconds, 1e-9):,.0f}/s, the slowest {report.slowest * 1000:.0f} ms"]
    lines += [f"  {count:>10,}  {kind}" for kind, count in report.outcomes.most_common()]
    for failure in report.failures:
        lines.append(f"  FAILED with seed {report.seed}: {failure.kind}\n    {len(failure.data)} bytes: "
                     f"{failure.data[:2000]!r}\n" + failure.details.rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

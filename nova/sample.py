"""Writes nova.conf.sample: every flag of every module with its help and its default, commented out.

A program: ``python -m nova.sample > nova.conf.sample``.  The sample does not depend on the machine that it was made on.
"""

import importlib
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

import nova
from nova.flags import FLAGS

HEADER = """\
# Nova's flags: all of them, with their defaults.
#
# A flagfile holds one --name=value a line; lines that begin with # are comments.  Every Nova program reads the one that
# --flagfile=FILE names, else ./nova.conf, else /etc/nova/nova.conf; the command line has the last word.
#
# Made by: python -m nova.sample > nova.conf.sample
"""

#: flags whose default differs from host to host, and what is said instead
HOST_DEPENDENT = {"host": "the host's name"}
WIDTH = 118


def generate() -> str:
    """The text of nova.conf.sample."""
    modules = {module.__name__: module for module in _modules()}
    sections = [HEADER]
    for name, flags in sorted(FLAGS.FlagsByModuleDict().items()):
        if name in modules and flags:
            sections.append(_section(modules[name], sorted(flags, key=lambda flag: flag.name)))
    return "\n\n".join(sections)


def _modules() -> Iterator[ModuleType]:
    """All modules of Nova, imported."""
    for found in pkgutil.walk_packages(nova.__path__, "nova."):
        yield importlib.import_module(found.name)


def _section(module: ModuleType, flags: list) -> str:
    title = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")
    rule = "# " + "-" * (WIDTH - 2)
    lines = [rule, *_comment(f"{module.__name__}: {title}"), rule]
    for flag in flags:
        lines += ["", *_comment(_described(flag)), f"#{_setting(flag)}"]
    return "\n".join(lines) + "\n"


def _described(flag) -> str:
    text = " ".join(flag.help.split())
    values = getattr(flag.parser, "enum_values", None)
    if values:
        text = f"{text.removeprefix('<' + '|'.join(values) + '>: ')} (one of: {', '.join(values)})"
    if flag.name in HOST_DEPENDENT:
        text += f" (default: {HOST_DEPENDENT[flag.name]})"
    return text


def _setting(flag) -> str:
    """The line that would set the flag to its default."""
    if flag.name in HOST_DEPENDENT or flag.default is None:
        return f"--{flag.name}="
    if flag.boolean:
        return f"--{'' if flag.default else 'no'}{flag.name}"
    value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"--{flag.name}={value}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False,
                         break_long_words=False)


if __name__ == "__main__":
    sys.stdout.write(generate())

"""Configuration flags.

Every module defines the flags it uses, next to the code that uses them, with the ``DEFINE_*`` functions of this
module; ``FLAGS.name`` reads one.  Values come from the command line and from flagfiles (one ``--name=value`` a line).
Only what several layers share is defined here.
"""

import os
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import gflags

FLAGS = gflags.FLAGS
FLAGS.MarkAsParsed()  # a flag has its default until parse() is called, so that a library user need not call it

DEFINE_string = gflags.DEFINE_string
DEFINE_integer = gflags.DEFINE_integer
DEFINE_float = gflags.DEFINE_float
DEFINE_boolean = gflags.DEFINE_boolean
DEFINE_list = gflags.DEFINE_list
DEFINE_enum = gflags.DEFINE_enum


def check(name: str, is_right: Callable[[Any], bool], message: str) -> None:
    """Have the values of a flag checked when the command line is read.

    :param is_right: whether a value will do; it may read other flags
    :param message: what a right value is
    """
    gflags.RegisterValidator(name, is_right, message=message)


#: where a flagfile is looked for when the command line names none
DEFAULT_FLAGFILES = ("nova.conf", "/etc/nova/nova.conf")

DEFINE_string("state_path", "./state", "directory for everything that a host keeps: images, disks, logs, sockets")
DEFINE_string("ca_path", "", "directory of the cloud's certificate authority, and of the key that encrypts secrets "
              "in Redis; 'ca' below --state_path when empty")
DEFINE_string("host", socket.gethostname(), "name of this host, as the other hosts know it")
DEFINE_string("api_host", "127.0.0.1", "name or address at which clients and nodes reach the EC2 and S3 endpoints")
DEFINE_integer("ec2_port", 8773, "port of the EC2 endpoint; 0 takes a free one", lower_bound=0, upper_bound=65535)
DEFINE_integer("s3_port", 3333, "port of the S3 endpoint; 0 takes a free one", lower_bound=0, upper_bound=65535)
DEFINE_integer("metadata_port", 8775, "port of the metadata service that 169.254.169.254 leads to; 0 takes a free one",
               lower_bound=0, upper_bound=65535)
DEFINE_string("redis_url", "", "URL of the Redis that holds the cloud's state (redis://HOST:PORT/DB or unix://PATH)")
check("redis_url", lambda url: not url or url.startswith(("redis://", "rediss://", "unix://")),
      "it must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH")
DEFINE_string("region", "nova", "name of the region")
DEFINE_string("node_availability_zone", "nova", "availability zone of this host")


class FlagError(Exception):
    """The command line or a flagfile is wrong; the text says which flag and why."""


def parse(argv: list[str]) -> list[str]:
    """Set the flags from a command line.

    :param argv: the program's name and its arguments
    :returns: the program's name and the arguments that are no flags
    :raises FlagError: for an unknown flag, a bad value or an unreadable flagfile
    """
    flagfiles, arguments = _split_flagfiles(argv[1:])
    if not flagfiles:
        flagfiles = [f"--flagfile={path}" for path in DEFAULT_FLAGFILES if os.path.exists(path)][:1]
    try:
        rest = FLAGS([argv[0], *flagfiles, *arguments])
    except gflags.FlagsError as error:
        raise FlagError(" ".join(str(error).split())) from error
    FLAGS.state_path = os.path.abspath(FLAGS.state_path)
    return rest


def _split_flagfiles(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments that name flagfiles, and the others; gflags gives the last word to what comes last."""
    flagfiles: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return flagfiles, [*others, argument, *rest]
        if argument in ("--flagfile", "-flagfile"):
            flagfiles += [argument, *[value for value in [next(rest, None)] if value is not None]]
        elif argument.startswith(("--flagfile=", "-flagfile=")):
            flagfiles.append(argument)
        else:
            others.append(argument)
    return flagfiles, others


def parse_or_exit(argv: list[str]) -> list[str]:
    """:func:`parse`, but a mistake is one line on standard error and exit code 1."""
    try:
        return parse(argv)
    except FlagError as error:
        die(f"{os.path.basename(argv[0])}: {error}  (--help lists the flags)")


def die(message: str) -> NoReturn:
    """End the program with one line on standard error and exit code 1."""
    print(message, file=sys.stderr)
    raise SystemExit(1)


def given() -> list[str]:
    """The flags that differ from their defaults, as arguments for another Nova process."""
    return [flag.serialize() for name, flag in sorted(FLAGS.FlagDict().items())
            if flag.name == name and flag.present and name not in ("flagfile", "help", "helpshort", "helpxml")]

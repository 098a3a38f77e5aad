"""The directory on a real LDAP server, by ldap3 in a bounded pool of threads.

Connections are kept and used again, one by one thread at a time.  One that turns out to be dead is replaced and the
operation tried once more; when that fails too, the server counts as away and for a second nobody waits for it.
"""

import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import ldap3
from ldap3.core import results
from ldap3.core.exceptions import LDAPCommunicationError, LDAPExceptionError
from ldap3.operation.search import compile_filter, parse_filter
from ldap3.utils.asn1 import encode

from nova import exception, process
from nova.auth.directory import Change, ChangeKind, Directory, Entry, SchemaViolation, Scope
from nova.auth.filters import Filter
from nova.flags import FLAGS, DEFINE_boolean, DEFINE_integer, DEFINE_string

DEFINE_string("ldap_url", "ldap://127.0.0.1", "LDAP server: ldap://HOST[:PORT], ldaps://HOST[:PORT] or ldapi://PATH")
DEFINE_string("ldap_user_dn", "cn=nova,dc=nova", "DN as which Nova binds to the LDAP server")
DEFINE_string("ldap_password", "", "password of --ldap_user_dn; --ldap_password_file keeps it off command lines")
DEFINE_string("ldap_password_file", "", "file with the password of --ldap_user_dn, instead of --ldap_password")
DEFINE_boolean("ldap_start_tls", False, "turn an ldap:// connection into one with TLS before anything secret is sent")
DEFINE_string("ldap_ca_file", "", "certificates (PEM) of the authorities that may vouch for the LDAP server; "
              "the system's when empty")
DEFINE_integer("ldap_timeout", 4, "seconds to wait for a connection to the LDAP server, and for an answer",
               lower_bound=1)
DEFINE_integer("ldap_pool_size", 4, "connections to the LDAP server that a process has at most", lower_bound=1)

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: seconds for which a server that could not be reached is not tried again
DOWN_SECONDS = 1.0
#: the assertion control (RFC 4528)
_ASSERTION = "1.3.6.1.1.12"

_SCOPES = {Scope.BASE: ldap3.BASE, Scope.ONE: ldap3.LEVEL, Scope.SUBTREE: ldap3.SUBTREE}
_KINDS = {ChangeKind.ADD: ldap3.MODIFY_ADD, ChangeKind.DELETE: ldap3.MODIFY_DELETE,
          ChangeKind.REPLACE: ldap3.MODIFY_REPLACE}
_INVALID = {results.RESULT_UNDEFINED_ATTRIBUTE_TYPE, results.RESULT_INAPPROPRIATE_MATCHING,
            results.RESULT_CONSTRAINT_VIOLATION, results.RESULT_INVALID_ATTRIBUTE_SYNTAX,
            results.RESULT_INVALID_DN_SYNTAX, results.RESULT_NAMING_VIOLATION}
_AWAY = {results.RESULT_BUSY, results.RESULT_UNAVAILABLE, results.RESULT_TIME_LIMIT_EXCEEDED,
         results.RESULT_ADMIN_LIMIT_EXCEEDED}


class _Away(Exception):
    """The server cannot be reached, or does not let Nova in."""


class _StrictTls(ldap3.Tls):
    """TLS as Python's own defaults have it: the certificate's chain and the server's name are checked."""

    def wrap_socket(self, connection: ldap3.Connection, do_handshake: bool = False) -> None:
        context = ssl.create_default_context(cafile=self.ca_certs_file)
        connection.socket = context.wrap_socket(connection.socket, server_hostname=connection.server.host)


class LdapDirectory(Directory):
    """A real directory.

    :param url: ``ldap://``, ``ldaps://`` or ``ldapi://`` with the percent-encoded path of a socket
    :param start_tls: refuse to speak to an ``ldap://`` server without TLS
    :param ca_file: PEM file of the authorities that may vouch for the server; the system's when empty
    :param timeout: seconds for a connection, and again for each answer
    """

    def __init__(self, url: str, user_dn: str, password: str, start_tls: bool = False, ca_file: str = "",
                 timeout: int = 4, pool_size: int = 4):
        parts = urlsplit(url)
        if parts.scheme not in ("ldap", "ldaps", "ldapi") or (parts.scheme != "ldapi" and not parts.hostname):
            raise exception.NovaError(f"--ldap_url={url} is no ldap://, ldaps:// or ldapi:// URL")
        if parts.scheme == "ldap" and not start_tls and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            LOG.warning("secrets cross the network to %s in clear: use --ldap_start_tls or an ldaps:// URL",
                        parts.hostname)
        self._url, self._user_dn, self._password, self._ca_file = url, user_dn, password, ca_file
        self._start_tls = start_tls and parts.scheme == "ldap"
        self._timeout, self._size = timeout, pool_size
        self._threads: process.Pool | None = None
        self._idle: list[ldap3.Connection] = []
        self._lock = threading.Lock()
        self._down_until = 0.0

    async def start(self) -> None:
        """Make the threads; the first operation connects."""
        if self._threads is None:
            self._threads = process.Pool(self._size, "ldap")

    async def stop(self) -> None:
        """Close the connections; operations under way end by themselves."""
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        for connection in self._take_all():
            connection.strategy.close()

    # -- operations --------------------------------------------------------------------------------------------------

    async def _search(self, base: str, scope: Scope, filter: Filter, attributes: tuple[str, ...]) -> list[Entry]:
        def work(connection: ldap3.Connection, again: bool) -> list[Entry]:
            connection.search(base, str(filter), _SCOPES[scope], attributes=list(attributes))
            code = connection.result["result"]
            if code in (results.RESULT_NO_SUCH_OBJECT, results.RESULT_INVALID_DN_SYNTAX):
                return []
            _check(connection, base)
            return [_entry(answer, attributes) for answer in connection.response if answer["type"] == "searchResEntry"]
        return await self._run(work)

    async def _add(self, dn: str, attributes: dict[str, list[str]]) -> None:
        def work(connection: ldap3.Connection, again: bool) -> None:
            values = {name: [v.encode() for v in given] for name, given in attributes.items()}
            connection.add(dn, attributes=values)
            if again and connection.result["result"] == results.RESULT_ENTRY_ALREADY_EXISTS:
                if self._is(connection, dn, attributes):
                    return  # the first try did it
                raise exception.Exists("entry", dn)
            _check(connection, dn)
        await self._run(work)

    async def _modify(self, dn: str, changes: Sequence[Change], condition: Filter | None) -> None:
        def work(connection: ldap3.Connection, again: bool) -> None:
            operations: dict[str, list[tuple[str, list[bytes]]]] = {}
            for change in changes:
                operations.setdefault(change.attribute, []).append(
                    (_KINDS[change.kind], [v.encode() for v in change.values]))
            connection.modify(dn, operations, controls=_controls(condition))
            done = {results.RESULT_ATTRIBUTE_OR_VALUE_EXISTS, results.RESULT_NO_SUCH_ATTRIBUTE}
            if again and connection.result["result"] in done:
                return  # the first try may have done it; the entry is as was wanted
            _check(connection, dn)
        await self._run(work)

    async def _delete(self, dn: str, condition: Filter | None) -> None:
        def work(connection: ldap3.Connection, again: bool) -> None:
            connection.delete(dn, controls=_controls(condition))
            if again and connection.result["result"] == results.RESULT_NO_SUCH_OBJECT:
                return
            _check(connection, dn)
        await self._run(work)

    @staticmethod
    def _is(connection: ldap3.Connection, dn: str, attributes: dict[str, list[str]]) -> bool:
        """Whether an entry is what was to be added."""
        connection.search(dn, "(objectClass=*)", ldap3.BASE, attributes=list(attributes))
        found = [_entry(answer, tuple(attributes)) for answer in connection.response or []
                 if answer["type"] == "searchResEntry"]
        return len(found) == 1 and all(set(found[0].values(n)) >= set(v) for n, v in attributes.items())

    # -- connections -------------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[ldap3.Connection, bool], T]) -> T:
        await self.start()
        threads = self._threads
        if threads is None or time.monotonic() < self._down_until:
            raise exception.Unavailable()
        try:
            return await process.wait(threads.run(self._attempt, work))
        except _Away as error:
            LOG.error("the LDAP server %s: %s", self._url, error)
            raise exception.Unavailable() from error

    def _attempt(self, work: Callable[[ldap3.Connection, bool], T]) -> T:
        """In a thread: do some work on a connection, on a fresh one if the first turns out to be dead."""
        if time.monotonic() < self._down_until:  # others have found out while this waited for a thread
            raise _Away("it did not answer a moment ago")
        connection = self._take()
        used_before = connection is not None
        for again in (False, True):
            connection = connection or self._connect()
            try:
                answer = work(connection, again)
            except LDAPCommunicationError as error:
                self._drop(connection)
                connection = None
                for stale in self._take_all():  # they are as old as this one
                    self._drop(stale)
                if again or (not used_before and _timed_out(error)):
                    self._down_until = time.monotonic() + DOWN_SECONDS
                    raise _Away(str(error)) from error
            except LDAPExceptionError as error:
                self._drop(connection)
                raise exception.InvalidParameterValue(f"The directory cannot take this: {error}") from error
            except BaseException:
                self._give(connection)
                raise
            else:
                self._give(connection)
                return answer
        raise _Away("no answer")

    def _connect(self) -> ldap3.Connection:
        try:
            return self._open()
        except (LDAPExceptionError, OSError) as error:
            self._down_until = time.monotonic() + DOWN_SECONDS
            raise _Away(str(error)) from error

    def _open(self) -> ldap3.Connection:
        parts = urlsplit(self._url)
        if parts.scheme == "ldapi":
            address = f"ldapi://{unquote(parts.netloc or '/var/run/slapd/ldapi')}"
            server = ldap3.Server(address, get_info=ldap3.NONE, connect_timeout=self._timeout)
        else:
            secure = parts.scheme == "ldaps"
            server = ldap3.Server(parts.hostname, port=parts.port or (636 if secure else 389), use_ssl=secure,
                                  get_info=ldap3.NONE, connect_timeout=self._timeout,
                                  tls=_StrictTls(validate=ssl.CERT_REQUIRED, ca_certs_file=self._ca_file or None))
        connection = ldap3.Connection(server, self._user_dn, self._password, receive_timeout=self._timeout,
                                      check_names=False, auto_referrals=False, auto_escape=False,
                                      auto_encode=False, raise_exceptions=False)
        try:
            connection.open(read_server_info=False)
            if self._start_tls:
                connection.start_tls(read_server_info=False)
            if not connection.bind(read_server_info=False):
                raise _Away(f"it does not let {self._user_dn} in: {connection.result['description']}")
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _take(self) -> ldap3.Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _take_all(self) -> list[ldap3.Connection]:
        with self._lock:
            taken, self._idle = self._idle, []
        return taken

    def _give(self, connection: ldap3.Connection) -> None:
        if self._threads is None:
            self._drop(connection)
            return
        with self._lock:
            self._idle.append(connection)

    @staticmethod
    def _drop(connection: ldap3.Connection) -> None:
        with contextlib.suppress(LDAPExceptionError, OSError):  # it may be dead in any way
            connection.strategy.close()


def from_flags() -> LdapDirectory:
    """The directory that the flags name.

    :raises exception.NovaError: the password's or the certificates' file cannot be read
    """
    password = FLAGS.ldap_password
    try:
        if FLAGS.ldap_password_file:
            with open(FLAGS.ldap_password_file) as file:
                password = file.read().rstrip("\n")
        if FLAGS.ldap_ca_file:
            with open(FLAGS.ldap_ca_file):
                pass
    except OSError as error:
        raise exception.NovaError(f"cannot read {error.filename}: {error.strerror}") from error
    if not password:
        raise exception.NovaError("--ldap_driver=ldap needs --ldap_password_file (or --ldap_password)")
    return LdapDirectory(FLAGS.ldap_url, FLAGS.ldap_user_dn, password, start_tls=FLAGS.ldap_start_tls,
                         ca_file=FLAGS.ldap_ca_file, timeout=FLAGS.ldap_timeout, pool_size=FLAGS.ldap_pool_size)


def _timed_out(error: Exception) -> bool:
    return "timed out" in str(error) or "Resource temporarily unavailable" in str(error)


def _controls(condition: Filter | None) -> list[tuple[str, bool, bytes]] | None:
    return None if condition is None else [(_ASSERTION, True, _encoded(condition))]


def _encoded(condition: Filter) -> bytes:
    """A filter in BER, as the assertion control carries it."""
    return encode(compile_filter(parse_filter(str(condition), None, False, False, None, False).elements[0]))


def _entry(answer: dict[str, Any], asked: tuple[str, ...]) -> Entry:
    names = {name.lower(): name for name in asked}
    return Entry(answer["dn"], {names.get(name.lower(), name): [v.decode("utf-8", "backslashreplace") for v in values]
                                for name, values in answer["raw_attributes"].items() if values})


def _check(connection: ldap3.Connection, dn: str) -> None:
    code = connection.result["result"]
    if code != results.RESULT_SUCCESS:
        _refuse(code, dn, connection.result["message"] or connection.result["description"])


def _refuse(code: int, dn: str, text: str) -> None:
    """Raise what a result code (RFC 4511, appendix A) is called in Nova."""
    if code == results.RESULT_ENTRY_ALREADY_EXISTS:
        raise exception.Exists("entry", dn)
    if code == results.RESULT_ATTRIBUTE_OR_VALUE_EXISTS:
        raise exception.Exists("value in", dn)
    if code == results.RESULT_CONSTRAINT_VIOLATION and "unique" in text:
        raise exception.Exists("value in", dn)
    if code == results.RESULT_NO_SUCH_OBJECT:
        raise exception.NotFound(kind="entry", id=dn)
    if code == results.RESULT_NO_SUCH_ATTRIBUTE:
        raise exception.NotFound(kind="value in", id=dn)
    if code == results.RESULT_OBJECT_CLASS_VIOLATION:
        raise SchemaViolation(f"The directory's schema does not allow this: {text}")
    if code in (results.RESULT_NOT_ALLOWED_ON_NON_LEAF, results.RESULT_ASSERTION_FAILED):
        raise exception.Conflict(kind="entry", id=dn)
    if code in _INVALID:
        raise exception.InvalidParameterValue(f"The directory cannot take this: {text}")
    if code in _AWAY:
        raise _Away(text)
    raise exception.NovaError(f"the LDAP server refuses to work on {dn}: {text} ({code})")

"""What a certificate authority has issued and revoked: one SQLite file, so that a process that dies in the middle of
a change, or several processes at once, cannot damage it."""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterator
from datetime import UTC, datetime

from cryptography import x509

from nova.crypto.certificates import Revoked, to_pem

#: seconds to wait for another process's change
_PATIENCE = 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, issuer TEXT NOT NULL, user TEXT NOT NULL, project TEXT NOT NULL,
    expires REAL NOT NULL, revoked REAL, reason TEXT, pem BLOB);
CREATE INDEX IF NOT EXISTS by_user ON certificates (user, project);
CREATE INDEX IF NOT EXISTS by_project ON certificates (project);
CREATE INDEX IF NOT EXISTS by_revoked ON certificates (issuer) WHERE revoked IS NOT NULL;
CREATE TABLE IF NOT EXISTS lists (
    issuer TEXT PRIMARY KEY, number INTEGER NOT NULL, stale INTEGER NOT NULL);
"""


class Index:
    """The certificates of one authority directory.

    An issuer is named by the identifier of its key.  The certificate of a project's own authority has no user.
    """

    def __init__(self, path: str):
        self._path = path

    def add(self, issuer: str, certificate: x509.Certificate, user: str, project: str) -> None:
        """Note a certificate; before it is handed out, so that there is none that could not be revoked."""
        with self._change() as db:
            db.execute("INSERT INTO certificates (serial, issuer, user, project, expires, pem) "
                       "VALUES (?, ?, ?, ?, ?, ?)",
                       (_hex(certificate), issuer, user, project, certificate.not_valid_after_utc.timestamp(),
                        to_pem(certificate)))

    def of_users(self, users: Collection[str]) -> list[bytes]:
        """The certificates of users that are not revoked, in PEM, the newest first.

        Those that were issued before certificates were kept here are not among them.
        """
        marks = ", ".join("?" * len(users))
        with self._change() as db:
            return [pem for pem, in db.execute(
                "SELECT pem FROM certificates WHERE revoked IS NULL AND pem IS NOT NULL AND user != '' "
                f"AND user IN ({marks}) ORDER BY expires DESC, serial", tuple(users))]

    def is_good(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate was issued here and not revoked."""
        with self._change() as db:
            row = db.execute("SELECT revoked FROM certificates WHERE serial = ?", (_hex(certificate),)).fetchone()
        return row is not None and row[0] is None

    def revoke(self, now: datetime, reason: str, user: str | None = None, project: str | None = None) -> int:
        """Mark the certificates of a user, of a project, or of a user in a project; how many were good until now.

        The lists of their issuers are stale from then on.
        """
        chosen = [(column, value) for column, value in (("user", user), ("project", project)) if value is not None]
        where = " AND ".join(["revoked IS NULL", *(f"{column} = ?" for column, _ in chosen)])
        values = [value for _, value in chosen]
        with self._change() as db:
            db.execute("INSERT INTO lists (issuer, number, stale) "
                       f"SELECT DISTINCT issuer, 0, 1 FROM certificates WHERE {where} "
                       "ON CONFLICT (issuer) DO UPDATE SET stale = 1", values)
            return db.execute(f"UPDATE certificates SET revoked = ?, reason = ? WHERE {where}",
                              [now.timestamp(), reason, *values]).rowcount

    def next_list(self, issuer: str, since: datetime) -> tuple[int, list[Revoked]]:
        """The number and the entries of an issuer's next list.

        :param since: what expired before this time is left out
        """
        with self._change() as db:
            db.execute("INSERT INTO lists (issuer, number, stale) VALUES (?, 1, 1) "
                       "ON CONFLICT (issuer) DO UPDATE SET number = number + 1", (issuer,))
            [number] = db.execute("SELECT number FROM lists WHERE issuer = ?", (issuer,)).fetchone()
            rows = db.execute("SELECT serial, revoked, reason FROM certificates WHERE issuer = ? "
                              "AND revoked IS NOT NULL AND expires > ? ORDER BY revoked, serial",
                              (issuer, since.timestamp())).fetchall()
        return number, [Revoked(int(serial, 16), datetime.fromtimestamp(int(when), UTC), reason)
                        for serial, when, reason in rows]

    def fresh_lists(self) -> set[str]:
        """The issuers of which nothing was revoked after their list was written."""
        with self._change() as db:
            return {issuer for issuer, in db.execute("SELECT issuer FROM lists WHERE stale = 0")}

    def revoked_authorities(self) -> set[int]:
        """The serial numbers of the projects' authorities that are revoked."""
        with self._change() as db:
            return {int(serial, 16) for serial, in db.execute(
                "SELECT serial FROM certificates WHERE user = '' AND revoked IS NOT NULL")}

    def written(self, issuer: str) -> None:
        """Note that the issuer's list has everything that is revoked now."""
        with self._change() as db:
            db.execute("UPDATE lists SET stale = 0 WHERE issuer = ?", (issuer,))

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would let others read it
        db = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            if "pem" not in [row[1] for row in db.execute("PRAGMA table_info (certificates)")]:
                db.execute("ALTER TABLE certificates ADD COLUMN pem BLOB")  # an index of an earlier release
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # what was not committed is undone


def _hex(certificate: x509.Certificate) -> str:
    return f"{certificate.serial_number:040x}"

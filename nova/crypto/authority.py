"""The cloud's certificate authority: who signs users' certificates, and which of them are revoked.

One directory has it all, and never leaves its host: the cloud's key and certificate, those of the projects' own
authorities (`--use_project_ca`), the index of what was issued, and the revocation lists.  Everything that changes it
holds a lock on the directory, files appear complete or not at all, and a change that a dying process has begun is
ended by the next.  All of it blocks: call it in a thread.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from cryptography import x509

from nova import exception
from nova.crypto import certificates
from nova.crypto.certificates import Issuer
from nova.crypto.index import Index
from nova.crypto.keys import rsa_pem
from nova.flags import FLAGS, DEFINE_boolean, DEFINE_integer, DEFINE_string

DEFINE_boolean("use_project_ca", False, "sign users' certificates by an authority of their project, not by the cloud's")
DEFINE_integer("ca_days", 3650, "days for which the certificates of authorities are good", lower_bound=1)
DEFINE_integer("certificate_days", 365, "days for which users' certificates are good", lower_bound=1)
DEFINE_integer("crl_days", 30, "days after which a revocation list must have been replaced", lower_bound=1)
DEFINE_string("crl_url", "", "URL at which the directory 'crl' of the certificate authority is published; certificates "
                             "name it when it is given")

#: names of projects become names of directories
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+ -]{0,63}")
_REASON = "cessationOfOperation"


def ca_path(*names: str) -> str:
    """The directory of the cloud's certificate authority, or the path of a file in it."""
    return os.path.abspath(os.path.join(FLAGS.ca_path or os.path.join(FLAGS.state_path, "ca"), *names))


class Authority:
    """The authority in a directory.

    `key_path` and `certificate_path` are the cloud's key and certificate: bundled images are encrypted for it.

    :param clock: tells the present time, in whole seconds and aware of its zone
    """

    def __init__(self, directory: str, clock: Callable[[], datetime] = certificates.now):
        self._clock = clock
        self.key_path = os.path.join(directory, "cakey.pem")
        self.certificate_path = os.path.join(directory, "cacert.pem")
        self._directory = directory
        self._projects, self._removed = os.path.join(directory, "projects"), os.path.join(directory, "removed")
        self._lists = os.path.join(directory, "crl")
        self._index = Index(os.path.join(directory, "index.sqlite"))

    def ensure(self) -> bool:
        """Make the authority where there is none; whether it was made now."""
        if os.path.exists(self.certificate_path):
            return False
        with self._locked():
            if os.path.exists(self.certificate_path):
                return False
            pem = rsa_pem()
            _write(self.key_path, pem, 0o600)
            certificate = certificates.root_authority(
                certificates.subject("cloud authority"), certificates.load_key(pem), FLAGS.ca_days, self._clock())
            _write(self.certificate_path, certificates.to_pem(certificate), 0o644)
            return True

    def issue(self, user: str, project: str) -> tuple[bytes, bytes]:
        """A new key and certificate for a user of a project; both PEM.

        :raises exception.InvalidParameterValue: a certificate cannot hold the names
        """
        name = certificates.subject(user, project)
        key_pem = rsa_pem()
        public = certificates.load_key(key_pem).public_key()
        with self._locked():
            issuer = self._project(project) if FLAGS.use_project_ca else self._root()
            certificate = certificates.user(issuer, name, public, FLAGS.certificate_days, self._clock(),
                                            FLAGS.crl_url)
            self._index.add(issuer.id, certificate, user, project)
        return key_pem, certificates.to_pem(certificate)

    def chain(self, project: str) -> bytes:
        """The certificates that verify a project's users, in PEM: the cloud's, and the project's if it signs.

        The cloud's is the first, because tools that encrypt images take the first that they find.
        """
        with self._locked():
            made = [self._root().certificate]
            if FLAGS.use_project_ca:
                made.append(self._project(project).certificate)
        return b"".join(map(certificates.to_pem, made))

    def is_good(self, certificate_pem: bytes, user: str, project: str) -> bool:
        """Whether a certificate is the user's in the project, not revoked, from the issuer that signs today, and has
        at least a tenth of its life left."""
        try:
            certificate = certificates.load(certificate_pem)
            name = certificates.subject(user, project)
        except (ValueError, exception.InvalidParameterValue):
            return False
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        with self._locked():
            issuer = self._project(project) if FLAGS.use_project_ca else self._root()
            return (certificate.subject == name and certificate.not_valid_after_utc - self._clock() > life / 10
                    and certificates.is_issued_by(certificate, issuer.certificate)
                    and self._index.is_good(certificate))

    def certificates_of(self, *users: str) -> list[bytes]:
        """The certificates of users, of whatever projects, that are not revoked; in PEM, the newest first.

        Those that have expired are among them: they tell who signed something, not that it was today.
        """
        with self._locked():
            return self._index.of_users([user for user in users if user])

    # -- revocation --------------------------------------------------------------------------------------------------

    def revoke_user(self, user: str, project: str | None = None) -> int:
        """Revoke a user's certificates, of all projects or of one, and publish it; how many there were."""
        with self._locked():
            count = self._index.revoke(self._clock(), _REASON, user=user, project=project)
            self._publish()
        return count

    def revoke_project(self, project: str) -> int:
        """Revoke the certificates of a project's users, and its authority, whose key is destroyed; how many."""
        with self._locked():
            count = self._index.revoke(self._clock(), _REASON, project=project)
            self._publish()
        return count

    def crl(self) -> bytes:
        """The revocation lists of all authorities in PEM; those that have passed half their time are made anew."""
        with self._locked():
            return b"".join(map(certificates.to_pem, self._publish()))

    def _publish(self) -> list[x509.CertificateRevocationList]:
        """Bring the files of all lists up to date, and retire the authorities of removed projects."""
        fresh, revoked = self._index.fresh_lists(), self._index.revoked_authorities()
        lists = [self._list(certificates.load(_read(self.certificate_path)), self.key_path, fresh)]
        for project in sorted(_entries(self._projects)):
            certificate_path, key_path = self._paths(project)
            if not os.path.exists(certificate_path) or not os.path.exists(key_path):
                self._drop(project)  # half made or half dropped: it signs nothing any more
                continue
            certificate = certificates.load(_read(certificate_path))
            if certificate.serial_number in revoked:
                self._retire(project, Issuer(certificates.load_key(_read(key_path)), certificate))
            else:
                lists.append(self._list(certificate, key_path, fresh))
        for name in sorted(_entries(self._removed)):
            last = _read_list(os.path.join(self._removed, name)) if name.endswith(".crl") else None
            if last is not None:
                lists.append(last)
        return lists

    def _list(self, certificate: x509.Certificate, key_path: str, fresh: set[str]) -> x509.CertificateRevocationList:
        id = certificates.key_id(certificate)
        found = _read_list(self._list_path(id)) if id in fresh else None
        if found is not None and found.next_update_utc is not None:
            if found.next_update_utc - self._clock() > timedelta(days=FLAGS.crl_days) / 2:
                return found
        issuer = Issuer(certificates.load_key(_read(key_path)), certificate)
        return self._write_list(issuer, self._clock() + timedelta(days=FLAGS.crl_days))

    def _write_list(self, issuer: Issuer, until: datetime) -> x509.CertificateRevocationList:
        now = self._clock()
        number, entries = self._index.next_list(issuer.id, since=now - timedelta(days=FLAGS.crl_days))
        made = certificates.revocation_list(issuer, entries, number, now, until)
        os.makedirs(self._lists, exist_ok=True)
        _write(self._list_path(issuer.id), certificates.to_der(made), 0o644)
        self._index.written(issuer.id)
        return made

    def _list_path(self, id: str) -> str:
        return os.path.join(self._lists, f"{id}.crl")

    def _retire(self, project: str, issuer: Issuer) -> None:
        """Write a removed authority's last list, which is good as long as its certificates were, and drop its key."""
        made = self._write_list(issuer, issuer.certificate.not_valid_after_utc)
        os.makedirs(self._removed, mode=0o700, exist_ok=True)
        _write(os.path.join(self._removed, f"{issuer.id}.crl"), certificates.to_der(made), 0o644)
        self._drop(project)

    def _drop(self, project: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(self._projects, project))

    # -- issuers -----------------------------------------------------------------------------------------------------

    def _root(self) -> Issuer:
        return Issuer(certificates.load_key(_read(self.key_path)), certificates.load(_read(self.certificate_path)))

    def _project(self, project: str) -> Issuer:
        """The project's authority, made when there is none."""
        if not _NAME.fullmatch(project):
            raise exception.InvalidParameterValue(f"'{project}' cannot have a certificate authority of its own")
        certificate_path, key_path = self._paths(project)
        if os.path.exists(certificate_path) and os.path.exists(key_path):
            found = Issuer(certificates.load_key(_read(key_path)), certificates.load(_read(certificate_path)))
            if self._index.is_good(found.certificate):
                return found
            self._retire(project, found)  # what revoke_project() began
        self._drop(project)
        return self._make_project(project)

    def _make_project(self, project: str) -> Issuer:
        certificate_path, key_path = self._paths(project)
        root, pem = self._root(), rsa_pem()
        key = certificates.load_key(pem)
        # A project removed and made again gets another authority, so the two must not share a name.
        name = certificates.subject("project authority", project, os.urandom(8).hex())
        certificate = certificates.project_authority(root, name, key.public_key(), FLAGS.ca_days, self._clock(),
                                                     FLAGS.crl_url)
        self._index.add(root.id, certificate, "", project)
        os.makedirs(self._projects, mode=0o700, exist_ok=True)
        os.makedirs(os.path.dirname(key_path), mode=0o700, exist_ok=True)
        _write(key_path, pem, 0o600)
        _write(certificate_path, certificates.to_pem(certificate), 0o644)
        return Issuer(key, certificate)

    def _paths(self, project: str) -> tuple[str, str]:
        """Where the certificate and the key of a project's authority are."""
        directory = os.path.join(self._projects, project)
        return os.path.join(directory, "cacert.pem"), os.path.join(directory, "cakey.pem")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory's lock, among threads and among processes."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        os.chmod(self._directory, 0o700)
        descriptor = os.open(os.path.join(self._directory, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _read_list(path: str) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_der_x509_crl(_read(path))
    except (FileNotFoundError, ValueError):
        return None


def _write(path: str, data: bytes, mode: int) -> None:
    """Put a file in its place, complete and on the disk."""
    directory = os.path.dirname(path)
    with os.fdopen(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""X.509 certificates and revocation lists with the extensions that RFC 5280 asks for.

Functions over keys and times; where they are kept, and who gets which, is :mod:`nova.crypto.authority`'s.
They are made with the `cryptography` package: M2Crypto knows neither revocation lists nor the identifier of an
authority's key, and `openssl ca` wants names and numbers in text files of its own format.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nova import exception

#: certificates and lists are good from this long before they are made: clocks differ
EARLIER = timedelta(hours=1)


@dataclass(frozen=True)
class Issuer:
    """Who signs: a private key and the certificate that belongs to it."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def id(self) -> str:
        """The identifier of its key, in hex."""
        return key_id(self.certificate)


@dataclass(frozen=True)
class Revoked:
    """An entry of a revocation list."""

    serial: int
    when: datetime
    reason: str


def load_key(pem: bytes) -> rsa.RSAPrivateKey:
    """An RSA private key from PEM; :raises ValueError: it is none"""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key


def load(pem: bytes) -> x509.Certificate:
    """The first certificate in PEM; :raises ValueError: there is none"""
    return x509.load_pem_x509_certificate(pem)


def to_pem(made: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    """PEM of a certificate or list."""
    return made.public_bytes(serialization.Encoding.PEM)


def to_der(made: x509.CertificateRevocationList) -> bytes:
    """DER of a list, as RFC 5280 (section 4.2.1.13) wants it at a URL."""
    return made.public_bytes(serialization.Encoding.DER)


def key_id(certificate: x509.Certificate) -> str:
    """The identifier of a certificate's key (RFC 5280, section 4.2.1.2, method 1), in hex."""
    return x509.SubjectKeyIdentifier.from_public_key(_rsa_public(certificate)).digest.hex()


def subject(common_name: str, unit: str = "", serial_number: str = "") -> x509.Name:
    """A name below ``O=nova``.

    :raises exception.InvalidParameterValue: a part is longer than X.520 lets it be (64 characters), or empty
    """
    parts = [(NameOID.ORGANIZATION_NAME, "nova"), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
             (NameOID.COMMON_NAME, common_name), (NameOID.SERIAL_NUMBER, serial_number)]
    try:
        for part in (common_name, unit):
            if len(part) > 64:
                raise ValueError(f"'{part[:64]}...' is longer than 64 characters")
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts
                          if text or oid == NameOID.COMMON_NAME])
    except ValueError as error:
        raise exception.InvalidParameterValue(f"a certificate cannot hold this name: {error}") from error


def root_authority(name: x509.Name, key: rsa.RSAPrivateKey, days: int, now: datetime) -> x509.Certificate:
    """The certificate of the cloud, signed by its own key.  Images are encrypted for it, too."""
    builder = _builder(name, name, key.public_key(), now, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True, key_encipherment=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    return builder.sign(key, hashes.SHA256())


def project_authority(issuer: Issuer, name: x509.Name, public: rsa.RSAPublicKey, days: int, now: datetime,
                      crl_url: str = "") -> x509.Certificate:
    """The certificate of a project, which signs those of its members and no other authority's."""
    builder = _issued(issuer, name, public, days, now, crl_url)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    return builder.sign(issuer.key, hashes.SHA256())


def user(issuer: Issuer, name: x509.Name, public: rsa.RSAPublicKey, days: int, now: datetime,
         crl_url: str = "") -> x509.Certificate:
    """A user's certificate: it signs and decrypts bundles, and says who a TLS client is."""
    builder = _issued(issuer, name, public, days, now, crl_url)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True, key_encipherment=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def revocation_list(issuer: Issuer, entries: Iterable[Revoked], number: int, now: datetime,
                    until: datetime) -> x509.CertificateRevocationList:
    """What an issuer has revoked.

    :param number: larger than that of each list before
    :param until: when the next list comes at the latest
    """
    builder = (x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
               .last_update(now - EARLIER).next_update(until)
               .add_extension(x509.CRLNumber(number), critical=False)
               .add_extension(_authority_key(issuer), critical=False))
    for entry in entries:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(entry.serial).revocation_date(entry.when)
            .add_extension(x509.CRLReason(x509.ReasonFlags(entry.reason)), critical=False).build())
    return builder.sign(issuer.key, hashes.SHA256())


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether a certificate names the issuer and has its signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _issued(issuer: Issuer, name: x509.Name, public: rsa.RSAPublicKey, days: int, now: datetime,
            crl_url: str) -> x509.CertificateBuilder:
    end = min(now + timedelta(days=days), issuer.certificate.not_valid_after_utc)
    builder = _builder(name, issuer.certificate.subject, public, now, end)
    builder = builder.add_extension(_authority_key(issuer), critical=False)
    if crl_url:
        where = x509.UniformResourceIdentifier(f"{crl_url.rstrip('/')}/{issuer.id}.crl")
        builder = builder.add_extension(
            x509.CRLDistributionPoints([x509.DistributionPoint([where], None, None, None)]), critical=False)
    return builder


def _builder(name: x509.Name, issuer: x509.Name, public: rsa.RSAPublicKey, now: datetime,
             end: datetime) -> x509.CertificateBuilder:
    return (x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - EARLIER).not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False))


def _authority_key(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(_rsa_public(issuer.certificate))


def _rsa_public(certificate: x509.Certificate) -> rsa.RSAPublicKey:
    public = certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        raise ValueError("not an RSA key")
    return public


def _usage(**names: bool) -> x509.KeyUsage:
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: names.get(name, False) for name in every})


def now() -> datetime:
    """The present time, in whole seconds as certificates have it."""
    return datetime.now(UTC).replace(microsecond=0)

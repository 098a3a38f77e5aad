"""Keys and certificates: key pairs of instances (:mod:`nova.crypto.keys`) and the cloud's certificate authority
(:mod:`nova.crypto.authority`)."""

from nova.crypto.authority import Authority, ca_path
from nova.crypto.keys import KEY_TYPES, NewKey, fingerprint, new_ed25519_key, new_rsa_key, read_public_key

__all__ = ["KEY_TYPES", "Authority", "NewKey", "ca_path", "fingerprint", "new_ed25519_key", "new_rsa_key",
           "read_public_key"]

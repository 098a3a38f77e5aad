"""Key pairs: made here or brought along; only the public half is kept, here and as a copy in the directory."""

import secrets
import time
from typing import Any

from nova import crypto, exception
from nova.auth import rbac
from nova.auth.models import KeyPair
from nova.cloud import tags
from nova.cloud.action import Controller, action, listing
from nova.cloud.public_keys import PublicKeys
from nova.context import Context
from nova.datastore import Store


class KeyPairs(Controller):
    """The key pairs of a project."""

    store: Store
    public_keys: PublicKeys

    @action("CreateKeyPair")
    async def create_key_pair(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Make a key pair; the private half is in the answer and nowhere else."""
        if params.get("KeyFormat", "pem") != "pem":
            raise exception.InvalidParameterValue(value=params["KeyFormat"], name="KeyFormat")
        kind = params.get("KeyType", "rsa")
        await self._check_free(context, params["KeyName"])
        key = await (crypto.new_ed25519_key() if kind == "ed25519" else crypto.new_rsa_key())
        pair = await self._store_pair(context, params, key.public_key, key.fingerprint, kind)
        return {**_view(pair), "KeyMaterial": key.private_key}

    @action("ImportKeyPair")
    async def import_key_pair(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Keep the public half of a key pair made elsewhere."""
        try:
            text = params["PublicKeyMaterial"].decode()
        except UnicodeDecodeError:
            raise exception.InvalidKeyFormat() from None
        public_key, kind = crypto.read_public_key(text)
        pair = await self._store_pair(context, params, public_key, crypto.fingerprint(public_key), kind)
        return _view(pair)

    @listing("DescribeKeyPairs", result="KeyPairs", id_member="KeyName", ids_param="KeyNames",
             not_found=exception.InvalidKeyPairNotFound,
             also={"KeyPairIds": ("KeyPairId", exception.InvalidKeyPairNotFound)},
             filters={"fingerprint": "KeyFingerprint"})
    async def describe_key_pairs(self, context: Context, params: dict[str, Any]) -> list[dict[str, Any]]:
        """The project's key pairs."""
        everybody = rbac.sees_others(context, "DescribeKeyPairs")
        found = await (self.store.all(KeyPair) if everybody else
                       self.store.find(KeyPair, project_id=context.project_id))
        pairs = [p for p in found if rbac.allows(context, "DescribeKeyPairs", p.user_id, p.project_id)]
        public = params.get("IncludePublicKey", False)
        return [{**_view(p), "KeyType": p.key_type, "CreateTime": p.created,
                 **({"PublicKey": p.public_key} if public else {})} for p in pairs]

    @action("DeleteKeyPair")
    async def delete_key_pair(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Forget a key pair; one that does not exist is no error, as in EC2."""
        name, pair_id = params.get("KeyName"), params.get("KeyPairId")
        if not name and not pair_id:
            raise exception.MissingParameter(name="KeyName")
        for pair in await self.store.find(KeyPair, project_id=context.project_id):
            if pair.name == name or (pair_id and pair.key_pair_id == pair_id):
                rbac.check(context, "DeleteKeyPair", pair.user_id, pair.project_id,
                           exception.InvalidKeyPairNotFound(id=pair.name))
                try:
                    await self.store.delete(pair)
                except exception.NotFound:
                    continue  # somebody else deleted it just now
                await self.public_keys.withdraw(pair)
                return {"Return": True, "KeyPairId": pair.key_pair_id}
        return {"Return": True}

    async def _check_free(self, context: Context, name: str) -> None:
        if not 1 <= len(name) <= 255 or not name.isprintable() or not name.isascii():
            raise exception.InvalidParameterValue(
                f"Value ({name[:64]!r}) for parameter KeyName is invalid: 1 to 255 printable ASCII characters")
        if await self.store.get(KeyPair, _id(context, name)) is not None:
            raise exception.InvalidKeyPairDuplicate(name=name)

    async def _store_pair(self, context: Context, params: dict[str, Any], public_key: str, fingerprint: str,
                          kind: str) -> KeyPair:
        name = params["KeyName"]
        await self._check_free(context, name)
        pair = KeyPair(_id(context, name), project_id=context.project_id, user_id=context.user_id, name=name,
                       key_pair_id=f"key-{secrets.token_hex(8)}0", public_key=public_key, fingerprint=fingerprint,
                       key_type=kind, created=time.time(), tags=tags.at_creation(params, "key-pair"))
        try:
            pair = await self.store.create(pair)
        except exception.Exists:
            raise exception.InvalidKeyPairDuplicate(name=name) from None
        await self.public_keys.publish(pair)
        return pair


def _id(context: Context, name: str) -> str:
    return f"{context.project_id}:{name}"


def _view(pair: KeyPair) -> dict[str, Any]:
    return {"KeyName": pair.name, "KeyPairId": pair.key_pair_id, "KeyFingerprint": pair.fingerprint,
            "Tags": tags.view(pair.tags)}

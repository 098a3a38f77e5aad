"""IAM and STS, as far as clients of EC2 need them: users, their access keys, and who is asking.

A user of Nova has one access key.  One that CreateUser or DeleteAccessKey leaves behind was told to nobody: for IAM the
user has none then, and CreateAccessKey makes the first.  Users have the path ``/`` only.
"""

from typing import Any

from nova import exception
from nova.auth import rbac
from nova.auth.models import User
from nova.cloud.accounts import Accounts, UntoldKey
from nova.cloud.action import Controller, action
from nova.context import Context
from nova.datastore import Store

#: users that ListUsers gives when the client names no number (IAM API reference, ListUsers)
_PAGE = 100
_PATH = "/"


def arn(project: str, user: str) -> str:
    """The name of a user all over the world."""
    return f"arn:aws:iam::{project}:user/{user}"


class Caller(Controller):
    """Who is asking."""

    store: Store

    @action("GetCallerIdentity")
    async def get_caller_identity(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The user that the request was signed by, and the project."""
        return {"Account": context.project_id, "UserId": context.user_id,
                "Arn": arn(context.project_id, context.user_id)}


class Iam(Controller):
    """Users and their access keys."""

    store: Store
    accounts: Accounts

    @action("CreateUser")
    async def create_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Add a user, who has no access key yet."""
        name = params["UserName"]
        if params.get("Path", _PATH) != _PATH:
            raise exception.InvalidParameterValue(value=params["Path"], name="Path")
        for unknown in ("PermissionsBoundary", "Tags"):
            if params.get(unknown):
                raise exception.UnsupportedOperation(f"CreateUser with {unknown} is not offered by this cloud.")
        try:
            user = await self.accounts.create_user(context, name)
        except exception.InvalidUserDuplicate as error:
            raise exception.EntityAlreadyExists(id=name) from error
        await self.accounts.mark_untold(user)
        return {"User": _view(context, user)}

    @action("GetUser")
    async def get_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """One user; the caller without a name."""
        return {"User": _view(context, await self._user(context, "GetUser", params))}

    @action("ListUsers")
    async def list_users(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The users, by name."""
        users = await self.accounts.auth.users() if _PATH.startswith(params.get("PathPrefix", _PATH)) else []
        later = [user for user in users if user.id > params.get("Marker", "")]
        page = later[:params.get("MaxItems", _PAGE)]
        answer = {"Users": [_view(context, user) for user in page], "IsTruncated": len(page) < len(later)}
        if answer["IsTruncated"]:
            answer["Marker"] = page[-1].id
        return answer

    @action("DeleteUser")
    async def delete_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Remove a user who owns nothing, not even an access key."""
        user = await self._named(params["UserName"])
        if await self._has_key(user):
            raise exception.DeleteConflict(what="access keys")
        try:
            await self.accounts.delete_user(context, user.id)
        except exception.DependencyViolation as error:
            raise exception.DeleteConflict(error.message) from error
        return {}

    @action("CreateAccessKey")
    async def create_access_key(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Give a user who has none an access key; the answer is the only place that has the secret."""
        user = await self._user(context, "CreateAccessKey", params)
        mark = await self.store.get(UntoldKey, user.id)
        try:
            if mark is None or mark.access != user.access:
                raise exception.LimitExceeded(what="AccessKeysPerUser", limit=1)
            await self.store.delete(mark)  # of two requests at once, one gets this far
        except (exception.NotFound, exception.Conflict) as error:
            raise exception.LimitExceeded(what="AccessKeysPerUser", limit=1) from error
        user = await self.accounts.rotate(context, user.id)
        return {"AccessKey": {**await self._key(user), "SecretAccessKey": user.secret}}

    @action("ListAccessKeys")
    async def list_access_keys(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The user's access key, if there is one."""
        user = await self._user(context, "ListAccessKeys", params)
        keys = [await self._key(user)] if await self._has_key(user) else []
        return {"AccessKeyMetadata": keys, "IsTruncated": False}

    @action("UpdateAccessKey")
    async def update_access_key(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have a user's requests refused, or let in again."""
        user = await self._with_key(context, "UpdateAccessKey", params)
        if params["Status"] == "Active":
            await self.accounts.unlock_user(context, user.id)
        elif params["Status"] == "Inactive":
            await self.accounts.lock_user(context, user.id)
        else:
            raise exception.InvalidParameterValue(value=params["Status"], name="Status")
        return {}

    @action("DeleteAccessKey")
    async def delete_access_key(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Make a user's access key worthless."""
        user = await self._with_key(context, "DeleteAccessKey", params)
        await self.accounts.mark_untold(await self.accounts.rotate(context, user.id))
        return {}

    async def _user(self, context: Context, action_name: str, params: dict[str, Any]) -> User:
        """The user that a request names, or the caller.

        :raises exception.NoSuchEntity: there is none that the caller may do this with
        """
        name = params.get("UserName") or context.user_id
        rbac.check(context, action_name, name, await self._project_of(context, name), _missing(name))
        return await self._named(name)

    async def _named(self, name: str) -> User:
        try:
            return await self.accounts.user(name)
        except exception.InvalidUserNotFound:
            raise _missing(name) from None

    async def _project_of(self, context: Context, user: str) -> str:
        """The caller's project for users that are in it."""
        members = (await self.accounts.project(context.project_id)).members
        return context.project_id if user in members else ""

    async def _with_key(self, context: Context, action_name: str, params: dict[str, Any]) -> User:
        """The user that a request names, who has the access key that it names."""
        user = await self._user(context, action_name, params)
        if params["AccessKeyId"].partition(":")[0] != user.access or not await self._has_key(user):
            raise exception.NoSuchEntity(
                f"The Access Key with id {params['AccessKeyId'][:128]} cannot be found.")
        return user

    async def _has_key(self, user: User) -> bool:
        mark = await self.store.get(UntoldKey, user.id)
        return mark is None or mark.access != user.access

    async def _key(self, user: User) -> dict[str, Any]:
        return {"UserName": user.id, "AccessKeyId": user.access, "Status": "Inactive" if user.is_locked else "Active",
                "CreateDate": await self.accounts.key_made(user)}


def _missing(name: str) -> exception.NoSuchEntity:
    return exception.NoSuchEntity(kind="user", id=name[:128])


def _view(context: Context, user: User) -> dict[str, Any]:
    return {"Path": _PATH, "UserName": user.id, "UserId": user.id, "Arn": arn(context.project_id, user.id),
            "CreateDate": user.created}

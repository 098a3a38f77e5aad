"""Users, projects and roles as the operator and the admin APIs change them.

:class:`Accounts` is the one way in for nova-manage, /services/Admin and /services/IAM: it changes the directory,
refuses to remove what still owns something, revokes certificates, and tells the audit stream.  A context of None stands
for the operator of this host.
"""

import contextlib
import functools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nova import events, exception
from nova.auth import credentials, quota
from nova.auth.lockout import Lockout
from nova.auth.manager import AuthManager
from nova.auth.models import Project, User
from nova.cloud import image_access, locks, scrub
from nova.cloud.public_keys import PublicKeys
from nova.context import Context
from nova.crypto import Authority
from nova.datastore import Record, Store, record
from nova.process import in_thread, wait
from nova.rpc import Bus

M = TypeVar("M", bound=Callable[..., Awaitable[Any]])


@record("untold_key")
@dataclass(frozen=True)
class UntoldKey(Record):
    """Marks the access key `access` of a user (the id) as one that nobody was told: to IAM, the user has none."""

    access: str


@record("made_key")
@dataclass(frozen=True)
class MadeKey(Record):
    """When (seconds since the epoch) the access key `access` of a user (the id) was made, or its other half changed."""

    access: str
    made: float


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except exception.NotFound as error:
        errors = {"user": exception.InvalidUserNotFound, "project": exception.InvalidProjectNotFound}
        kind = errors.get(error.values.get("kind", ""))
        if kind is None:
            raise exception.InvalidParameterValue(error.message) from error
        raise kind(id=error.values["id"]) from error
    except exception.Exists as error:
        kinds = {"user": exception.InvalidUserDuplicate, "project": exception.InvalidProjectDuplicate}
        raise kinds.get(error.kind, exception.InvalidAccessKeyDuplicate)(id=error.id) from error


def _client_errors(method: M) -> M:
    """Have the directory's errors told as clients know them."""
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with _told():
            return await method(*args, **kwargs)
    return call  # type: ignore[return-value]


@dataclass(frozen=True)
class Accounts:
    """Administers users, projects and roles.

    :param scrub_timeout: seconds that a scrub waits for instances to be gone
    """

    store: Store
    bus: Bus
    auth: AuthManager
    authority: Authority
    scrub_timeout: float = field(default=scrub.TIMEOUT, kw_only=True)

    @property
    def scrubber(self) -> scrub.Scrubber:
        """What removes what users and projects own."""
        return scrub.Scrubber(self.store, self.bus, PublicKeys(self.store, self.auth), self.scrub_timeout)

    # -- users -------------------------------------------------------------------------------------------------------

    @_client_errors
    async def user(self, name: str) -> User:
        """One user; :raises exception.InvalidUserNotFound:"""
        return await self.auth.user(name)

    @_client_errors
    async def create_user(self, context: Context | None, name: str, is_admin: bool = False, access: str | None = None,
                          secret: str | None = None) -> User:
        """Add a user; :raises exception.InvalidUserDuplicate, exception.InvalidAccessKeyDuplicate:"""
        user = await self.auth.create_user(name, is_admin=is_admin, access=access, secret=secret)
        await self._tell_key(name)
        await self._date_key(user)
        await events.record(self.store, context, "user.create", target=name, is_admin=is_admin, access=user.access)
        return user

    @_client_errors
    async def modify_user(self, context: Context | None, name: str, access: str | None = None,
                          secret: str | None = None, is_admin: bool | None = None) -> User:
        """Change what is not None."""
        user = await self.auth.modify_user(name, access=access, secret=secret, is_admin=is_admin)
        if access is not None or secret is not None:
            await self._date_key(user)
        changed = [what for what, value in (("access", access), ("other half", secret), ("admin", is_admin))
                   if value is not None]
        await events.record(self.store, context, "user.modify", target=name, changed=changed, access=user.access,
                            is_admin=user.is_admin)
        return user

    @_client_errors
    async def rotate(self, context: Context | None, name: str) -> User:
        """Give a user a new access key in place of the old one."""
        user = await self.auth.rotate(name)
        await self._tell_key(name)
        await self._date_key(user)
        await events.record(self.store, context, "user.rotate", target=name, access=user.access)
        return user

    @_client_errors
    async def lock_user(self, context: Context | None, name: str) -> None:
        """Refuse a user's requests."""
        await self.auth.lock_user(name)
        await events.record(self.store, context, "user.lock", target=name)

    @_client_errors
    async def unlock_user(self, context: Context | None, name: str) -> None:
        """Let a user in again, also one who is locked out for wrong signatures."""
        await self.auth.unlock_user(name)
        was_locked_out = await Lockout(self.store).unlock((await self.auth.user(name)).access)
        await events.record(self.store, context, "user.unlock", target=name, was_locked_out=was_locked_out)

    async def key_made(self, user: User) -> float:
        """When a user's access key was made, in seconds since the epoch; with the user where nothing else is known."""
        known = await self.store.get(MadeKey, user.id)
        return known.made if known is not None and known.access == user.access else user.created

    @_client_errors
    async def owned_by_user(self, name: str) -> scrub.Owned:
        """What a user owns: projects managed, and instances and key pairs in all projects."""
        await self.auth.user(name)
        found: scrub.Owned = {}
        for project in await self.auth.projects():
            if project.manager == name:
                found.setdefault("managed projects", []).append(project.id)
            for kind, names in (await self.scrubber.owned(project.id, name)).items():
                found.setdefault(kind, []).extend(names)
        return found

    @_client_errors
    async def delete_user(self, context: Context | None, name: str, scrubbed: bool = False) -> None:
        """Remove a user who owns nothing, or with `scrubbed` what the user owns first.

        :raises exception.DependencyViolation: the user owns something, or manages a project
        :raises exception.InstanceLocked: one of the user's instances is
        """
        owned = await self.owned_by_user(name)
        managed = owned.get("managed projects", [])
        if managed or (owned and not scrubbed):
            raise exception.DependencyViolation(what=f"The user {name}", owned=scrub.describe(owned))
        if owned:
            await locks.check_all(self.store, owned.get("instances", ()))
            await self.lock_user(context, name)  # so that nothing is added while it is removed
            for project in await self.auth.projects():
                await self._scrub(context, project.id, name)
        await self.auth.delete_user(name)
        await self._forget(UntoldKey, name)
        await self._forget(MadeKey, name)
        await self._revoke(self.authority.revoke_user, name)
        await self._forget_limits(quota.account("user", name))
        await events.record(self.store, context, "user.delete", target=name)

    # -- projects ----------------------------------------------------------------------------------------------------

    @_client_errors
    async def project(self, name: str) -> Project:
        """One project; :raises exception.InvalidProjectNotFound:"""
        return await self.auth.project(name)

    @_client_errors
    async def create_project(self, context: Context | None, name: str, manager: str, description: str = "",
                             members: tuple[str, ...] = ()) -> Project:
        """Add a project, with its members or not at all; :raises exception.InvalidProjectDuplicate:"""
        for member in members:
            await self.auth.user(member)
        await self.auth.create_project(name, manager, description)
        for member in members:
            await self.auth.add_member(name, member)
        project = await self.auth.project(name)
        await events.record(self.store, context, "project.create", target=name, manager=manager,
                            members=project.members)
        return project

    @_client_errors
    async def modify_project(self, context: Context | None, name: str, manager: str | None = None,
                             description: str | None = None) -> Project:
        """Change what is not None."""
        project = await self.auth.modify_project(name, manager=manager, description=description)
        await events.record(self.store, context, "project.modify", target=name, manager=project.manager)
        return project

    @_client_errors
    async def add_member(self, context: Context | None, project: str, user: str) -> None:
        """Put a user into a project."""
        await self.auth.add_member(project, user)
        await events.record(self.store, context, "project.add", target=project, user=user)

    @_client_errors
    async def remove_member(self, context: Context | None, project: str, user: str) -> None:
        """Take a user out of a project; :raises exception.IncorrectState: the user manages it"""
        await self.auth.remove_member(project, user)
        await self._revoke(self.authority.revoke_user, user, project)
        await events.record(self.store, context, "project.remove", target=project, user=user)

    @_client_errors
    async def owned_by_project(self, name: str) -> scrub.Owned:
        """What a project owns."""
        await self.auth.project(name)
        return await self.scrubber.owned(name)

    @_client_errors
    async def scrub_project(self, context: Context | None, name: str) -> scrub.Owned:
        """Remove what a project owns; tells what it was."""
        await self.auth.project(name)
        return await self._scrub(context, name)

    @_client_errors
    async def delete_project(self, context: Context | None, name: str, scrubbed: bool = False) -> None:
        """Remove a project that owns nothing, or with `scrubbed` what it owns first.

        :raises exception.DependencyViolation: it owns something
        """
        owned = await self.owned_by_project(name)
        if owned and scrubbed:
            await self._scrub(context, name)
            owned = await self.scrubber.owned(name)
        if owned:
            raise exception.DependencyViolation(what=f"The project {name}", owned=scrub.describe(owned))
        await self.auth.delete_project(name)
        await self._revoke(self.authority.revoke_project, name)
        await self._forget_limits(quota.account("project", name))
        await image_access.withdraw(self.store, name)
        await events.record(self.store, context, "project.delete", target=name)

    @_client_errors
    async def credentials(self, context: Context | None, project: str, user: str) -> bytes:
        """The zip archive with which a member works in a project; :raises exception.InvalidParameterValue: no member"""
        archive = await credentials.zip(await self._member(project, user), project, self.authority)
        await events.record(self.store, context, "project.zip", target=project, user=user)
        return archive

    @_client_errors
    async def environment(self, context: Context | None, project: str, user: str, directory: str) -> str:
        """Write the same files into a directory of this host; the path of novarc."""
        path = await credentials.write(await self._member(project, user), project, self.authority, directory)
        await events.record(self.store, context, "project.environment", target=project, user=user)
        return path

    # -- roles -------------------------------------------------------------------------------------------------------

    @_client_errors
    async def add_role(self, context: Context | None, user: str, role: str, project: str | None) -> None:
        """Give a role, in a project or globally."""
        await self.auth.add_role(user, role, project)
        await events.record(self.store, context, "role.add", target=user, role=role, project=project or "")

    @_client_errors
    async def remove_role(self, context: Context | None, user: str, role: str, project: str | None) -> None:
        """Take a role away."""
        await self.auth.remove_role(user, role, project)
        await events.record(self.store, context, "role.remove", target=user, role=role, project=project or "")

    @_client_errors
    async def roles_of(self, user: str, project: str | None) -> frozenset[str]:
        """The roles that count in a project, or those held globally."""
        return await self.auth.roles_of(user, project)

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _member(self, project: str, user: str) -> User:
        """A member who is going to be told the access key; :raises exception.InvalidParameterValue: no member"""
        found = await self.auth.project(project)
        who = await self.auth.user(user)
        if user not in found.members:
            raise exception.InvalidParameterValue(f"{user} is no member of the project {project}")
        await self._tell_key(user)
        return who

    async def _scrub(self, context: Context | None, project: str, user: str | None = None) -> scrub.Owned:
        removed = await self.scrubber.scrub(context or Context("operator", project), project, user)
        if removed:
            await events.record(self.store, context, "project.scrub", target=project, user=user or "", removed=removed)
        return removed

    async def _revoke(self, revoke: Callable[..., int], *names: str) -> None:
        """Revoke certificates, where the authority is on this host; elsewhere none was issued."""
        if os.path.exists(self.authority.certificate_path):
            await wait(in_thread(revoke, *names))

    async def _forget_limits(self, account: str) -> None:
        tx = self.store.transaction()
        await quota.forget(tx, self.store, account)
        with contextlib.suppress(exception.NotFound):  # somebody else was faster
            await tx.commit()

    async def mark_untold(self, user: User) -> None:
        """Nobody was told the user's access key."""
        await self._put(UntoldKey(user.id, access=user.access), {"access": user.access})

    async def _date_key(self, user: User) -> None:
        now = time.time()
        await self._put(MadeKey(user.id, access=user.access, made=now), {"access": user.access, "made": now})

    async def _put(self, made: Record, values: dict[str, Any]) -> None:
        try:
            await self.store.create(made)
        except exception.Exists:
            await self.store.modify(type(made), made.id, lambda _: values)

    async def _tell_key(self, name: str) -> None:
        """The user's access key is told to somebody from now on."""
        await self._forget(UntoldKey, name)

    async def _forget(self, kind: type[Record], name: str) -> None:
        found = await self.store.get(kind, name)
        if found is not None:
            with contextlib.suppress(exception.NotFound, exception.Conflict):
                await self.store.delete(found)

"""Users, projects and roles: who they are, what they may, and making, changing and removing them in the directory."""

import contextlib

from nova import crypto, exception
from nova.auth import ldapdriver, rbac, tree
from nova.auth.directory import (
    Change,
    Directory,
    Entry,
    SchemaViolation,
    Scope,
    add_values,
    check_value,
    delete_values,
    replace_values,
    retried,
)
from nova.auth.fakeldap import FakeLdap
from nova.auth.filters import ANY, Equal, Filter
from nova.auth.memo import Identity, Memo
from nova.auth.models import KeyPair, Project, PublishedKey, User
from nova.datastore import PREFIX, Store
from nova.flags import FLAGS, DEFINE_enum, DEFINE_float
from nova.service import Service

DEFINE_enum("ldap_driver", "fake", ["fake", "ldap"],
            "where users, projects and roles are kept. fake: in Redis; ldap: in the LDAP server at --ldap_url")
DEFINE_float("auth_memo_seconds", 5.0, "seconds for which a process remembers whom an access key stands for; a change "
             "made through Nova counts at once", lower_bound=0, upper_bound=300)

__all__ = ["AuthManager", "Identity", "open_directory"]

def open_directory(store: Store) -> Directory:
    """The directory that the flags name; :raises exception.NovaError: the flags are wrong"""
    if FLAGS.ldap_driver == "ldap":
        return ldapdriver.from_flags()
    return FakeLdap(store, tree.roots(), crypto.ca_path("directory.key"))


class AuthManager(Service):
    """Looks identities up, and administers them.

    It can be used without being started; identities are then looked up anew each time.

    :param directory: where users and projects are kept; the one that the flags name when None
    """

    name = "users and projects"

    def __init__(self, store: Store, directory: Directory | None = None):
        self._store = store
        self._directory = directory or open_directory(store)
        self._memo = Memo(store, lambda: FLAGS.auth_memo_seconds)

    async def start(self) -> None:
        """Get the directory ready, and begin to remember identities."""
        await self._directory.start()
        await self._memo.start()

    async def stop(self) -> None:
        """Let the directory's connections go."""
        await self._memo.stop()
        await self._directory.stop()

    # -- who is asking -----------------------------------------------------------------------------------------------

    async def identity(self, access_key: str, project: str | None) -> Identity:
        """Who signs with an access key.

        :param access_key: the user's half, without the project
        :param project: the project named behind the colon; the one of the user's own name when None
        :raises exception.AuthFailure: no such key, or its user is locked or no member of the project
        :raises exception.Unavailable: the directory is away, and nothing is remembered
        """
        if not access_key or len(access_key) > 256 or len(project or "") > 256:
            raise exception.AuthFailure()
        key = (access_key, project)
        return self._memo.known(key) or await self._memo.get(key, lambda: self._look_up(access_key, project))

    async def _look_up(self, access_key: str, project: str | None) -> Identity:
        found = await self._users(Equal("accessKey", access_key))
        user = next((u for u in found if u.access == access_key), None)
        if user is None or user.is_locked:
            raise exception.AuthFailure()
        entry = await self._project_with_roles(project or user.id, user.id)
        if entry is None or user.id not in entry[0].members:
            raise exception.AuthFailure()
        roles = tree.effective_roles(user, entry[0], await self._global_roles(user.id), entry[1])
        return Identity(user.id, entry[0].id, user.secret, roles, user.is_admin)

    # -- users -------------------------------------------------------------------------------------------------------

    async def users(self) -> list[User]:
        """All users, sorted by name."""
        return sorted(await self._users(Equal("objectClass", "novaUser")), key=lambda u: u.id)

    async def user(self, name: str) -> User:
        """One user; :raises exception.NotFound:"""
        entries = await self._directory.search(tree.user_dn(name), Scope.BASE, Equal("objectClass", "novaUser"),
                                               tree.USER_ATTRIBUTES)
        for user in map(tree.read_user, entries):
            if user.id == name:  # the directory does not tell cases apart, Nova does
                return user
        raise exception.NotFound(kind="user", id=ascii(name)[1:-1][:80])

    async def create_user(self, name: str, is_admin: bool = False, access: str | None = None,
                          secret: str | None = None) -> User:
        """Add a user, with a new access key unless one is given.

        :raises exception.Exists: there is one of that name, or another user has that access key
        """
        tree.check_name(name)
        new_access, new_secret = tree.new_access_key()
        user = User(name, new_access if access is None else access, new_secret if secret is None else secret, is_admin)
        tree.check_access_key(user.access, user.secret)
        await self._forget_references(name)  # none should be left of an earlier one; but then they would be this one's
        try:
            await self._directory.add(tree.user_dn(name), tree.user_entry(user))
        except exception.Exists as error:
            raise _named(error, "user", name) from error
        await self._memo.tell(user=name)
        return await self.user(name)

    async def modify_user(self, name: str, access: str | None = None, secret: str | None = None,
                          is_admin: bool | None = None) -> User:
        """Change what is not None; :raises exception.NotFound, exception.Exists: (the access key)"""
        changes = []
        if access is not None:
            tree.check_access_key(access, "x")
            changes.append(replace_values("accessKey", access))
        if secret is not None:
            tree.check_access_key("x", secret)
            changes.append(replace_values("secretKey", secret))
        if is_admin is not None:
            changes.append(replace_values("isAdmin", "TRUE" if is_admin else "FALSE"))
        return await self._change_user(name, changes)

    async def rotate(self, name: str) -> User:
        """Give a user a new access key; the old one is worth nothing any more."""
        access, secret = tree.new_access_key()
        return await self.modify_user(name, access=access, secret=secret)

    async def lock_user(self, name: str) -> None:
        """Refuse a user's requests."""
        await self._change_user(name, [replace_values("isLocked", "TRUE")])

    async def unlock_user(self, name: str) -> None:
        """Let a user in again."""
        await self._change_user(name, [replace_values("isLocked", "FALSE")])

    async def delete_user(self, name: str) -> None:
        """Remove a user, from projects and roles, too.

        :raises exception.NotFound:
        :raises exception.IncorrectState: the user manages a project
        """
        await self.user(name)
        await self._refuse_manager(name)
        await self._forget_references(name)
        for pair in await self._directory.search(tree.user_dn(name), Scope.ONE, attributes=["cn"]):
            await self._delete(pair.dn)
        await self._delete(tree.user_dn(name))
        await self._forget_references(name)  # what others gave meanwhile
        await self._memo.tell(user=name)

    async def bootstrap(self, name: str, description: str) -> bool:
        """Make the first administrator and a project of that name, and give them all roles but `itsec`, which is to see
        what everybody has; whether it was done now.

        What was cut short is finished by the next call; once it was finished nothing is done, so that what is taken
        from the administrator later stays taken.
        """
        key = f"{PREFIX}auth:bootstrapped"
        if await self._store.attempt(self._store.redis.exists(key)):
            return False
        with contextlib.suppress(exception.Exists):
            await self.create_user(name, is_admin=True)
        with contextlib.suppress(exception.Exists):
            await self.create_project(name, name, description)
        for role in (role for role in tree.ROLES if role != rbac.ITSEC):
            if role != tree.MANAGER:
                await self.add_role(name, role)
            if role not in tree.GLOBAL:
                await self.add_role(name, role, name)
        await self._store.attempt(self._store.redis.set(key, name))
        return True

    # -- projects ----------------------------------------------------------------------------------------------------

    async def projects(self, user: str | None = None) -> list[Project]:
        """All projects, or those of which a user is a member, sorted by name."""
        condition: Filter = Equal("objectClass", "novaProject")
        if user is not None:
            condition &= Equal("member", tree.user_dn(user))
        entries = await self._directory.search(FLAGS.ldap_project_subtree, Scope.ONE, condition,
                                               tree.PROJECT_ATTRIBUTES)
        return sorted(map(tree.read_project, entries), key=lambda p: p.id)

    async def project(self, name: str) -> Project:
        """One project; :raises exception.NotFound:"""
        found = await self._project_with_roles(name, None)
        if found is None:
            raise exception.NotFound(kind="project", id=ascii(name)[1:-1][:80])
        return found[0]

    async def create_project(self, name: str, manager: str, description: str = "") -> Project:
        """Add a project; :raises exception.Exists, exception.NotFound: (the manager)"""
        tree.check_name(name)
        if description:
            check_value(description, "description")
        await self.user(manager)
        project = Project(name, manager, [manager], description)
        try:
            await self._directory.add(tree.project_dn(name), tree.project_entry(project))
        except exception.Exists as error:
            raise _named(error, "project", name) from error
        await self._memo.tell(project=name)
        return project

    async def modify_project(self, name: str, manager: str | None = None, description: str | None = None) -> Project:
        """Change what is not None; a new manager becomes a member; :raises exception.NotFound:"""
        project = await self.project(name)
        changes = []
        if manager is not None:
            await self.user(manager)
            if manager not in project.members:
                await self.add_member(name, manager)
            changes.append(replace_values("projectManager", tree.user_dn(manager)))
        if description is not None:
            changes.append(replace_values("description", *([description] if description else [])))
        if changes:
            condition = Equal("member", tree.user_dn(manager)) if manager is not None else None
            await self._directory.modify(tree.project_dn(name), changes, condition)
            await self._memo.tell(project=name)
        return await self.project(name)

    async def delete_project(self, name: str) -> None:
        """Remove a project and the roles in it; :raises exception.NotFound:"""
        await self.project(name)
        dn = tree.project_dn(name)

        async def attempt() -> None:
            for entry in await self._directory.search(dn, Scope.ONE, attributes=["cn"]):
                await self._delete(entry.dn)
            await self._delete(dn)
        await retried(attempt)
        await self._memo.tell(project=name)

    async def add_member(self, project: str, user: str) -> None:
        """Make a user a member of a project; nothing changes if they are; :raises exception.NotFound:"""
        await self.user(user)
        await self.project(project)
        try:
            await self._directory.modify(tree.project_dn(project), [add_values("member", tree.user_dn(user))])
        except exception.Exists:
            return
        await self._memo.tell(project=project)

    async def remove_member(self, project: str, user: str) -> None:
        """Take a user out of a project, with the roles there.

        :raises exception.NotFound: no such project, or the user is no member
        :raises exception.IncorrectState: the user manages the project
        """
        if user not in (await self.project(project)).members:
            raise exception.NotFound(f"{ascii(user)[1:-1][:80]} is no member of the project {project}")
        dn = tree.user_dn(user)
        try:
            await self._directory.modify(tree.project_dn(project), [delete_values("member", dn)],
                                         condition=~Equal("projectManager", dn))
        except exception.Conflict as error:
            raise exception.IncorrectState(f"{user} manages the project {project}; another one must, first") from error
        except exception.NotFound as error:
            raise exception.NotFound(f"{user} is no member of the project {project}") from error
        for role in tree.ROLES:
            await self._take_role(user, tree.role_dn(role, project))
        await self._memo.tell(project=project)

    # -- roles -------------------------------------------------------------------------------------------------------

    async def add_role(self, user: str, role: str, project: str | None = None) -> None:
        """Give a role, in a project or globally; nothing changes if the user has it.

        :raises exception.NotFound: no such user or project, or the user is no member of it
        """
        tree.check_role(role, project)
        await self.user(user)
        if project is not None and user not in (await self.project(project)).members:
            raise exception.NotFound(f"{user} is no member of the project {project}")
        group = tree.role_dn(role, project)

        async def attempt() -> None:
            try:
                await self._directory.modify(group, [add_values("member", tree.user_dn(user))])
            except exception.Exists:
                return
            except exception.NotFound:
                try:
                    await self._directory.add(group, tree.role_entry(role, user))
                except exception.Exists as error:  # another one made the group in between
                    raise exception.Conflict(kind="group", id=group) from error
        await retried(attempt)
        await self._memo.tell(user=user)

    async def remove_role(self, user: str, role: str, project: str | None = None) -> None:
        """Take a role away; nothing changes if the user does not have it."""
        tree.check_role(role, project)
        await self.user(user)
        if project is not None:
            await self.project(project)
        await self._take_role(user, tree.role_dn(role, project))
        await self._memo.tell(user=user)

    async def has_role(self, user: str, role: str, project: str | None = None) -> bool:
        """Whether a role counts: in a project by all the rules, else whether it is held globally."""
        return role in await self.roles_of(user, project)

    async def roles_of(self, user: str, project: str | None = None) -> frozenset[str]:
        """The roles that count in a project, of which ``member`` is one; without a project, those held globally."""
        who = await self.user(user)
        held = await self._global_roles(user)
        if project is None:
            return held | {"cloudadmin"} if who.is_admin else held
        found = await self._project_with_roles(project, user)
        if found is None:
            raise exception.NotFound(kind="project", id=project)
        return tree.effective_roles(who, found[0], held, found[1])

    async def members_of_role(self, role: str, project: str | None = None) -> list[str]:
        """The users who were given a role, in a project or globally, sorted."""
        tree.check_role(role, project)
        if project is not None:
            await self.project(project)
        entries = await self._directory.search(tree.role_dn(role, project), Scope.BASE, attributes=["member"])
        return sorted(tree.name_of(dn) for entry in entries for dn in entry.values("member"))

    # -- key pairs ---------------------------------------------------------------------------------------------------

    async def publish_key_pair(self, pair: KeyPair) -> None:
        """Put a key pair's public half into the directory; nothing changes if it is there."""
        try:
            await self._directory.add(tree.key_dn(pair.user_id, pair.key_pair_id), tree.key_entry(pair))
        except exception.Exists:
            return

    async def withdraw_key_pair(self, pair: KeyPair | PublishedKey) -> None:
        """Take a key pair's public half out of the directory; nothing changes if it is not there."""
        await self._delete(tree.key_dn(pair.user_id, pair.key_pair_id))

    async def published_keys(self) -> tuple[set[str], set[PublishedKey]]:
        """The ids of all users, and all public halves that the directory has."""
        kinds = Equal("objectClass", "novaUser") | Equal("objectClass", "novaKeyPair")
        entries = await self._directory.search(FLAGS.ldap_user_subtree, Scope.SUBTREE, kinds,
                                               ["objectClass", "uid", "cn"])
        return ({entry.value("uid") for entry in entries if not tree.is_key(entry)},
                {tree.read_key(entry) for entry in entries if tree.is_key(entry)})

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _users(self, condition: Filter) -> list[User]:
        return [tree.read_user(entry) for entry in await self._directory.search(
            FLAGS.ldap_user_subtree, Scope.SUBTREE, condition, tree.USER_ATTRIBUTES)]

    async def _change_user(self, name: str, changes: list[Change]) -> User:
        await self.user(name)
        if changes:
            try:
                await self._directory.modify(tree.user_dn(name), changes)
            except exception.NotFound as error:
                raise exception.NotFound(kind="user", id=name) from error
            except exception.Exists as error:
                raise exception.Exists("access key of", "another user") from error
            await self._memo.tell(user=name)
        return await self.user(name)

    async def _project_with_roles(self, name: str, user: str | None) -> tuple[Project, set[str]] | None:
        """A project and the roles that a user was given in it, in one search."""
        condition: Filter = Equal("objectClass", "novaProject")
        if user is not None:
            condition |= Equal("member", tree.user_dn(user))
        entries = await self._directory.search(tree.project_dn(name), Scope.SUBTREE, condition, tree.PROJECT_ATTRIBUTES)
        project = next((tree.read_project(e) for e in entries if tree.is_project(e) and e.value("cn") == name), None)
        if project is None:
            return None
        return project, {entry.value("cn") for entry in entries if not tree.is_project(entry)}

    async def _global_roles(self, user: str) -> frozenset[str]:
        entries = await self._directory.search(FLAGS.ldap_role_subtree, Scope.ONE,
                                               Equal("member", tree.user_dn(user)), ["cn"])
        return frozenset(entry.value("cn") for entry in entries)

    async def _refuse_manager(self, name: str) -> None:
        managed = [project.id for project in await self.projects() if project.manager == name]
        if managed:
            raise exception.IncorrectState(f"{name} manages {', '.join(managed)}; another one must, first")

    async def _forget_references(self, name: str) -> None:
        """Take a user out of all groups and projects but those that they manage."""
        member = Equal("member", tree.user_dn(name))
        for base in (FLAGS.ldap_role_subtree, FLAGS.ldap_project_subtree):
            for entry in await self._directory.search(base, Scope.SUBTREE, member, ["objectClass"]):
                if not tree.is_project(entry):
                    await self._take_role(name, entry.dn)
                    continue
                try:
                    await self._directory.modify(entry.dn, [delete_values("member", tree.user_dn(name))],
                                                 condition=~Equal("projectManager", tree.user_dn(name)))
                except (exception.NotFound, exception.Conflict):
                    continue  # gone, or the manager, who is not taken out

    async def _take_role(self, user: str, group: str) -> None:
        """Take a user out of a group; the group goes with the last one, for LDAP has no empty ones."""
        dn = tree.user_dn(user)

        async def attempt() -> None:
            try:
                await self._directory.modify(group, [delete_values("member", dn)])
            except exception.NotFound:
                return
            except SchemaViolation:
                found: list[Entry] = await self._directory.search(group, Scope.BASE, ANY, ["member", "entryCSN"])
                for entry in found:
                    if len(entry.values("member")) > 1:
                        raise exception.Conflict(kind="group", id=group) from None
                    await self._delete(group, Equal("entryCSN", entry.value("entryCSN")))
        await retried(attempt)

    async def _delete(self, dn: str, condition: Filter | None = None) -> None:
        """Remove an entry, if it is there."""
        try:
            await self._directory.delete(dn, condition)
        except exception.NotFound:
            return


def _named(error: exception.Exists, kind: str, name: str) -> exception.Exists:
    if error.kind == "value in":
        return exception.Exists("access key of", "another user")
    return exception.Exists(kind, name)

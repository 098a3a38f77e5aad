"""The admin API: users, projects, roles, hosts and locks, for the operator's tools.

Who may do what is in the table of roles (:mod:`nova.auth.rbac`); what is about a user belongs to the caller's project
when the user is in it.  The secret half of an access key is told only to who may change the user.
"""

import time
from typing import Any

from nova import exception, service
from nova.auth import rbac
from nova.auth.models import Project, User
from nova.cloud import hosts, locks
from nova.cloud.accounts import Accounts
from nova.cloud.action import Controller, action
from nova.compute.models import Instance
from nova.context import Context
from nova.datastore import Store


class Admin(Controller):
    """Users, projects, roles, hosts, and locks on instances."""

    store: Store
    accounts: Accounts

    # -- users -------------------------------------------------------------------------------------------------------

    @action("DescribeUser")
    async def describe_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """One user."""
        name = params["Name"]
        await self._check_user(context, "DescribeUser", name)
        return _user(await self.accounts.user(name), rbac.permits(context, "RegisterUser"))

    @action("DescribeUsers")
    async def describe_users(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """All users, without the secret halves of their access keys."""
        return {"Users": [_user(user, False) for user in await self.accounts.auth.users()]}

    @action("RegisterUser")
    async def register_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Add a user."""
        return _user(await self.accounts.create_user(context, params["Name"], params.get("IsAdmin", False)), True)

    @action("DeregisterUser")
    async def deregister_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Remove a user."""
        await self.accounts.delete_user(context, params["Name"], params.get("Scrub", False))
        return {}

    @action("GenerateX509ForUser")
    async def generate_x509_for_user(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """A user's credentials in a project."""
        name = params["Name"]
        project = params.get("Project") or name
        rbac.check(context, "GenerateX509ForUser", name, project, exception.InvalidProjectNotFound(id=project))
        archive = await self.accounts.credentials(context, project, name)
        return {**_user(await self.accounts.user(name), True), "File": archive}

    # -- roles -------------------------------------------------------------------------------------------------------

    @action("ModifyUserRole")
    async def modify_user_role(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Give a role or take it away."""
        project = params.get("Project") or None
        self._check_project(context, "ModifyUserRole", project)
        change = self.accounts.remove_role if params.get("Operation") == "remove" else self.accounts.add_role
        await change(context, params["User"], params["Role"], project)
        return {}

    @action("DescribeUserRoles")
    async def describe_user_roles(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The roles of a user."""
        name, project = params["User"], params.get("Project") or None
        if project is None:
            await self._check_user(context, "DescribeUserRoles", name)
        else:
            rbac.check(context, "DescribeUserRoles", name, project, exception.InvalidProjectNotFound(id=project))
        roles = await self.accounts.roles_of(name, project)
        return {"Roles": [{"Role": role} for role in rbac.ROLES if role in roles]}

    @action("DescribeRoles")
    async def describe_roles(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """The roles that can be given: in projects, or all."""
        everything = not params.get("ProjectRoles", True)
        return {"Roles": [{"Role": role} for role in rbac.ROLES if role != rbac.MEMBER
                          and (everything or role not in (rbac.CLOUDADMIN, rbac.ITSEC))]}

    # -- projects ----------------------------------------------------------------------------------------------------

    @action("RegisterProject")
    async def register_project(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Add a project."""
        return _project(await self.accounts.create_project(
            context, params["Name"], params["ManagerUser"], params.get("Description", ""),
            tuple(params.get("MemberUsers", ()))))

    @action("DeregisterProject")
    async def deregister_project(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Remove a project."""
        await self.accounts.delete_project(context, params["Name"], params.get("Scrub", False))
        return {}

    @action("DescribeProject")
    async def describe_project(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """One project."""
        self._check_project(context, "DescribeProject", params["Name"])
        return _project(await self.accounts.project(params["Name"]))

    @action("DescribeProjects")
    async def describe_projects(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """All projects, or those that a user is in."""
        name = params.get("User")
        if name:
            await self.accounts.user(name)
        return {"Projects": [_project(p) for p in await self.accounts.auth.projects(name or None)]}

    @action("ModifyProjectMember")
    async def modify_project_member(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Put a user into a project, or take one out."""
        self._check_project(context, "ModifyProjectMember", params["Project"])
        change = self.accounts.remove_member if params.get("Operation") == "remove" else self.accounts.add_member
        await change(context, params["Project"], params["User"])
        return {}

    # -- hosts -------------------------------------------------------------------------------------------------------

    @action("DescribeHosts")
    async def describe_hosts(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """All hosts."""
        now = time.time()
        return {"Hosts": [_host(host, now) for host in await hosts.overview(self.store)]}

    @action("DescribeHost")
    async def describe_host(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """One host."""
        return _host(await hosts.one(self.store, params["Name"]), time.time())

    # -- instances ---------------------------------------------------------------------------------------------------

    @action("LockInstance")
    async def lock_instance(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Have an instance left as it is: its project can neither reboot nor terminate it."""
        await self._set_locked(context, "LockInstance", params["InstanceId"], True)
        return {}

    @action("UnlockInstance")
    async def unlock_instance(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Give a locked instance back to its project."""
        await self._set_locked(context, "UnlockInstance", params["InstanceId"], False)
        return {}

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _check_user(self, context: Context, action_name: str, name: str) -> None:
        """Refuse what the caller must not do with a user.

        :raises exception.InvalidUserNotFound, exception.UnauthorizedOperation:
        """
        members = (await self.accounts.project(context.project_id)).members
        project = context.project_id if name in members else ""
        rbac.check(context, action_name, name, project, exception.InvalidUserNotFound(id=name))

    async def _set_locked(self, context: Context, action_name: str, instance_id: str, locked: bool) -> None:
        """:raises exception.InvalidInstanceIDNotFound, exception.IncorrectInstanceState:"""
        missing = exception.InvalidInstanceIDNotFound(id=ascii(instance_id)[1:-1][:80])
        instance = await self.store.get(Instance, instance_id)
        if instance is None:
            raise missing
        rbac.check(context, action_name, instance.user_id, instance.project_id, missing)
        await locks.set_locked(self.store, context, instance.id, locked)

    def _check_project(self, context: Context, action_name: str, project: str | None) -> None:
        """Refuse what the caller must not do in a project; what is done globally is in none.

        :raises exception.InvalidProjectNotFound, exception.UnauthorizedOperation:
        """
        missing = (exception.InvalidProjectNotFound(id=project) if project is not None
                   else exception.UnauthorizedOperation())
        rbac.check(context, action_name, context.user_id, project or "", missing)


def _user(user: User, secret: bool) -> dict[str, Any]:
    return {"UserName": user.id, "AccessKey": user.access, "SecretKey": user.secret if secret else None,
            "IsAdmin": user.is_admin, "IsLocked": user.is_locked}


def _project(project: Project) -> dict[str, Any]:
    return {"ProjectName": project.id, "ProjectManagerId": project.manager, "Description": project.description,
            "Members": [{"MemberId": name} for name in project.members]}


def _host(host: hosts.HostOverview, now: float) -> dict[str, Any]:
    view = {"HostName": host.name, "AvailabilityZone": host.zone, "IsDisabled": host.disabled is not None,
            "Reason": host.disabled.reason if host.disabled else None,
            "Services": [{"Name": daemon.topic, "IsAlive": service.is_alive(daemon, now),
                          "BeatAge": max(0.0, round(now - daemon.beat, 1))} for daemon in host.daemons]}
    if host.is_compute:
        view.update({"InstanceCount": host.instances, "Vcpus": host.capacity.get("vcpus", 0),
                     "VcpusUsed": host.claims.get("vcpus", 0), "MemoryMb": host.capacity.get("memory_mb", 0),
                     "MemoryMbUsed": host.claims.get("memory_mb", 0)})
    return view

"""A client of the admin API: users, projects, roles, hosts and locks on instances, from Python programs.

    client = AdminClient("http://cloud:8773", "ACCESS:project", "SECRET")
    client.create_user("ann").access_key

Calls block.  Requests are signed and written by botocore, from the model of the API that Nova has itself.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import botocore.exceptions
import botocore.session
from botocore.config import Config

from nova.wire.model import ADMIN, DATA_PATH

__all__ = ["AdminClient", "AdminError", "HostInfo", "NotFound", "ProjectInfo", "Refused", "ServiceInfo", "Unreachable",
           "UserInfo"]


class AdminError(Exception):
    """The cloud refused or failed.  `code` is the error's, `request_id` the one in the cloud's logs."""

    def __init__(self, code: str, message: str, request_id: str = ""):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.request_id = code, message, request_id


class NotFound(AdminError):
    """There is no such user, project, host or instance."""


class Refused(AdminError):
    """The caller may not do it, or was not recognized."""


class Unreachable(AdminError):
    """The cloud did not answer."""


_REFUSALS = frozenset({"AuthFailure", "UnauthorizedOperation", "SignatureDoesNotMatch", "RequestExpired"})


@dataclass(frozen=True)
class UserInfo:
    """A user.  `secret_key` is told only where the caller may change users, `file` (a zip archive) only by
    :meth:`AdminClient.generate_credentials`."""

    username: str
    access_key: str
    secret_key: str | None = None
    is_admin: bool = False
    is_locked: bool = False
    file: bytes | None = None


@dataclass(frozen=True)
class ProjectInfo:
    """A project; `members` are users' names, the manager's among them."""

    name: str
    manager: str
    description: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceInfo:
    """A daemon of a host; `beat_age` is seconds since its last heartbeat."""

    name: str
    is_alive: bool
    beat_age: float


@dataclass(frozen=True)
class HostInfo:
    """A host.  What follows `services` is that of compute hosts; memory is in MiB."""

    name: str
    zone: str
    is_disabled: bool
    reason: str
    services: tuple[ServiceInfo, ...]
    instances: int = 0
    vcpus: int = 0
    vcpus_used: int = 0
    memory_mb: int = 0
    memory_mb_used: int = 0


class AdminClient:
    """One caller's connection to a cloud.

    Every method raises :class:`AdminError` or one of its subclasses.

    :param url: of the API, such as ``http://cloud:8773``; ``/services/Admin`` is added when it has no path
    :param access_key: with the project, ``<access>:<project>``
    :param timeout: seconds that one answer may take
    """

    def __init__(self, url: str, access_key: str, secret_key: str, region: str = "nova", timeout: float = 60):
        if "/services/" not in url:
            url = url.rstrip("/") + "/services/Admin"
        session = botocore.session.Session()
        session.get_component("data_loader").search_paths.append(DATA_PATH)
        self._client = session.create_client(
            ADMIN, region_name=region, endpoint_url=url, aws_access_key_id=access_key, aws_secret_access_key=secret_key,
            config=Config(connect_timeout=10, read_timeout=timeout, retries={"total_max_attempts": 1}))

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    # -- users -------------------------------------------------------------------------------------------------------

    def get_users(self) -> list[UserInfo]:
        """All users."""
        return [_user(user) for user in self._call("DescribeUsers").get("Users", [])]

    def get_user(self, name: str) -> UserInfo:
        """One user; :raises NotFound:"""
        return _user(self._call("DescribeUser", Name=name))

    def has_user(self, name: str) -> bool:
        """Whether there is a user of this name."""
        try:
            self.get_user(name)
        except NotFound:
            return False
        return True

    def create_user(self, name: str, is_admin: bool = False) -> UserInfo:
        """Add a user with a new access key."""
        return _user(self._call("RegisterUser", Name=name, IsAdmin=is_admin))

    def delete_user(self, name: str, scrub: bool = False) -> None:
        """Remove a user who owns nothing, or with `scrub` what the user owns first."""
        self._call("DeregisterUser", Name=name, Scrub=scrub)

    def generate_credentials(self, name: str, project: str | None = None) -> UserInfo:
        """A user's credentials in a project (of the user's own name when None), with a new certificate, as `file`."""
        return _user(self._call("GenerateX509ForUser", Name=name, Project=project))

    # -- roles -------------------------------------------------------------------------------------------------------

    def get_roles(self, project_roles: bool = True) -> list[str]:
        """The roles that can be given in projects, or all."""
        return [role["Role"] for role in self._call("DescribeRoles", ProjectRoles=project_roles).get("Roles", [])]

    def get_user_roles(self, user: str, project: str | None = None) -> list[str]:
        """The roles of a user that count in a project, or those held globally."""
        return [role["Role"] for role in self._call("DescribeUserRoles", User=user, Project=project).get("Roles", [])]

    def add_user_role(self, user: str, role: str, project: str | None = None) -> None:
        """Give a role, in a project or globally."""
        self._call("ModifyUserRole", User=user, Role=role, Project=project, Operation="add")

    def remove_user_role(self, user: str, role: str, project: str | None = None) -> None:
        """Take a role away."""
        self._call("ModifyUserRole", User=user, Role=role, Project=project, Operation="remove")

    # -- projects ----------------------------------------------------------------------------------------------------

    def get_projects(self, user: str | None = None) -> list[ProjectInfo]:
        """All projects, or those that a user is in."""
        return [_project(project) for project in self._call("DescribeProjects", User=user).get("Projects", [])]

    def get_project(self, name: str) -> ProjectInfo:
        """One project; :raises NotFound:"""
        return _project(self._call("DescribeProject", Name=name))

    def create_project(self, name: str, manager: str, description: str = "",
                       members: Sequence[str] = ()) -> ProjectInfo:
        """Add a project; the manager becomes a member."""
        return _project(self._call("RegisterProject", Name=name, ManagerUser=manager, Description=description or None,
                                   MemberUsers=list(members) or None))

    def delete_project(self, name: str, scrub: bool = False) -> None:
        """Remove a project that owns nothing, or with `scrub` what it owns first."""
        self._call("DeregisterProject", Name=name, Scrub=scrub)

    def add_project_member(self, user: str, project: str) -> None:
        """Put a user into a project."""
        self._call("ModifyProjectMember", User=user, Project=project, Operation="add")

    def remove_project_member(self, user: str, project: str) -> None:
        """Take a user out of a project."""
        self._call("ModifyProjectMember", User=user, Project=project, Operation="remove")

    # -- hosts -------------------------------------------------------------------------------------------------------

    def get_hosts(self) -> list[HostInfo]:
        """All hosts."""
        return [_host(host) for host in self._call("DescribeHosts").get("Hosts", [])]

    def get_host(self, name: str) -> HostInfo:
        """One host; :raises NotFound:"""
        return _host(self._call("DescribeHost", Name=name))

    def wait_for_host(self, name: str, timeout: float = 60) -> HostInfo:
        """A host, once all its daemons live; :raises Unreachable: not within `timeout` seconds"""
        deadline = time.monotonic() + timeout
        while True:
            try:
                host = self.get_host(name)
                if all(daemon.is_alive for daemon in host.services):
                    return host
            except NotFound:
                pass  # nothing was heard of it yet
            if time.monotonic() > deadline:
                raise Unreachable("Timeout", f"the host {name} is not up within {timeout:g} s")
            time.sleep(0.5)

    # -- instances ---------------------------------------------------------------------------------------------------

    def lock_instance(self, instance_id: str) -> None:
        """Have an instance left as it is: its project can neither reboot nor terminate it; :raises NotFound:"""
        self._call("LockInstance", InstanceId=instance_id)

    def unlock_instance(self, instance_id: str) -> None:
        """Give a locked instance back to its project; :raises NotFound:"""
        self._call("UnlockInstance", InstanceId=instance_id)

    def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        method = self._client.meta.method_to_api_mapping
        name = next(python for python, wire in method.items() if wire == operation)
        given = {key: value for key, value in params.items() if value is not None}
        try:
            return getattr(self._client, name)(**given)
        except botocore.exceptions.ClientError as error:
            details = error.response.get("Error", {})
            raise _error(details.get("Code", ""), details.get("Message", ""),
                         error.response.get("ResponseMetadata", {}).get("RequestId", "")) from error
        except (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError) as error:
            raise Unreachable("Unreachable", str(error)) from error
        except botocore.exceptions.BotoCoreError as error:
            raise AdminError(type(error).__name__, str(error)) from error


def _error(code: str, message: str, request_id: str) -> AdminError:
    kind = (NotFound if code.endswith(".NotFound") else Refused if code in _REFUSALS
            else Unreachable if code in ("Unavailable", "503") else AdminError)
    return kind(code, message, request_id)


def _user(answer: dict[str, Any]) -> UserInfo:
    return UserInfo(answer["UserName"], answer["AccessKey"], answer.get("SecretKey"), answer["IsAdmin"],
                    answer["IsLocked"], answer.get("File"))


def _project(answer: dict[str, Any]) -> ProjectInfo:
    return ProjectInfo(answer["ProjectName"], answer["ProjectManagerId"], answer.get("Description", ""),
                       tuple(member["MemberId"] for member in answer.get("Members", [])))


def _host(answer: dict[str, Any]) -> HostInfo:
    services = tuple(ServiceInfo(s["Name"], s["IsAlive"], s["BeatAge"]) for s in answer.get("Services", []))
    return HostInfo(answer["HostName"], answer["AvailabilityZone"], answer["IsDisabled"], answer.get("Reason", ""),
                    services, answer.get("InstanceCount", 0), answer.get("Vcpus", 0), answer.get("VcpusUsed", 0),
                    answer.get("MemoryMb", 0), answer.get("MemoryMbUsed", 0))

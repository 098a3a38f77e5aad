"""Actions: what the API offers, who may call it, and what all of them have in common.

A controller's methods become actions by a decorator that names the operation of the EC2 model; what is not
declared, or is not in the table of roles (:mod:`nova.auth.rbac`), cannot be reached.  :func:`dispatch` is the
one way in: it looks the action up, authorizes, reads the parameters, and takes care of DryRun and of
ClientToken.  Describe actions are declared with :func:`listing`, which adds ids, filters and pages
(:mod:`nova.cloud.listing`).

A method is ``async def run_instances(self, context, params) -> dict``; parameters and result have the shapes
and member names of the EC2 model.
"""

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from nova import exception
from nova.auth import rbac
from nova.cloud.listing import Group, Listing
from nova.context import Context
from nova.datastore import Record, Store, Transaction, record
from nova.wire import model
from nova.wire.parameters import shown

log = logging.getLogger(__name__)

#: seconds for which a ClientToken is remembered
TOKEN_TTL = 24 * 3600
#: characters that a ClientToken may have (EC2 API reference, "Ensuring idempotency")
TOKEN_LENGTH = 64

Method = Callable[..., Awaitable[Any]]
M = TypeVar("M", bound=Method)
_DECLARATION = "__nova_action__"


# -- ClientToken -------------------------------------------------------------------------------------------

@record("client_token", listed=False)
@dataclass(frozen=True)
class SpentToken(Record):
    """A ClientToken that made something: a digest of the parameters it came with, and what it made."""

    digest: str
    result_ids: list = field(default_factory=list)


class ClientToken:
    """The ClientToken of one request; without one (`key` is empty) spending it does nothing."""

    def __init__(self, key: str = "", digest: str = ""):
        self.key = key
        self.digest = digest
        self.spent = False

    @classmethod
    def of(cls, context: Context, action: str, params: Mapping[str, Any]) -> "ClientToken":
        """The token among an action's parameters.

        :raises exception.InvalidParameterValue: it is longer than EC2 allows, or not ASCII
        """
        token = params.get("ClientToken")
        if not token:
            return cls()
        if len(token) > TOKEN_LENGTH or not token.isascii():
            raise exception.InvalidParameterValue(value=shown(token), name="ClientToken")
        rest = {name: value for name, value in params.items() if name != "ClientToken"}
        return cls(_sha256([context.project_id, action, token]), _sha256(rest))

    def spend(self, tx: Transaction, result_ids: Iterable[str]) -> None:
        """Record, in the action's own transaction, that the token made these resources."""
        self.spent = True
        if self.key:
            tx.create(SpentToken(id=self.key, digest=self.digest, result_ids=list(result_ids)), ttl=TOKEN_TTL)


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=repr, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# -- declaring ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Declaration:
    """What a decorator says about a method."""

    name: str
    replay: Method | None = None
    listing: Listing | None = None


def action(name: str, *, replay: Method | None = None) -> Callable[[M], M]:
    """Declare a controller's method an action.

    :param name: of the operation in the EC2 model, and in the table of roles (:mod:`nova.auth.rbac`)
    :param replay: for operations with a ClientToken: a method ``async (self, context, result_ids) -> dict``
        that gives the answer of the first call again, from the ids that it spent the token on
    """
    return _declare(Declaration(name, replay=replay))


def listing(name: str, *, result: str, id_member: str, ids_param: str | None = None,
            not_found: type[exception.NovaError] | None = None,
            also: Mapping[str, tuple[str, type[exception.NovaError]]] | None = None,
            filters: Mapping[str, str] | None = None, group: Group | None = None,
            max_results: tuple[int, int] = (5, 1000), tags: str = "Tags") -> Callable[[M], M]:
    """Declare a method that returns the items of a Describe action, as a flat list of dictionaries.

    The arguments are those of :class:`nova.cloud.listing.Listing`.
    """
    return _declare(Declaration(name, listing=Listing(
        result=result, id_member=id_member, ids_param=ids_param, not_found=not_found, also=also or {},
        filters=filters or {}, group=group, max_results=max_results, tags=tags)))


def _declare(declaration: Declaration) -> Callable[[M], M]:
    def decorate(method: M) -> M:
        setattr(method, _DECLARATION, declaration)
        return method
    return decorate


class Controller:
    """Base of the classes whose methods are actions.

    A subclass annotates what it needs (``bus: Bus``) and gets exactly that as keyword arguments.
    """

    store: Store

    def __init__(self, **parts: Any):
        needed = {name for cls in type(self).__mro__ for name in vars(cls).get("__annotations__", {})}
        if parts.keys() != needed:
            raise TypeError(f"{type(self).__name__} needs {sorted(needed)}, not {sorted(parts)}")
        for name, part in parts.items():
            setattr(self, name, part)


# -- offering ----------------------------------------------------------------------------------------------

class Action:
    """An offered action: an operation of the model bound to a controller's method."""

    def __init__(self, operation: model.Operation, declaration: Declaration, controller: Controller,
                 method: Method):
        rbac.rule(operation.name)
        self.operation = operation
        self._controller = controller
        self._method = method
        self._replay = declaration.replay
        self._takes_token = operation.takes("ClientToken") and declaration.listing is None
        if self._takes_token and self._replay is None:
            raise TypeError(f"{operation.name} takes a ClientToken, so it must declare its replay")
        self._listing = declaration.listing.bind(operation) if declaration.listing else None

    async def run(self, context: Context, params: dict[str, Any]) -> dict[str, Any]:
        """Do it, for somebody who may.

        :raises exception.DryRunOperation: all is well, but the client asked for no more than that
        """
        dry_run = params.pop("DryRun", False)
        query = self._listing.query(params) if self._listing else None
        token = ClientToken.of(context, self.operation.name, params) if self._takes_token else None
        if dry_run:
            raise exception.DryRunOperation()
        if token is not None:
            return await self._run_once(context, token, params)
        answer = await self._method(context, params)
        return query.answer(answer) if query is not None else answer

    async def _run_once(self, context: Context, token: ClientToken, params: dict[str, Any]) -> dict[str, Any]:
        context = replace(context, client_token=token)
        if not token.key:
            return await self._method(context, params)
        spent = await self._spent(token)
        if spent is None:
            try:
                answer = await self._method(context, params)
            except exception.NovaError:
                # Perhaps the same request was faster, on another connection or another host: then it may even have
                # got the last of what this one found exhausted.
                spent = await self._spent(token)
                if spent is None:
                    raise
            else:
                if not token.spent:
                    log.error("%s did not spend its ClientToken; a repeated request would act twice",
                              self.operation.name)
                return answer
        if spent.digest != token.digest:
            raise exception.IdempotentParameterMismatch()
        if self._replay is None:
            raise TypeError(f"{self.operation.name} has no replay")
        return await self._replay(self._controller, context, spent.result_ids)

    async def _spent(self, token: ClientToken) -> SpentToken | None:
        return await self._controller.store.get(SpentToken, token.key)


class Registry:
    """The actions that an endpoint offers, by name."""

    def __init__(self, service: model.Model, actions: Mapping[str, Action]):
        self.model = service
        self.actions = dict(actions)

    @classmethod
    def collect(cls, controllers: Iterable[Controller], service: model.Model | None = None) -> "Registry":
        """The actions of these controllers.

        :param service: the model that names the operations; EC2's when None
        :raises TypeError: a declaration does not fit the model, an action is offered twice, or the table of roles
            does not have it
        """
        service = service or model.ec2()
        actions: dict[str, Action] = {}
        for controller in controllers:
            for attribute in dir(type(controller)):
                declaration = getattr(getattr(type(controller), attribute), _DECLARATION, None)
                if declaration is None:
                    continue
                operation = service.operation(declaration.name)
                if operation is None:
                    raise TypeError(f"{declaration.name} is not in the model")
                if declaration.name in actions:
                    raise TypeError(f"{declaration.name} is offered twice")
                method = getattr(controller, attribute)
                actions[declaration.name] = Action(operation, declaration, controller, method)
        return cls(service, actions)


async def dispatch(registry: Registry, context: Context, action_name: str,
                   params: list[tuple[str, str]]) -> tuple[model.Operation, dict[str, Any]]:
    """Run an action by its name.

    :param params: decoded parameters as received
    :returns: the operation, which can write the result, and the result
    :raises exception.InvalidAction: the API has no such action
    :raises exception.UnsupportedOperation: this cloud does not offer it
    :raises exception.UnauthorizedOperation: the caller's roles do not permit it
    """
    operation = registry.model.operation(action_name)
    if operation is None:
        raise exception.InvalidAction(action=shown(action_name))
    offered = registry.actions.get(action_name)
    if offered is None:
        raise exception.UnsupportedOperation(action=action_name)
    rbac.check_permitted(context, action_name)
    return operation, await offered.run(context, operation.parse(params))

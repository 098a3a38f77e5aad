"""Service models: the operations that an API has, each with its parser and its writer.

EC2's, IAM's and STS's models are the descriptions that botocore ships for its clients, read from botocore's own files;
EC2's is changed as :mod:`nova.wire.overlay` says.  The admin API's is Nova's own, in the same format.  Loading EC2's
takes about 0.2 s; an operation is compiled when it is first asked for.

IAM and STS speak the plain query protocol (``"protocol": "query"``): results are wrapped in an element of their own,
the items of lists are called ``member``, and errors look different from EC2's.
"""

import os
import re
from functools import cache, cached_property
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel as BotocoreModel
from botocore.model import Shape

from nova import exception
from nova.wire import errors, overlay, parameters, xml

_NAMESPACE = "http://ec2.amazonaws.com/doc/"
_VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_TRUE = "<return>true</return>"
#: Nova's own models
DATA_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
#: the name of the admin API's model in DATA_PATH
ADMIN = "nova-admin"


class Operation:
    """One operation of the API: how its parameters are read and how its result is written."""

    def __init__(self, model: "Model", name: str):
        self.name = name
        self._model = model
        self._operation = model.botocore.operation_model(name)

    @property
    def input_shape(self) -> Any:
        """botocore's shape of the parameters, or None."""
        return self._operation.input_shape

    @property
    def output_shape(self) -> Any:
        """botocore's shape of the result, or None."""
        return self._operation.output_shape

    def takes(self, member: str) -> bool:
        """Whether the operation has a parameter with this (member) name."""
        return self.input_shape is not None and member in self.input_shape.members

    @cached_property
    def _reader(self) -> parameters.Structure | None:
        shape = self.input_shape
        return parameters.Structure(shape, self._model.readers, top=True) if shape is not None else None

    @cached_property
    def _writer(self) -> xml.Writer | None:
        return self._model.writers.compile(self.output_shape) if self.output_shape is not None else None

    def parse(self, params: list[tuple[str, str]]) -> dict[str, Any]:
        """The values of the parameters, under the member names of the input shape.

        :param params: decoded names and values as received; the protocol's own are skipped
        :raises exception.MissingParameter, exception.UnknownParameter, exception.InvalidParameterValue,
            exception.InvalidParameterCombination:
        """
        tree = parameters.tree(params)
        if self._reader is None:
            if tree:
                raise exception.UnknownParameter(name=parameters.shown(next(iter(tree))))
            return {}
        return self._reader(tree, "")

    def write(self, result: dict[str, Any], request_id: str, version: str | None = None) -> bytes:
        """The XML of an answer.

        :param result: values under the member names of the output shape
        :param version: the version of the API that the client asked for; its namespace is answered
        :raises ValueError: the result has a member that the shape has not
        """
        if self._model.is_plain:
            return self._write_plain(result, request_id)
        if version is None or not _VERSION.fullmatch(version):
            version = self._model.version
        parts = [_HEAD, f'<{self.name}Response xmlns="{_NAMESPACE}{version}/">',
                 f"<requestId>{xml.escape(request_id)}</requestId>"]
        if self._writer is None:
            if any(not name.startswith("_") for name in result):
                raise ValueError(f"{self.name} returns nothing")
            parts.append(_TRUE)
        else:
            empty = len(parts)
            self._writer(result, parts.append)
            if self._returns_truth and "Return" not in result:
                parts.append(_TRUE)
            elif len(parts) == empty or self.name in overlay.ALWAYS_RETURN:
                parts.append(_TRUE)
        parts.append(f"</{self.name}Response>")
        return "".join(parts).encode()

    def _write_plain(self, result: dict[str, Any], request_id: str) -> bytes:
        parts = [_HEAD, f'<{self.name}Response xmlns="{self._model.namespace}">']
        if self._writer is not None:
            wrapper = self.output_shape.serialization.get("resultWrapper", f"{self.name}Result")
            parts.append(f"<{wrapper}>")
            self._writer(result, parts.append)
            parts.append(f"</{wrapper}>")
        elif result:
            raise ValueError(f"{self.name} returns nothing")
        parts.append(f"<ResponseMetadata><RequestId>{xml.escape(request_id)}</RequestId></ResponseMetadata>"
                     f"</{self.name}Response>")
        return "".join(parts).encode()

    @cached_property
    def _returns_truth(self) -> bool:
        return "Return" in self.output_shape.members


class Model:
    """A service model and the operations compiled from it."""

    def __init__(self, description: dict[str, Any], service: str = "ec2"):
        self.botocore = BotocoreModel(description, service)
        self.is_plain = self.botocore.metadata["protocol"] == "query"
        self.readers = parameters.PlainCompiler() if self.is_plain else parameters.Compiler()
        self.writers = xml.Compiler("member" if self.is_plain else "item")
        self._names = frozenset(self.botocore.operation_names)
        self._operations: dict[str, Operation] = {}

    @property
    def version(self) -> str:
        """The version of the API that the model describes."""
        return self.botocore.api_version

    @property
    def namespace(self) -> str:
        """The XML namespace of a plain service's answers."""
        return self.botocore.metadata["xmlNamespace"]

    @property
    def names(self) -> frozenset[str]:
        """The names of all operations."""
        return self._names

    def operation(self, name: str) -> Operation | None:
        """The operation of this name, or None if the API has none."""
        operation = self._operations.get(name)
        if operation is None and name in self._names:
            operation = self._operations[name] = Operation(self, name)
        return operation

    def shape(self, name: str) -> Shape:
        """A shape by its name in the model."""
        return self.botocore.shape_for(name)


    def write_error(self, code: str, message: str, request_id: str, status: int) -> bytes:
        """The XML of an error as the service's clients read it."""
        if self.is_plain:
            return errors.write_query(code, message, request_id, self.namespace, sender=status < 500)
        return errors.write(code, message, request_id)


def load(service: str) -> dict[str, Any]:
    """The newest description of a service among botocore's own files and Nova's."""
    loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH, DATA_PATH], include_default_search_paths=False)
    return loader.load_service_model(service, "service-2")


@cache
def ec2() -> Model:
    """The EC2 model with Nova's changes, loaded once."""
    return Model(overlay.merge(load("ec2"), overlay.ADDITIONS))


@cache
def iam() -> Model:
    """The model of the Identity and Access Management API, loaded once."""
    return Model(load("iam"), "iam")


@cache
def sts() -> Model:
    """The model of the Security Token Service's API, loaded once."""
    return Model(load("sts"), "sts")


@cache
def admin() -> Model:
    """The model of Nova's admin API, loaded once."""
    return Model(load(ADMIN), ADMIN)


def operation(name: str) -> Operation | None:
    """The EC2 operation of this name, or None if the API has none."""
    return ec2().operation(name)

"""The documents of the S3 API, compiled from botocore's model: requests read, answers written.

Only bodies are here; what S3 puts into headers and the query is for nova.objectstore.  Dictionaries have the model's
member names and stand for the content of the document's root element: ``{"Rules": [...]}`` for a lifecycle
configuration, whether it is the payload member of a request or the whole of an answer.

A request is checked as S3 checks it: an element that the schema does not have, one that occurs twice, one that is
missing, a value that is none of its type's, all are MalformedXML.  Namespaces do not matter, since clients send any
and none.  Of XML there are elements, attributes and text in UTF-8; document types, entities and processing
instructions are refused, and so are depth and size beyond what any client needs.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from botocore.model import ServiceModel

from nova import exception
from nova.wire import xml
from nova.wire.model import load

DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
#: bytes that a request's document may have where its reader does not say otherwise
MAX_DOCUMENT = 8 << 20
_MAX_DEPTH = 16
#: more elements than the largest request has, 10,000 parts with an ETag and every checksum
_MAX_ELEMENTS = 200_000
#: enumerations of Amazon's where a private cloud has values of its own; the operation judges them
_OPEN_ENUMS = frozenset({"BucketLocationConstraint"})
#: the root elements of answers (S3 API reference), which the model does not tell except where there is a payload
_ROOTS = {
    "CompleteMultipartUpload": "CompleteMultipartUploadResult",
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAccelerateConfiguration": "AccelerateConfiguration",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketCors": "CORSConfiguration",
    "GetBucketLifecycleConfiguration": "LifecycleConfiguration",
    "GetBucketLogging": "BucketLoggingStatus",
    "GetBucketNotificationConfiguration": "NotificationConfiguration",
    "GetBucketRequestPayment": "RequestPaymentConfiguration",
    "GetBucketTagging": "Tagging",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetBucketWebsite": "WebsiteConfiguration",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectAttributes": "GetObjectAttributesResponse",
    "GetObjectTagging": "Tagging",
    "ListBucketAnalyticsConfigurations": "ListBucketAnalyticsConfigurationsResult",
    "ListBucketIntelligentTieringConfigurations": "ListBucketIntelligentTieringConfigurationsOutput",
    "ListBucketInventoryConfigurations": "ListInventoryConfigurationsResult",
    "ListBucketMetricsConfigurations": "ListMetricsConfigurationsResult",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListObjectVersions": "ListVersionsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListParts": "ListPartsResult",
}


@cache
def s3() -> ServiceModel:
    """botocore's model of the S3 API, loaded once, which takes about 0.2 s."""
    return ServiceModel(load("s3"), "s3")


# -- answers ----------------------------------------------------------------------------------------------------------

#: markup, and what XML 1.0 cannot carry, which S3 writes as references all the same; clients that want to read such
#: keys ask for encoding-type=url
_SPECIAL = re.compile("[&<>\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _escape(value: Any) -> str:
    text = xml.string(value)
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(lambda match: _ESCAPES.get(match[0]) or f"&#x{ord(match[0]):x};", text)


def _timestamp(value: Any) -> str:
    """A moment with its milliseconds cut off, so that its second is the one that Last-Modified has."""
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return xml.timestamp(value if isinstance(value, str) else round(value * 1e6) // 1000 / 1000)


def _tag(name: str, shape: Any) -> str:
    """The element of a structure's member; of a flattened list, that of each of its items."""
    tag = shape.serialization.get("name", name)
    if shape.type_name == "list" and shape.serialization.get("flattened"):
        return shape.member.serialization.get("name", tag)
    return tag


def _attributes(shape: Any) -> dict[str, Any]:
    """The members of a structure that are attributes of its element."""
    return {name: member for name, member in shape.members.items() if member.serialization.get("xmlAttribute")}


class _Writers(xml.Compiler):
    """Compiles output shapes: beside what EC2 has, there are flattened lists and attributes."""

    scalars = {**xml.Compiler.scalars, "string": _escape, "timestamp": _timestamp}

    def field(self, name: str, shape: Any) -> xml.Field:
        if shape.type_name == "list" and shape.serialization.get("flattened"):
            return "", None, self.items(_tag(name, shape), shape.member), ""
        if shape.type_name == "structure" and _attributes(shape):
            return "", None, self._with_attributes(_tag(name, shape), shape), ""
        return super().field(name, shape)

    def _with_attributes(self, tag: str, shape: Any) -> xml.Writer:
        namespace = shape.serialization["xmlNamespace"]
        start = f'<{tag} xmlns:{namespace["prefix"]}="{namespace["uri"]}"'
        attributes = {name: member.serialization["name"] for name, member in _attributes(shape).items()}
        write_elements = self.compile(shape)

        def write(value: dict[str, Any], put: xml.Put) -> None:
            put(start)
            for name, attribute in attributes.items():
                if value.get(name) is not None:
                    text = _escape(value[name]).replace('"', "&quot;")
                    put(f' {attribute}="{text}"')
            put(">")
            write_elements({name: content for name, content in value.items() if name not in attributes}, put)
            put(f"</{tag}>")
        return write


_writers = _Writers("member")


@cache
def _answer(operation: str) -> tuple[str, xml.Writer]:
    """The root element of an operation's answer, and what writes the content."""
    shape = s3().operation_model(operation).output_shape
    if operation == "GetBucketLocation":  # the one document whose root has text
        return "LocationConstraint", lambda result, put: put(_escape(result.get("LocationConstraint") or ""))
    payload = shape.serialization.get("payload") if shape else None
    if payload:
        shape = shape.members[payload]
    root = _tag(payload, shape) if payload else _ROOTS.get(operation)
    if root is None or shape.type_name != "structure":
        raise ValueError(f"{operation} answers no document")
    return root, _writers.compile(shape)


def write_body(operation: str, result: dict[str, Any]) -> bytes:
    """The document that an operation answers.

    :param operation: its name in the model
    :param result: values by member names, written in their order; None leaves one out.  Where the answer is one
        member of the output shape (CopyObjectResult, PublicAccessBlockConfiguration), this is that member's content.
        Moments are datetimes, or seconds since 1970
    :raises ValueError: the result has a member that the document has not, or the operation answers no document
    """
    root, write = _answer(operation)
    parts = [f'<{root} xmlns="{NAMESPACE}">']
    write(result, parts.append)
    parts.append(f"</{root}>")
    return DECLARATION + "".join(parts).encode()


def write_error(members: dict[str, str]) -> bytes:
    """The document of an error (S3 API reference, "REST error responses"), which has no namespace."""
    return write_elements("Error", members)


def write_elements(root: str, members: dict[str, str]) -> bytes:
    """A document that is not in the model: a root element without a namespace, and elements of text in it."""
    elements = "".join([f"<{name}>{_escape(text)}</{name}>" for name, text in members.items()])
    return DECLARATION + f"<{root}>{elements}</{root}>".encode()


# -- requests ---------------------------------------------------------------------------------------------------------

Reader = Callable[[ElementTree.Element], Any]

_INTEGER = re.compile("[+-]?[0-9]{1,19}", re.ASCII)
_BITS = {"integer": 31, "long": 63}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_body(operation: str, data: bytes, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """The document that a request for an operation has.

    :param operation: its name in the model
    :param data: the body
    :param limit: how many bytes it may have
    :returns: values by member names: those of the payload member's structure.  Moments are datetimes in UTC; text is
        as it was sent, with the white space around it
    :raises MissingRequestBody: there is none
    :raises MalformedXML: it is not the document that the operation takes
    :raises RequestEntityTooLarge: it is longer than `limit`
    :raises ValueError: the operation takes no document
    """
    root, read = _request(operation)
    if len(data) > limit:
        raise exception.RequestEntityTooLarge(limit=limit)
    if not data.strip():
        raise exception.MissingRequestBody()
    tree = _parse(data)
    if tree.tag != root:
        raise exception.MalformedXML()
    return read(tree)


@cache
def _request(operation: str) -> tuple[str, Reader]:
    """The root element of an operation's request, and what reads the content."""
    shape = s3().operation_model(operation).input_shape
    payload = shape.serialization.get("payload") if shape else None
    if not payload or shape.members[payload].type_name != "structure":
        raise ValueError(f"{operation} takes no document")
    return _tag(payload, shape.members[payload]), _reader(shape.members[payload])


def _parse(data: bytes) -> ElementTree.Element:
    """Elements, attributes and text; names of elements come without their namespaces."""
    if b"\0" in data:  # UTF-16, which expat would find out by itself, or nothing that XML knows
        raise exception.MalformedXML()
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8", "}")
    depth = count = 0

    def refuse(*_: object) -> None:
        raise exception.MalformedXML()

    def declare(version: str, encoding: str | None, standalone: int) -> None:
        # expat takes the text for UTF-8 whatever is declared
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8", "us-ascii"):
            raise exception.MalformedXML()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth, count
        depth, count = depth + 1, count + 1
        if depth > _MAX_DEPTH or count > _MAX_ELEMENTS:
            raise exception.MalformedXML()
        builder.start(name.rpartition("}")[2], attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition("}")[2])

    parser.buffer_text = True
    parser.XmlDeclHandler = declare
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ProcessingInstructionHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError) as error:
        raise exception.MalformedXML() from error
    return builder.close()


def _reader(shape: Any) -> Reader:
    """How an element of this shape is read; what it is called was looked at before."""
    if shape.type_name == "structure":
        return _structure(shape)
    if shape.type_name == "list":
        return _list(shape)
    convert = _CONVERTERS[shape.type_name](shape)

    def read(element: ElementTree.Element) -> Any:
        if len(element):
            raise exception.MalformedXML()
        return convert(element.text or "")
    return read


def _structure(shape: Any) -> Reader:
    """Reads the members of a structure, which may come in any order."""
    attributes = {}
    for name, member in _attributes(shape).items():
        uri, local = shape.serialization["xmlNamespace"]["uri"], member.serialization["name"].rpartition(":")[2]
        attributes[f"{uri}}}{local}"] = (name, _CONVERTERS[member.type_name](member))
    fields: dict[str, tuple[str, Reader, bool]] = {}
    for name, member in shape.members.items():
        if not member.serialization.get("xmlAttribute"):
            repeated = bool(member.type_name == "list" and member.serialization.get("flattened"))
            fields[_tag(name, member)] = (name, _reader(member.member if repeated else member), repeated)
    required = frozenset(shape.required_members)

    def read(element: ElementTree.Element) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for child in element:
            field = fields.get(child.tag)
            if field is None:
                raise exception.MalformedXML()
            name, read_member, repeated = field
            if repeated:
                found.setdefault(name, []).append(read_member(child))
            elif name in found:
                raise exception.MalformedXML()
            else:
                found[name] = read_member(child)
        for attribute, (name, convert) in attributes.items():
            if attribute in element.attrib:
                found[name] = convert(element.attrib[attribute])
        if not required <= found.keys():
            raise exception.MalformedXML()
        return found
    return read


def _list(shape: Any) -> Reader:
    """Reads the items of a list that has an element of its own."""
    tag, read_member = shape.member.serialization.get("name", "member"), _reader(shape.member)

    def read(element: ElementTree.Element) -> list[Any]:
        if any(child.tag != tag for child in element):
            raise exception.MalformedXML()
        return [read_member(child) for child in element]
    return read


def _string(shape: Any) -> Callable[[str], str]:
    if not shape.enum or shape.name in _OPEN_ENUMS:
        return lambda text: text
    allowed = frozenset(shape.enum)

    def convert(text: str) -> str:
        text = text.strip()
        if text not in allowed:
            raise exception.MalformedXML()
        return text
    return convert


def _integer(shape: Any) -> Callable[[str], int]:
    limit = 1 << _BITS[shape.type_name]

    def convert(text: str) -> int:
        text = text.strip()
        if not _INTEGER.fullmatch(text) or not -limit <= int(text) < limit:
            raise exception.MalformedXML()
        return int(text)
    return convert


def _boolean(shape: Any) -> Callable[[str], bool]:
    def convert(text: str) -> bool:
        value = _BOOLEANS.get(text.strip().lower())
        if value is None:
            raise exception.MalformedXML()
        return value
    return convert


def _moment(shape: Any) -> Callable[[str], datetime]:
    parse = parsedate_to_datetime if shape.serialization.get("timestampFormat") == "rfc822" else datetime.fromisoformat

    def convert(text: str) -> datetime:
        try:
            moment = parse(text.strip())
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise exception.MalformedXML() from error
    return convert


_CONVERTERS: dict[str, Callable[[Any], Callable[[str], Any]]] = {
    "string": _string, "integer": _integer, "long": _integer, "boolean": _boolean, "timestamp": _moment,
}

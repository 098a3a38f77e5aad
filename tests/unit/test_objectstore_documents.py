"""Documents of requests, of all operations that have one: what clients write is taken, what S3 does not know is not."""

import re
from xml.etree import ElementTree

import pytest

from nova import exception
from nova.objectstore.operations import OFFERED
from nova.objectstore.request import SUB_RESOURCES
from nova.wire import rest_xml
from nova.wire.rest_xml import NAMESPACE, _tag

_VALUES = {"integer": "1", "long": "1", "boolean": "true", "timestamp": "2026-01-01T00:00:00Z"}
_XSI = "http://www.w3.org/2001/XMLSchema-instance"


def payload(operation: str):
    """The shape of the document that an operation's request has, and its root element; None if it has none."""
    shape = rest_xml.s3().operation_model(operation).input_shape
    name = shape.serialization.get("payload") if shape else None
    if not name or shape.members[name].type_name != "structure":
        return None
    return _tag(name, shape.members[name]), shape.members[name]


OPERATIONS = sorted({kind.__name__ for kind in OFFERED if kind.__name__ in rest_xml.s3().operation_names}
                    & {name for name in rest_xml.s3().operation_names if payload(name)})


def fill(element: ElementTree.Element, shape) -> None:
    """Everything that may be in an element of this shape, once."""
    if shape.type_name != "structure":
        if shape.type_name == "list":
            fill(ElementTree.SubElement(element, shape.member.serialization.get("name", "member")), shape.member)
        elif shape.type_name == "timestamp" and shape.serialization.get("timestampFormat") == "rfc822":
            element.text = "Thu, 01 Jan 2026 00:00:00 GMT"
        else:
            element.text = next(iter(shape.enum or ()), "x") if shape.type_name == "string" else (
                _VALUES[shape.type_name])
        return
    for name, member in shape.members.items():
        if member.serialization.get("xmlAttribute"):
            element.set(f"{{{_XSI}}}type", "CanonicalUser")
            continue
        child = ElementTree.SubElement(element, _tag(name, member))
        flat = member.type_name == "list" and member.serialization.get("flattened")
        fill(child, member.member if flat else member)


def document(operation: str) -> ElementTree.Element:
    root, shape = payload(operation)
    made = ElementTree.Element(root)
    fill(made, shape)
    return made


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_document_is_taken_however_it_is_written(operation: str) -> None:
    plain = ElementTree.tostring(document(operation)).decode()
    wanted = rest_xml.read_body(operation, plain.encode())
    [root] = re.match(r"<(\w+)", plain).groups()
    spaced = re.sub(r"(</?[A-Z]\w*[^>]*>)(?=<)", "\\1\n\t <!-- a comment --> ", plain)
    schema = 'xmlns:xs="http://www.w3.org/2001/XMLSchema"'
    for text in (f'<?xml version="1.0" encoding="UTF-8"?>\n{plain}\n', f'\ufeff<?xml version="1.0"?>{plain}',
                 plain.replace(f"<{root}", f'<{root} xmlns="{NAMESPACE}"', 1),
                 plain.replace(f"<{root}", f'<{root} xmlns="http://doc.s3.amazonaws.com/2006-03-01"', 1),
                 re.sub("(</?)(?=[A-Z])", r"\1a:", plain).replace(f"<a:{root}", f'<a:{root} xmlns:a="{NAMESPACE}"', 1),
                 plain.replace(f"<{root}", f'<{root} {schema} id="1" xs:lang="en"', 1), spaced):
        assert rest_xml.read_body(operation, text.encode()) == wanted, text


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_unknown_element_is_refused_wherever_it_is(operation: str) -> None:
    places = len(list(document(operation).iter()))
    for at in range(places):
        tree = document(operation)
        ElementTree.SubElement(list(tree.iter())[at], "Unknown").text = "x"
        with pytest.raises(exception.MalformedXML):
            rest_xml.read_body(operation, ElementTree.tostring(tree))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_another_root_or_half_a_document_is_refused(operation: str) -> None:
    text = ElementTree.tostring(document(operation))
    for wrong in (b"<Other/>", b"<Other>" + text + b"</Other>", text[:-3], text + text, b"{}", b"\xff" + text):
        with pytest.raises(exception.MalformedXML):
            rest_xml.read_body(operation, wrong)


def test_the_operations_are_all_that_have_a_document() -> None:
    assert {"CompleteMultipartUpload", "CreateBucket", "DeleteObjects", "PutBucketCors", "PutBucketVersioning",
            "PutBucketLifecycleConfiguration", "PutObjectTagging", "PutBucketAcl"} <= set(OPERATIONS)


def test_every_sub_resource_of_the_model_is_known() -> None:
    """One that is not would be taken for the object itself: its removal would remove the object."""
    found = set()
    for name in rest_xml.s3().operation_names:
        query = rest_xml.s3().operation_model(name).http["requestUri"].partition("?")[2]
        found |= {item for item in query.split("&") if item and "=" not in item}
    assert found <= SUB_RESOURCES

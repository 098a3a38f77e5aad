"""The XML that S3 speaks: a small writer, and a reader that refuses what XML can do beyond elements and text."""

from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape

from nova.objectstore import errors

DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_MAX_DEPTH = 16
#: what XML 1.0 cannot carry is written as S3 writes it; clients that want to read it ask for encoding-type=url
_CONTROLS = {chr(code): f"&#x{code:x};" for code in range(32) if chr(code) not in "\t\n"}

#: an element: its name (with attributes, if it has any) and its text or children; None leaves it out
Element = tuple[str, "str | int | bool | list[Element] | None"]


def document(name: str, children: list[Element], namespace: str = NAMESPACE) -> bytes:
    """A whole document.

    :param name: of the root element
    :param namespace: of the root element; '' for none
    """
    root = f'{name} xmlns="{namespace}"' if namespace else name
    return DECLARATION + fragment((root, children))


def fragment(element: Element) -> bytes:
    """One element."""
    parts: list[str] = []
    _write(element, parts)
    return "".join(parts).encode()


def _write(element: Element, parts: list[str]) -> None:
    name, content = element
    if content is None:
        return
    end = name.split(" ", 1)[0]
    parts.append(f"<{name}>")
    if isinstance(content, list):
        for child in content:
            _write(child, parts)
    elif isinstance(content, bool):
        parts.append("true" if content else "false")
    else:
        parts.append(escape(str(content), _CONTROLS))
    parts.append(f"</{end}>")


def parse(data: bytes, root: str) -> ElementTree.Element:
    """Read a document; names come without their namespaces.

    :param root: the name that the root element must have
    :raises MissingRequestBody: there is none
    :raises MalformedXML: it is no such document, or has a document type or entities
    """
    if not data.strip():
        raise errors.MissingRequestBody()
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    depth = 0

    def refuse(*_: object) -> None:
        raise errors.MalformedXML()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise errors.MalformedXML()
        builder.start(name.rpartition("}")[2], attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name.rpartition("}")[2])

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    try:
        parser.Parse(data, True)
        tree = builder.close()
    except (expat.ExpatError, ElementTree.ParseError, ValueError, AssertionError) as error:
        raise errors.MalformedXML() from error
    if tree.tag != root:
        raise errors.MalformedXML()
    return tree


def text(element: ElementTree.Element, name: str) -> str | None:
    """The text of a child element, stripped; None if there is no such child."""
    child = element.find(name)
    return None if child is None else (child.text or "").strip()

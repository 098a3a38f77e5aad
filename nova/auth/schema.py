"""What entries must and may have: Nova's own classes, read from the file that slapd gets, and the standard ones.

Pure functions.  The fake directory checks its entries by it, in the way slapd does.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from importlib import resources

from nova import exception
from nova.auth.directory import SchemaViolation, split_dn

#: the part of RFC 4512, RFC 4519, RFC 2798 and RFC 2377 that the tree uses, in slapd's notation
_STANDARD = """
olcAttributeTypes: ( 2.5.4.0 NAME 'objectClass' EQUALITY objectIdentifierMatch )
olcAttributeTypes: ( 2.5.4.3 NAME ( 'cn' 'commonName' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 2.5.4.4 NAME ( 'sn' 'surname' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 2.5.4.10 NAME ( 'o' 'organizationName' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 2.5.4.11 NAME ( 'ou' 'organizationalUnitName' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 2.5.4.13 NAME 'description' EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 2.5.4.31 NAME 'member' EQUALITY distinguishedNameMatch )
olcAttributeTypes: ( 2.5.4.35 NAME 'userPassword' EQUALITY octetStringMatch )
olcAttributeTypes: ( 0.9.2342.19200300.100.1.1 NAME ( 'uid' 'userid' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 0.9.2342.19200300.100.1.3 NAME ( 'mail' 'rfc822Mailbox' ) EQUALITY caseIgnoreMatch )
olcAttributeTypes: ( 0.9.2342.19200300.100.1.25 NAME ( 'dc' 'domainComponent' ) EQUALITY caseIgnoreMatch SINGLE-VALUE )
olcObjectClasses: ( 2.5.6.0 NAME 'top' ABSTRACT MUST objectClass )
olcObjectClasses: ( 2.5.6.4 NAME 'organization' SUP top STRUCTURAL MUST o MAY description )
olcObjectClasses: ( 2.5.6.5 NAME 'organizationalUnit' SUP top STRUCTURAL MUST ou MAY description )
olcObjectClasses: ( 2.5.6.6 NAME 'person' SUP top STRUCTURAL MUST ( sn $ cn ) MAY ( userPassword $ description ) )
olcObjectClasses: ( 2.5.6.7 NAME 'organizationalPerson' SUP person STRUCTURAL MAY ou )
olcObjectClasses: ( 2.16.840.1.113730.3.2.2 NAME 'inetOrgPerson' SUP organizationalPerson STRUCTURAL
  MAY ( uid $ mail $ o ) )
olcObjectClasses: ( 2.5.6.9 NAME 'groupOfNames' SUP top STRUCTURAL MUST ( member $ cn ) MAY ( description $ o $ ou ) )
olcObjectClasses: ( 1.3.6.1.4.1.1466.344 NAME 'dcObject' SUP top AUXILIARY MUST dc )
"""

_DEFINITION = re.compile(r"^(olcAttributeTypes|olcObjectClasses): \( (\S+) (.*) \)$")


@dataclass(frozen=True)
class Attribute:
    """`matching` is the name of the rule of equality."""

    name: str
    matching: str
    single: bool


@dataclass(frozen=True)
class ObjectClass:
    """`kind` is STRUCTURAL, AUXILIARY or ABSTRACT; names are in lower case."""

    name: str
    kind: str
    superior: str
    must: frozenset[str]
    may: frozenset[str]


@functools.cache
def _schema() -> tuple[dict[str, Attribute], dict[str, ObjectClass]]:
    folder = resources.files("nova.auth").joinpath("ldap_schema")
    text = "\n".join([_STANDARD, *(folder.joinpath(f"{name}.ldif").read_text() for name in ("nova", "sshkey"))])
    attributes: dict[str, Attribute] = {}
    classes: dict[str, ObjectClass] = {}
    for line in re.sub(r"\n +", " ", text).splitlines():  # a line that begins with a space goes on the one before
        found = _DEFINITION.match(line)
        if not found:
            continue
        body = found[3]
        names = re.findall(r"'([^']*)'", re.match(r"NAME (\([^)]*\)|'[^']*')", body)[1])  # type: ignore[index]
        if found[1] == "olcAttributeTypes":
            matching = re.search(r"EQUALITY (\S+)", body)[1]  # type: ignore[index]
            attribute = Attribute(names[0], matching, "SINGLE-VALUE" in body)
            attributes.update({name.lower(): attribute for name in names})
        else:
            kind = re.search(r"\b(STRUCTURAL|AUXILIARY|ABSTRACT)\b", body)[1]  # type: ignore[index]
            superior = re.search(r"SUP (\S+)", body)
            classes[names[0].lower()] = ObjectClass(names[0], kind, superior[1].lower() if superior else "",
                                                    _names(body, "MUST"), _names(body, "MAY"))
    return attributes, classes


def _names(body: str, word: str) -> frozenset[str]:
    found = re.search(rf"{word} (\([^)]*\)|\S+)", body)
    return frozenset(re.findall(r"\w+", found[1].lower())) if found else frozenset()


def attribute(name: str) -> Attribute:
    """What is known of an attribute; :raises exception.InvalidParameterValue: nothing"""
    known = _schema()[0].get(name.lower())
    if known is None:
        raise exception.InvalidParameterValue(f"The directory cannot take this: {name}: attribute type undefined")
    return known


def knows(name: str) -> bool:
    """Whether there is such an attribute."""
    return name.lower() in _schema()[0]


def normal(name: str, value: str) -> str:
    """What two values of an attribute have in common when they count as equal."""
    matching = attribute(name).matching
    if matching == "octetStringMatch":
        return value
    if matching == "distinguishedNameMatch":
        try:
            return normal_dn(value)
        except exception.InvalidParameterValue:
            return "\0" + value  # equal to no DN
    text = " ".join(unicodedata.normalize("NFKC", value).split(" "))
    text = re.sub(r" +", " ", text).strip() or " "
    return text if matching == "caseExactMatch" else text.casefold()


def normal_dn(dn: str) -> str:
    """What two DNs have in common when they name the same entry; :raises exception.InvalidParameterValue:"""
    parts = []
    for name, value in split_dn(dn):
        if not knows(name):
            raise exception.InvalidParameterValue(f"'{dn[:100]}' is no distinguished name: {name} is not known")
        text = normal(name, value)
        escaped = "".join(f"\\{c}" if c in '\\,+"<>;=' else c for c in text)
        parts.append(f"{attribute(name).name.lower()}={escaped}")
    return ",".join(parts)


def parent(normal_name: str) -> str:
    """The normal form of the DN that one in normal form is below."""
    at = 0
    while True:
        at = normal_name.find(",", at)
        if at < 0:
            return ""
        backslashes = len(normal_name[:at]) - len(normal_name[:at].rstrip("\\"))
        if backslashes % 2 == 0:
            return normal_name[at + 1:]
        at += 1


def check(dn: str, attributes: dict[str, list[str]]) -> dict[str, list[str]]:
    """An entry as it is stored, attributes by their proper names.

    :raises SchemaViolation, exception.InvalidParameterValue: slapd would not have it
    :raises exception.Exists: a value is there twice
    """
    entry: dict[str, list[str]] = {}
    for given, values in attributes.items():
        kind = attribute(given)
        if not values:
            continue
        if kind.single and len(values) > 1:
            raise exception.InvalidParameterValue(f"The directory cannot take this: {given}: multiple values provided")
        if len({normal(given, value) for value in values}) < len(values):
            raise exception.Exists("value in", dn)
        if kind.matching == "booleanMatch" and values[0] not in ("TRUE", "FALSE"):
            raise exception.InvalidParameterValue(f"The directory cannot take this: {given}: no boolean")
        if kind.matching == "distinguishedNameMatch":
            for value in values:
                normal_dn(value)
        entry[kind.name] = list(values)
    _check_classes(entry)
    name, value = split_dn(dn)[0]
    if normal(name, value) not in [normal(name, v) for v in entry.get(attribute(name).name, [])]:
        raise exception.InvalidParameterValue(
            f"The directory cannot take this: value of naming attribute '{name}' is not present in entry")
    return entry


def _check_classes(entry: dict[str, list[str]]) -> None:
    classes = _schema()[1]
    must: set[str] = set()
    may: set[str] = set()
    structural = False
    if not entry.get("objectClass"):
        raise SchemaViolation("The directory's schema does not allow this: no objectClass attribute")
    for name in entry["objectClass"]:
        current = name.lower()
        if current not in classes:
            raise exception.InvalidParameterValue(f"The directory cannot take this: objectClass: {name} is not known")
        structural = structural or classes[current].kind == "STRUCTURAL"
        while current:
            must |= classes[current].must
            may |= classes[current].may
            current = classes[current].superior
    if not structural:
        raise SchemaViolation("The directory's schema does not allow this: no structural object class provided")
    has = {name.lower() for name in entry}
    for missing in sorted(must - has):
        raise SchemaViolation(f"The directory's schema does not allow this: an object class requires attribute "
                              f"'{missing}'")
    for extra in sorted(has - must - may):
        raise SchemaViolation(f"The directory's schema does not allow this: attribute '{extra}' not allowed")

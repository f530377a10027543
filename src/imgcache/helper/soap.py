"""The envelope of the vSphere API: values to XML, answers to elements, faults to exceptions.

Source: VMware vSphere Web Services API 6.5 (``vim25``); the order of parameters is the WSDL's and matters.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a code is a literal

import collections
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from .core import Failure

ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
    '<%s xmlns="urn:vim25">%s</%s></soapenv:Body></soapenv:Envelope>'
)
_KIND = "{http://www.w3.org/2001/XMLSchema-instance}type"

#: A managed object: its type and its id.
Ref = collections.namedtuple("Ref", "type value")
#: A value with fields in the WSDL's order; ``kind`` is its type where a subclass is meant, else None.
Object = collections.namedtuple("Object", "kind fields")

#: What faults mean in our closed list of codes; all others are ``io``.
_CODES = {
    "InvalidLogin": "auth",
    "NotAuthenticated": "auth",
    "NoPermission": "permission",
    "FileNotFound": "nopath",
    "InvalidDatastore": "nopath",
    "InvalidDatastorePath": "nopath",
    "ManagedObjectNotFound": "nopath",
    "FileLocked": "busy",
    "TaskInProgress": "busy",
    "NoDiskSpace": "space",
    "InsufficientStorageSpace": "space",
    "FileTooLarge": "toobig",
}


class Fault(Failure):
    """vCenter refused: the fault's type, and what it says. Where nobody knows better, it ends the order."""

    def __init__(self, name, said):
        text = "%s: %s" % (name, said) if said else name
        super().__init__(_CODES.get(name, "io"), "vCenter says " + text[:500])
        self.name = name

    def failure(self, what):
        """Return the ``Failure`` that also tells what could not be done."""
        return Failure(self.code, "%s: %s" % (what, self.message))


def xml(name, value):
    """Return the XML of one element; a list becomes several, None none."""
    if value is None:
        return ""
    if isinstance(value, Ref):
        return "<%s type=%s>%s</%s>" % (name, quoteattr(value.type), escape(value.value), name)
    if isinstance(value, Object):
        kind = ' xsi:type="%s"' % value.kind if value.kind else ""
        return "<%s%s>%s</%s>" % (name, kind, fields_xml(value.fields), name)
    if isinstance(value, (list, tuple)):
        return "".join([xml(name, item) for item in value])
    if isinstance(value, bool):
        value = "true" if value else "false"
    return "<%s>%s</%s>" % (name, escape(str(value)), name)


def fields_xml(fields):
    """Return the XML of (name, value) pairs."""
    return "".join([xml(name, value) for name, value in fields])


def parse_plain(data):
    """Return the root of XML without declarations, whose entities could grow without end.

    Raises:
        ElementTree.ParseError: it is none.
        ValueError: it is not UTF-8, or has declarations.
    """
    # Read as UTF-16, which the parser would guess, the declarations would not look like these.
    if b"\0" in data or b"<!" in data.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        raise ValueError("no plain XML: it has declarations")
    data.decode("utf-8")
    return ElementTree.fromstring(data)  # noqa: S314 - without declarations


def parse(data):
    """Return the body's one element of a SOAP answer, its names without namespaces.

    Raises:
        ValueError: no such thing.
    """
    try:
        root = parse_plain(data)
    except ElementTree.ParseError as error:
        raise ValueError("no XML: %s" % error) from None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        kind = node.attrib.pop(_KIND, None)
        if kind is not None:
            node.set("kind", kind.rpartition(":")[2])
    body = root.find("Body")
    if body is None or not len(body):
        raise ValueError("no SOAP body")
    return body[0]


def ref_of(node):
    """Return the managed object that an element names, or None."""
    return None if node is None or not node.text else Ref(node.get("type"), node.text)


def refs_of(node):
    """Return the managed objects in an array."""
    return [] if node is None else [ref_of(item) for item in node if item.text]


def text_of(node, default=None):
    """Return an element's text."""
    return default if node is None or node.text is None else node.text


def fault_of(node):
    """Return the fault in a SOAP answer."""
    detail = node.find("detail")
    inner = detail[0] if detail is not None and len(detail) else None
    name = "Fault"
    if inner is not None:
        name = inner.get("kind") or inner.tag[: -len("Fault")]
    return Fault(name, (text_of(node.find("faultstring")) or "").strip())


def task_fault(node):
    """Return the fault that a task ended with."""
    inner = None if node is None else node.find("fault")
    name = "Fault" if inner is None else inner.get("kind") or inner.tag
    said = "" if node is None else text_of(node.find("localizedMessage"), "")
    file = None if inner is None else text_of(inner.find("file"))
    return Fault(name, " ".join([part for part in (said.strip(), file) if part]))

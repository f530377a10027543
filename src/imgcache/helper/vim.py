"""Speaks the vSphere API: SOAP over HTTPS with the standard library.

What vCenter answers is read with ``xml.etree``; namespaces are dropped, ``xsi:type`` becomes ``kind``.
Source: VMware vSphere Web Services API 6.5 (``vim25``).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs
# ruff: noqa: EM101 - a Failure's code is a literal; imports are dear on a warm host

import http.client
import ssl
import time
from urllib.parse import quote, urlencode

from .core import Failure
from .soap import (
    ENVELOPE,
    Fault,
    Object,
    Ref,
    fault_of,
    fields_xml,
    parse,
    ref_of,
    refs_of,
    task_fault,
    text_of,
)

_CONNECT_S = 10
#: The longest wait for the answer to one call; work that takes longer is a task.
_ANSWER_S = 90
#: A connection that was idle for so long may be half dead: servers close theirs after some seconds more.
_IDLE_S = 5.0
_MAX_ANSWER_BYTES = 64 << 20
_STEP_BYTES = 64 << 10
_TASK = ("info.state", "info.error", "info.result", "info.progress")

SERVICE = Ref("ServiceInstance", "ServiceInstance")


class Vim:
    """A session with one vCenter. Not for use by two threads at once."""

    def __init__(self, host, port, trust, check=lambda: None):
        self.host = host
        self.port = port
        self.context = tls_context(*trust)
        self.check = check
        #: Gets the percentage of a task that says how far it is.
        self.tell = None
        #: Logs in once more when vCenter has ended the session, which nobody used for half an hour.
        self.log_in = None
        self.cookie = None
        self.content = None
        self.answer_s = _ANSWER_S
        self.place = "%s:%d" % (host, port)
        self._connection = None
        self._used_at = 0.0

    # ---- HTTP

    def connect(self):
        """Return a new connection.

        Raises:
            Failure: ``unreachable`` or ``tls``.
        """
        connection = http.client.HTTPSConnection(
            self.host, self.port, timeout=min(_CONNECT_S, self.answer_s), context=self.context
        )
        try:
            connection.connect()
        except (ssl.SSLError, ssl.CertificateError) as error:
            connection.close()
            raise Failure(
                "tls",
                "no trust in vCenter %s: %s; see ca_file and insecure in [vmware] of nova.conf"
                % (self.place, _reason(error)),
            ) from error
        except (OSError, ValueError) as error:
            connection.close()
            # Later than at the login it is no reason to try another source of an image.
            code = "unreachable" if self.content is None else "io"
            message = "cannot connect to vCenter %s: %s" % (self.place, _reason(error))
            raise Failure(code, message) from error
        connection.sock.settimeout(self.answer_s)
        return connection

    def _post(self, body):
        """Send one envelope and return (status, answer)."""
        if self._connection is not None and time.monotonic() - self._used_at > _IDLE_S:
            self._connection.close()
            self._connection = None
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": "urn:vim25/6.5"}
        if self.cookie:
            headers["Cookie"] = self.cookie
        if self._connection is None:
            self._connection = self.connect()
        try:
            self._connection.request("POST", "/sdk", body.encode("utf-8"), headers)
            response = self._connection.getresponse()
            data = _all_of(response)
        except (OSError, http.client.HTTPException) as error:
            self.hang_up()
            raise Failure(
                "io", "the connection to vCenter %s broke: %s" % (self.place, _reason(error))
            ) from error
        self._used_at = time.monotonic()
        for cookie in response.headers.get_all("Set-Cookie") or ():
            if cookie.startswith("vmware_soap_session="):
                self.cookie = cookie.partition(";")[0]
        return response.status, data

    def hang_up(self):
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def file_target(self, path, dc_path, datastore):
        """Return the request target of a datastore's file."""
        query = urlencode({"dcPath": dc_path, "dsName": datastore})
        return "/folder/%s?%s" % (quote(path), query)

    # ---- calls

    def call(self, target, method, *fields):
        """Call a method and return its answer's elements.

        Raises:
            Fault: vCenter refuses.
            Failure: it cannot be reached, or answers something else.
        """
        try:
            return self._call(target, method, fields)
        except Fault as fault:
            if fault.name != "NotAuthenticated" or self.log_in is None:
                raise
        log_in, self.log_in, self.cookie = self.log_in, None, None
        try:
            log_in()
        finally:
            self.log_in = log_in
        return self._call(target, method, fields)

    def _call(self, target, method, fields):
        self.check()
        body = ENVELOPE % (method, fields_xml((("_this", target), *fields)), method)
        status, data = self._post(body)
        try:
            node = parse(data)
        except ValueError as error:
            raise Failure(
                "io", "vCenter %s answered %d, and %s" % (self.place, status, error)
            ) from None
        if node.tag == "Fault":
            raise fault_of(node)
        return node

    def one(self, target, method, *fields):
        """Call a method and return its ``returnval``, or None."""
        return self.call(target, method, *fields).find("returnval")

    def start(self, user, password):
        """Log in.

        Raises:
            Fault, Failure: as ``call``.
        """
        answer = self.one(SERVICE, "RetrieveServiceContent")
        if answer is None:
            raise Failure("io", "%s answers, but not as vCenter" % self.place)
        self.content = {node.tag: node for node in answer}
        self.one(
            self.manager("sessionManager"), "Login", ("userName", user), ("password", password)
        )

    def end(self):
        """Log out and hang up; never raises."""
        try:
            if self.content is not None and self.cookie:
                self.check, self.log_in = lambda: None, None
                self.call(self.manager("sessionManager"), "Logout")
        except Failure:
            pass
        self.cookie = self.content = None
        self.hang_up()

    def manager(self, name):
        """Return one of the service's managers."""
        found = ref_of(self.content.get(name))
        if found is None:
            raise Failure("backend", "vCenter %s has no %s" % (self.place, name))
        return found

    def about(self, name):
        """Return one word about vCenter, such as ``version`` or ``instanceUuid``."""
        return text_of(self.content["about"].find(name), "")

    # ---- properties

    def properties(self, refs, paths):
        """Return id -> path -> element of several objects of one type.

        What is not set or cannot be read is left out, and objects that are gone meanwhile.
        """
        found = {}
        refs = list(refs)
        for start in range(0, len(refs), 200):
            part = refs[start : start + 200]
            try:
                self._retrieve(part, paths, found)
            except Fault as fault:
                if fault.name != "ManagedObjectNotFound":
                    raise
                for ref in part:
                    try:
                        self._retrieve([ref], paths, found)
                    except Fault as other:
                        if other.name != "ManagedObjectNotFound":
                            raise
        return found

    def _retrieve(self, refs, paths, found):
        collector = self.manager("propertyCollector")
        spec = Object(
            None,
            [
                ("propSet", Object(None, [("type", refs[0].type), ("pathSet", list(paths))])),
                ("objectSet", [Object(None, [("obj", ref)]) for ref in refs]),
            ],
        )
        fields = ("specSet", spec), ("options", Object(None, []))
        answer = self.one(collector, "RetrievePropertiesEx", *fields)
        if answer is None:
            # So it also says that the session is gone. Another call tells, which begins a new one.
            self.call(self.manager("searchIndex"), "FindByInventoryPath", ("inventoryPath", "/"))
            answer = self.one(collector, "RetrievePropertiesEx", *fields)
        while answer is not None:
            for item in answer.findall("objects"):
                values = found.setdefault(item.find("obj").text, {})
                for entry in item.findall("propSet"):
                    values[entry.find("name").text] = entry.find("val")
            token = answer.find("token")
            if token is None:
                return
            answer = self.one(collector, "ContinueRetrievePropertiesEx", ("token", token.text))

    def get(self, ref, path):
        """Return one property's element, or None."""
        return self.properties([ref], [path]).get(ref.value, {}).get(path)

    def all_of(self, kind):
        """Return all objects of a type in the inventory."""
        view = ref_of(
            self.one(
                self.manager("viewManager"),
                "CreateContainerView",
                ("container", self.manager("rootFolder")),
                ("type", kind),
                ("recursive", True),
            )
        )
        try:
            return refs_of(self.get(view, "view"))
        finally:
            self.call(view, "DestroyView")

    # ---- tasks

    def task(self, target, method, *fields):
        """Call a method that starts a task, wait for its end, and return its result's element or None.

        Raises:
            Fault: the task failed.
            Failure: ``interrupted``, after the task was told to end.
        """
        ref = ref_of(self.one(target, method, *fields))
        wait_s = 0.02
        try:
            while True:
                info = self.properties([ref], _TASK).get(ref.value, {})
                state = text_of(info.get("info.state"))
                if state == "success":
                    return info.get("info.result")
                if state == "error":
                    raise task_fault(info.get("info.error"))
                if self.tell is not None:
                    self.tell(int(text_of(info.get("info.progress"), "0")))
                if state is None:
                    raise Failure("io", "vCenter %s forgot about a task" % self.place)
                time.sleep(wait_s)
                wait_s = min(1.0, wait_s * 1.5)
        except Fault:
            raise
        except Failure:
            self._cancel(ref)
            raise

    def _cancel(self, ref):
        """Have a task end that nobody waits for any more, so that what it works on can be removed."""
        check, self.check = self.check, lambda: None
        try:
            self.call(ref, "CancelTask")
            until = time.monotonic() + 20
            while time.monotonic() < until:
                if text_of(self.get(ref, "info.state")) not in ("queued", "running"):
                    return
                time.sleep(0.5)
        except Failure:
            pass
        finally:
            self.check = check


def _all_of(response):
    """Return a body, in steps: what is asked for at once, old Pythons allocate at once."""
    parts, size = [], 0
    while size < _MAX_ANSWER_BYTES:
        part = response.read(_STEP_BYTES)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def tls_context(ca_file, insecure):
    """Return how much the server is trusted. Source: nova ``conf/vmware.py``: ``ca_file`` wins."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise Failure(
            "tls", "[vmware] ca_file %s cannot be used: %s" % (ca_file, _reason(error))
        ) from error
    context.options |= ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    if insecure and not ca_file:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error):
    return str(getattr(error, "strerror", None) or error or type(error).__name__)[:300]

"""Listening: where, with which certificate, and with a key that no file ever holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helper.controller import Controller, let_others_reach, pythons
from helper.relay.rig import RELAY, TIMES, Rig
from imgcache.transport.relay_certificate import make_certificate

DATA = os.urandom(200_000)
#: Python 3.6 syntax: prints what it could read, or why it could not.
CLIENT = """
import socket, ssl, sys
port, ticket, pem = int(sys.argv[1]), sys.argv[2], sys.stdin.read()
context = ssl.create_default_context(cadata=pem)
context.check_hostname = False
context.verify_flags |= ssl.VERIFY_X509_STRICT
sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 30))
assert sock.getpeercert(True) == ssl.PEM_cert_to_DER_cert(pem)
version = sock.version()
sock.sendall(("GET /image HTTP/1.1\\r\\nX-Auth-Token: %s\\r\\n\\r\\n" % ticket).encode())
data = b""
while True:
    part = sock.recv(65536)
    if not part:
        break
    data += part
print(version, len(data.partition(b"\\r\\n\\r\\n")[2]))
"""


def listen(helper: Controller, **fields: Any) -> dict[str, Any]:
    helper.load("conf", "cache", *RELAY)
    given = {
        "address": "127.0.0.1", "ports": None, "max_readers": 4, "cert_pem": None, "key_pem": None, **fields,
    }  # fmt: skip
    return helper.answer(helper.order("relay", **given))


def fill(rig: Rig) -> None:
    rig.grow("image", DATA)
    rig.append("image", len(DATA))
    rig.end("image", "complete")


# ---- the certificate


@pytest.mark.parametrize("python", pythons())
def test_every_python_accepts_the_certificate_as_its_own_authority(
    helper: Controller, instances: Path, python: str
) -> None:
    with Rig(helper, instances) as rig:
        fill(rig)
        done = subprocess.run(
            [python, "-I", "-c", CLIENT, str(rig.port), rig.key("image").ticket("image").reveal()],
            input=rig.cert_pem, check=True, stdout=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.split() == ["TLSv1.3", str(len(DATA))]


@pytest.mark.row("T5")
def test_another_certificate_is_refused(helper: Controller, instances: Path) -> None:
    with Rig(helper, instances) as rig, rig.connect(bare=True) as sock:
        context = rig.context(make_certificate()[0])
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(sock)


def test_nothing_older_than_tls_1_3(each_rig: Rig) -> None:
    context = each_rig.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with each_rig.connect(bare=True) as sock, pytest.raises(ssl.SSLError):
        context.wrap_socket(sock)


# ---- the key


@pytest.mark.row("T4")
def test_the_key_is_in_no_file(instances: Path, tmp_path: Path) -> None:
    for python in (pythons()[0], pythons()[-1]):
        folder = tmp_path / "tmp"
        folder.mkdir(exist_ok=True)
        env = {"TMPDIR": str(folder), "HOME": str(folder)}
        with Controller(python, env=env) as helper, Rig(helper, instances) as rig:
            secrets = [line.encode() for line in rig.key_pem.reveal().splitlines()[1:-1]]
            secrets += [line.encode() for line in rig.cert_pem.splitlines()[1:-1]]
            proc = Path(f"/proc/{helper.process.pid}")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(proc)
                places = [Path("cmdline"), Path("environ")]
                places += [link for link in Path("fd").iterdir() if link.is_file()]
                held = b"".join(path.read_bytes() for path in places)
                pipes = [os.readlink(link) for link in Path("fd").iterdir()]
            for path in tmp_path.rglob("*"):
                held += path.read_bytes() if path.is_file() else b""
            assert not [line for line in secrets if line in held]
            assert (
                sum(name.startswith("pipe:") for name in pipes) <= 4
            )  # the standard ones and the frames
            assert not [name for name in pipes if "memfd" in name or "(deleted)" in name]
            assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("owner", [0, 1234])
def test_whoever_we_are_the_key_can_be_loaded(instances: Path, owner: int) -> None:
    """As a user without rights, and as root that works as the owner of instances_path."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if python is None:
        pytest.skip("no Python that all users can run")
    os.chown(instances, 1234, 1234)
    let_others_reach(instances)
    with Controller(python, user=1234 if owner else None) as helper, Rig(helper, instances) as rig:
        status = Path(f"/proc/{helper.process.pid}/status").read_text().splitlines()
        uids = next(line.split()[1:] for line in status if line.startswith("Uid"))
        assert uids[:2] == [str(owner), "1234"]
        fill(rig)
        assert rig.ask("image").read(len(DATA)) == DATA


@pytest.mark.parametrize("broken", ["cert", "key", "other"])
def test_a_certificate_that_is_none(helper: Controller, broken: str) -> None:
    cert_pem, key_pem = make_certificate()
    fields = {"cert_pem": cert_pem, "key_pem": key_pem.reveal()}
    if broken == "other":
        fields["key_pem"] = make_certificate()[1].reveal()
    else:
        fields[f"{broken}_pem"] = "nonsense"
    answer = listen(helper, **fields)
    assert answer["code"] == "peer"
    assert "PRIVATE" not in str(helper.frames)


# ---- where


def test_a_port_of_the_range_that_is_free(helper: Controller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        answer = listen(helper, ports=[first, min(first + 20, 65535)])
        assert first < answer["port"] <= first + 20


@pytest.mark.row("N21")
def test_no_port_is_free(helper: Controller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = listen(helper, ports=[port, port])
    assert answer["code"] == "peer"
    assert f"127.0.0.1, ports {port}-{port}: Address already in use" in answer["message"]
    assert "relay_ports" in answer["message"]
    # It may be tried again, with others.
    assert listen(helper)["event"] == "result"


@pytest.mark.parametrize("address", ["192.0.2.1", "no such host", "256.1.1.1", "ä"])
def test_an_address_that_is_not_ours(helper: Controller, address: str) -> None:
    answer = listen(helper, address=address)
    assert answer["code"] == "peer"
    assert address in answer["message"]


@pytest.mark.parametrize("ports", [[0, 10], [5, 4], [1, 65536], [-1, 1]])
def test_ports_that_are_none(helper: Controller, ports: list[int]) -> None:
    assert listen(helper, ports=ports)["code"] == "protocol"


def test_all_addresses(helper: Controller) -> None:
    port = listen(helper, address=None)["port"]
    for address in (
        "127.0.0.1",
        "127.0.0.2",
        *(["::1"] if os.path.exists("/proc/net/if_inet6") else []),
    ):
        with contextlib.suppress(OSError) if ":" in address else contextlib.nullcontext():
            socket.create_connection((address, port), 10).close()


def test_an_address_is_one_address(helper: Controller) -> None:
    port = listen(helper, address="127.0.0.2")["port"]
    socket.create_connection(("127.0.0.2", port), 10).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)


def test_once_only(helper: Controller) -> None:
    assert listen(helper)["event"] == "result"
    assert listen(helper)["code"] == "protocol"


# ---- the end


@pytest.mark.row("R18")
@pytest.mark.parametrize("how", ["bye", "end of file"])
def test_all_ends_with_the_helper(helper: Controller, instances: Path, how: str) -> None:
    with Rig(helper, instances) as rig:
        rig.grow("image", DATA)
        rig.append("image", 1000)
        reader, waiting = rig.ask("image"), rig.connect(bare=True)
        assert reader.read(1000) == DATA[:1000]
        if how == "bye":
            helper.order("bye")
        assert helper.end() == 0
        assert reader.rest() == b""
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            rig.connect(bare=True)


def test_a_silent_relay_costs_little(helper: Controller, instances: Path) -> None:
    """It sleeps while nobody reads: no thread turns in circles."""
    with Rig(helper, instances, times=TIMES) as rig:
        rig.grow("image", DATA)
        reader = rig.ask("image")

        def used_s() -> float:
            fields = Path(f"/proc/{helper.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = used_s()
        assert not reader.has_more(2.0)
        assert used_s() - before < 0.5


# ---- a controller that is gone


@pytest.mark.row("H20")
@pytest.mark.row("T4")
def test_a_controller_that_falls_silent_leaves_nobody_listening(instances: Path) -> None:
    """Also between fetches, and when the connection does not break: its machine has lost its power."""
    with Controller(ping=False) as helper:
        helper.result(helper.open(instances))
        port = listen(helper, address="127.0.0.1", alive_s=1.5)["port"]
        socket.create_connection(("127.0.0.1", port)).close()
        assert helper.process.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_controller_that_is_heard_is_waited_for(helper: Controller, instances: Path) -> None:
    helper.result(helper.open(instances))
    listen(helper, address="127.0.0.1", alive_s=3.0)
    with pytest.raises(subprocess.TimeoutExpired):
        helper.process.wait(5)

"""How the helper starts, lives beside others, and dies."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helper.controller import (
    ALL,
    BOOT,
    HELPER,
    PUSH,
    Controller,
    base_name,
    from_service,
    image_of,
    let_others_reach,
    pythons,
)
from servers import misbehaving_http as http

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = os.urandom(600_000)
IMAGE = image_of(DATA)
BASE = base_name(IMAGE["id"])


def staging_in(instances: Path) -> list[str]:
    folder = instances / "_base/.imgcache"
    return (
        sorted(name for name in os.listdir(folder) if not name.endswith(".json"))
        if folder.exists()
        else []
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# ---- the source


@pytest.mark.parametrize("name", ["__init__", "core", *ALL])
def test_python_36_syntax_and_standard_library_only(name: str) -> None:
    tree = ast.parse((HELPER / f"{name}.py").read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= sys.stdlib_module_names
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] in sys.stdlib_module_names
        assert not isinstance(node, ast.NamedExpr | ast.Match)
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__")


def test_pythons_are_found() -> None:
    assert pythons()


def test_a_warm_host_imports_nothing_heavy(instances: Path, tmp_path: Path) -> None:
    final = instances / "_base" / BASE
    final.parent.mkdir()
    final.write_bytes(DATA)
    conf = tmp_path / "nova.conf"
    conf.write_text("[DEFAULT]\ninstances_path = /x\n")
    with Controller(options=("-X", "importtime")) as helper:
        helper.open(instances, images_type=None, nova_conf=[str(conf)])
        answer = helper.result(helper.order("touch", base=BASE, sizes=[len(DATA)], dry=False))
        assert answer["touched"] is True
        helper.order("bye")
        assert helper.process.wait(10) == 0
        helper.join_errors()
        log = helper.stderr.decode()
    imported = set(re.findall(r"\|\s*([\w.]+)$", log, re.MULTILINE))
    assert "resource" in imported
    heavy = {"json", "re", "threading", "socket", "ssl", "subprocess", "ctypes", "queue", "http",
             "http.client", "urllib", "logging", "tempfile", "shutil", "random", "typing", "dataclasses",
             "traceback", "struct"}  # fmt: skip
    # What Python itself loads at its start, before the boot line, is not ours to spare.
    bare = subprocess.run(
        [sys.executable, "-X", "importtime", "-I", "-c", "import hashlib"],
        capture_output=True,
        text=True,
        check=True,
    )
    at_start = set(re.findall(r"\|\s*([\w.]+)$", bare.stderr, re.MULTILINE))
    assert not (imported & heavy) - at_start


# ---- frames


def test_json_is_read_and_written_without_the_module(instances: Path) -> None:
    code = (
        "import sys,types,json;m=types.ModuleType('x.core');"
        "exec(open(sys.argv[1],encoding='utf-8').read(),m.__dict__)\n"
        "for v in ({'a':[1,2.5,None,True,False,'\\u20ac\\n\\ud800\\x00'],'b':{'c':'','d':-3}},"
        "[],'',1.0,1e30):\n"
        "  assert json.loads(m.encode(v))==v\n"
        "  assert m.decode(json.dumps(v))==v and m.decode(json.dumps(v,ensure_ascii=False))==v\n"
        "for bad in ('','{','nope','[1,','{\"a\" 1}','['*60000,'{'*60000):\n"
        "  try: m.decode(bad)\n"
        "  except ValueError: continue\n"
        "  raise SystemExit(bad[:9])\n"
    )
    for python in pythons():
        subprocess.run([python, "-I", "-c", code, HELPER / "core.py"], check=True)


def test_a_wrong_source_exits_96() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", BOOT],
        input=b"4 " + b"0" * 64 + b"\nabcd",
        check=False,
        capture_output=True,
    )
    assert done.returncode == 96


def test_a_wrong_protocol_number_exits_97() -> None:
    source = (HELPER / "core.py").read_bytes()
    head = f"{len(source)} {hashlib.sha256(source).hexdigest()}\n".encode()
    start = b'{"op":"start","id":1,"protocol":2,"marker":"x"}\n'
    done = subprocess.run(
        [sys.executable, "-I", "-c", BOOT], input=head + source + start, check=False
    )
    assert done.returncode == 97


@pytest.mark.row("T1")
@pytest.mark.parametrize("frame", [b"{not json}\n", b"[]\n", b'{"id":9}\n'])
def test_a_crash_is_a_message_without_values(instances: Path, frame: bytes) -> None:
    with Controller() as helper:
        helper.open(instances)
        helper.write(
            b'{"op":"touch","id":99,"secret":"s3cret-canary"}\n' if frame == b"[]\n" else frame
        )
        wait_for(lambda: helper.frames and helper.frames[-1]["event"] == "crash")
        assert helper.process.wait(10) == 99
        crash = helper.frames[-1]["traceback"]
        helper.join_errors()
    assert "<imgcache-helper>/core.py:" in crash
    assert "canary" not in crash
    assert b"canary" not in helper.stderr


def test_an_order_that_no_module_knows_is_an_error_and_not_the_end(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        assert helper.error(helper.order("no-such-order"))["code"] == "protocol"
        assert helper.error(helper.order("no-such-order"))["code"] == "protocol"


def test_a_damaged_module_is_refused(instances: Path) -> None:
    with Controller() as helper:
        order = helper.order("load", b"x=1\n", name="conf", size=4, sha256="0" * 64)
        assert helper.error(order)["code"] == "protocol"


def test_stray_prints_do_not_reach_the_frames(instances: Path) -> None:
    source = b"import os\nos.write(1, b'stray')\nprint('stray', flush=True)\n"
    with Controller() as helper:
        digest = hashlib.sha256(source).hexdigest()
        helper.result(helper.order("load", source, name="noise", size=len(source), sha256=digest))
        assert helper.end() == 0
        helper.join_errors()
    assert helper.stderr.count(b"stray") == 2


# ---- death


@pytest.mark.row("H20")
@pytest.mark.parametrize("how", ["push", "service", "retry", "convert"])
def test_end_of_file_cleans_up(how: str, instances: Path, tmp_path: Path) -> None:
    with (
        http.HttpServer() as server,
        Controller(env=slow_qemu(tmp_path, grandchild=True)) as helper,
    ):
        helper.open(instances)
        if how == "convert":
            fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
            helper.push_when_ready(fetch, QCOW2)
            wait_for((tmp_path / "qemu-pid").exists)
        elif how == "push":
            fetch = helper.fetch(IMAGE, PUSH)
            helper.event(fetch, "ready")
            helper.tell("data", fetch, DATA[:1000], size=1000)
        else:
            script = http.stall_after(1000) if how == "service" else http.status(500)
            fetch = helper.fetch(IMAGE, from_service(server.route("/i", DATA, script)), stall_s=60)
            helper.event(fetch, "progress" if how == "service" else "retry")
        assert staging_in(instances)
        began = time.monotonic()
        assert helper.end() == 0
        assert time.monotonic() - began < 5
        assert staging_in(instances) == []
        if how == "convert":
            pid = int((tmp_path / "qemu-pid").read_text())
            wait_for(lambda: is_gone(pid))


@pytest.mark.row("H20")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_clean_up(number: signal.Signals, instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.event(fetch, "ready")
        assert staging_in(instances)
        helper.process.send_signal(number)
        assert helper.process.wait(5) == 0
    assert staging_in(instances) == []


@pytest.mark.row("H20")
def test_silence_during_a_fetch_is_the_controllers_end(instances: Path) -> None:
    with Controller(ping=False) as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH, alive_s=2)
        helper.event(fetch, "ready")
        began = time.monotonic()
        assert helper.process.wait(10) == 0
        assert 1 < time.monotonic() - began < 6
    assert staging_in(instances) == []


@pytest.mark.row("H20")
def test_pings_keep_it_alive(instances: Path) -> None:
    with Controller(ping=True) as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH, alive_s=4)
        helper.event(fetch, "ready")
        time.sleep(6)
        helper.push(fetch, DATA)
        assert helper.result(fetch)["state"] == "cached"


def test_silence_between_fetches_is_fine(instances: Path) -> None:
    with Controller(ping=False) as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH, alive_s=1)
        helper.push_when_ready(fetch, DATA)
        assert helper.result(fetch)["state"] == "cached"
        time.sleep(3)
        assert (
            helper.result(helper.order("touch", base=BASE, sizes=[], dry=False))["touched"] is True
        )


@pytest.mark.row("H20")
def test_end_of_file_is_seen_behind_unread_data(instances: Path) -> None:
    """The main thread is behind, the pipe is full, and the controller dies: the helper still notices."""
    with http.HttpServer() as server, Controller(ping=False) as helper:
        helper.open(instances)
        url = server.route("/i", DATA, http.stall_after(10))
        fetch = helper.fetch(IMAGE, from_service(url), stall_s=60)
        helper.event(fetch, "progress")
        for _ in range(9):  # more than the helper keeps for its main thread
            helper.tell("data", fetch, bytes(1 << 18), size=1 << 18)
        helper.tell("data", fetch, bytes(30000), size=30000)  # stays in the pipe
        assert helper.end() == 0
    assert staging_in(instances) == []


@pytest.mark.row("H20")
@pytest.mark.qemu
def test_qemu_img_dies_with_a_killed_helper(instances: Path, tmp_path: Path) -> None:
    with Controller(env=slow_qemu(tmp_path)) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
        helper.push_when_ready(fetch, QCOW2)
        wait_for((tmp_path / "qemu-pid").exists)
        helper.process.kill()
        helper.process.wait()
        pid = int((tmp_path / "qemu-pid").read_text())
        wait_for(lambda: is_gone(pid))


# ---- beside others


@pytest.mark.row("H16")
def test_nova_finishes_first(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.event(fetch, "ready")
        part = instances / "_base" / f"{BASE}.part"
        part.write_bytes(b"nova's own")
        (instances / "_base" / BASE).write_bytes(b"nova's final")
        helper.push(fetch, DATA)
        result = helper.result(fetch)
    assert (result["state"], result["bytes_fetched"]) == ("existing", len(DATA))
    assert (instances / "_base" / BASE).read_bytes() == b"nova's final"
    assert part.read_bytes() == b"nova's own"
    assert staging_in(instances) == []


@pytest.mark.row("H18")
def test_two_runs_fetch_once(instances: Path) -> None:
    with Controller() as first, Controller() as second:
        for helper in (first, second):
            helper.open(instances)
        one = first.fetch(IMAGE, PUSH)
        first.event(one, "ready")
        two = second.fetch(IMAGE, PUSH, lock_wait_s=20)
        time.sleep(1)
        assert not any(frame["event"] == "ready" for frame in second.frames)
        first.push(one, DATA)
        assert first.result(one)["state"] == "cached"
        result = second.result(two)
        assert (result["state"], result["bytes_fetched"]) == ("existing", 0)
    assert staging_in(instances) == []


@pytest.mark.row("H18")
def test_a_second_run_does_not_wait_for_ever_nor_harm_the_first(instances: Path) -> None:
    with Controller() as first, Controller() as second:
        for helper in (first, second):
            helper.open(instances)
        one = first.fetch(IMAGE, PUSH)
        first.event(one, "ready")
        assert second.error(second.fetch(IMAGE, PUSH, lock_wait_s=1))["code"] == "busy"
        first.push(one, DATA)
        assert first.result(one)["state"] == "cached"
    assert (instances / "_base" / BASE).read_bytes() == DATA


@pytest.mark.row("H19")
def test_what_dead_runs_left_is_removed_and_nothing_else(instances: Path) -> None:
    folder = instances / "_base/.imgcache"
    folder.mkdir(parents=True)
    ours = folder / f"{BASE}.{'0' * 16}.staging"
    others = [
        folder / f"{'f' * 40}.{'0' * 16}.staging",
        folder / f"{BASE}.txt",
        folder / f"{BASE}.x.staging.d",
    ]
    for path in (ours, *others):
        path.write_bytes(b"left")
    (folder / f"{BASE}.link.staging").symlink_to(instances / "target")
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.push_when_ready(fetch, DATA)
        assert helper.result(fetch)["state"] == "cached"
    assert not ours.exists()
    assert all(path.read_bytes() == b"left" for path in others)


@pytest.mark.row("R23")
def test_no_name_of_ours_is_one_that_nova_looks_at(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.event(fetch, "ready")
        assert os.listdir(instances / "_base") == [".imgcache"]
        (name,) = staging_in(instances)
        status = (instances / "_base/.imgcache" / name).stat()
        assert status.st_mode & 0o777 == 0o600
        assert not name.endswith((".part", ".converted"))


# ---- orders


def test_orders_sent_ahead_are_worked_off_in_order(instances: Path) -> None:
    images = [image_of(os.urandom(1000 + number)) for number in range(5)]
    with Controller() as helper:
        helper.open(instances)
        fetches = [helper.fetch(image, PUSH) for image in images]
        touch = helper.order("touch", base=base_name(images[-1]["id"]), sizes=[], dry=False)
        for fetch, image in zip(fetches, images, strict=True):
            helper.event(fetch, "ready")
            assert helper.frames[-1]["id"] == fetch
            helper.push(fetch, bytes(image["size"]))  # wrong bytes
            assert helper.error(fetch)["code"] == "digest"
        assert helper.result(touch)["state"] == "absent"


def test_stop_before_its_fetch_began(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        first = helper.fetch(IMAGE, PUSH)
        second = helper.fetch(image_of(b"other"), PUSH)
        helper.event(first, "ready")
        helper.tell("stop", second)
        helper.push(first, DATA)
        assert helper.result(first)["state"] == "cached"
        assert helper.error(second)["code"] == "interrupted"


def test_late_frames_of_an_ended_fetch_are_dropped(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.event(fetch, "ready")
        helper.push(fetch, bytes(len(DATA) + 1))
        assert helper.error(fetch)["code"] == "size"
        helper.push(fetch, DATA)
        helper.tell("stop", fetch)
        again = helper.fetch(IMAGE, PUSH)
        helper.push_when_ready(again, DATA)
        assert helper.result(again)["state"] == "cached"


def test_pushed_bytes_must_be_all(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(IMAGE, PUSH)
        helper.event(fetch, "ready")
        helper.push(fetch, DATA[:-1])
        assert helper.error(fetch)["code"] == "source"
    assert staging_in(instances) == []


@pytest.mark.row("R14")
def test_base_and_image_must_belong_together(instances: Path) -> None:
    with Controller() as helper:
        helper.open(instances)
        number = helper.fetch({**IMAGE, "id": "another"}, PUSH)
        helper.event(number, "ready")
        helper.tell("stop", number)
        helper.error(number)
        wrong = helper.order("fetch", base=BASE, image={**IMAGE, "id": "x"}, source=PUSH,
                             limits={"alive_s": 15}, tool="", run="")  # fmt: skip
        assert helper.error(wrong)["code"] == "protocol"


@pytest.mark.row("T7")
@pytest.mark.row("R6")
@pytest.mark.qemu
def test_virtual_size_is_bounded(instances: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "3T"], check=True)
    data = made.read_bytes()
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH)
        helper.push_when_ready(fetch, data)
        error = helper.error(fetch)
        assert (error["code"], error["fields"]["size"]) == ("size", 3 << 40)


@pytest.mark.row("T6")
@pytest.mark.row("R9")
@pytest.mark.qemu
def test_a_qcow2_inside_a_qcow2_is_refused(instances: Path, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", inner, "1M"], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", inner, outer], check=True)
    data = outer.read_bytes()
    with Controller() as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(data, "qcow2"), PUSH)
        helper.push_when_ready(fetch, data)
        error = helper.error(fetch)
        assert error["code"] == "format"
        assert "qcow2" in error["message"]
    assert staging_in(instances) == []


@pytest.mark.row("T1")
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_process_hygiene(instances: Path) -> None:
    # Only a process of an ordinary user shows whether it is dumpable.
    python, user = shutil.which("python3", path="/usr/bin"), 64101
    if os.geteuid() or not python:
        python, user = sys.executable, os.geteuid()
    os.chown(instances, user, -1)
    let_others_reach(instances)
    with http.HttpServer() as server, Controller(python, user=user if user else None) as helper:
        helper.open(instances)
        url = server.route("/i", DATA, http.stall_after(1000))
        fetch = helper.fetch(IMAGE, from_service(url, token="canary-t0ken"), stall_s=60)
        helper.event(fetch, "progress")
        proc = Path(f"/proc/{helper.process.pid}")
        status = (proc / "status").read_text()
        assert "Umask:\t0077" in status
        limits = (proc / "limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0", limits)
        # A process that is not dumpable shows its environment to root alone.
        assert (proc / "environ").stat().st_uid == 0
        for name in ("cmdline", "environ"):
            assert b"canary" not in (proc / name).read_bytes()
        helper.tell("stop", fetch)
        helper.error(fetch)
        assert "canary" not in json.dumps(helper.frames)
        helper.end()
        helper.join_errors()
        assert b"canary" not in helper.stderr


# ---- qemu-img


def slow_qemu(folder: Path, *, grandchild: bool = False) -> dict[str, str]:
    """Return an environment whose qemu-img never ends a conversion, and tells its pid, or its child's."""
    tell = f">{folder}/new && mv {folder}/new {folder}/qemu-pid"
    wait = f"sleep 300 & echo $! {tell}; wait" if grandchild else f"echo $$ {tell}; exec sleep 300"
    return fake_qemu(folder, f"[ $1 = info ] && echo '{INFO}' && exit\n{wait}")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def fake_qemu(folder: Path, script: str) -> dict[str, str]:
    program = folder / "bin/qemu-img"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


#: A header and an empty table, which is all that our own inspection looks at.
QCOW2 = b"QFI\xfb" + struct.pack(
    ">IQIIQIIQQIIQQQQII", 3, 0, 0, 16, 1 << 20, 0, 1, 4096, 8192, 1, 0, 0, 0, 0, 0, 4, 104
).ljust(16380, b"\0")
INFO = '{"format":"qcow2","virtual-size":1048576}'


@pytest.mark.row("H22")
@pytest.mark.row("R8")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -SEGV $$", "signal 11"),
        ("kill -KILL $$", "signal 9"),
        ("echo 'cannot do it' >&2; exit 1", "cannot do it"),
        ("echo garbage", "something else"),
        ("echo '{}'", "something else"),
        ("echo '[1]'", "something else"),
        ('printf \'{"format":"qcow2","virtual-size":"big"}\'', "something else"),
        ("yes", "without end"),
        ("yes >&2", "without end"),
        (f"[ $1 = info ] && echo '{INFO}' || exit 3", "failed"),
        (f"[ $1 = info ] && echo '{INFO}' || exit 0", "conversion gave"),
    ],
)
def test_qemu_img_misbehaves(instances: Path, tmp_path: Path, script: str, said: str) -> None:
    with Controller(env=fake_qemu(tmp_path, script)) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
        helper.push_when_ready(fetch, QCOW2)
        error = helper.error(fetch)
        assert error["code"] == "qemu"
        assert said in error["message"]
        assert staging_in(instances) == []
        again = helper.fetch(IMAGE, PUSH)  # the helper is well
        helper.event(again, "ready")


@pytest.mark.row("R3")
@pytest.mark.row("R9")
@pytest.mark.parametrize(
    "answer",
    [
        '{"format":"raw","virtual-size":1048576}',
        '{"format":"qcow2","virtual-size":1048576,"backing-filename":"x"}',
        '{"format":"qcow2","virtual-size":1048576,"format-specific":{"data":{"data-file":"x"}}}',
        '{"format":"qcow2","virtual-size":1048576,"encrypted":true}',
    ],
)
def test_qemu_img_disagrees(instances: Path, tmp_path: Path, answer: str) -> None:
    with Controller(env=fake_qemu(tmp_path, f"echo '{answer}'")) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
        helper.push_when_ready(fetch, QCOW2)
        assert helper.error(fetch)["code"] == "format"


@pytest.mark.row("R7")
@pytest.mark.row("R8")
@pytest.mark.parametrize(
    ("order", "limits"), [("info", "v2097152 t30 f0"), ("convert", "v4194304 t601 f2048")]
)
def test_qemu_img_is_limited(instances: Path, tmp_path: Path, order: str, limits: str) -> None:
    script = (
        f"[ $1 != {order} ] && echo '{INFO}' && exit\n"
        "echo v$(ulimit -v) t$(ulimit -t) f$(ulimit -f) c$(ulimit -c) $LC_ALL $(readlink /proc/self/fd/0) "
        '${TOKEN-unset} $(pwd) "$@" >&2; exit 1'
    )
    with Controller(
        env={**fake_qemu(tmp_path, script), "TOKEN": "canary", "LC_ALL": "C.UTF-8"}
    ) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
        helper.push_when_ready(fetch, QCOW2)
        message = helper.error(fetch)["message"]
    assert f"{limits} c0 C /dev/null unset / {order}" in message
    if order == "convert":
        assert re.search(r"convert -p -t (none|writeback) -f qcow2 -O raw the image", message)


@pytest.mark.row("R7")
@pytest.mark.row("H22")
def test_a_conversion_that_eats_its_cpu_time_is_stopped(instances: Path, tmp_path: Path) -> None:
    """By the kernel, when qemu-img's threads have used it up: here it has what is left to the helper."""
    script = f"[ $1 = info ] && echo '{INFO}' && exit\nwhile :; do :; done"
    with Controller(env=fake_qemu(tmp_path, script), prefix=("prlimit", "--cpu=3")) as helper:
        helper.open(instances)
        fetch = helper.fetch(image_of(QCOW2, "qcow2"), PUSH)
        helper.push_when_ready(fetch, QCOW2)
        error = helper.error(fetch, timeout_s=30)
    assert error["code"] == "qemu"
    assert "used up its CPU time" in error["message"]
    assert staging_in(instances) == []


@pytest.mark.row("H22")
@pytest.mark.parametrize("declared", ["raw", "qcow2"])
def test_without_qemu_img(instances: Path, declared: str) -> None:
    real = shutil.which("qemu-img")
    hide = f'mount --bind /dev/null {real} && exec "$@"' if real else 'exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", hide, "sh") if real else ()
    if prefix and subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("hiding qemu-img needs root and a mount namespace")
    with Controller(prefix=prefix) as helper:
        helper.open(instances)
        data = DATA if declared == "raw" else QCOW2
        fetch = helper.fetch(image_of(data, declared), PUSH)
        helper.push_when_ready(fetch, data)
        if declared == "raw":
            assert helper.result(fetch)["confirmed"] is False
        else:
            assert helper.error(fetch)["code"] == "qemu"


@pytest.mark.row("H25")
def test_memory_stays_small(instances: Path) -> None:
    data = os.urandom(1 << 20) * 150
    image = image_of(data)
    with http.HttpServer() as server, Controller() as helper:
        helper.open(instances)
        for source in (PUSH, from_service(server.route("/i", data))):
            fetch = helper.fetch(image, source)
            if source is PUSH:
                helper.push_when_ready(fetch, data)
            helper.result(fetch, 120)
            (instances / "_base" / base_name(image["id"])).unlink()
        status = Path(f"/proc/{helper.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        assert int(peak[1]) < 64 << 10

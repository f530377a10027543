"""Processes that have a file open where their own table of open files does not show it."""

from __future__ import annotations

#: What each script begins with: ``hold`` says that it is ready, and stays until its input ends.
BEGIN = """
import array, ctypes, mmap, os, platform, socket, sys, threading
libc = ctypes.CDLL(None)
def hold():
    print('held', flush=True)
    sys.stdin.read()
    os._exit(0)
"""
#: The main thread ends by the system call, so that the process lives on without it.
_END_MAIN = (
    "\nlibc.syscall({'x86_64': 60, 'ppc64le': 1, 's390x': 1}.get(platform.machine(), 93), 0)\n"
)
HOLDERS = {
    "main thread ended": """
def work():
    while '\\nState:\\tZ' not in open('/proc/%d/status' % os.getpid()).read(): pass
    hold()
f = open(sys.argv[1])
threading.Thread(target=work).start()
"""
    + _END_MAIN,
    "main thread ended, mapped": """
def work():
    while '\\nState:\\tZ' not in open('/proc/%d/status' % os.getpid()).read(): pass
    hold()
with open(sys.argv[1], 'rb') as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
threading.Thread(target=work).start()
"""
    + _END_MAIN,
    "a thread's own table": """
done = threading.Event()
def work():
    assert libc.unshare(0x400) == 0
    global f
    f = open(sys.argv[1])
    done.set()
    threading.Event().wait()
for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Thread(target=work, daemon=True).start()
done.wait()
hold()
""",
    "in flight in a socket": """
a, b = socket.socketpair(socket.AF_UNIX)
with open(sys.argv[1]) as f:
    a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [f.fileno()]))])
hold()
""",
}
IN_FLIGHT = BEGIN + HOLDERS["in flight in a socket"]

"""Asks the kernel whether anything has a file open, right before the file is removed.

A write lease is granted only while a file has no other open file description, whatever holds it: a process, a
map, a loop device, the kernel's NFS server, a descriptor on its way through a socket. The list of processes
shows some of these late, or never.

What is known of it:

- Up to Linux 5.2 the kernel counts references to the name and the inode, not open files: an ``O_PATH``
  descriptor or an inotify watch then refuses the lease, too, which keeps the file.
- It takes the file's owner, or root. It can be switched off (``/proc/sys/fs/leases-enable``), and some file
  systems know none: then there is no answer.
- On network file systems it would ask about other hosts, and NFS 4 and CIFS refuse nearly always: there it is
  not asked.
- On an overlay the kernel knows only of what was opened through that overlay.
- While the lease is held, whoever opens the file waits for its end, or gets ``EWOULDBLOCK`` without
  waiting. So it is held for the two system calls in which the file is removed, and no longer. A
  program that opens the file just then has the removed file open afterwards. No boot does: each takes Nova's
  lock first.
- A helper that is stopped in between holds others up no longer than ``/proc/sys/fs/lease-break-time`` (45 s).

Source: Linux ``fs/locks.c`` (``generic_add_lease``, ``check_conflicting_open``), ``fcntl(2)``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

import errno
import fcntl
import signal

#: Sent to the holder when another opens the file. The default one, SIGIO, would end this process; this one
#: is ignored unless it is asked for.
_SIGNAL = signal.SIGURG


def take(fd):
    """Take the write lease of a file that was just opened; return whether it was granted.

    None: the kernel, the file system or a lack of rights gives no answer. Closing ``fd`` gives it back.

    Raises:
        PermissionError: it takes the file's owner, or root.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _SIGNAL)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if isinstance(error, PermissionError):
            raise
        return None
    return True


def give_back(fd):
    """Let those go on who are waiting to open the file."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

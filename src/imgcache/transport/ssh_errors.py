"""The one place where what asyncssh and the network raise becomes one of our errors."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncssh

from imgcache.errors import ContactLostError, ErrorCode, HostError
from imgcache.text import printable
from imgcache.transport.host_keys import KeyState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgcache.transport.host_keys import TrustedKeys
    from imgcache.transport.ssh_config import SshSettings
    from imgcache.transport.ssh_connection import Client

_RERUN = "run again: what is done is found as existing"


class EarlyDropError(Exception):
    """The server hung up before it said who it is: worth another try."""


@contextmanager
def translated(
    name: str, settings: SshSettings, client: Client, trusted: TrustedKeys | None
) -> Iterator[None]:
    """Turn what goes wrong while connecting and logging in into a ``HostError``.

    Args:
        name: the host's name in the inventory, for hints.
        settings: how it is reached.
        client: what the connection has seen so far.
        trusted: the keys known for it.

    Raises:
        HostError: code ``connect``, ``login``, ``hostkey-unknown`` or ``hostkey-changed``.
        EarlyDropError: the server hung up before its version; nothing else is known.
    """
    where = _where(name, settings)
    try:
        yield
    except HostError:
        raise
    except asyncssh.HostKeyNotVerifiable:
        raise host_key_error(name, settings, client, trusted) from None
    except asyncssh.PermissionDenied:
        raise _login_refused(where, settings) from None
    except asyncssh.KeyExchangeFailed as exc:
        message = f"no common algorithm with the SSH server at {where}: {printable(str(exc), 200)}"
        raise HostError(ErrorCode.CONNECT, message, hint="update the SSH server there") from None
    except asyncssh.ChannelOpenError as exc:
        if exc.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            message = f"it does not let us through to {where}: {printable(exc.reason, 200)}"
            raise through_jump(
                settings.proxy_jump or "", HostError(ErrorCode.JUMP, message)
            ) from None
        message = f"the jump host cannot reach {where}: {printable(exc.reason, 200)}"
        raise HostError(
            ErrorCode.CONNECT, message, hint="is the host up, and its address right?"
        ) from None
    except TimeoutError:
        raise _timed_out(where, client) from None
    except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError) as exc:
        if not client.version_seen:
            raise EarlyDropError from None
        raise _broken_off(where, settings, client, str(exc)) from None
    except (asyncssh.Error, ValueError) as exc:
        raise _broken_off(where, settings, client, str(exc)) from None
    except OSError as exc:
        raise _unreachable(where, settings, exc) from None


def host_key_error(
    name: str, settings: SshSettings, client: Client, trusted: TrustedKeys | None
) -> HostError:
    """Return the error for a host key that is not trusted; see ``TrustedKeys.judge``."""
    shown = _fingerprint(client.shown.key) if client.shown else "a key that cannot be read"
    where = f"{settings.hostname} port {settings.port}"
    state = client.judgement.state if client.judgement else KeyState.NEW
    if state is KeyState.REVOKED:
        message = f"THE HOST KEY OF {where} IS REVOKED: it shows {shown}, which must not be trusted any more"
        hint = "ask who revoked it; the host needs a new key, or somebody else is using the old one"
        return HostError(ErrorCode.HOSTKEY_CHANGED, message, hint=hint)
    if state is KeyState.CHANGED and trusted:
        known = ", ".join(_fingerprint(key) for key in trusted.keys)
        message = (
            f"THE HOST KEY OF {where} HAS CHANGED: it shows {shown}, but {known} is on record. "
            "Somebody may be reading and changing what is sent there, or the host was installed anew"
        )
        hint = (
            "find out which; only when the new key is right, remove the old one from "
            f"{settings.known_hosts[0]} by hand and run: imgcache trust --host {name}"
        )
        return HostError(ErrorCode.HOSTKEY_CHANGED, message, hint=hint)
    message = f"the host key of {where} is not known: it shows {shown}"
    refused = client.judgement.certificate_refused if client.judgement else None
    if refused:
        message += f"; its certificate does not count: {printable(refused, 150)}"
    hint = f"compare the fingerprint with the host's own, then run: imgcache trust --host {name}"
    return HostError(ErrorCode.HOSTKEY_UNKNOWN, message, hint=hint)


def _fingerprint(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def _where(name: str, settings: SshSettings) -> str:
    """Return what to call the server: without the host's own name, so that equal troubles fold."""
    port = f"port {settings.port}"
    return port if settings.hostname == name else f"{settings.hostname} {port}"


def _login_refused(where: str, settings: SshSettings) -> HostError:
    keys = ", ".join(str(path) for path in settings.key_files) or "the agent's and the default ones"
    message = f"login as {settings.user} on {where} refused; keys tried: {keys}"
    hint = "check user: and ssh_key:, and that the public key is in authorized_keys there"
    return HostError(ErrorCode.LOGIN, message, hint=hint)


def _timed_out(where: str, client: Client) -> HostError:
    if not client.connected:
        what, hint = (
            f"no answer from {where}",
            "is the host up, and does a firewall let SSH through?",
        )
    elif not client.version_seen:
        what, hint = (
            f"{where} takes connections but does not speak SSH",
            "is the host hung, or is port: not the one of sshd?",
        )
    elif not client.key_accepted:
        what, hint = (
            f"the SSH server at {where} is too slow to agree on keys",
            "is the host overloaded?",
        )
    else:
        what, hint = (
            f"the SSH server at {where} does not finish the login",
            "is the host overloaded?",
        )
    return HostError(ErrorCode.CONNECT, f"{what} (time limit)", hint=hint)


def _broken_off(where: str, settings: SshSettings, client: Client, reason: str) -> HostError:
    said = printable(reason, 200)
    if client.key_accepted:
        message = f"the SSH server at {where} ended the login of {settings.user}: {said}"
        return HostError(
            ErrorCode.LOGIN, message, hint="check user: and ssh_key:, and the log of sshd there"
        )
    return HostError(ErrorCode.CONNECT, f"the SSH server at {where} ended the connection: {said}")


def _unreachable(where: str, settings: SshSettings, exc: OSError) -> HostError:
    if isinstance(exc, socket.gaierror):
        message = f"the name {settings.hostname} cannot be resolved: {exc.strerror}"
        return HostError(ErrorCode.CONNECT, message, hint="check the name, or set address:")
    if exc.errno in {errno.EMFILE, errno.ENFILE}:
        message = f"no file descriptor left for a connection to {where}"
        return HostError(
            ErrorCode.CONNECT, message, hint="lower --concurrency, or raise: ulimit -n"
        )
    reason = "connection refused" if exc.errno == errno.ECONNREFUSED else exc.strerror or str(exc)
    hint = "is the host up, and is port: the one of sshd?"
    return HostError(
        ErrorCode.CONNECT, f"cannot connect to {where}: {printable(reason, 200)}", hint=hint
    )


def early_drop(settings: SshSettings, attempts: int) -> HostError:
    """Return the error for a server that kept hanging up before its version."""
    where = f"{settings.hostname} port {settings.port}"
    message = f"the SSH server at {where} hung up at once, {attempts} times"
    hint = "it may refuse so many logins at once: see MaxStartups and PerSourcePenalties there"
    return HostError(ErrorCode.CONNECT, message, hint=hint)


def through_jump(jump: str, error: HostError) -> HostError:
    """Return the error for all hosts behind a jump host that cannot be used."""
    return HostError(
        ErrorCode.JUMP, f"jump host {printable(jump, 100)}: {error.message}", hint=error.hint
    )


def session_refused(settings: SshSettings, reason: str) -> HostError:
    """Return the error for a server that lets us in but starts nothing."""
    message = f"{settings.hostname} let us in but opens no session: {printable(reason, 200)}"
    hint = "see MaxSessions, PermitOpen and forced commands of sshd there"
    return HostError(ErrorCode.SESSION, message, hint=hint)


def contact_lost(reason: BaseException | None, jump: str | None) -> ContactLostError:
    """Return the error for a connection that ended in the middle.

    Args:
        reason: what ended it, if known.
        jump: the jump host, when it is that one's connection that ended.
    """
    if jump:
        message = f"the connection to the jump host {printable(jump, 100)} ended"
        return ContactLostError(ErrorCode.JUMP, message, hint=_RERUN)
    said = f": {printable(str(reason), 200)}" if reason and str(reason) else ""
    return ContactLostError(
        ErrorCode.LOST, f"the connection to the host was lost{said}", hint=_RERUN
    )

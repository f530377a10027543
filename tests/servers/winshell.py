"""What Win32-OpenSSH does with a command: a new cmd gets it within double quotes, and nothing else changes.

Runs under the Windows Python of the test prefix, for every connection: so it imports next to nothing.
Source: Win32-OpenSSH ``contrib/win32/win32compat``.
"""

import _winapi
import os
import sys

COMMAND = os.environ["IMGCACHE_COMMAND"]
LINE = f'"C:\\windows\\system32\\cmd.exe" /c "{COMMAND}"'
process, _, _, _ = _winapi.CreateProcess(None, LINE, None, None, False, 0, None, None, None)  # type: ignore[attr-defined,unused-ignore]
_winapi.WaitForSingleObject(process, _winapi.INFINITE)  # type: ignore[attr-defined,unused-ignore]
sys.exit(_winapi.GetExitCodeProcess(process))  # type: ignore[attr-defined,unused-ignore]

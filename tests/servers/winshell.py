"""What Win32-OpenSSH does with a command: a new cmd gets it within double quotes, and nothing else changes.

Runs under the Windows Python of the test prefix. Source: Win32-OpenSSH ``contrib/win32/win32compat``.
"""

import os
import subprocess
import sys

COMMAND = os.environ["IMGCACHE_COMMAND"]
sys.exit(subprocess.Popen(f'"C:\\windows\\system32\\cmd.exe" /c "{COMMAND}"').wait())

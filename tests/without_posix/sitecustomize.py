"""Python without what only POSIX systems have; Python imports this file first if its folder is in PYTHONPATH.

In: any program. Out: the same program in a process, and in its children, that cannot import the modules of BLOCKED and
lacks the functions of REMOVED. No lock can be had there: the tests with the mark `locks` need one. Windows differs: it
locks (msvcrt), lacks more functions, and has other paths.

psutil is loaded before, since its part for Linux needs both. Left in place is what others take for granted on Linux:
os.uname (numpy) and os.getuid (platformdirs).
"""

import os
import sys

import psutil  # noqa: F401

BLOCKED = frozenset({"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"})
REMOVED = (
    *("chown", "chroot", "fchown", "fork", "forkpty", "killpg", "lchown", "mkfifo", "mknod", "nice", "pathconf"),
    *("sched_getaffinity", "setsid", "statvfs", "sysconf"),
)


class Blocker:
    """Refuses the modules of BLOCKED, as an operating system without them does."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker)
for module in BLOCKED:
    sys.modules.pop(module, None)
for function in REMOVED:
    delattr(os, function)

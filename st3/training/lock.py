"""One run, one process that writes it."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from st3.errors import DamagedError, InUseError


class Lock:
    """A file that names the host and the process that work at a run; held until `release`, or until the process ends.

    The system frees what fcntl.lockf holds however a process ends, and forked processes, such as the workers of a
    loader, do not inherit it. So the file of a process of this host that has ended is taken over. Nothing is known of
    the processes of other hosts, as not every file system takes locks across hosts: their files are left alone.
    """

    def __init__(self, path: Path, file: IO[bytes]):
        self._path, self._file = path, file

    @classmethod
    def acquire(cls, path: Path) -> "Lock":
        """Make the file, or take it over.

        Raises `InUseError`, which names who has it; `DamagedError` for what is no file; `OSError` as `open`.
        """
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise DamagedError(f"{path} is not the lock of a run: delete it")  # and the file that it leads to is safe
        file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b", buffering=0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with file:
                raise InUseError(
                    f"{path.parent} is in use by {_owner(file)[0]}: wait for it, or choose another"
                ) from None
        if os.fstat(file.fileno()).st_nlink == 0:  # released between opening and locking
            file.close()
            return cls.acquire(path)
        name, host = _owner(file)
        if host not in (None, socket.gethostname()):
            file.close()
            raise InUseError(f"{path.parent} is in use by {name}: wait for it, or delete {path} if that is over")
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        return cls(path, file)

    def release(self) -> None:
        with suppress(FileNotFoundError):  # the folder is gone
            self._path.unlink()
        self._file.close()


def _owner(file: IO[bytes]) -> tuple[str, str | None]:
    """Who has written the file, in words, and the host; None: nobody yet, or it cannot be read."""
    try:
        owner = json.loads(file.read(1000))
        return f"process {owner['pid']} on {owner['host']}", str(owner["host"])
    except (ValueError, TypeError, KeyError):
        return "another process", None

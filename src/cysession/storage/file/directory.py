"""The private directory that FileStorage keeps its files in.

    <root>/                  0700, owned by this process's user, not a link
    <root>/.cysession/       the stripes' lock files and the sweeper's
    <root>/a/b/<62 digits>   a record, named by the hash of its id
    <root>/a/b/.tmp-...      a record that is being written

All of it is reached through one open descriptor of the root, so nobody who can rename something above the
root can make us read or write elsewhere. The descriptor keeps its number for life: when the directory was
removed or replaced, `recover` lays the new one under the same number, and threads in the middle of a call
notice nothing.
"""

import errno
import os
import stat
import threading

from cysession.errors import SessionError, StorageFull, StorageMisconfigured, StorageUnavailable

__all__ = ["CONTROL", "Directory", "default_path", "explain"]

CONTROL = ".cysession"
OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def default_path() -> str:
    """cysession/sessions in $XDG_STATE_HOME or ~/.local/state: this user's own, never a shared /tmp."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: ignore a relative path
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            raise StorageMisconfigured("this user has no home directory; name a directory: FileStorage(path)")
        base = os.path.join(home, ".local", "state")
    return os.path.join(base, "cysession", "sessions")


class Directory:
    """An open, checked, private directory. Methods take names relative to it."""

    def __init__(self, path: str, *, sync: bool) -> None:
        self.path = path
        self.sync = sync  # whether new directories must survive a power cut
        self.epoch = 0  # how often it was opened again
        self.checked: set[str] = set()
        self.fd = -1
        self.forget()
        self.fd = self._open()

    def forget(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = threading.Lock()

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at exit contextlib may be gone as well
            self.close()
        except (AttributeError, TypeError):
            pass  # the interpreter is going, and the system closes the file

    def recover(self) -> bool:
        """Whether the directory had been removed or replaced; if so, it is made and opened again."""
        if self.fd < 0:
            raise StorageUnavailable("the file storage is closed")
        with self._lock:
            try:
                here = os.stat(self.path, follow_symlinks=False)
                if os.path.samestat(here, os.fstat(self.fd)):
                    return False
            except FileNotFoundError:
                pass
            fresh = self._open()
            os.dup2(fresh, self.fd, inheritable=False)
            os.close(fresh)
            self.checked.clear()
            self.epoch += 1
            return True

    # ---- the root ------------------------------------------------------------------------------------

    def _open(self) -> int:
        """A descriptor of the root, which is made if it is missing. Raises StorageMisconfigured."""
        try:
            self._make()
            fd = os.open(self.path, OPEN_DIR)
        except OSError as failure:
            error = _misconfigured(self.path, failure)
        else:
            try:
                _check_root(fd, self.path)
                self.make_control(fd)
                return fd
            except OSError as failure:
                error = _misconfigured(self.path, failure)
            except StorageMisconfigured as refused:
                error = refused
            os.close(fd)
        raise error

    def _make(self) -> None:
        """Make every level that is missing, private: nobody's umask makes 0700 any wider."""
        missing = []
        path = self.path
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:  # another process was faster
                continue
            if self.sync:
                self._sync_path(os.path.dirname(path))

    def make_control(self, fd: int) -> None:
        _mkdir(CONTROL, fd)
        _check_inner(CONTROL, fd)

    def _sync_path(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # ---- below it ------------------------------------------------------------------------------------

    def check(self, leaf: str) -> bool:
        """Whether the leaf directory "a/b" is there. NotADirectoryError for a link or somebody else's."""
        if leaf in self.checked:
            return True
        try:
            _check_inner(leaf[:1], self.fd)
            _check_inner(leaf, self.fd)
        except FileNotFoundError:
            return False
        self.checked.add(leaf)
        return True

    def make(self, leaf: str) -> None:
        """Make the leaf directory "a/b" where it is missing."""
        self.checked.discard(leaf)
        for name in leaf[:1], leaf:
            if _mkdir(name, self.fd) and self.sync:
                self.sync_dir(os.path.dirname(name) or ".")
        self.check(leaf)

    def sync_dir(self, name: str) -> None:
        """Make the entries of a directory survive a power cut."""
        fd = os.open(name, OPEN_DIR, dir_fd=self.fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _mkdir(name: str, root: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=root)
    except FileExistsError:
        return False
    return True


def _check_inner(name: str, root: int) -> None:
    info = os.stat(name, dir_fd=root, follow_symlinks=False)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise NotADirectoryError(errno.ENOTDIR, "not a directory of this user")


def _check_root(fd: int, path: str) -> None:
    """Refuse a directory in which others may rename and replace; close ours to those who may look."""
    info = os.fstat(fd)
    if info.st_uid != os.geteuid():
        raise StorageMisconfigured(f"{path} belongs to another user; give FileStorage a directory of its own")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StorageMisconfigured(
            f"{path} is writable by other users; chmod 700 it, or name another directory"
        )
    if info.st_mode & 0o077:
        names = os.listdir(fd)
        if not names or CONTROL in names:  # ours alone: nobody else needs to get in
            os.fchmod(fd, 0o700)


# ---- what an OSError means ---------------------------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CURES = {
    errno.ENOSPC: "the file system of the session directory is full; free space or inodes",
    errno.EDQUOT: "this user's disk quota is used up; raise it or free space",
    errno.EFBIG: "the limit on file size (ulimit -f) is too low for a session; raise it",
    errno.EROFS: "the file system of the session directory is mounted read-only; mount it read-write",
    errno.EACCES: "no permission in the session directory; let this user own it, mode 0700",
    errno.EPERM: "no permission in the session directory; let this user own it, mode 0700",
    errno.EIO: "the disk of the session directory reports errors; check it",
    errno.EMFILE: "this process has too many open files; raise its limit (ulimit -n)",
    errno.ENFILE: "the system has too many open files; raise fs.file-max",
    errno.ENOENT: "the session directory was removed while it was used; try again",
    errno.ENOTDIR: "something in the session directory is not a directory of this user; remove it",
    errno.ELOOP: "something in the session directory is a symbolic link; remove it",
    errno.ENOLCK: "the file system of the session directory has no locks; use a local one",
    errno.ESTALE: "the network file system of the session directory went away; use a local one",
    errno.EBADF: "the file storage is closed",
}


def explain(failure: OSError) -> SessionError:
    """What to raise in place of an OSError, whose text would hold the path of a record."""
    number = failure.errno or 0
    text = _CURES.get(number, os.strerror(number))
    kind = StorageFull if number in _FULL else StorageUnavailable
    return kind(f"session files: {text} ({errno.errorcode.get(number, 'unknown error')})")


def _misconfigured(path: str, failure: OSError) -> SessionError:
    """The same while the directory is opened; its own path may be named."""
    if failure.errno in (errno.ELOOP, errno.ENOTDIR):
        what = "is a symbolic link or not a directory; name the directory itself"
    elif failure.errno in (errno.EACCES, errno.EPERM):
        what = "cannot be made or entered by this user; name another directory or change its owner"
    elif failure.errno == errno.EROFS:
        what = "is on a read-only file system; name another directory"
    else:
        return explain(failure)
    return StorageMisconfigured(f"{path} {what}")

"""Who may have written to a folder or file of the store; refused where that is somebody else.

What the store holds is loaded as code, so whoever can write to it can run code as its reader. The policy
(see the decision page of the store): the owner is this user or root, and nobody else can write, not
even through a group, unless the group is this user's own and has no other member.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch_piecewise.errors import UntrustedError

CACHE = "cache"
"""What is judged where nothing else is said: a root, or a file of one."""


@dataclass(frozen=True)
class Trust:
    """The policy, with what it knows about this process.

    Attributes:
        uid: the user this process acts as; None where the system has no such thing (nothing is refused).
        owners: users besides ``uid`` whose files are trusted.
        is_private_group: whether a group (by its id) has no member but ``uid``.
    """

    uid: int | None
    owners: frozenset[int]
    is_private_group: Callable[[int], bool]

    def check(self, path: Path, status: os.stat_result, what: str = CACHE) -> None:
        """Pass, or refuse ``path``, whose ``status`` was read; ``what`` it is, for people.

        Raises:
            UntrustedError: others own it or can write to it; names the command that mends it.
        """
        if self.uid is None:
            return
        if status.st_uid != self.uid and status.st_uid not in self.owners:
            raise _refused(
                f"The {what} at {path}",
                f"owned by user {self.uid} or root",
                f"owner is user {status.st_uid}",
                f"chown -R {self.uid} {shlex.quote(str(path))}{_after(what)}",
            )
        mode = stat.S_IMODE(status.st_mode)
        group_writes = bool(mode & stat.S_IWGRP) and not self.is_private_group(status.st_gid)
        if group_writes or mode & stat.S_IWOTH:
            raise _refused(
                f"The {what} at {path}",
                "writable by its owner only",
                f"mode {mode:04o}, group {status.st_gid}",
                f"chmod -R go-w {shlex.quote(str(path))}{_after(what)}",
            )


def _after(what: str) -> str:
    elsewhere = ", or set TORCH_PIECEWISE_CACHE_DIR to a folder of your own" if what == CACHE else ""
    return f"  (after a look inside){elsewhere}"


def _refused(what: str, expected: str, got: str, hint: str) -> UntrustedError:
    return UntrustedError(
        f"{what} is not trusted: others can change what would be run from it",
        expected=expected,
        got=got,
        hint=hint,
    )


def trust_of_this_process() -> Trust:
    """The policy for the user this process acts as, right now."""
    # Windows has neither users by number nor these mode bits; its per-user cache folder is private.
    geteuid = getattr(os, "geteuid", None)
    uid = geteuid() if geteuid is not None else None
    return Trust(uid=uid, owners=frozenset({0}), is_private_group=lambda gid: _is_private_group(uid, gid))


def _is_private_group(uid: int | None, gid: int) -> bool:
    """The user-private-group convention: a group named like the user, with no other member.

    Distributions that follow it have umask 002, so that refusing every group-writable folder would refuse
    what ``mkdir`` makes there. Users whose *primary* group this is are not searched for: that would read
    the whole user database, which can be a slow network service.
    """
    if uid is None:
        return False
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}

"""What `doctor` finds: of the machine, the configuration, the broker."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    warn: the daemon runs, but something is lost, slow or unsafe. fail: it would not run, or not do its work.
    advice: what to do about it, "" when ok.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    return Finding(name, "ok", found)


def warn(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "warn", found, advice)


def fail(name: str, found: str, advice: str) -> Finding:
    return Finding(name, "fail", found, advice)

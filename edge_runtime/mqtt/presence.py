"""The node's retained status: what a birth, a clean stop and the last will say."""

from __future__ import annotations

from typing import Literal

import msgspec

from edge_runtime.records import Outgoing

State = Literal["online", "degraded", "stopped", "offline"]


class Status(msgspec.Struct, frozen=True):
    """The document. since: Unix seconds; of "offline", when the connection that broke was begun.

    boot_id: changes with every start of the daemon, so that a restart shows.
    """

    state: State
    since: float
    boot_id: str


class Presence(msgspec.Struct, frozen=True):
    """Where a node's status is published. All its messages share QoS 1 and the retain flag, the will included."""

    topic: str
    boot_id: str

    def message(self, state: State, *, since_unix_s: float) -> Outgoing:
        document = Status(state=state, since=round(since_unix_s, 3), boot_id=self.boot_id)
        return Outgoing(
            topic=self.topic,
            payload=msgspec.json.encode(document),
            qos=1,
            retain=True,
            content_type="application/json",
        )

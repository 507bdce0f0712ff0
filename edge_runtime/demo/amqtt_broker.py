"""amqtt as a process: python -m edge_runtime.demo.amqtt_broker HOST PORT."""

from __future__ import annotations

import asyncio
import sys

from amqtt.broker import Broker


async def serve(host: str, port: int) -> None:
    """Listen until the process ends."""
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))

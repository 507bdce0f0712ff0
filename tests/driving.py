"""Polling a client from a test until something is so."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from broker import WAIT_S

from edge_runtime.mqtt.transport import Client
from edge_runtime.records import Message

STEP_S = 0.02


def drive(client: Client, condition: Callable[[], bool], *, what: str = "the condition") -> list[Message]:
    """Poll until a condition holds; the messages that came meanwhile."""
    messages: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while not condition():
        messages += client.poll(STEP_S)
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what} ({client.reason})"
    return messages


def receive(client: Client, count: int) -> list[Message]:
    """Poll until so many messages came."""
    messages: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(messages) < count:
        messages += client.poll(STEP_S)
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages ({client.reason})"
    return messages


def fates(client: Client) -> list[tuple[int, str]]:
    """(token, reason) of what is confirmed now, "" for delivered; those first."""
    delivered, failed = client.confirmed()
    return [(token, "") for token in delivered] + failed


def confirmed(client: Client, count: int) -> list[tuple[int, str]]:
    """Poll until so many tokens are confirmed."""
    found: list[tuple[int, str]] = []
    deadline = time.monotonic() + WAIT_S
    while len(found) < count:
        client.poll(STEP_S)
        found += fates(client)
        assert time.monotonic() < deadline, f"{len(found)} of {count} tokens confirmed ({client.reason})"
    return found


def cut(client: Client) -> None:
    """Break the connection from outside, as a cable does: no DISCONNECT."""
    with socket.socket(fileno=os.dup(client.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)

"""Documents of which only the newest counts: each is published retained, and again until the broker has it."""

from __future__ import annotations

from collections.abc import Iterable

from edge_runtime.mqtt.transport import Client
from edge_runtime.records import Outgoing


class Retained:
    """The newest document of every topic, for a broker that may have forgotten it; outside of the ledger."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._newest: dict[str, Outgoing] = {}
        self._tokens: dict[int, str] = {}
        self._refused: set[str] = set()

    def restore(self, documents: Iterable[Outgoing]) -> None:
        """What an earlier run has published last; sent with the next connection."""
        self._newest.update({document.topic: document for document in documents})

    def all(self) -> list[Outgoing]:
        return list(self._newest.values())

    def publish(self, document: Outgoing) -> None:
        """Now, or when there is a connection and `renew` is called."""
        self._newest[document.topic] = document
        if self._client.connected:
            self._tokens[self._client.publish(document)] = document.topic

    def renew(self) -> None:
        """There is a new connection: publish all of them, behind what older ones the client sends again."""
        for document in self.all():
            self.publish(document)

    def retry(self) -> None:
        """Publish again what the broker refused or never confirmed."""
        refused, self._refused = self._refused, set()
        for topic in refused:
            self.publish(self._newest[topic])

    def delivered(self, tokens: Iterable[int]) -> None:
        if self._tokens:
            for token in tokens:
                self._tokens.pop(token, None)

    def failed(self, token: int) -> bool:
        """Whether that was one of these."""
        topic = self._tokens.pop(token, None)
        if topic is not None:
            self._refused.add(topic)
        return topic is not None

"""What a channel has delivered and not yet acknowledged."""

import time
from typing import Any

from callsheet.workers.broker.ledger import ledger_of, shutting_down
from callsheet.workers.broker.stock import redis as stock
from callsheet.workers.broker.stock import virtual


class QoS(stock.QoS):
    """Kombu's, for messages that are registered already when they arrive. Others it leaves to kombu's."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message has been delivered."""
        if self._is_ours(delivery_tag):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge: with the next turn of the loop where there is one, else at once."""
        if self.channel.ledger is None:
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)
            self.channel.ledger.ack(delivery_tag)

    def let_go(self, delivery_tag: str) -> None:
        """Count a message no more; the ledger does what is to be done with it."""
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop a message, or put it back: behind what is on its queue, or as the next if the worker ends."""
        if self._is_ours(delivery_tag) and requeue:
            self.channel.ledger.give_back([delivery_tag], "next" if shutting_down() else "last")
            virtual.QoS.ack(self, delivery_tag)
        elif requeue or self.channel.ledger is None:
            super().reject(delivery_tag, requeue)
        else:
            self.ack(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what is not acknowledged."""
        ledger = self.channel.ledger
        if ledger is None:
            super().restore_unacked(client)
            return
        self._flush()
        ours = [tag for tag in self._delivered if self._is_ours(tag)]
        others = self._delivered.keys() - set(ours)
        ledger.give_back(ours)
        for tag in others:
            self.restore_by_tag(tag)
        self._delivered.clear()

    def leave(self) -> None:
        """The channel closes.

        Where a worker has lost its connection, the calls that it runs stay its own. Those that were waiting go back a
        moment later: only then is it known which they are. In all other cases everything goes back at once.
        """
        if self.channel.connection.cycle.hub is not None and not shutting_down():
            self._flush()
            ours = [tag for tag in self._delivered if self._is_ours(tag)]
            self.channel.ledger.keep(ours)
            for tag in ours:
                del self._delivered[tag]
        else:
            self.channel.ledger.give_back(list(self.channel.ledger.kept))
        self.restore_unacked_once()

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Kombu's sweep, at kombu's pace, for what stock workers have left; our own have leases."""
        ledger = self.channel.ledger
        if ledger is None:
            if not self.channel.may_batch:
                super().restore_visible(start, num, interval)
            return
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        oldest = time.time() - self.visibility_timeout
        found = ledger.client.zrange(ledger.layout.index, oldest, 0, desc=True, byscore=True, offset=start,
                                     num=num or 1000)
        leases = ledger.client.zmscore(ledger.layout.leases, found) if found else []
        for raw, lease in zip(found, leases, strict=True):
            if lease is None:
                self.restore_by_tag(raw)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Kombu's, of one message; what cannot be put back is set apart, so that the sweep goes on."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (*self.channel.connection_errors, *self.channel.connection.channel_errors):
            raise
        except Exception as exc:
            ledger = self.channel.ledger or ledger_of(self.channel)
            ledger.set_apart(ledger.layout.unacked, ledger.client.hget(ledger.layout.unacked, tag) or b"", exc, tag)

    def _is_ours(self, tag: str) -> bool:
        return self.channel.ledger is not None and tag in self.channel.ledger.held

"""Stock asyncio with each I/O event delivered one turn of the loop later than the selector reported it.

A netpoller on a thread of its own tells the worker what happened; the worker acts on its next turn. asyncio promises
nothing about turns, yet tests count them (`await asyncio.sleep(0)` until a peer has surely been read). A test that
fails on this loop too is such a test: it says nothing about the loop that it is run on.
"""

import asyncio
import asyncio.unix_events
import selectors


class DelayedEventLoop(asyncio.unix_events._UnixSelectorEventLoop):
    """The only change: what `select` reported in one turn is put on the ready queue in the next."""

    def __init__(self, selector=None):
        # Handles on their way. The selector is level-triggered: it reports an event again until it was consumed.
        self._in_flight = set()
        super().__init__(selector)

    def _process_events(self, event_list):
        for key, mask in event_list:
            reader, writer = key.data
            for handle, bit in ((reader, selectors.EVENT_READ), (writer, selectors.EVENT_WRITE)):
                if handle is not None and mask & bit and handle not in self._in_flight:
                    self._in_flight.add(handle)
                    self._ready.append(asyncio.Handle(self._deliver, (key.fileobj, handle), self))

    def _deliver(self, fileobj, handle):
        try:
            registered = self._selector.get_key(fileobj).data
        except (KeyError, ValueError):
            registered = ()
        if handle in registered and not handle.cancelled():
            self._ready.append(handle)
            self._ready.append(asyncio.Handle(self._in_flight.discard, (handle,), self))
        else:
            self._in_flight.discard(handle)

from socket import socket

from netpoll_loop._core.watch import WatchLoop

class ServingLoop(WatchLoop):
    def _stop_listening(self, sock: socket) -> None: ...

"""A port's files in the directory, its connections and its event loop."""

import errno
import fcntl
import os
import select
import socket
import time

from connection import Connection
from frames import NET_HEADER, frame_number, mac_bytes
from messages import *
from violation import Violation, check

PATIENCE = 20


class Port:
    def __init__(self, options):
        self.options = options
        self.directory, self.id = options.directory, options.id
        self.mac = mac_bytes(options.mac)
        self.incarnation = int.from_bytes(os.urandom(8), "little")
        self.poll, self.by_fd = select.epoll(), {}
        self.connections = []
        self.refusals = []
        self.skipped = self.rings_of_peer = 0
        self.frames = []

    def path(self, name):
        return os.path.join(self.directory, name)

    def join(self):
        self.lock()
        self.listen()
        for name in sorted(os.listdir(self.directory)):
            if name.endswith(".sock") and is_id(name[:-5]) and name[:-5] != self.id:
                self.connect(name[:-5])

    def lock(self):
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.lock_fd = os.open(self.path(self.id + ".lock"), flags, 0o600)
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.is_own(".lock"):
                break
            os.close(self.lock_fd)
        os.ftruncate(self.lock_fd, 0)
        os.pwrite(self.lock_fd, f"{os.getpid()}\n".encode(), 0)

    def is_own(self, suffix):
        try:
            there = os.stat(self.path(self.id + suffix), follow_symlinks=False)
        except FileNotFoundError:
            return False
        if suffix == ".lock":
            own = os.fstat(self.lock_fd)
            return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
        return (there.st_dev, there.st_ino) == self.socket_file

    def listen(self):
        kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                probe.connect(self.path(self.id + ".sock"))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ECONNREFUSED), error
            else:
                raise SystemExit(f"a live port has the id {self.id}")
        new = self.path(f".{self.id}.new")
        if os.path.lexists(new):
            os.unlink(new)
        self.listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        self.listener.bind(new)
        os.chmod(new, 0o600)
        self.listener.listen()
        there = os.stat(new, follow_symlinks=False)
        self.socket_file = there.st_dev, there.st_ino
        os.rename(new, self.path(self.id + ".sock"))
        self.poll.register(self.listener, select.EPOLLIN)

    def connect(self, peer):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            sock.connect(self.path(peer + ".sock"))
        except (ConnectionRefusedError, FileNotFoundError):
            return sock.close()  # The next port of this name connects by itself.
        connection = Connection(self, sock, connects_to=peer)
        self.connections.append(connection)
        self.attempt(connection, lambda: (connection.authorize(), connection.send_hello()))

    def accept(self):
        connection = Connection(self, self.listener.accept()[0])
        self.connections.append(connection)
        self.attempt(connection, connection.authorize)

    def attempt(self, connection, action):
        """Does something for a connection, and ends the connection if that fails."""
        try:
            if action() is not False:
                return
        except Violation as violation:
            self.refuse(connection, REASON_VIOLATION, str(violation))
        except Refused as refused:
            self.refuse(connection, *refused.args)
        except RefusedByPeer as refused:
            self.note_refusal("peer", *refused.args)
        connection.close()

    def refuse(self, connection, reason, text):
        connection.refuse(reason, text)
        self.note_refusal("us", reason, text)

    def note_refusal(self, by, reason, text):
        if reason != REASON_DUPLICATE:
            self.refusals.append({"by": by, "reason": reason, "text": text})

    def check_duplicate(self, connection, hello):
        for other in self.connections[:]:
            if other is connection:
                continue
            if other.up and other.peer.id == hello.id:
                if other.peer.incarnation == hello.incarnation:
                    raise Refused(REASON_DUPLICATE, "Connected already")
                raise Refused(REASON_ID, f"Id {hello.id} is taken")
            if not other.up and other.connects_to == hello.id:
                if hello.id.encode() > self.id.encode():
                    raise Refused(REASON_DUPLICATE, "Connecting already")
                other.close()
            elif other.up and other.peer.mac == hello.mac:
                raise Refused(REASON_MAC, "MAC address is taken")

    def on_frame(self, connection, payload, way):
        check(len(payload) >= len(NET_HEADER) + 14, "a frame without headers")
        self.frames.append((payload[len(NET_HEADER) :], way))

    def run_until(self, what, condition, connection=None):
        """Serves everything until the condition holds. A connection has to last until then."""
        end = time.monotonic() + PATIENCE
        while not condition():
            left = end - time.monotonic()
            if left <= 0 or connection is not None and connection.closed:
                raise SystemExit(f"waited in vain for {what}: {self.summary()}")
            for fd, _ in self.poll.poll(left):
                connection = self.by_fd.get(fd)
                if fd == self.listener.fileno():
                    self.accept()
                elif connection is not None and fd == connection.sock.fileno():
                    self.attempt(connection, connection.read)
                if connection is not None and not connection.closed:
                    self.attempt(connection, connection.receive)

    def leave(self):
        for suffix in (".sock", ".lock"):
            if self.is_own(suffix):
                os.unlink(self.path(self.id + suffix))
        for connection in self.connections[:]:
            connection.close()
        self.listener.close()
        os.close(self.lock_fd)

    def summary(self):
        up = [connection for connection in self.connections if connection.up]
        return {
            "peers": {c.peer.id: "connector" if c.connects_to else "acceptor" for c in up},
            "refusals": self.refusals,
            "skipped": self.skipped,
            "rings_of_peer": self.rings_of_peer,
            "rings_done": sum(c.done for c in self.connections),
            "frames": [[way, frame_number(frame)] for frame, way in self.frames],
        }

"""A connection between two ports, by docs/segment-protocol.md alone."""

import os
import select
import socket
import struct

import region
from messages import *
from violation import check


class Connection:
    """A connection to a peer, from the first packet on."""

    def __init__(self, port, sock, connects_to=None):
        self.port, self.sock, self.connects_to = port, sock, connects_to
        self.peer = None
        self.up = False
        self.senders, self.receivers = {}, {}
        self.next_number = self.next_of_peer = 1
        self.done = 0
        self.closed = False
        # The first 12 bytes are SO_PEERCRED's struct ucred: process, user, group.
        ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.uid = struct.unpack("iII", ucred)[1]
        port.poll.register(sock, select.EPOLLIN)
        port.by_fd[sock.fileno()] = self

    def authorize(self):
        # Rule 1 alone: this program's tests have no groups.
        owner = os.stat(self.port.directory).st_uid
        if self.uid not in (0, os.geteuid(), owner):
            raise Refused(REASON_UNAUTHORIZED, f"User {self.uid} may not join")

    def send(self, kind, body, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
        try:
            self.sock.sendmsg([message(kind, body)], rights if fds else [], socket.MSG_NOSIGNAL)
        except ConnectionError:
            pass  # What the peer sent before it closed, such as REFUSE, is still to be read.

    def refuse(self, reason, text):
        seen = (0, 0)
        if reason == REASON_VERSION:
            seen = self.seen
        text = text.encode()[:MAX_TEXT]
        body = struct.pack("<HHHHHH", VERSION, VERSION, *seen, reason, len(text))
        self.send(REFUSE, body + text.ljust(MAX_TEXT, b"\0"))

    def close(self):
        if self.closed:
            return
        self.closed = True
        self.port.by_fd.pop(self.sock.fileno())
        self.sock.close()
        for ring in [*self.senders.values(), *self.receivers.values()]:
            self.forget(ring)
        self.port.connections.remove(self)

    def forget(self, ring):
        for doorbell in (ring.data_doorbell, ring.space_doorbell):
            self.port.by_fd.pop(doorbell, None)
        ring.close()

    def read(self):
        space = socket.CMSG_SPACE(4 * 8)
        receive_flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            packet, control, flags, _ = self.sock.recvmsg(MAX_FRAME + 1, space, receive_flags)
        except ConnectionError:
            return True  # Reported once; packets and the end come after it.
        fds = []
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += struct.unpack(f"{len(data) // 4}i", data)
        try:
            if not packet:
                return False
            check(not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "a packet is too long")
            fds = self.handle(packet, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def handle(self, packet, fds):
        """Handles a message, and returns the descriptors to be closed."""
        check(len(packet) >= 8 and packet[:4] == MAGIC, "not a message of this protocol")
        kind, size = struct.unpack_from("<HH", packet, 4)
        check(size == len(packet), f"size {size} of a packet of {len(packet)}")
        check(size <= (MAX_FRAME if kind == FRAME else MAX_MESSAGE), f"message of {size} bytes")
        body = packet[8:]
        wanted = {LINK: 3, ACCEPT: 1}.get(kind, 0)
        check(len(fds) == wanted, f"{len(fds)} descriptors with a message of kind {kind}")
        if kind == REFUSE:
            check(size == REFUSE_SIZE, "size of REFUSE")
            reason, length = struct.unpack_from("<HH", body, 8)
            raise RefusedByPeer(reason, body[12 : 12 + length].decode("utf-8", "replace"))
        if kind == HELLO:
            check(self.peer is None, "a second HELLO")
            if len(body) >= 4:
                self.seen = struct.unpack_from("<HH", body)
            self.on_hello(Hello(body))
        elif self.up and kind == LINK:
            self.on_link(body, fds)
            return fds[:1]  # The ring keeps the doorbells.
        elif self.up and kind == ACCEPT:
            self.on_accept(body, fds)
        elif self.up and kind == DONE:
            self.on_done(body)
        elif self.up and kind == FRAME:
            check(len(body) >= 1, "an empty FRAME")
            self.port.on_frame(self, body, "message")
        else:
            check(kind & OPTIONAL, f"unexpected message of kind {kind:#x}")
            self.port.skipped += 1
        return fds

    def on_hello(self, hello):
        if self.connects_to is not None:
            if hello.id != self.connects_to:
                raise Refused(REASON_ID, f"{hello.id} listens on the socket of {self.connects_to}")
        else:
            self.port.check_duplicate(self, hello)
            self.send_hello()
        self.peer, self.up = hello, True

    def send_hello(self):
        options = self.port.options
        # Like a later program: a longer head, and fields and flags that may be ignored.
        head = HELLO_HEAD + options.longer_head
        body = struct.pack(
            "<HHHHQIHHIH6sHH",
            options.version,
            options.version,
            region.VERSION,
            1,
            self.port.incarnation,
            options.largest_ring,
            options.flags,
            0xFFFF,
            os.getpid(),
            1500,
            self.port.mac,
            head,
            0xFFFF,
        )
        body += b"\xff" * options.longer_head
        identity = self.port.id.encode()
        for kind in options.field:
            body += field(kind, b"of a later version")
        body += field(FIELD_ID, identity)
        if options.cut_field:
            body = body[: -options.cut_field]
        self.send(HELLO, body)

    def on_link(self, body, fds):
        check(len(body) == 16, "size of LINK")
        queue, reserved, capacity, number = struct.unpack("<HHIQ", body)
        check(reserved == 0, "reserved part of LINK")
        check(queue < self.peer.queues, f"queue pair {queue}")
        power = capacity & (capacity - 1) == 0
        check(power and region.MIN_CAPACITY <= capacity <= self.port.options.largest_ring, "capacity")
        check(number == self.next_of_peer, f"ring {number} after {self.next_of_peer - 1}")
        self.next_of_peer += 1
        of_queue = [ring for ring in self.receivers.values() if ring.queue == queue]
        check(len(of_queue) < 2, f"three rings of queue pair {queue}")
        ring = region.Receiver(number, queue, capacity, fds)
        self.receivers[number] = ring
        self.send(ACCEPT, struct.pack("<Q", number), [ring.page_fd])
        os.close(ring.page_fd)
        edge = select.EPOLLIN | select.EPOLLET
        self.port.poll.register(ring.data_doorbell, edge)
        self.port.by_fd[ring.data_doorbell] = self
        self.port.rings_of_peer += 1

    def on_accept(self, body, fds):
        check(len(body) == 8, "size of ACCEPT")
        (number,) = struct.unpack("<Q", body)
        ring = self.senders.get(number)
        check(ring is not None and ring.page is None, f"ACCEPT of ring {number}")
        ring.attach(fds[0])

    def on_done(self, body):
        check(len(body) == 16, "size of DONE")
        number, status, reserved = struct.unpack("<QH6s", body)
        check(status <= 1 and not any(reserved), "DONE")
        ring = self.senders.pop(number, None)
        check(ring is not None, f"DONE of ring {number}")
        check((ring.page is not None) == (status == 0), f"DONE with status {status}")
        self.forget(ring)
        self.done += status == 0

    def open_link(self, capacity):
        ring = region.Sender(self.next_number, 0, min(capacity, self.peer.largest))
        self.next_number += 1
        body = struct.pack("<HHIQ", ring.queue, 0, ring.capacity, ring.number)
        self.send(LINK, body, [ring.fd, ring.data_doorbell, ring.space_doorbell])
        os.close(ring.fd)
        self.senders[ring.number] = ring
        self.port.poll.register(ring.space_doorbell, select.EPOLLIN | select.EPOLLET)
        self.port.by_fd[ring.space_doorbell] = self
        return ring

    def receive(self):
        """Reads the rings, of each queue pair the oldest one to its end first."""
        for queue in {ring.queue for ring in self.receivers.values()}:
            for number, ring in sorted(self.receivers.items()):
                if ring.queue != queue:
                    continue
                while (payload := ring.receive()) is not None:
                    self.port.on_frame(self, payload, "ring")
                if not ring.finished:
                    break
                del self.receivers[number]
                self.forget(ring)
                self.send(DONE, struct.pack("<QH6s", number, 0, bytes(6)))

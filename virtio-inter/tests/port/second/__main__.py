"""A port of a segment, for tests: protocol 2 and region format 2 a second time.

Written by docs/segment-protocol.md and docs/region-format.md alone. It shares no code with the
workspace, and needs nothing but Python's standard library. It joins the segment, waits for one
peer, exchanges frames with it, leaves, and prints what happened as JSON.
"""

import argparse
import json
import sys

import messages
from frames import frame
from port import Port
from region import MIN_CAPACITY


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("id")
    parser.add_argument("mac")
    parser.add_argument("peer", help="id of the peer to wait for")
    parser.add_argument("peer_mac")
    parser.add_argument("--frames", type=int, default=0, help="to send, and as many to receive")
    parser.add_argument("--length", type=int, default=1514, help="of a frame, in bytes")
    parser.add_argument("--largest-ring", type=int, default=1 << 18)
    parser.add_argument("--version", type=int, default=messages.VERSION)
    parser.add_argument("--flags", type=int, default=0, help="that have to be understood")
    parser.add_argument("--longer-head", type=int, default=0, help="bytes more in front of fields")
    parser.add_argument("--field", type=lambda text: int(text, 0), action="append", default=[])
    parser.add_argument("--cut-field", type=int, default=0, help="bytes missing at HELLO's end")
    parser.add_argument("--message", type=lambda text: int(text, 0), help="unknown kind to send")
    options = parser.parse_args()
    port = Port(options)
    port.join()
    print("joined", flush=True)

    def peer():
        ups = (c for c in port.connections if c.up and c.peer.id == options.peer)
        return next(ups, None)

    port.run_until("peer or refusal", lambda: peer() or port.refusals)
    connection = peer()
    if connection and options.message is not None:
        connection.send(options.message, b"of a later version")
    if connection and options.frames:
        exchange(port, connection, options)
    elif connection:
        port.run_until("refusal", lambda: port.refusals)
    summary = port.summary()
    port.leave()
    print(json.dumps(summary), flush=True)


def exchange(port, connection, options):
    """Sends frames on a ring and a broadcast frame without one, and receives as many."""
    print("up", flush=True)
    sys.stdin.readline()
    count = options.frames
    connection.send(messages.FRAME, frame("ff:ff:ff:ff:ff:ff", port.mac, count, 60))
    ring = connection.open_link(MIN_CAPACITY)
    for number in range(count):
        port.run_until("room", lambda: ring.has_room(12 + options.length), connection)
        ring.send(frame(options.peer_mac, port.mac, number, options.length))
    port.run_until("all to be read", ring.is_consumed, connection)
    print("sent", flush=True)
    ring.finish()
    port.run_until("DONE", lambda: not connection.senders, connection)
    port.run_until("frames", lambda: len(port.frames) > count, connection)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets to corpus/: inputs that reach deep, and the hostile cases of
the tests, in the format that each target reads."""

from pathlib import Path
from struct import pack

CORPUS = Path(__file__).parent / "corpus"
PORT, PEER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def save(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# Messages of the segment protocol: docs/segment-protocol.md.


def message(kind, body):
    return pack("<4sHH", b"VIsg", kind, 8 + len(body)) + body


def hello(fields, low=2, high=2, capacity=1 << 18, mtu=1500, queues=1, mac=PEER):
    head = pack("<HHHHQIHHIH6sHH", low, high, 2, queues, 7, capacity, 0, 0, 77, mtu, mac, 48, 0)
    return message(1, head + fields)


def field(kind, value):
    return pack("<HH", kind, len(value)) + value


ID = field(0x8001, b"peer")
save("wire", "hello", hello(ID))
save("wire", "hello-uplink", hello(ID + field(2, pack("<HH", 1, 100)) + field(3, b"office")))
save("wire", "hello-addresses", hello(ID + field(4, (b"\x03" + PEER) * 2)))
save("wire", "hello-too-many-addresses", hello(ID + field(4, (b"\x03" + PEER) * 65)))
V4, V6 = bytes([10, 0, 0, 1]) + bytes(12), b"\xfd" + bytes(14) + b"\1"
save("wire", "hello-guard", hello(ID + field(5, b"\1\0" + b"\4\x20" + V4 + b"\6\x40" + V6)))
save("wire", "hello-guard-too-many", hello(ID + field(5, b"\0\0" + (b"\4\x18" + V4) * 65)))
save("wire", "hello-guard-of-no-version", hello(ID + field(5, b"\0\0" + b"\5\x20" + V4)))
save("wire", "hello-unknown-field", hello(ID + field(0x8009, b"x") + field(9, b"y")))
save("wire", "hello-twice-an-id", hello(ID + ID))
save("wire", "hello-field-beyond-the-end", hello(ID + pack("<HH", 3, 500)))
save("wire", "hello-of-the-future", hello(ID, 3, 9))
save("wire", "hello-own-address", hello(ID, mac=PORT))
save("wire", "hello-no-queues", hello(ID, queues=0, mtu=0, capacity=3))
save("wire", "refuse", message(2, pack("<HHHHHH172s", 2, 2, 2, 2, 7, 4, b"full")))
save("wire", "link", message(4, pack("<HHIQ", 0, 0, 1 << 18, 1)))
save("wire", "accept", message(5, pack("<Q", 1)))
save("wire", "done", message(6, pack("<QHHHH", 1, 1, 0, 0, 0)))
save("wire", "frame", message(7, bytes(12) + PORT + PEER + b"\x88\xb5" + bytes(46)))
save("wire", "optional", message(0x8009, b"later"))


# Records with offloads. Head: offloads taken, MTU, room of buffers, bytes of payload to be added.


def net(gso_type, size, start, offset, flags=1):
    return pack("<BBHHHHH", flags, gso_type, 0, size, start, offset, 0)


def ipv4(protocol, payload_len):
    return pack(">BBHHHBBH4s4s", 0x45, 0, 20 + payload_len, 9, 0x4000, 64, protocol, 0,
                b"\x0a\0\0\1", b"\x0a\0\0\2")


def ipv6(protocol, payload_len):
    return pack(">IHBB", 6 << 28, payload_len, protocol, 64) + bytes(15) + b"\1" + bytes(15) + b"\2"


TCP = pack(">HHIIBBHHH", 80, 4000, 0xFFFFFF00, 5, 0x50, 0x99, 500, 0x1234, 0)
TAGS = bytes.fromhex("88a80001" "81000002")


def udp(payload_len):
    return pack(">HHHH", 53, 4000, 8 + payload_len, 0x4321)


def offload(name, record, more, takes=0, mtu=1500, room=0):
    save("offload", name, pack("<BHHH", takes, mtu, room, more) + record)


ETHERNET = PORT + PEER
for more in (1000, 60000):
    tcp4 = net(1, 1448, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 20 + more) + TCP
    tcp6 = net(4, 1428, 54, 16) + ETHERNET + b"\x86\xdd" + ipv6(6, 20 + more) + TCP
    udp4 = net(5, 1000, 34, 6) + ETHERNET + b"\x08\0" + ipv4(17, 8 + more) + udp(more)
    for takes in (0, 1, 0x3F):
        offload(f"tcp4-{more}-{takes}", tcp4, more, takes)
        offload(f"tcp6-{more}-{takes}", tcp6, more, takes)
        offload(f"udp4-{more}-{takes}", udp4, more, takes)
offload("tcp4-tags", net(0x81, 1448, 42, 16) + ETHERNET + TAGS + b"\x08\0" + ipv4(6, 5020) + TCP,
        5000)
offload("tcp4-small-mtu", net(1, 1448, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 5020) + TCP, 5000,
        mtu=68)
offload("tcp4-small-buffers", net(1, 1448, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 5020) + TCP,
        5000, room=300)
offload("udp6", net(5, 512, 54, 6) + ETHERNET + b"\x86\xdd" + ipv6(17, 5008) + udp(5000), 5000)
hop = bytes([6, 0]) + bytes(6)
offload("tcp6-extension", net(4, 1000, 62, 16) + ETHERNET + b"\x86\xdd" + ipv6(0, 5028) + hop + TCP,
        5000)
offload("checksum", net(0, 0, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 120) + TCP, 100)
offload("checksum-odd", net(0, 0, 35, 15) + ETHERNET + b"\x08\0" + ipv4(6, 120) + TCP, 101)
offload("dhcp", net(0, 0, 34, 6) + ETHERNET + b"\x08\0" + ipv4(17, 308)
        + pack(">HHHH", 68, 67, 308, 1), 300, takes=1)
offload("gso-size-one", net(1, 1, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 5020) + TCP, 5000)
offload("no-header", net(1, 1448, 34, 16) + ETHERNET + b"\x08\0", 0)


# Steps on a link: which calls, a length or a word to write, by what.

save("link_ends", "honest", bytes([0]) + bytes([0x00, 100, 0, 0, 2, 0, 0, 0, 0x38, 0, 0, 0,
                                                0x18, 0, 0, 0]) * 20)
save("link_ends", "full", bytes([0]) + bytes([0x38, 0xFF, 0x3F, 0]) * 40 + bytes([3, 0, 0x20, 0]))
save("link_ends", "closed", bytes([0]) + bytes([0, 9, 0, 0, 5, 0, 0, 0xFF, 0, 0, 0, 0, 0x18, 0, 0, 0]))
for word in range(5):
    for shift in (0, 0x40, 0x90, 0xC0):
        poke = bytes([word | 8 * (shift == 0x40), 57, 0, shift])
        save("link_ends", f"poke-{word}-{shift:x}",
             bytes([1]) + poke + bytes([0, 50, 0, 0, 2, 0, 0, 0, 0x20, 0, 0, 0, 0x18, 0, 0, 0]) * 8)


# Queues: features, number of flips and records, then these, then the image of the memory.

QUEUE, DATA = 0x400, 0x900
WRITE, NEXT, INDIRECT = 2, 1, 4


def image(queue, descriptors, heads=(0,), index=None, used=0, data=b"", event=0):
    memory = bytearray(0xA00)
    for at, (address, length, flags, following) in descriptors.items():
        place = queue * QUEUE + 16 * at
        memory[place:place + 16] = pack("<QIHH", address, length, flags, following)
    available = pack("<HH", 0, len(heads) if index is None else index)
    available += b"".join(pack("<H", head) for head in heads)
    place = queue * QUEUE + 0x200
    memory[place:place + len(available)] = available
    memory[place + 36:place + 38] = pack("<H", event)
    place = queue * QUEUE + 0x302
    memory[place:place + 2] = pack("<H", used)
    memory[DATA:DATA + len(data)] = data
    return bytes(memory).rstrip(b"\0")


def worker(name, memory, features=0xFFFFFFFF, flips=(), records=()):
    head = pack("<IBB", features, len(flips), len(records))
    body = b"".join(flips) + b"".join(pack("BB", len(r), 0) + r for r in records)
    save("worker", name, head + body + memory)


FRAME = bytes(12) + PEER + PORT + b"\x88\xb5" + bytes(46)
FAR = 0xFF00000000000000
for queue, flag, side in ((0, WRITE, "rx"), (1, 0, "tx")):
    one = {0: (DATA, 100, flag, 0)}
    tricks = {
        "good": image(queue, one, data=FRAME),
        "far-ahead": image(queue, one, index=257, data=FRAME),
        "half-way-round": image(queue, one, index=0x8000, data=FRAME),
        "backwards": image(queue, one, index=9, used=10, data=FRAME),
        "head-behind-table": image(queue, one, heads=(16,), data=FRAME),
        "last-head": image(queue, one, heads=(0xFFFF,), data=FRAME),
        "next-behind-table": image(queue, {0: (DATA, 100, flag | NEXT, 16)}, data=FRAME),
        "chain-bites-its-tail": image(
            queue, {0: (DATA, 1, flag | NEXT, 1), 1: (DATA, 1, flag | NEXT, 0)}, data=FRAME),
        "chain-of-itself": image(queue, {0: (DATA, 0, flag | NEXT, 0)}, data=FRAME),
        "wrong-direction": image(queue, {0: (DATA, 100, flag ^ WRITE, 0)}, data=FRAME),
        "behind-memory": image(queue, {0: (FAR, 100, flag, 0)}, data=FRAME),
        "end-of-addresses": image(queue, {0: (2**64 - 50, 100, flag, 0)}, data=FRAME),
        "four-gigabytes": image(
            queue, {0: (DATA, 2**32 - 1, flag | NEXT, 1), 1: (DATA, 2**32 - 1, flag, 0)},
            data=FRAME),
        "over-the-seam": image(queue, {0: (0xFF0, 100, flag, 0)}, data=FRAME),
        "indirect": image(queue, {0: (DATA, 32, INDIRECT, 0)},
                          data=pack("<QIHHQIHH", 0xFF900, 72, flag | NEXT, 1, 0xFF980, 60, flag, 0)),
        "indirect-in-indirect": image(
            queue, {0: (DATA, 32, INDIRECT, 0)}, data=pack("<QIHH", 0xFF900, 32, INDIRECT, 0)),
        "two-chains": image(queue, {0: (DATA, 20, flag | NEXT, 2), 2: (DATA + 20, 52, flag, 0),
                                    1: (DATA, 72, flag, 0)}, heads=(0, 1), data=FRAME),
        "last-index": image(queue, one, heads=(0,) * 16, index=0, used=0xFFF0, data=FRAME),
    }
    flip = [pack("<HBB", queue * QUEUE + 0x202, 3, 0), pack("<HBB", queue * QUEUE + 8, 0xFF, 0)]
    for name, memory in tricks.items():
        worker(f"{side}-{name}", memory, records=[FRAME] * 2)
    worker(f"{side}-flipped", tricks["two-chains"], flips=flip, records=[FRAME] * 2)
    worker(f"{side}-link-poked", tricks["good"], flips=[pack("<HBB", 0xF000 + 8 * queue, 57, 3)],
           records=[FRAME])
    worker(f"{side}-lean", tricks["good"], features=0, records=[FRAME])
tso = net(1, 64, 34, 16) + ETHERNET + b"\x08\0" + ipv4(6, 150) + TCP + bytes(100)
worker("rx-segments", image(0, {n: (DATA + 8 * n, 200, WRITE, 0) for n in range(16)},
                            heads=range(16)), features=0, records=[tso] * 3)


# Messages of frontends: which one and how, its code, length, descriptors; then the body.

USER, GUEST, SIZE = 0x7F0000000000, 0x100000, 0x100000


def step(code, body=b"", fds=0, kind=0, who=0):
    return pack("BBBB", who, code, len(body), kind << 4 | fds) + body


def state(code, index, value, who=0):
    return step(code, pack("<II", index, value), who=who)


def table(regions, who=0, fds=None):
    body = pack("<II", len(regions), 0) + b"".join(pack("<QQQQ", *region) for region in regions)
    return step(5, body, len(regions) if fds is None else fds, 1, who)


def queue_up(index, who=0):
    user = USER + 0x8000 * index
    addresses = pack("<IIQQQQ", index, 0, user, user + 0x4000, user + 0x6000, 2**64 - 1)
    return (state(8, index, 256, who) + step(9, addresses, who=who) + state(10, index, 0, who)
            + step(13, pack("<Q", index), 1, 0, who) + step(12, pack("<Q", index), 1, 0, who)
            + state(18, index, 1, who))


def bring_up(who=0, features=1 << 32 | 1 << 30 | 1 << 29):
    return (step(1, who=who) + step(15, who=who) + step(16, pack("<Q", 0x2F), who=who)
            + step(2, pack("<Q", features), who=who) + table([(GUEST, SIZE, USER, 0)], who)
            + queue_up(0, who) + queue_up(1, who))


STOP = state(11, 0, 0) + state(11, 1, 0)
for device, first in (("mock", b"\2"), ("port", b"\1")):
    cases = {
        "up": bring_up(),
        "up-and-down": bring_up() + STOP,
        "two": bring_up() + bring_up(1),
        "two-after-the-first": bring_up() + bring_up(1) + STOP + state(18, 0, 1, 1),
        "hang-up": bring_up() + step(1, who=0xC0) + bring_up(),
        "hang-up-while-one-waits": bring_up() + bring_up(1) + step(1, who=0xC1) + STOP,
        "acknowledged": bring_up() + state(18, 0, 0, 4) + state(18, 9, 1, 4),
        "regions": bring_up() + step(38, bytes(8) + pack("<QQQQ", GUEST, SIZE, USER, 0), who=4)
        + step(37, bytes(8) + pack("<QQQQ", 2 * GUEST, SIZE, USER + SIZE, 0), 1, 1, 4),
        "log": bring_up() + step(6, pack("<QQ", 0x1000, 0), 1, 1) + step(2, pack("<Q", 1 << 32 | 1 << 26)),
        "config": bring_up() + step(24, pack("<III", 0, 12, 0) + bytes(12)),
        "overlap": table([(GUEST, SIZE, USER, 0), (GUEST + 4096, SIZE, USER, 0)]),
        "region-wraps": table([(2**64 - 4096, SIZE, USER, 0)]),
        "region-larger-than-its-file": table([(GUEST, 2 * SIZE, USER, 0)]),
        "region-without-descriptor": table([(GUEST, SIZE, USER, 0)], fds=0),
        "too-many-descriptors": bring_up() + step(12, pack("<Q", 0), 8, 0),
        "ring-outside": bring_up() + STOP + step(9, pack("<IIQQQQ", 0, 0, 1, 2, 3, 4)),
        "size-wrong": step(1, b"12345678", who=0x20),
        "rarp-and-mtu": bring_up() + step(19, pack("<Q", 1)) + step(20, pack("<Q", 1400)),
        "pipes": bring_up() + step(13, pack("<Q", 0), 1, 3) + step(12, pack("<Q", 0), 1, 3),
        "reset": bring_up() + step(34) + step(4) + bring_up(),
    }
    for name, steps in cases.items():
        save("vhost_user", f"{device}-{name}", first + steps)

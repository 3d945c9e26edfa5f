"""Messages of protocol 2, by docs/segment-protocol.md alone."""

import struct

import region
from violation import check

VERSION = 2
MAGIC = b"VIsg"
HELLO, REFUSE, LINK, ACCEPT, DONE, FRAME = 1, 2, 4, 5, 6, 7
OPTIONAL = 0x8000
MUST_UNDERSTAND = 0x8000
FIELD_ID = 0x8001
MAX_MESSAGE, MAX_FRAME, REFUSE_SIZE, MAX_TEXT = 1024, 16392, 192, 172
HELLO_HEAD = 48
REASON_VERSION, REASON_REGION, REASON_ID, REASON_MAC, REASON_PARAMETER = 1, 2, 3, 4, 5
REASON_UNAUTHORIZED, REASON_VIOLATION, REASON_DUPLICATE, REASON_UNKNOWN = 6, 8, 11, 12


class Refused(Exception):
    """This port refuses the peer: reason and text."""


class RefusedByPeer(Exception):
    """The peer refuses this port: reason and text."""


def message(kind, body):
    return MAGIC + struct.pack("<HH", kind, 8 + len(body)) + body


def field(kind, value):
    return struct.pack("<HH", kind, len(value)) + value


def fields(data):
    while data:
        check(len(data) >= 4, "a field is cut")
        kind, size = struct.unpack_from("<HH", data)
        check(len(data) >= 4 + size, "a field runs over the end of HELLO")
        yield kind, data[4 : 4 + size]
        data = data[4 + size :]


def is_id(text):
    allowed = all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    return 1 <= len(text) <= 64 and allowed and text[0] != "."


class Hello:
    def __init__(self, body):
        check(len(body) >= 4, "HELLO is too short")
        self.lowest, self.highest = struct.unpack_from("<HH", body)
        if not self.lowest <= VERSION <= self.highest:
            versions = f"{self.lowest} to {self.highest}"
            raise Refused(REASON_VERSION, f"This port speaks version {VERSION}, not {versions}")
        check(len(body) >= HELLO_HEAD - 8, "HELLO is too short")
        (
            self.region,
            self.queues,
            self.incarnation,
            self.largest,
            must_understand,
            _ignored,
            self.pid,
            self.mtu,
            self.mac,
            head,
            _reserved,
        ) = struct.unpack_from("<HHQIHHIH6sHH", body, 4)
        check(HELLO_HEAD <= head <= 8 + len(body), "head size of HELLO")
        if must_understand:
            raise Refused(REASON_UNKNOWN, f"Flags {must_understand:#x} are not known")
        if self.region != region.VERSION:
            raise Refused(REASON_REGION, f"Region format {self.region}")
        identity = None
        for kind, value in fields(body[head - 8 :]):
            if kind == FIELD_ID:
                check(identity is None, "two ids")
                identity = value.decode("ascii", "replace")
            elif kind & MUST_UNDERSTAND:
                raise Refused(REASON_UNKNOWN, f"Field {kind:#x} is not known")
        check(identity is not None, "HELLO without an id")
        if not is_id(identity):
            raise Refused(REASON_ID, f"Id {identity} is not valid")
        self.id = identity
        power = self.largest & (self.largest - 1) == 0 and 1 << 18 <= self.largest <= 1 << 26
        mac = not self.mac[0] & 1 and any(self.mac)
        if not (power and mac and 1 <= self.queues <= 64 and self.mtu >= 68):
            raise Refused(REASON_PARAMETER, "A parameter of HELLO is out of bounds")

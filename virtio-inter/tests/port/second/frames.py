"""Frames of the tests."""

# struct virtio_net_hdr_v1, and an EtherType for experiments (IEEE 802).
NET_HEADER = bytes(12)
ETHERTYPE = b"\x88\xb5"


def mac_bytes(text):
    return bytes(int(octet, 16) for octet in text.split(":"))


def frame_number(frame):
    """The number that a test's frame carries, after a check of the rest of it."""
    number = int.from_bytes(frame[14:18], "little")
    if frame[12:14] != ETHERTYPE or frame[18:] != bytes([number & 0xFF]) * (len(frame) - 18):
        raise SystemExit(f"frame {number} is damaged: {frame[:32].hex()}")
    return number


def frame(destination, source, number, length):
    head = mac_bytes(destination) + source + ETHERTYPE + number.to_bytes(4, "little")
    return NET_HEADER + head.ljust(length, bytes([number & 0xFF]))

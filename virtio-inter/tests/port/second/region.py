"""Region format 2: rings in shared memory, by docs/region-format.md alone."""

import ctypes
import fcntl
import mmap
import os
import struct
import threading

from violation import check

VERSION = 2
PAGE = mmap.PAGESIZE
MIN_CAPACITY, MAX_CAPACITY = 1 << 16, 1 << 26
ALIGNMENT, RECORD_HEADER = 64, 8
# Offsets of the four words: two are in the region, and two in the receiver's page.
PUBLISHED, SPACE_TARGET = 128, 256
CONSUMED, DATA_TARGET = 128, 256
REGION_MAGIC, PAGE_MAGIC = b"vi-link\0", b"vi-recv\0"
# From linux/fcntl.h.
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16
SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE
# From linux/magic.h.
TMPFS_MAGIC = 0x01021994

lock = threading.Lock()


def fence():
    """A full fence, as far as Python has one: to take a lock is an atomic exchange."""
    with lock:
        pass


def padded(length):
    """Bytes that a record takes in the ring."""
    return -(-(RECORD_HEADER + length) // ALIGNMENT) * ALIGNMENT


def passed(target, before, after):
    return before < target <= after


def make_file(name, size, description):
    """A sealed memfd that only this process can write: the descriptor and the mapping."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, size)
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    memory[: len(description)] = description
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    return fd, memory


def open_file(fd, size, description):
    """Checks a file that the peer has made, and maps it."""
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        raise Violation("not a memfd") from None
    statfs = ctypes.create_string_buffer(256)
    check(ctypes.CDLL(None).fstatfs(fd, statfs) == 0, "fstatfs")
    check(ctypes.c_long.from_buffer(statfs).value == TMPFS_MAGIC, "not on tmpfs")
    check(seals & SEALS == SEALS and not seals & SEAL_WRITE, f"seals {seals:#x}")
    stat = os.fstat(fd)
    check(stat.st_size == size, f"size {stat.st_size}")
    check(stat.st_blocks * 512 >= size, "not allocated")
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    check(memory[: len(description)] == description, f"description {memory[:24].hex()}")
    return memory


def region_description(capacity):
    fields = struct.pack("<HHIII", VERSION, RECORD_HEADER, ALIGNMENT, capacity, PAGE)
    return REGION_MAGIC + fields


PAGE_DESCRIPTION = PAGE_MAGIC + struct.pack("<H", VERSION)


class Words:
    """The 64-bit words of a file: each access is one load or store of eight bytes."""

    def __init__(self, memory):
        self.words = memoryview(memory).cast("Q")

    def load(self, offset):
        return self.words[offset // 8]

    def store(self, offset, value):
        self.words[offset // 8] = value


class Ring:
    """What both ends have in common: the data area, and the doorbells."""

    def __init__(self, number, queue, capacity, region, doorbells):
        self.number, self.queue, self.capacity = number, queue, capacity
        self.region = region
        self.region_words = Words(region)
        self.data_doorbell, self.space_doorbell = doorbells
        self.published = self.consumed = 0

    def at(self, position):
        return PAGE + position % self.capacity

    def read(self, position, length):
        start = self.at(position)
        first = self.region[start : min(start + length, PAGE + self.capacity)]
        return first + self.region[PAGE : PAGE + length - len(first)]

    def write(self, position, data):
        start = self.at(position)
        first = data[: PAGE + self.capacity - start]
        self.region[start : start + len(first)] = first
        self.region[PAGE : PAGE + len(data) - len(first)] = data[len(first) :]

    def close(self):
        os.close(self.data_doorbell)
        os.close(self.space_doorbell)


def signal(doorbell):
    try:
        os.eventfd_write(doorbell, 1)
    except BlockingIOError:
        pass  # The counter is full, so the other side has been signalled.


class Sender(Ring):
    """The sending end of a ring, which owns the region."""

    def __init__(self, number, queue, capacity):
        self.fd, region = make_file("region", PAGE + capacity, region_description(capacity))
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        doorbells = os.eventfd(0, flags), os.eventfd(0, flags)
        super().__init__(number, queue, capacity, region, doorbells)
        self.page = None
        self.written = self.last = 0

    def attach(self, fd):
        """Maps the receiver's page, and makes up for a wake-up that it may have asked for."""
        self.page = Words(open_file(fd, PAGE, PAGE_DESCRIPTION))
        self.wake(0, self.published + self.last)

    def wake(self, before, after):
        if self.page is None:
            return
        fence()
        target = self.page.load(DATA_TARGET)
        check(target <= self.published + 1, f"data target {target}")
        if passed(target, before, after):
            signal(self.data_doorbell)

    def has_room(self, length):
        """Whether a record can be written. If not, asks for the space doorbell."""
        if self.fits(length):
            return True
        half = max(padded(length), self.capacity // 2)
        self.wait_for(self.published + half - self.capacity)
        return self.fits(length)

    def is_consumed(self):
        """Whether all has been read. If not, asks for the space doorbell."""
        self.wait_for(self.published)
        self.load_consumed()
        return self.consumed == self.published

    def wait_for(self, position):
        self.region_words.store(SPACE_TARGET, position)
        fence()

    def fits(self, length):
        self.load_consumed()
        return self.written + padded(length) - self.consumed <= self.capacity

    def load_consumed(self):
        if self.page is None:
            return
        consumed = self.page.load(CONSUMED)
        in_order = self.consumed <= consumed <= self.published
        check(in_order and consumed % ALIGNMENT == 0, f"consumed {consumed}")
        self.consumed = consumed

    def send(self, payload):
        assert len(payload) <= self.capacity // 2 - RECORD_HEADER
        self.write(self.written, struct.pack("<II", len(payload), 0) + payload)
        self.written += padded(len(payload))
        self.publish()

    def publish(self):
        before, self.published = self.published, self.written
        self.region_words.store(PUBLISHED, self.published | self.last)
        self.wake(before, self.published + self.last)

    def finish(self):
        self.last = 1
        self.publish()


class Receiver(Ring):
    """The receiving end of a ring, which owns the receiver's page."""

    def __init__(self, number, queue, capacity, fds):
        region = open_file(fds[0], PAGE + capacity, region_description(capacity))
        for doorbell in fds[1:]:
            name = os.readlink(f"/proc/self/fd/{doorbell}")
            check(name == "anon_inode:[eventfd]", f"doorbell is {name}")
        super().__init__(number, queue, capacity, region, fds[1:])
        self.page_fd, page = make_file("page", PAGE, PAGE_DESCRIPTION)
        self.page = Words(page)
        self.last = False

    def look(self):
        """Loads `published`, unless it is final."""
        if self.last:
            return
        word = self.region_words.load(PUBLISHED)
        position = word & ~1
        in_order = self.published <= position <= self.consumed + self.capacity
        check(in_order and position % ALIGNMENT == 0, f"published {word}")
        self.published, self.last = position, bool(word & 1)

    def receive(self):
        """The next payload, or None: then the data doorbell will be signalled for it."""
        self.look()
        if self.consumed == self.published and not self.last:
            self.page.store(DATA_TARGET, self.published + 1)
            fence()
            self.look()
        if self.consumed == self.published:
            return None
        length, reserved = struct.unpack("<II", self.read(self.consumed, RECORD_HEADER))
        check(reserved == 0, "reserved part of a record")
        check(length <= self.capacity // 2 - RECORD_HEADER, f"record of {length} bytes")
        after = self.consumed + padded(length)
        check(after <= self.published, "record beyond the published position")
        payload = self.read(self.consumed + RECORD_HEADER, length)
        before, self.consumed = self.consumed, after
        self.page.store(CONSUMED, after)
        fence()
        target = self.region_words.load(SPACE_TARGET)
        check(target <= self.consumed + self.capacity, f"space target {target}")
        if passed(target, before, after):
            signal(self.space_doorbell)
        return payload

    @property
    def finished(self):
        return self.last and self.consumed == self.published

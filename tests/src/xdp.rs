//! An XDP program for a guest's interface, as an object file that
//! `ip link set dev NAME xdp obj FILE sec xdp` loads.

use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

use crate::Result;

/// Return values of an XDP program.
const PASS: i32 = 2;
const SEND_BACK: i32 = 3;

/// Registers: the result, scratch, the packet's begin and end.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: [u8; 2] = [3, 4];
const LIMIT: u8 = 2;
const BEGIN: u8 = 6;
const END: u8 = 7;

/// Sizes of loads and stores, as their instructions have them (RFC 9669, 5).
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;

/// Instructions (RFC 9669), with jumps to the end that are filled in there.
#[derive(Default)]
struct Program {
    code: Vec<[u8; 8]>,
    to_end: Vec<usize>,
}

impl Program {
    fn put(&mut self, opcode: u8, target: u8, source: u8, offset: i16, value: i32) -> usize {
        let mut bytes = [0; 8];
        bytes[0] = opcode;
        bytes[1] = source << 4 | target;
        bytes[2..4].copy_from_slice(&offset.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        self.code.push(bytes);
        self.code.len() - 1
    }

    fn load(&mut self, size: u8, target: u8, source: u8, offset: i16) {
        self.put(0x61 | size, target, source, offset, 0);
    }

    fn store(&mut self, size: u8, offset: i16, source: u8) {
        self.put(0x63 | size, BEGIN, source, offset, 0);
    }

    fn set(&mut self, target: u8, value: i32) {
        self.put(0xb7, target, 0, 0, value);
    }

    fn add(&mut self, target: u8, value: i32) {
        self.put(0x07, target, 0, 0, value);
    }

    /// To the end, unless the packet has `len` bytes.
    fn need(&mut self, len: i32) {
        self.put(0xbf, LIMIT, BEGIN, 0, 0);
        self.add(LIMIT, len);
        let jump = self.put(0x2d, LIMIT, END, 0, 0);
        self.to_end.push(jump);
    }

    /// To the end, unless the byte at `offset` is `value`.
    fn need_byte(&mut self, offset: i16, value: i32) {
        self.load(BYTE, SCRATCH[0], BEGIN, offset);
        let jump = self.put(0x55, SCRATCH[0], 0, 0, value);
        self.to_end.push(jump);
    }

    fn swap(&mut self, size: u8, one: i16, other: i16) {
        self.load(size, SCRATCH[0], BEGIN, one);
        self.load(size, SCRATCH[1], BEGIN, other);
        self.store(size, one, SCRATCH[1]);
        self.store(size, other, SCRATCH[0]);
    }

    /// Adds to the checksum at `offset`, in the arithmetic of the Internet checksum (RFC 1624).
    fn add_to_checksum(&mut self, offset: i16, value: i32) {
        let sum = SCRATCH[0];
        self.load(HALF, sum, BEGIN, offset);
        self.put(0xdc, sum, 0, 0, 16); // From big-endian.
        self.add(sum, value);
        self.put(0xb5, sum, 0, 1, 0xffff); // Over the next one if it fits.
        self.add(sum, -0xffff);
        self.put(0xdc, sum, 0, 0, 16);
        self.store(HALF, offset, sum);
    }

    fn fill_jump(&mut self, jump: usize) {
        let distance = (self.code.len() - jump - 1) as i16; // The program is short.
        self.code[jump][2..4].copy_from_slice(&distance.to_le_bytes());
    }
}

/// Answers echo requests over IPv4 (without options) and IPv6 (without extension headers) by
/// sending them back changed, and passes everything else on.
///
/// # Errors
///
/// An object file that cannot be written.
pub fn echo_program() -> Result<Vec<u8>> {
    let mut program = Program::default();
    program.load(WORD, BEGIN, CONTEXT, 0);
    program.load(WORD, END, CONTEXT, 4);
    program.set(RESULT, PASS);
    program.need(42);
    program.load(HALF, SCRATCH[0], BEGIN, 12);
    let to_v4 = program.put(0x15, SCRATCH[0], 0, 0, i32::from(0x0800_u16.to_be()));
    let other = program.put(0x55, SCRATCH[0], 0, 0, i32::from(0x86dd_u16.to_be()));
    program.to_end.push(other);
    // IPv6: ICMPv6 behind it, echo request to echo reply, addresses swapped.
    program.need(62);
    program.need_byte(20, 58);
    program.need_byte(54, 128);
    program.set(SCRATCH[0], 129);
    program.store(BYTE, 54, SCRATCH[0]);
    for part in 0..4 {
        program.swap(WORD, 22 + 4 * part, 38 + 4 * part);
    }
    // The type grew by one in the upper byte: less 0x100, which is this much more.
    program.add_to_checksum(56, 0xffff - 0x100);
    let to_ethernet = program.put(0x05, 0, 0, 0, 0);
    program.fill_jump(to_v4);
    program.need_byte(14, 0x45);
    program.need_byte(23, 1);
    program.need_byte(34, 8);
    program.set(SCRATCH[0], 0);
    program.store(BYTE, 34, SCRATCH[0]);
    program.swap(WORD, 26, 30);
    program.add_to_checksum(36, 0x800);
    program.fill_jump(to_ethernet);
    program.swap(WORD, 0, 6);
    program.swap(HALF, 4, 10);
    program.set(RESULT, SEND_BACK);
    for jump in std::mem::take(&mut program.to_end) {
        program.fill_jump(jump);
    }
    program.put(0x95, 0, 0, 0, 0);

    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = program.code.concat();
    let section = file.add_section(Vec::new(), b"xdp".to_vec(), SectionKind::Text);
    file.append_section_data(section, &code, 8);
    file.add_symbol(Symbol {
        name: b"echo".to_vec(),
        value: 0,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    let license = file.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    file.append_section_data(license, b"Dual BSD/GPL\0", 1);
    Ok(file.write()?)
}

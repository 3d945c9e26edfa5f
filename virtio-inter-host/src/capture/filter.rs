//! `--filter`: a program for the classic BPF machine (McCanne and Jacobson, 1993), which tcpdump
//! makes of an expression. It runs in the capturing process: the port knows nothing of it.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use thiserror::Error;

/// Instructions of a program at most, as in the kernel (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Words of the machine's memory.
const MEMORY: usize = 16;
/// The header of a pcap file of Ethernet frames without a frame, of which tcpdump takes the type.
const EMPTY_PCAP: [u8; 24] = [
    0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0,
];

/// Why there is no filter.
#[derive(Debug, Error)]
pub(crate) enum FilterError {
    /// There is nobody to translate the expression.
    #[error(
        "Cannot translate --filter: tcpdump is not installed; install it, or give a program as \
         `tcpdump -ddd` prints it elsewhere, with commas in place of line ends"
    )]
    NoTcpdump,
    /// It does not take the expression.
    #[error("Cannot translate --filter: {0}")]
    Expression(String),
    /// A program that is none.
    #[error("--filter is no BPF program: {0}")]
    Program(String),
}

/// An instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

/// A program that was checked: it ends, and touches nothing but its memory.
#[derive(Debug)]
pub(crate) struct Filter(Vec<Instruction>);

impl Filter {
    /// Takes the value of `--filter`.
    pub(crate) fn new(text: &str) -> Result<Self, FilterError> {
        let is_program = text.split_once(',').is_some_and(|(count, _)| {
            !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit())
        });
        if is_program {
            return Self::parse(text.trim_end_matches(','), ',');
        }
        let program = translate(text)?;
        Self::parse(program.trim_end(), '\n')
    }

    /// Parses a program: the number of instructions, and each as four numbers.
    fn parse(text: &str, separator: char) -> Result<Self, FilterError> {
        let bad = |why: &str| FilterError::Program(why.to_owned());
        let mut lines = text.split(separator);
        let count = lines.next().and_then(|count| count.trim().parse().ok());
        let instructions: Option<Vec<Instruction>> = lines.map(instruction).collect();
        let instructions =
            instructions.ok_or_else(|| bad("an instruction is four numbers: code jt jf k"))?;
        if count != Some(instructions.len()) {
            return Err(bad("the first number is not that of the instructions"));
        }
        check(&instructions).map_err(FilterError::Program)?;
        Ok(Self(instructions))
    }

    /// Whether the program accepts a frame of `len` bytes that begins with these. Bytes that were
    /// not captured make it refuse the frame, if it needs them.
    pub(crate) fn accepts(&self, bytes: &[u8], len: u32) -> bool {
        self.run(bytes, len).is_some_and(|result| result != 0)
    }

    /// None: a load from outside of the frame, or a division by zero.
    fn run(&self, bytes: &[u8], len: u32) -> Option<u32> {
        let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY]);
        let mut next = 0;
        loop {
            let Instruction {
                code,
                if_true,
                if_false,
                k,
            } = *self.0.get(next)?;
            next += 1;
            let operand = if code & 0x08 != 0 { x } else { k };
            match code & 0x07 {
                // LD, LDX.
                0 | 1 => {
                    let value = match code & 0xe0 {
                        0x00 => k,
                        0x20 => load(bytes, k, code)?,
                        0x40 => load(bytes, x.checked_add(k)?, code)?,
                        0x60 => memory[k as usize % MEMORY],
                        0x80 => len,
                        // Four times the lower half of a byte: the length of an IP header.
                        _ => (u32::from(*bytes.get(k as usize)?) & 0xf) << 2,
                    };
                    *(if code & 0x07 == 0 { &mut a } else { &mut x }) = value;
                }
                // ST, STX.
                2 => memory[k as usize % MEMORY] = a,
                3 => memory[k as usize % MEMORY] = x,
                4 => a = compute(code, a, operand)?,
                // JMP.
                5 => {
                    let holds = match code & 0xf0 {
                        0x00 => {
                            next += k as usize;
                            continue;
                        }
                        0x10 => a == operand,
                        0x20 => a > operand,
                        0x30 => a >= operand,
                        _ => a & operand != 0,
                    };
                    next += usize::from(if holds { if_true } else { if_false });
                }
                // RET.
                6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
                // MISC: TAX, TXA.
                _ if code & 0x80 == 0 => x = a,
                _ => a = x,
            }
        }
    }
}

/// A word, half word or byte of the frame, in network order.
fn load(bytes: &[u8], at: u32, code: u16) -> Option<u32> {
    let bytes = bytes.get(at as usize..)?;
    Some(match code & 0x18 {
        0x00 => u32::from_be_bytes(*bytes.first_chunk()?),
        0x08 => u16::from_be_bytes(*bytes.first_chunk()?).into(),
        _ => (*bytes.first()?).into(),
    })
}

fn compute(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        0x00 => a.wrapping_add(operand),
        0x10 => a.wrapping_sub(operand),
        0x20 => a.wrapping_mul(operand),
        0x30 => a.checked_div(operand)?,
        0x40 => a | operand,
        0x50 => a & operand,
        0x60 => a.checked_shl(operand).unwrap_or(0),
        0x70 => a.checked_shr(operand).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0x90 => a.checked_rem(operand)?,
        _ => a ^ operand,
    })
}

fn instruction(line: &str) -> Option<Instruction> {
    let mut numbers = line.split_whitespace();
    let mut next = || numbers.next();
    let instruction = Instruction {
        code: next()?.parse().ok()?,
        if_true: next()?.parse().ok()?,
        if_false: next()?.parse().ok()?,
        k: next()?.parse().ok()?,
    };
    next().is_none().then_some(instruction)
}

/// Checks that a program ends within itself: jumps go forward only.
fn check(program: &[Instruction]) -> Result<(), String> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(format!("it has 1 to {MAX_INSTRUCTIONS} instructions"));
    }
    for (at, one) in program.iter().enumerate() {
        let bad = |what: &str| Err(format!("instruction {at} {what}"));
        let left = program.len() - at - 1;
        match one.code & 0x07 {
            0 | 1 if one.code & 0xe0 > 0xa0 => return bad("loads from nowhere"),
            0 | 1 if one.code & 0xe0 == 0x60 && one.k as usize >= MEMORY => {
                return bad("is outside of the memory");
            }
            2 | 3 if one.k as usize >= MEMORY => return bad("is outside of the memory"),
            4 if one.code & 0xf0 > 0xa0 => return bad("computes nothing"),
            5 if one.code & 0xf0 == 0 && one.k as usize >= left => return bad("jumps outside"),
            5 if one.code & 0xf0 > 0x40 => return bad("is no jump"),
            5 if one.code & 0xf0 != 0 && usize::from(one.if_true.max(one.if_false)) >= left => {
                return bad("jumps outside");
            }
            6 => {}
            _ if left == 0 => return bad("is the last one and does not return"),
            _ => {}
        }
    }
    Ok(())
}

/// Has tcpdump translate an expression.
fn translate(expression: &str) -> Result<String, FilterError> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => FilterError::NoTcpdump,
        _ => FilterError::Expression(format!("cannot run tcpdump: {error}")),
    };
    let mut tcpdump = Command::new("tcpdump")
        .args(["-ddd", "-r", "-", "--", expression])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = tcpdump.stdin.take() {
        // It may have failed before it reads.
        let _ = input.write_all(&EMPTY_PCAP);
    }
    let output = tcpdump.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().rfind(|line| !line.starts_with("reading from"));
        let said = said.unwrap_or("tcpdump failed").trim();
        return Err(FilterError::Expression(said.to_owned()));
    }
    String::from_utf8(output.stdout)
        .map_err(|_| FilterError::Expression("tcpdump printed no program".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ARP request of 60 bytes, and a TCP segment to port 80.
    fn frames() -> (Vec<u8>, Vec<u8>) {
        let mut arp = vec![0xff; 6];
        arp.extend([0x52, 0x54, 0, 0, 0, 1, 0x08, 0x06]);
        arp.resize(60, 0);
        let mut tcp = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1, 0x08, 0];
        tcp.extend([
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        tcp.extend([0x30, 0x39, 0, 80]);
        tcp.resize(60, 0);
        (arp, tcp)
    }

    #[test]
    fn filter_runs_a_program_as_tcpdump_prints_it() {
        let (arp, tcp) = frames();
        // `tcpdump -y EN10MB -ddd arp`, and `tcp dst port 80` (IPv4 and IPv6).
        let of_arp = Filter::new("4,40 0 0 12,21 0 1 2054,6 0 0 262144,6 0 0 0").unwrap();
        assert!(of_arp.accepts(&arp, 60) && !of_arp.accepts(&tcp, 60));
        let of_port = Filter::new(
            "16,40 0 0 12,21 0 4 34525,48 0 0 20,21 0 11 6,40 0 0 56,21 8 9 80,21 0 8 2048,\
             48 0 0 23,21 0 6 6,40 0 0 20,69 4 0 8191,177 0 0 14,72 0 0 16,21 0 1 80,\
             6 0 0 262144,6 0 0 0",
        )
        .unwrap();
        assert!(of_port.accepts(&tcp, 60) && !of_port.accepts(&arp, 60));
        // The port was not captured.
        assert!(!of_port.accepts(&tcp[..30], 60));
    }

    #[test]
    fn filter_that_does_not_end_within_itself_is_refused() {
        for (program, why) in [
            ("0,", "1 to 4096"),
            ("1,6 0 0", "four numbers"),
            ("2,6 0 0 1", "first number"),
            ("1,40 0 0 12", "does not return"),
            ("2,21 1 0 5,6 0 0 0", "jumps outside"),
            ("2,5 0 0 1,6 0 0 0", "jumps outside"),
            ("2,5 0 0 4294967295,6 0 0 0", "jumps outside"),
            ("2,96 0 0 16,6 0 0 0", "memory"),
            ("2,2 0 0 16,6 0 0 0", "memory"),
            ("2,224 0 0 0,6 0 0 0", "nowhere"),
        ] {
            let error = Filter::new(program).unwrap_err().to_string();
            assert!(error.contains(why), "{program}: {error}");
        }
    }

    /// The operations that no program above has.
    #[test]
    fn filter_computes_as_the_kernel_does() {
        // A = 7, then the operation with 3, then return A.
        for (code, expected) in [
            (0x04, 10),
            (0x14, 4),
            (0x24, 21),
            (0x34, 2),
            (0x44, 7),
            (0x54, 3),
            (0x64, 56),
            (0x74, 0),
            (0x94, 1),
            (0xa4, 4),
        ] {
            let filter = Filter::new(&format!("3,0 0 0 7,{code} 0 0 3,22 0 0 0")).unwrap();
            assert_eq!(filter.run(&[], 0), Some(expected), "{code:#x}");
        }
        let of = |program| Filter::new(program).unwrap().run(&[0x46, 1, 2, 3, 4], 99);
        assert_eq!(
            of("3,0 0 0 7,132 0 0 0,22 0 0 0"),
            Some(7u32.wrapping_neg())
        );
        assert_eq!(of("2,128 0 0 0,22 0 0 0"), Some(99), "length");
        assert_eq!(of("3,177 0 0 0,135 0 0 0,22 0 0 0"), Some(24), "IP header");
        assert_eq!(
            of("3,1 0 0 1,64 0 0 0,22 0 0 0"),
            Some(0x0102_0304),
            "indirect"
        );
        assert_eq!(of("3,1 0 0 0,60 0 0 0,22 0 0 0"), None, "division by zero");
        let stored = "6,0 0 0 9,2 0 0 15,0 0 0 1,7 0 0 0,96 0 0 15,22 0 0 0";
        assert_eq!(of(stored), Some(9));
    }
}

//! A preloaded `ptrace` that lets User Mode Linux run on processors with AMX.
//!
//! User Mode Linux moves the extended FP state of its processes by `PTRACE_GETREGSET` and
//! `PTRACE_SETREGSET` through a buffer that was ample before AMX. Reading into a buffer that is too
//! small gives the first part; writing that part back fails, as the host kernel takes all of the
//! state or nothing. User Mode Linux then panics at its first process. This library, put before
//! libc by `LD_PRELOAD`, completes such writes: the missing tail holds nothing but AMX tiles, which
//! no process inside can have enabled, and is declared unused.
//!
//! It allocates nothing, has no thread-locals of its own and keeps its one buffer static, since
//! User Mode Linux calls it on small stacks that it made itself.
#![allow(
    unsafe_code,
    reason = "interposes a libc function that takes raw pointers"
)]

use std::cell::UnsafeCell;
use std::ptr;

use libc::{c_long, c_uint, c_void, iovec, pid_t};

/// `NT_X86_XSTATE`: the register set in the format of the XSAVE instruction.
const XSTATE: usize = 0x202;
/// Larger than any state that a processor defines today (AMX: 11,008 bytes).
const CAPACITY: usize = 16 * 1024;
/// Offset of the mask of the components in use in the XSAVE header (Intel SDM volume 1, section
/// 13.4.2).
const IN_USE: usize = 512;
/// Shortest state that has the mask.
const SHORTEST: usize = IN_USE + size_of::<u64>();
/// XTILECFG and XTILEDATA, state components 17 and 18.
const TILES: u64 = 0b11 << 17;

#[repr(C, align(64))]
struct State {
    bytes: [u8; CAPACITY],
    /// Size of the host's state in bytes; 0 until the first read.
    full: usize,
}

struct Shared(UnsafeCell<State>);

// SAFETY: User Mode Linux 6.1 calls ptrace from its one kernel thread only (it has no SMP, and its
// helper threads do not trace), so the state is never reached by two threads.
unsafe impl Sync for Shared {}

static STATE: Shared = Shared(UnsafeCell::new(State {
    bytes: [0; CAPACITY],
    full: 0,
}));

/// `ptrace(2)` with the convention of libc's wrapper.
///
/// # Safety
///
/// As for libc's: `data` points to what the request asks for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_uint,
    pid: pid_t,
    address: *mut c_void,
    data: *mut c_void,
) -> c_long {
    let is_state = address.addr() == XSTATE;
    match request {
        libc::PTRACE_GETREGSET if is_state => {
            // SAFETY: for a register set `data` is the caller's iovec.
            unsafe { read_state(pid, &mut *data.cast()) }
        }
        libc::PTRACE_SETREGSET if is_state => {
            // SAFETY: for a register set `data` is the caller's iovec.
            unsafe { write_state(pid, &mut *data.cast()) }
        }
        libc::PTRACE_PEEKTEXT | libc::PTRACE_PEEKDATA | libc::PTRACE_PEEKUSER => {
            // The system call stores the word; libc's wrapper returns it and clears errno.
            let mut word: c_long = 0;
            // SAFETY: these requests write one word through the last argument.
            let result = unsafe { kernel(request, pid, address, (&raw mut word).cast()) };
            if result < 0 {
                return result;
            }
            // SAFETY: errno of the calling thread is always mapped.
            unsafe { *libc::__errno_location() = 0 };
            word
        }
        // SAFETY: the caller's arguments as they came.
        _ => unsafe { kernel(request, pid, address, data) },
    }
}

/// # Safety
///
/// `data` is what `request` asks for.
unsafe fn kernel(request: c_uint, pid: pid_t, address: *mut c_void, data: *mut c_void) -> c_long {
    // SAFETY: the caller vouches for `data`; the kernel checks the rest.
    unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            c_long::from(request),
            c_long::from(pid),
            address,
            data,
        )
    }
}

/// Reads the whole state, gives the caller as much as fits and remembers the size of the whole.
///
/// # Safety
///
/// `buffer` describes writable memory, which is not [`STATE`].
unsafe fn read_state(pid: pid_t, buffer: &mut iovec) -> c_long {
    // SAFETY: one thread only (see `Shared`), and no reference to the state outlives a call.
    let state = unsafe { &mut *STATE.0.get() };
    let mut whole = iovec {
        iov_base: state.bytes.as_mut_ptr().cast(),
        iov_len: CAPACITY,
    };
    // SAFETY: the request takes an iovec, this one covers `state.bytes`.
    let result = unsafe {
        kernel(
            libc::PTRACE_GETREGSET,
            pid,
            ptr::without_provenance_mut(XSTATE),
            (&raw mut whole).cast(),
        )
    };
    if result < 0 {
        return result;
    }
    // The kernel fills in how much it wrote, never more than there was room for.
    state.full = whole.iov_len.min(CAPACITY);
    let len = buffer.iov_len.min(state.full);
    // SAFETY: `len` is within both buffers, which are distinct objects.
    unsafe { ptr::copy_nonoverlapping(state.bytes.as_ptr(), buffer.iov_base.cast(), len) };
    buffer.iov_len = len;
    result
}

/// Writes the caller's state, made as long as the host wants it.
///
/// # Safety
///
/// `buffer` describes readable memory, which is not [`STATE`].
unsafe fn write_state(pid: pid_t, buffer: &mut iovec) -> c_long {
    // SAFETY: one thread only (see `Shared`), and no reference to the state outlives a call.
    let state = unsafe { &mut *STATE.0.get() };
    let len = buffer.iov_len;
    let mut whole = iovec {
        iov_base: buffer.iov_base,
        iov_len: len,
    };
    if (SHORTEST..state.full).contains(&len) {
        let (head, tail) = state.bytes[..state.full].split_at_mut(len);
        // SAFETY: the caller's buffer holds `len` bytes, as many as `head`, and is another object.
        unsafe { ptr::copy_nonoverlapping(buffer.iov_base.cast(), head.as_mut_ptr(), len) };
        tail.fill(0);
        if let Some(mask) = head[IN_USE..].first_chunk_mut() {
            *mask = (u64::from_le_bytes(*mask) & !TILES).to_le_bytes();
        }
        whole = iovec {
            iov_base: state.bytes.as_mut_ptr().cast(),
            iov_len: state.full,
        };
    }
    // SAFETY: the request takes an iovec, this one covers the caller's buffer or `state.bytes`.
    unsafe {
        kernel(
            libc::PTRACE_SETREGSET,
            pid,
            ptr::without_provenance_mut(XSTATE),
            (&raw mut whole).cast(),
        )
    }
}

//! The kernel's account of how long threads were ready to run while others had their CPU
//! (Linux, `Documentation/scheduler/sched-stats.rst`), in whatever control groups they are.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::thread::sched_getcpu;

/// Numbers that follow a CPU's name in `/proc/schedstat`, in versions 15 to 17 of the file.
const CPU_NUMBERS: usize = 9;
/// Which of them is the time that threads have waited for that CPU, in nanoseconds.
const CPU_WAITED: usize = 7;

/// Time for which other threads than one waited for a CPU.
#[derive(Debug)]
pub(crate) struct WaitAccount {
    run_queues: BufReader<File>,
    /// Kept from one reading to the next.
    line: Vec<u8>,
    this_thread: File,
}

impl WaitAccount {
    /// For the calling thread, from the account of all run queues at `run_queues`.
    pub(crate) fn of_this_thread(run_queues: &Path) -> io::Result<Self> {
        let mut account = WaitAccount {
            run_queues: BufReader::new(File::open(run_queues)?),
            line: Vec::new(),
            this_thread: File::open("/proc/thread-self/schedstat")?,
        };
        // Whether the kernel fills them in is known before they are needed.
        account.others_waited(sched_getcpu())?;
        Ok(account)
    }

    /// Nanoseconds for which other threads have waited for `cpu` so far, but for a constant, which
    /// may make it negative: two readings tell the time between them.
    pub(crate) fn others_waited(&mut self, cpu: usize) -> io::Result<i64> {
        let all = self.all_waited(cpu)?;
        Ok(all.wrapping_sub(self.this_thread_waited()?).cast_signed())
    }

    /// Nanoseconds for which all threads have waited for `cpu`.
    fn all_waited(&mut self, cpu: usize) -> io::Result<u64> {
        let name = format!("cpu{cpu}");
        self.run_queues.rewind()?;
        // The file grows with the number of CPUs: only the part up to this one is read.
        loop {
            self.line.clear();
            let line = self.run_queues.by_ref();
            if line.read_until(b'\n', &mut self.line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(numbers) = self.line.strip_prefix(name.as_bytes())
                && numbers.first() == Some(&b' ')
            {
                let numbers = numbers_of(numbers)?;
                return match numbers.get(CPU_WAITED) {
                    Some(&waited) if numbers.len() == CPU_NUMBERS => Ok(waited),
                    _ => Err(ErrorKind::InvalidData.into()),
                };
            }
        }
    }

    /// Nanoseconds for which this thread has waited for whatever CPU: the second of three numbers.
    fn this_thread_waited(&self) -> io::Result<u64> {
        let mut text = [0; 64]; // At most 3 × 20 digits, two spaces, a line feed.
        let len = self.this_thread.read_at(&mut text, 0)?;
        match numbers_of(&text[..len])?[..] {
            // A kernel that does not count leaves all at zero.
            [_, waited, slices] if slices != 0 => Ok(waited),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

fn numbers_of(text: &[u8]) -> io::Result<Vec<u64>> {
    let invalid = || io::Error::from(ErrorKind::InvalidData);
    let text = str::from_utf8(text).map_err(|_| invalid())?;
    let numbers = text.split_ascii_whitespace().map(str::parse);
    numbers.collect::<Result<_, _>>().map_err(|_| invalid())
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use super::*;

    fn all_waited(text: &str, cpu: usize) -> io::Result<u64> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let mut account = WaitAccount {
            run_queues: BufReader::new(File::open(file.path())?),
            line: Vec::new(),
            this_thread: File::open("/proc/thread-self/schedstat")?,
        };
        // Each reading begins at the file's start.
        let first = all_waited_by(&mut account, cpu)?;
        assert_eq!(all_waited_by(&mut account, cpu)?, first);
        Ok(first)
    }

    fn all_waited_by(account: &mut WaitAccount, cpu: usize) -> io::Result<u64> {
        account.all_waited(cpu)
    }

    #[test]
    fn run_queue_account_is_that_of_the_cpu() {
        let text = "version 17\ntimestamp 4\ncpu10 1 2 3 4 5 6 7 800 9\ndomain0 SMT 3 0\n\
            cpu1 1 2 3 4 5 6 7 88 9\ncpu11 1 2 3 4 5 6 7 8 9\n";
        assert_eq!(all_waited(text, 1).unwrap(), 88);
        assert_eq!(all_waited(text, 10).unwrap(), 800);
        assert!(all_waited(text, 2).is_err());
    }

    #[test]
    fn run_queue_account_of_another_form_is_an_error() {
        for numbers in [
            "1 2 3 4 5 6 7 8",
            "1 2 3 4 5 6 7 8 9 10",
            "1 2 3 4 5 6 7 x 9",
            "",
        ] {
            let text = format!("version 14\ncpu0 {numbers}\n");
            assert!(all_waited(&text, 0).is_err(), "{numbers}");
        }
    }

    #[test]
    fn run_queue_account_of_this_kernel_is_read_or_missing() {
        match WaitAccount::of_this_thread("/proc/schedstat".as_ref()) {
            Ok(_) => {}
            // A kernel without CONFIG_SCHEDSTATS.
            Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
        }
    }

    #[test]
    fn thread_account_is_that_of_the_thread_that_opened_it() {
        let account = WaitAccount {
            run_queues: BufReader::new(File::open("/dev/null").unwrap()),
            line: Vec::new(),
            this_thread: File::open("/proc/thread-self/schedstat").unwrap(),
        };
        account.this_thread_waited().unwrap();
    }
}

//! Tests of a port's files: who gets an id, what is left behind, who may connect.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

fn id(text: &str) -> PortId {
    text.parse().unwrap()
}

fn join(path: &Path, port: &str) -> Result<Membership, JoinError> {
    Membership::new(&Directory::open(path).unwrap(), &id(port), &Closer::new())
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_come_and_go_with_the_port() {
    let temp = tempfile::tempdir().unwrap();
    let member = join(temp.path(), "web").unwrap();
    assert_eq!(names(temp.path()), ["web.lock", "web.sock"]);
    assert!(member.is_in_place());
    let path = temp.path().join("web.sock");
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    crate::socket::connect(&path).unwrap();
    drop(member);
    assert_eq!(names(temp.path()), [""; 0]);
}

#[test]
fn id_is_given_once() {
    let temp = tempfile::tempdir().unwrap();
    let member = join(temp.path(), "web").unwrap();
    let error = join(temp.path(), "web").unwrap_err();
    let message = format!(
        "Port id web is taken by a live port (process {}): give each port of a segment a name \
         (--id) and an address of its own",
        std::process::id()
    );
    assert_eq!(error.to_string(), message);
    assert_eq!(names(temp.path()), ["web.lock", "web.sock"]);
    let other = join(temp.path(), "web2").unwrap();
    drop((member, other));
    assert_eq!(names(temp.path()), [""; 0]);
}

#[test]
fn files_of_a_dead_port_are_taken_over() {
    let temp = tempfile::tempdir().unwrap();
    // As after SIGKILL in the middle of joining, and after it: files that nobody holds.
    drop(UnixListener::bind(temp.path().join(".web.new")).unwrap());
    drop(UnixListener::bind(temp.path().join("web.sock")).unwrap());
    fs::write(
        temp.path().join("web.lock"),
        "999999999 and more than one pid long\n",
    )
    .unwrap();
    let member = join(temp.path(), "web").unwrap();
    assert_eq!(names(temp.path()), ["web.lock", "web.sock"]);
    let pid = fs::read_to_string(temp.path().join("web.lock")).unwrap();
    assert_eq!(pid, format!("{}\n", std::process::id()));
    crate::socket::connect(&temp.path().join("web.sock")).unwrap();
    drop(member);
    assert_eq!(names(temp.path()), [""; 0]);
}

/// Many at once for one id: never two at a time, and somebody always gets it.
#[test]
fn race_for_an_id_has_one_winner() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let temp = tempfile::tempdir().unwrap();
    let holders = AtomicUsize::new(0);
    let wins = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    match join(temp.path(), "web") {
                        Ok(member) => {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            wins.fetch_add(1, Ordering::SeqCst);
                            assert!(member.is_in_place());
                            holders.fetch_sub(1, Ordering::SeqCst);
                        }
                        Err(JoinError::IdTaken { .. }) => {}
                        Err(e) => panic!("{e:?}"),
                    }
                }
            });
        }
    });
    assert!(wins.into_inner() > 0);
    assert_eq!(names(temp.path()), [""; 0]);
}

#[test]
fn socket_follows_the_mode_of_the_directory() {
    let temp = tempfile::tempdir().unwrap();
    for (directory, file) in [
        (0o700, 0o600),
        (0o755, 0o600),
        (0o770, 0o660),
        (0o777, 0o666),
    ] {
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(directory)).unwrap();
        let member = join(temp.path(), "web").unwrap();
        for name in ["web.sock", "web.lock"] {
            let mode = fs::metadata(temp.path().join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(
                mode & 0o777,
                file,
                "{name} in a directory of mode {directory:o}"
            );
        }
        drop(member);
    }
}

#[test]
fn path_that_is_too_long_is_measured() {
    let temp = tempfile::tempdir().unwrap();
    let base = temp.path().as_os_str().len();
    // "/" before the directory, and "/a.sock" after it.
    let fits = temp.path().join("d".repeat(MAX_SOCKET_PATH - base - 1 - 7));
    fs::create_dir(&fits).unwrap();
    let member = join(&fits, "a").unwrap();
    crate::socket::connect(&fits.join("a.sock")).unwrap();
    drop(member);
    let error = join(&fits, "ab").unwrap_err();
    let message = format!(
        "Socket path {}/ab.sock has 108 bytes, at most 107 are allowed",
        fits.display()
    );
    assert_eq!(error.to_string(), message);
    assert_eq!(names(&fits), [""; 0]);
}

#[test]
fn directories_that_will_not_do() {
    let temp = tempfile::tempdir().unwrap();
    let missing = Directory::open(&temp.path().join("missing")).unwrap_err();
    assert!(matches!(missing, JoinError::NoDirectory(_)));
    assert!(
        missing.to_string().ends_with("/missing does not exist"),
        "{missing}"
    );
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Directory::open(&file).unwrap_err();
    assert!(matches!(error, JoinError::NotADirectory(_)), "{error:?}");
    // One in which not even root can make a file.
    let error = join(Path::new("/sys/kernel"), "web").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Segment directory /sys/kernel is not writable"
    );
}

#[test]
fn lock_that_is_no_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("a.lock")).unwrap();
    std::os::unix::fs::symlink("elsewhere", temp.path().join("b.lock")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        temp.path().join("c.lock"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    fs::write(temp.path().join("precious"), "keep").unwrap();
    fs::hard_link(temp.path().join("precious"), temp.path().join("d.lock")).unwrap();
    for port in ["a", "b", "c", "d"] {
        let error = join(temp.path(), port).unwrap_err();
        assert!(matches!(error, JoinError::Lock { .. }), "{port}: {error:?}");
    }
    assert_eq!(
        names(temp.path()),
        ["a.lock", "b.lock", "c.lock", "d.lock", "precious"]
    );
    assert_eq!(
        fs::read_to_string(temp.path().join("precious")).unwrap(),
        "keep"
    );
}

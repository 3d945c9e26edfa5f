//! `virtio-inter segment`: makes, removes and lists the directories of segments.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::Serialize;
use virtio_inter_args::{SEGMENTS, segment_directory};

use crate::args::{CreateArgs, DeleteArgs, Places, SegmentCommand, SegmentListArgs};
use crate::place::{self, Place};
use crate::segment_mode::SegmentMode;
use crate::text::{json, safe, table};

/// Mode of the directory above all segments: every user may look for a segment.
const MODE_OF_ALL: u32 = 0o755;

/// Runs `virtio-inter segment`. Returns what goes to standard output.
///
/// # Errors
///
/// When the directory cannot be made, ports live on the segment, or it has files of others.
pub fn run(command: &SegmentCommand) -> Result<String> {
    match command {
        SegmentCommand::Create(arguments) => create(arguments),
        SegmentCommand::Delete(arguments) => delete(arguments),
        SegmentCommand::List(arguments) => list(arguments),
    }
}

fn create(arguments: &CreateArgs) -> Result<String> {
    let path = segment_directory(&arguments.segment)?;
    let mode = arguments.mode.unwrap_or(match arguments.group {
        Some(_) => SegmentMode::GROUP,
        None => SegmentMode::OWNER,
    });
    let mode = mode.bits();
    if path.starts_with(SEGMENTS) && path != Path::new(SEGMENTS) {
        make_directory_of_all()?;
    }
    // Nobody else may enter before it has its group.
    let made = fs::DirBuilder::new().mode(0o700).create(&path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} exists already", path.display())
        }
        made => made.with_context(|| format!("Cannot make {}", path.display()))?,
    }
    let given = open_made(&path).and_then(|directory| {
        give(&directory, &path, arguments, mode)?;
        directory.metadata().map_err(Into::into)
    });
    let metadata = match given {
        Ok(metadata) => metadata,
        Err(error) => {
            // It is empty: nothing is lost.
            let _ = fs::remove_dir(&path);
            return Err(error);
        }
    };
    // The same for systemd-tmpfiles, as /run does not outlive a boot.
    let failed = || format!("Cannot read {}", path.display());
    let owner = arguments.owner.as_ref().map(|owner| owner.text.clone());
    let group = arguments.group.as_ref().map(|group| group.text.clone());
    let owner = owner.unwrap_or_else(|| name_or_number(metadata.uid()));
    let group = group.unwrap_or_else(|| name_or_number(metadata.gid()));
    // Without links and "..", which may lead elsewhere at the next boot.
    let path = fs::canonicalize(&path).with_context(failed)?;
    let path = field(&path.display().to_string());
    Ok(format!("d {path} {mode:04o} {owner} {group}\n"))
}

/// A path as a field of tmpfiles.d(5): with quotes and escapes if it needs them.
fn field(path: &str) -> String {
    let text = path.replace('%', "%%");
    let needs = |c: char| c.is_whitespace() || c.is_control() || "\"'\\".contains(c);
    if !text.contains(needs) {
        return text;
    }
    let escaped = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_ascii_control() => format!("\\x{:02x}", c as u32),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

/// A user or group that nobody gave a name.
fn name_or_number(id: u32) -> String {
    match id {
        0 => "root".to_owned(),
        id => id.to_string(),
    }
}

fn make_directory_of_all() -> Result<()> {
    match fs::DirBuilder::new().mode(MODE_OF_ALL).create(SEGMENTS) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.with_context(|| format!("Cannot make {SEGMENTS}")),
    }
}

/// Opens the directory that was just made, and nothing that somebody put in its place: who owns the
/// directory above can do that.
fn open_made(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let replaced = || format!("{} was replaced while it was made", path.display());
    let directory: File = rustix::fs::open(path, flags, Mode::empty())
        .with_context(replaced)?
        .into();
    let metadata = directory.metadata()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    ensure!(is_own && metadata.mode() & 0o077 == 0, replaced());
    Ok(directory)
}

fn give(directory: &File, path: &Path, arguments: &CreateArgs, mode: u32) -> Result<()> {
    if let Some(group) = &arguments.group {
        fchown(directory, None, Some(group.value.id())).with_context(|| {
            format!(
                "Cannot give {} to group {}: only its members can",
                path.display(),
                group.text
            )
        })?;
    }
    if let Some(owner) = &arguments.owner {
        fchown(directory, Some(owner.value.id()), None).with_context(|| {
            format!(
                "Cannot give {} to user {}: only root can",
                path.display(),
                owner.text
            )
        })?;
    }
    // After chown, which takes the set-group-ID bit away; exact, whatever the umask is.
    directory
        .set_permissions(fs::Permissions::from_mode(mode))
        .with_context(|| format!("Cannot set the mode of {}", path.display()))
}

fn delete(arguments: &DeleteArgs) -> Result<String> {
    let segment = segment_directory(&arguments.segment)?;
    ensure!(
        segment != Path::new(SEGMENTS),
        "{SEGMENTS} is not a segment"
    );
    let place = place::find(&Places {
        places: vec![segment.as_os_str().to_owned()],
    })?;
    let [place] = place.as_slice() else {
        bail!("There is no segment {}", segment.display());
    };
    let files = leftovers(place)?;
    for file in &files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("Cannot remove {}", file.display()));
            }
            _ => {}
        }
    }
    fs::remove_dir(&segment).with_context(|| format!("Cannot remove {}", segment.display()))?;
    Ok(String::new())
}

/// The files of ports that were killed.
///
/// # Errors
///
/// When a port lives, or there are files of another kind. Nothing is removed then.
fn leftovers(place: &Place) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (id, suffixes) in &place.ports {
        let lock = place.segment.join(format!("{id}.lock"));
        ensure!(
            !is_locked(&lock)?,
            "Port {id} is on segment {}: end it first",
            place.name()
        );
        files.extend(
            suffixes
                .iter()
                .map(|suffix| place.segment.join(format!("{id}.{suffix}"))),
        );
    }
    let failed = || format!("Cannot read {}", place.segment.display());
    for entry in fs::read_dir(&place.segment).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        ensure!(
            files.contains(&path),
            "{} is not a port's file: remove it first",
            path.display()
        );
    }
    Ok(files)
}

/// Whether a port holds the lock, as each does while it lives.
fn is_locked(lock: &Path) -> Result<bool> {
    let failed = || format!("Cannot look whether {} is locked", lock.display());
    let file = match fs::File::open(lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.with_context(failed)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error).with_context(failed),
    }
}

/// A segment.
#[derive(Debug, Serialize)]
struct Segment {
    /// Name, or directory.
    segment: String,
    /// Four octal digits.
    mode: String,
    uid: u32,
    gid: u32,
    /// Ports whose files are there, also of those that were killed. None: this user may not look.
    ports: Option<usize>,
}

fn list(arguments: &SegmentListArgs) -> Result<String> {
    let places = place::find(&Places { places: Vec::new() })?;
    let segments: Vec<Segment> = places.iter().filter_map(of_place).collect();
    if arguments.json {
        return json(&segments);
    }
    let rows: Vec<[String; 5]> = segments.iter().map(row).collect();
    Ok(table(["SEGMENT", "MODE", "UID", "GID", "PORTS"], &rows))
}

/// `None`: it was removed meanwhile.
fn of_place(place: &Place) -> Option<Segment> {
    let metadata = fs::metadata(&place.segment).ok()?;
    Some(Segment {
        segment: place.name(),
        mode: format!("{:04o}", metadata.mode() & 0o7777),
        uid: metadata.uid(),
        gid: metadata.gid(),
        ports: place.unreadable.is_none().then_some(place.ports.len()),
    })
}

fn row(segment: &Segment) -> [String; 5] {
    [
        safe(&segment.segment),
        segment.mode.clone(),
        segment.uid.to_string(),
        segment.gid.to_string(),
        segment
            .ports
            .map_or("-".to_owned(), |ports| ports.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create_in(temp: &tempfile::TempDir, mode: Option<&str>) -> Result<PathBuf> {
        let path = temp.path().join("web");
        create(&CreateArgs {
            segment: path.clone().into_os_string(),
            owner: None,
            group: None,
            mode: mode.map(|mode| mode.parse().unwrap()),
        })?;
        Ok(path)
    }

    fn delete_of(path: &Path) -> Result<String> {
        delete(&DeleteArgs {
            segment: path.as_os_str().to_owned(),
        })
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn segment_of_an_unusual_name_is_one_field_of_the_line() {
        assert_eq!(field("/run/virtio-inter/web"), "/run/virtio-inter/web");
        assert_eq!(field("/run/a%b"), "/run/a%%b");
        assert_eq!(field("/run/a b\n\"\\"), r#""/run/a b\x0a\"\\""#);
    }

    #[test]
    fn segment_that_was_replaced_while_it_was_made_is_not_given_away() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(path("made"))
            .unwrap();
        open_made(&path("made")).unwrap();
        std::os::unix::fs::symlink(path("made"), path("link")).unwrap();
        fs::create_dir(path("open")).unwrap();
        fs::set_permissions(path("open"), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["link", "open", "none"] {
            let error = open_made(&path(name)).unwrap_err();
            assert!(
                error.to_string().contains("was replaced"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn segment_is_the_owners_alone_unless_a_mode_is_given() {
        let temp = tempfile::tempdir().unwrap();
        let path = create_in(&temp, None).unwrap();
        assert_eq!(mode_of(&path), 0o700);
        let error = create_in(&temp, None).unwrap_err().to_string();
        assert!(error.ends_with("/web exists already"), "{error}");
        delete_of(&path).unwrap();
        let path = create_in(&temp, Some("3770")).unwrap();
        assert_eq!(mode_of(&path), 0o3770);
    }

    #[test]
    fn segment_that_cannot_be_read_is_listed_without_its_ports() {
        let temp = tempfile::tempdir().unwrap();
        let place = Place::denied(temp.path());
        let cells = row(&of_place(&place).unwrap());
        assert_eq!(cells[0], temp.path().display().to_string());
        assert_eq!(cells[4], "-");
    }

    #[test]
    fn segment_with_a_live_port_or_other_files_stays_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let path = create_in(&temp, None).unwrap();
        for file in ["a.sock", "a.lock", "a.status", "a.capture", "note"] {
            fs::write(path.join(file), "").unwrap();
        }
        let lock = fs::File::open(path.join("a.lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let error = delete_of(&path).unwrap_err().to_string();
        assert!(error.contains("Port a is on segment"), "{error}");

        flock(&lock, FlockOperation::Unlock).unwrap();
        let error = delete_of(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("/note is not a port's file: remove it first"),
            "{error}"
        );
        assert_eq!(fs::read_dir(&path).unwrap().count(), 5);

        fs::remove_file(path.join("note")).unwrap();
        delete_of(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn segment_that_does_not_exist_is_told_with_the_nearest_name() {
        let temp = tempfile::tempdir().unwrap();
        create_in(&temp, None).unwrap();
        let error = delete_of(&temp.path().join("webb"))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with("did you mean web?"), "{error}");
    }
}

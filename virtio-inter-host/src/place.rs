//! Finds segments, and the ports on them, by the files in their directories.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use virtio_inter_args::{SEGMENTS, SegmentArgError, nearest, segment_directory};
use virtio_inter_common::PortId;

use crate::args::Places;
use crate::text::safe;

/// Entries of a directory that are looked at: more than a segment has ports and files.
const MAX_ENTRIES: usize = 65_536;

/// Why a segment or port cannot be found.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    /// The value stands for no segment.
    #[error(transparent)]
    Value(#[from] SegmentArgError),
    /// There is no such segment.
    #[error("There is no segment {}{}", place.display(), suggestion(.nearest))]
    NoSegment {
        place: PathBuf,
        nearest: Option<String>,
    },
    /// The segment has no such port.
    #[error(
        "Segment {} has no port {port}{} If it should run, its log says why it does not \
         (journalctl -u virtio-inter-port@NAME, or its standard error)",
        segment.display(),
        end(.nearest)
    )]
    NoPort {
        segment: PathBuf,
        port: String,
        nearest: Option<String>,
    },
    /// The directory cannot be read.
    #[error("Cannot read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| {
        format!("; did you mean {}?", safe(name))
    })
}

/// The same at the end of a sentence.
fn end(nearest: &Option<String>) -> String {
    match suggestion(nearest) {
        text if text.is_empty() => ".".to_owned(),
        text => text,
    }
}

/// A segment, and the ports of it that were asked for.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its directory, absolute.
    pub(crate) segment: PathBuf,
    /// Only this port was asked for.
    pub(crate) port: Option<PortId>,
    /// The ports, with the suffixes of their files: `sock`, `lock`, `status`, `capture`.
    pub(crate) ports: BTreeMap<PortId, BTreeSet<String>>,
    /// Why its directory cannot be read: nothing is known of its ports then.
    pub(crate) unreadable: Option<Unreadable>,
}

/// Why a segment's directory cannot be read.
#[derive(Debug)]
pub(crate) struct Unreadable(io::Error);

impl Unreadable {
    /// The state in a word, as of a port.
    pub(crate) fn state(&self) -> &'static str {
        match self.0.kind() {
            io::ErrorKind::PermissionDenied => "denied",
            _ => "unreadable",
        }
    }

    /// Why, and what to do.
    pub(crate) fn explain(&self) -> String {
        match self.0.kind() {
            io::ErrorKind::PermissionDenied => {
                "the segment's ports cannot be listed, as its directory is not this user's to \
                 read: ask as root, as its owner, or as a member of its group"
                    .to_owned()
            }
            _ => format!(
                "the segment's ports cannot be listed, as its directory cannot be read: {}",
                self.0
            ),
        }
    }
}

impl Place {
    /// The segment's name if it is a directory of [`SEGMENTS`], else its path.
    pub(crate) fn name(&self) -> String {
        let name = self.segment.strip_prefix(SEGMENTS).unwrap_or(&self.segment);
        name.display().to_string()
    }

    /// Reads which ports a segment has. None: there is no such directory, or not any more.
    fn read(segment: PathBuf) -> Option<Self> {
        use io::ErrorKind::{NotADirectory, NotFound};
        let (ports, unreadable) = match ports_of(&segment) {
            Ok(ports) => (ports, None),
            Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return None,
            Err(error) => (BTreeMap::new(), Some(Unreadable(error))),
        };
        Some(Self {
            segment,
            port: None,
            ports,
            unreadable,
        })
    }

    fn only(mut self, port: &str) -> Result<Self, PlaceError> {
        let id = port.parse::<PortId>().ok();
        if self.unreadable.is_some() && id.is_some() {
            self.port = id;
            return Ok(self);
        }
        match id.and_then(|id| self.ports.remove_entry(&id)) {
            Some((id, files)) => Ok(Self {
                port: Some(id.clone()),
                ports: BTreeMap::from([(id, files)]),
                segment: self.segment,
                unreadable: None,
            }),
            None => Err(PlaceError::NoPort {
                nearest: nearest(port, self.ports.keys().map(PortId::as_str)).map(str::to_owned),
                segment: self.segment,
                port: port.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
impl Place {
    /// A segment with one port.
    pub(crate) fn with_port(segment: &Path, id: &str) -> Self {
        Self {
            ports: BTreeMap::from([(id.parse().unwrap(), BTreeSet::new())]),
            unreadable: None,
            ..Self::denied(segment)
        }
    }

    /// A segment that this user may not read.
    pub(crate) fn denied(segment: &Path) -> Self {
        Self {
            segment: segment.to_owned(),
            port: None,
            ports: BTreeMap::new(),
            unreadable: Some(Unreadable(io::ErrorKind::PermissionDenied.into())),
        }
    }
}

/// The ports of a segment, with the suffixes of their files.
fn ports_of(segment: &Path) -> io::Result<BTreeMap<PortId, BTreeSet<String>>> {
    let mut ports: BTreeMap<PortId, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(segment)?.take(MAX_ENTRIES) {
        if let Some((id, suffix)) = port_file(&entry?.file_name()) {
            ports.entry(id).or_default().insert(suffix.to_owned());
        }
    }
    // Not a VMM's socket `net.sock` with its lock `net.sock.lock`.
    ports.retain(|_, files| files.contains("lock") && files.len() > 1);
    Ok(ports)
}

/// The port and the suffix of a port's file.
fn port_file(name: &OsStr) -> Option<(PortId, &str)> {
    let (id, suffix) = name.to_str()?.rsplit_once('.')?;
    let known = ["sock", "lock", "status", "capture"].contains(&suffix);
    Some((id.parse().ok().filter(|_| known)?, suffix))
}

/// The segments and ports that a command line names; all segments of [`SEGMENTS`] if none. Those
/// that this user cannot read are among them.
///
/// # Errors
///
/// When one that is named does not exist, or [`SEGMENTS`] cannot be read.
pub(crate) fn find(places: &Places) -> Result<Vec<Place>, PlaceError> {
    if places.places.is_empty() {
        return all_of(Path::new(SEGMENTS));
    }
    let find_one = |value: &OsString| find_below(Path::new(SEGMENTS), value, similar);
    places.places.iter().map(find_one).collect()
}

/// The same once more, for a command that goes on: what is named may be gone, and come back.
///
/// # Errors
///
/// When [`SEGMENTS`] cannot be read.
pub(crate) fn find_again(places: &Places) -> Result<Vec<Place>, PlaceError> {
    if places.places.is_empty() {
        return all_of(Path::new(SEGMENTS));
    }
    // Errors are dropped, so that similar names are of no use.
    let find_one = |value: &OsString| find_below(Path::new(SEGMENTS), value, |_, _| None);
    let values = places.places.iter();
    Ok(values.filter_map(|value| find_one(value).ok()).collect())
}

/// Why there is no port. None: there is one, or nobody knows.
pub(crate) fn none_of(places: &[Place]) -> Option<String> {
    if places.is_empty() {
        return Some(format!("There is no segment in {SEGMENTS}"));
    }
    let is_empty = |place: &Place| place.ports.is_empty() && place.unreadable.is_none();
    let names: Vec<String> = places.iter().map(|place| safe(&place.name())).collect();
    let all = places.iter().all(is_empty);
    all.then(|| format!("There is no port on segment {}", names.join(", ")))
}

/// For a command that needs each port.
///
/// # Errors
///
/// When a segment cannot be read.
pub(crate) fn check_readable(places: &[Place]) -> anyhow::Result<()> {
    for place in places {
        if let Some(unreadable) = &place.unreadable {
            anyhow::bail!("Segment {}: {}", place.name(), unreadable.explain());
        }
    }
    Ok(())
}

/// All segments of a directory.
fn all_of(directory: &Path) -> Result<Vec<Place>, PlaceError> {
    Ok(read_each(directory, segments(directory)?))
}

/// The segments of these names; none of those that were removed meanwhile.
fn read_each(directory: &Path, names: Vec<OsString>) -> Vec<Place> {
    let names = names.into_iter();
    names
        .filter_map(|name| Place::read(directory.join(name)))
        .collect()
}

/// One that the command line names, where names are those of the segments of `root`. For a segment
/// that is not there, `similar` tells what could be meant, as [`similar()`] does.
fn find_below(
    root: &Path,
    value: &OsStr,
    similar: impl Fn(&Path, Option<&str>) -> Option<String>,
) -> Result<Place, PlaceError> {
    let no_segment = |place: PathBuf, port: Option<&str>| PlaceError::NoSegment {
        nearest: similar(&place, port),
        place,
    };
    let directory = |value: &OsStr| -> Result<PathBuf, SegmentArgError> {
        // A segment by its name.
        let directory = segment_directory(value)?;
        let name = directory.strip_prefix(SEGMENTS).ok();
        let name = name.filter(|name| *name == Path::new(value));
        Ok(name.map_or(directory.clone(), |name| root.join(name)))
    };
    let segment = directory(value)?;
    if segment.is_dir()
        && let Some(place) = Place::read(segment.clone())
    {
        return Ok(place);
    }
    // SEGMENT/PORT.
    let bytes = value.as_bytes();
    let Some(slash) = bytes.iter().rposition(|byte| *byte == b'/') else {
        return Err(no_segment(segment, None));
    };
    let port = String::from_utf8_lossy(&bytes[slash + 1..]);
    let Ok(of_port) = directory(OsStr::from_bytes(&bytes[..slash])) else {
        return Err(no_segment(segment, None));
    };
    if port.is_empty() {
        // NAME/ is a path.
        return Err(PlaceError::NoSegment {
            nearest: similar(&of_port, None),
            place: segment,
        });
    }
    if let Some(place) = Place::read(of_port.clone())
        && is_segment(&place, root)
    {
        return place.only(&port);
    }
    // NAME/PORT is no path where there is no directory NAME; and of a path whose parent is not
    // there either, the parent is the segment.
    let is_name = of_port.parent() == Some(root) && !segment.parent().is_some_and(Path::is_dir);
    Err(match is_name || !of_port.is_dir() {
        true => no_segment(of_port, Some(&port)),
        false => no_segment(segment, None),
    })
}

/// Whether a directory of which a port is wanted is a segment, not one with segments in it. An
/// empty one elsewhere may be either.
fn is_segment(place: &Place, root: &Path) -> bool {
    !place.ports.is_empty() || place.unreadable.is_some() || place.segment.parent() == Some(root)
}

/// Which segment could be meant by one that is not there, of which this port was asked for: one
/// with a similar name, or the one that has a port of this name.
fn similar(place: &Path, port: Option<&str>) -> Option<String> {
    let parent = place.parent().unwrap_or(place);
    let others = read_each(parent, segments(parent).unwrap_or_default());
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let names = others
        .iter()
        .filter_map(|other| other.segment.file_name()?.to_str());
    let nearest = nearest(&name, names);
    let has_port = |place: &Place, port: &str| place.ports.keys().any(|id| id.as_str() == port);
    let of_name = |name: &str| others.iter().find(|it| it.segment.ends_with(name));
    match (nearest, port) {
        (Some(name), Some(port)) if of_name(name).is_some_and(|it| has_port(it, port)) => {
            Some(format!("{name}/{port}"))
        }
        (Some(name), _) => Some(name.to_owned()),
        (None, Some(_)) => None,
        // A port's name alone.
        (None, None) => others
            .iter()
            .find(|it| has_port(it, &name))
            .and_then(|it| Some(format!("{}/{name}", it.segment.file_name()?.to_str()?))),
    }
}

/// The names of a directory's directories, in order; none if it does not exist.
fn segments(directory: &Path) -> Result<Vec<OsString>, PlaceError> {
    let failed = |source| PlaceError::Unreadable {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.map_err(failed)?;
        if entry.path().is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(files: &[&str]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("web")).unwrap();
        for file in files {
            fs::write(temp.path().join("web").join(file), "").unwrap();
        }
        temp
    }

    #[test]
    fn place_of_names_that_are_not_there_is_told_with_the_nearest_ones() {
        let temp = segment(&["a.sock", "a.lock", "vm-db.sock", "vm-db.lock"]);
        fs::create_dir(temp.path().join("empty")).unwrap();
        let root = temp.path();
        let told = |value: &str| {
            let error = find_below(root, OsStr::new(value), similar);
            let error = error.unwrap_err().to_string();
            error.replace(root.to_str().unwrap(), "ROOT")
        };
        for (value, expected) in [
            ("wbe", "There is no segment ROOT/wbe; did you mean web?"),
            ("Web", "There is no segment ROOT/Web; did you mean web?"),
            // A segment's name, and not a path from the working directory.
            ("wbe/a", "There is no segment ROOT/wbe; did you mean web/a?"),
            (
                "wbe/other",
                "There is no segment ROOT/wbe; did you mean web?",
            ),
            ("else/a", "There is no segment ROOT/else"),
            // A port without its segment.
            (
                "vm-db",
                "There is no segment ROOT/vm-db; did you mean web/vm-db?",
            ),
        ] {
            assert_eq!(told(value), expected, "{value}");
        }
        let error = told("web/");
        assert!(error.ends_with("/web/; did you mean web?"), "{error}");
        let error = told("empty/vm1");
        assert!(
            error.starts_with("Segment ROOT/empty has no port vm1. If it should run"),
            "{error}"
        );
        // The same by paths.
        let path = |value: &str| told(temp.path().join(value).to_str().unwrap());
        assert_eq!(
            path("wbe/a"),
            "There is no segment ROOT/wbe; did you mean web/a?"
        );
        assert!(path("empty/vm1").starts_with("Segment ROOT/empty has no port vm1"));
        assert_eq!(
            path("webb"),
            "There is no segment ROOT/webb; did you mean web?"
        );
        assert!(find_below(root, OsStr::new("web/a"), similar).is_ok());
    }

    #[test]
    fn places_are_those_that_are_there_with_those_that_cannot_be_read() {
        let temp = segment(&["a.sock", "a.lock"]);
        fs::write(temp.path().join("file"), "").unwrap();
        // The name of the last one is too long for any file system: reading it is an error for
        // root, too.
        let names = ["file", "gone", "web", &"x".repeat(300)].map(OsString::from);
        let places = read_each(temp.path(), names.to_vec());
        let found: Vec<(usize, bool)> = places
            .iter()
            .map(|place| (place.ports.len(), place.unreadable.is_some()))
            .collect();
        assert_eq!(found, [(1, false), (0, true)]);
    }

    #[test]
    fn places_that_are_looked_for_again_may_be_gone() {
        let temp = segment(&["a.sock", "a.lock"]);
        let names = ["web", "web/b", "else", "else/a"];
        let names = names.map(|name| temp.path().join(name).into_os_string());
        let places = Places {
            places: names.to_vec(),
        };
        assert_eq!(find_again(&places).unwrap().len(), 1);
    }

    fn find_in(temp: &tempfile::TempDir, value: &str) -> Result<Place, PlaceError> {
        let value = temp.path().join(value);
        find_below(Path::new(SEGMENTS), value.as_os_str(), similar)
    }

    #[test]
    fn place_has_the_ports_of_the_files_in_its_directory() {
        let temp = segment(&[
            "a.sock",
            "a.lock",
            "b.c.status",
            "b.c.lock",
            "note.txt",
            ".a.new",
            "x",
            "net.sock",
            "net.sock.lock",
        ]);
        let place = find_in(&temp, "web").unwrap();
        let ports: Vec<&str> = place.ports.keys().map(PortId::as_str).collect();
        assert_eq!(ports, ["a", "b.c"]);
        let files = place.ports.values().map(BTreeSet::len).collect::<Vec<_>>();
        assert_eq!(files, [2, 2]);
    }

    #[test]
    fn place_of_one_port_has_that_alone() {
        let temp = segment(&["a.sock", "a.lock", "b.sock", "b.lock"]);
        let place = find_in(&temp, "web/b").unwrap();
        assert_eq!(place.segment, temp.path().join("web"));
        assert_eq!(place.ports.len(), 1);
        assert_eq!(place.port.unwrap().as_str(), "b");
    }

    #[test]
    fn place_that_is_not_there_is_told_with_the_nearest_name() {
        let temp = segment(&["gateway.sock", "gateway.lock"]);
        let error = find_in(&temp, "webb").unwrap_err().to_string();
        assert!(error.ends_with("/webb; did you mean web?"), "{error}");
        let error = find_in(&temp, "web/gatway").unwrap_err().to_string();
        assert!(
            error.contains("has no port gatway; did you mean gateway? If it should run"),
            "{error}"
        );
        let error = find_in(&temp, "else").unwrap_err().to_string();
        assert!(error.ends_with("/else"), "{error}");
    }
}

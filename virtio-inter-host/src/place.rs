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
    nearest
        .as_ref()
        .map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

/// The same at the end of a sentence.
fn end(nearest: &Option<String>) -> String {
    match suggestion(nearest) {
        text if text.is_empty() => ".".to_owned(),
        text => text,
    }
}

/// A segment, and the ports of it that were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its directory, absolute.
    pub(crate) segment: PathBuf,
    /// Only this port was asked for.
    pub(crate) port: Option<PortId>,
    /// The ports, with the suffixes of their files: `sock`, `lock`, `status`, `capture`.
    pub(crate) ports: BTreeMap<PortId, BTreeSet<String>>,
}

impl Place {
    /// The segment's name if it is a directory of [`SEGMENTS`], else its path.
    pub(crate) fn name(&self) -> String {
        let name = self.segment.strip_prefix(SEGMENTS).unwrap_or(&self.segment);
        name.display().to_string()
    }

    /// Reads which ports a segment has.
    fn read(segment: PathBuf) -> Result<Self, PlaceError> {
        let failed = |source| PlaceError::Unreadable {
            path: segment.clone(),
            source,
        };
        let mut ports: BTreeMap<PortId, BTreeSet<String>> = BTreeMap::new();
        for entry in fs::read_dir(&segment).map_err(failed)?.take(MAX_ENTRIES) {
            let name = entry.map_err(failed)?.file_name();
            if let Some((id, suffix)) = port_file(&name) {
                ports.entry(id).or_default().insert(suffix.to_owned());
            }
        }
        // Not a VMM's socket `net.sock` with its lock `net.sock.lock`.
        ports.retain(|_, files| files.contains("lock") && files.len() > 1);
        Ok(Self {
            segment,
            port: None,
            ports,
        })
    }

    fn only(mut self, port: &str) -> Result<Self, PlaceError> {
        let id = port.parse::<PortId>().ok();
        match id.and_then(|id| self.ports.remove_entry(&id)) {
            Some((id, files)) => Ok(Self {
                port: Some(id.clone()),
                ports: BTreeMap::from([(id, files)]),
                segment: self.segment,
            }),
            None => Err(PlaceError::NoPort {
                nearest: nearest(port, self.ports.keys().map(PortId::as_str)).map(str::to_owned),
                segment: self.segment,
                port: port.to_owned(),
            }),
        }
    }
}

/// The port and the suffix of a port's file.
fn port_file(name: &OsStr) -> Option<(PortId, &str)> {
    let (id, suffix) = name.to_str()?.rsplit_once('.')?;
    let known = ["sock", "lock", "status", "capture"].contains(&suffix);
    Some((id.parse().ok().filter(|_| known)?, suffix))
}

/// The segments and ports that a command line names; all segments of [`SEGMENTS`] if none.
///
/// # Errors
///
/// When one does not exist or cannot be read.
pub(crate) fn find(places: &Places) -> Result<Vec<Place>, PlaceError> {
    if places.places.is_empty() {
        return segments(Path::new(SEGMENTS))?
            .into_iter()
            .map(|name| Place::read(Path::new(SEGMENTS).join(name)))
            .collect();
    }
    places.places.iter().map(|value| find_one(value)).collect()
}

fn find_one(value: &OsStr) -> Result<Place, PlaceError> {
    let segment = segment_directory(value)?;
    if segment.is_dir() {
        return Place::read(segment);
    }
    // SEGMENT/PORT.
    let bytes = value.as_bytes();
    if let Some(slash) = bytes.iter().rposition(|byte| *byte == b'/')
        && let Ok(of_port) = segment_directory(OsStr::from_bytes(&bytes[..slash]))
        && let Ok(place) = Place::read(of_port)
        && !place.ports.is_empty()
    {
        return place.only(&String::from_utf8_lossy(&bytes[slash + 1..]));
    }
    let parent = segment.parent().unwrap_or(&segment);
    let others = segments(parent).unwrap_or_default();
    let name = segment.file_name().unwrap_or_default().to_string_lossy();
    let names = others.iter().filter_map(|other| other.to_str());
    Err(PlaceError::NoSegment {
        nearest: nearest(&name, names).map(str::to_owned),
        place: segment,
    })
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

    fn find_in(temp: &tempfile::TempDir, value: &str) -> Result<Place, PlaceError> {
        find_one(temp.path().join(value).as_os_str())
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

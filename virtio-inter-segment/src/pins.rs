//! Pins: the address and the user that each port of a segment must have, in a file of the segment's
//! owner. Decision 0106.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use virtio_inter_common::{MacAddr, MacSet, MacSets, PortId};

use crate::directory::Directory;
use crate::pins_error::PinsError;
use crate::port::LocalPort;

/// Name of the file. That of each file of a port ends in a suffix.
pub(crate) const PINS: &str = "pins";
/// Longest file in bytes: some 20,000 ports.
const MAX_BYTES: u64 = 1 << 20;
/// Stands for any id, address or user.
const ANY: &str = "*";

/// What a port must be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pin {
    /// None: all that no other line has.
    id: Option<PortId>,
    mac: Option<MacAddr>,
    user: Option<u32>,
}

/// The pins of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pins(Vec<Pin>);

impl Pins {
    /// Reads them as they are now: a change holds for the next connection. None: the segment has
    /// none. A file that is neither root's nor the directory owner's means nothing: whoever may
    /// join could put it there, and keep others out.
    pub(crate) fn read(directory: &Directory) -> Result<Option<Pins>, PinsError> {
        let path = directory.path().join(PINS);
        match read(directory) {
            Ok(Found::Nothing | Found::Foreign(_)) => Ok(None),
            Ok(Found::Text(text)) => match parse(&text) {
                Ok(pins) => Ok(Some(pins)),
                Err((number, reason)) => Err(PinsError::Line {
                    path,
                    number,
                    reason,
                }),
            },
            Ok(Found::Unusable(problem)) => Err(PinsError::Unusable { path, problem }),
            Err(source) => Err(PinsError::Read { path, source }),
        }
    }

    /// Whether a port may have this name, these addresses and this user.
    pub(crate) fn check(
        &self,
        id: &PortId,
        mac: MacAddr,
        allowed: &MacSets,
        user: Option<u32>,
    ) -> Result<(), String> {
        let of = |id: Option<&PortId>| self.0.iter().find(|pin| pin.id.as_ref() == id);
        let Some(pin) = of(Some(id)).or_else(|| of(None)) else {
            return Err(format!("port {id} is not listed"));
        };
        if let Some(pinned) = pin.mac
            && pinned != mac
        {
            return Err(format!(
                "port {id} must have the address {pinned}, not {mac}"
            ));
        }
        if let Some(pinned) = pin.user
            && user != Some(pinned)
        {
            let user = user.map_or("an unknown one".to_owned(), |user| user.to_string());
            return Err(format!("port {id} must be of user {pinned}, not of {user}"));
        }
        let others = self.0.iter().filter(|pin| pin.id.as_ref() != Some(id));
        for (other, pinned) in others.filter_map(|pin| Some((pin.id.as_ref()?, pin.mac?))) {
            if pinned == mac || allowed.contains(pinned) {
                return Err(format!(
                    "{pinned} is the address of port {other}, not of {id}"
                ));
            }
        }
        Ok(())
    }
}

/// Addresses that a trunk of this name may not use: other ports', whether they are there or not.
pub(crate) fn of_others(pins: Option<&Pins>, id: &PortId) -> MacSets {
    let pins = pins.iter().flat_map(|pins| &pins.0);
    let others = pins.filter(|pin| pin.id.as_ref() != Some(id));
    let addresses = others.filter_map(|pin| pin.mac);
    let sets = addresses.filter_map(|mac| MacSet::new(6, mac).ok());
    sets.collect()
}

/// Checks that the pins let this port in.
pub(crate) fn check_own(directory: &Directory, port: &LocalPort) -> Result<(), PinsError> {
    let path = || directory.path().join(PINS);
    if let Ok(Found::Foreign(user)) = read(directory) {
        log::warn!(
            "{} is of user {user}, who is neither root nor the owner of the directory: it is \
             ignored",
            path().display()
        );
    }
    let Some(pins) = Pins::read(directory)? else {
        return Ok(());
    };
    let user = rustix::process::geteuid().as_raw();
    pins.check(&port.id, port.mac, &port.allowed, Some(user))
        .map_err(|reason| PinsError::Refused {
            path: path(),
            reason,
        })
}

/// What is under the file's name.
enum Found {
    Nothing,
    /// Something of this user, who may not pin anything.
    Foreign(u32),
    /// Why it cannot be used.
    Unusable(&'static str),
    Text(String),
}

fn read(directory: &Directory) -> io::Result<Found> {
    let owner = fstat(directory.fd())?.st_uid;
    let is_foreign = |stat: &Stat| ![0, owner].contains(&stat.st_uid);
    let link = match statat(directory.fd(), PINS, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(link) => link,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(e) => return Err(e.into()),
    };
    if is_foreign(&link) {
        return Ok(Found::Foreign(link.st_uid));
    }
    if FileType::from_raw_mode(link.st_mode) != FileType::RegularFile {
        return Ok(Found::Unusable("is not a file"));
    }
    // Neither follows a link that has come meanwhile nor waits at a pipe.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: OwnedFd = openat(directory.fd(), PINS, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    if is_foreign(&stat) {
        return Ok(Found::Foreign(stat.st_uid));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        let problem = "can be written by others than its owner: take that right away (chmod go-w)";
        return Ok(Found::Unusable(problem));
    }
    let mut bytes = Vec::new();
    let mut start = std::fs::File::from(file).take(MAX_BYTES + 1);
    start.read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Ok(Found::Unusable("has more than 1 MiB"));
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Found::Text(text),
        Err(_) => Found::Unusable("is not text"),
    })
}

/// Reads lines of an id, an address and a user.
fn parse(text: &str) -> Result<Pins, (usize, String)> {
    let mut pins = Vec::new();
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let pin = match words[..] {
            [] => continue,
            [id, mac, user] => parse_pin(id, mac, user),
            _ => Err("an id, an address and a user are needed, each as such or as *".to_owned()),
        };
        let pin = pin.map_err(|reason| (number, reason))?;
        if !ids.insert(pin.id.clone()) {
            return Err((number, format!("{} has another line already", words[0])));
        }
        if let Some(mac) = pin.mac
            && !addresses.insert(mac)
        {
            return Err((number, format!("{mac} has another line already")));
        }
        pins.push(pin);
    }
    Ok(Pins(pins))
}

fn parse_pin(id: &str, mac: &str, user: &str) -> Result<Pin, String> {
    let given = |word: &str| word != ANY;
    let id = given(id).then(|| id.parse::<PortId>()).transpose();
    let mac = given(mac).then(|| mac.parse::<MacAddr>()).transpose();
    let user = given(user).then(|| user.parse()).transpose();
    let pin = Pin {
        id: id.map_err(|error| error.to_string())?,
        mac: mac.map_err(|error| error.to_string())?,
        user: user.map_err(|_| "the user is to be a number, or *".to_owned())?,
    };
    if pin.id.is_none() && pin.mac.is_some() {
        return Err("an address is pinned to one id, not to *".to_owned());
    }
    Ok(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# id  address            user
vm1   02:00:00:00:00:01  1001
vm2   02:00:00:00:00:02  *      # of anybody

up    *                  0
";

    fn check(text: &str, id: &str, mac: &str, allowed: &str, user: u32) -> Result<(), String> {
        let allowed = match allowed {
            "" => MacSets::default(),
            sets => sets.parse().unwrap(),
        };
        let (id, mac) = (id.parse().unwrap(), mac.parse().unwrap());
        parse(text).unwrap().check(&id, mac, &allowed, Some(user))
    }

    #[test]
    fn pins_of_other_ports_are_no_address_for_a_trunk() {
        let pins = parse(TEXT).unwrap();
        let of = |id: &str| of_others(Some(&pins), &id.parse().unwrap()).to_string();
        assert_eq!(of("vm1"), "02:00:00:00:00:02");
        assert_eq!(of("vm3"), "02:00:00:00:00:01,02:00:00:00:00:02");
        assert!(of_others(None, &"vm1".parse().unwrap()).is_empty());
    }

    #[test]
    fn pins_hold_address_and_user_of_each_id() {
        let (one, two, other) = (
            "02:00:00:00:00:01",
            "02:00:00:00:00:02",
            "02:00:00:00:00:09",
        );
        for (id, mac, user) in [("vm1", one, 1001), ("vm2", two, 7), ("up", other, 0)] {
            assert_eq!(check(TEXT, id, mac, "", user), Ok(()));
        }
        for (id, mac, allowed, user, reason) in [
            (
                "vm1",
                other,
                "",
                1001,
                "vm1 must have the address 02:00:00:00:00:01, not 02:",
            ),
            (
                "vm1",
                one,
                "",
                1002,
                "vm1 must be of user 1001, not of 1002",
            ),
            ("vm3", other, "", 1001, "port vm3 is not listed"),
            (
                "up",
                one,
                "",
                0,
                "02:00:00:00:00:01 is the address of port vm1, not of up",
            ),
            ("up", other, two, 0, "is the address of port vm2"),
            ("up", other, "02:00:00:*", 0, "is the address of port vm1"),
        ] {
            let error = check(TEXT, id, mac, allowed, user).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        // Listed by nobody else's line.
        assert_eq!(check(TEXT, "vm1", one, one, 1001), Ok(()));
    }

    #[test]
    fn pins_let_others_in_only_if_they_say_so() {
        let text = format!("{TEXT}* * 1000\n");
        let (one, other) = ("02:00:00:00:00:01", "02:00:00:00:00:09");
        assert_eq!(check(&text, "vm3", other, "", 1000), Ok(()));
        assert!(check(&text, "vm3", other, "", 1001).is_err());
        let error = check(&text, "vm3", one, "", 1000).unwrap_err();
        assert!(error.contains("is the address of port vm1"), "{error}");
        // Nobody is listed.
        assert!(check("", "vm3", other, "", 0).is_err());
    }

    #[test]
    fn pins_that_are_wrong_are_refused_with_the_line() {
        for (text, number, reason) in [
            ("vm1 *", 1, "an id, an address and a user are needed"),
            ("\nvm1 * * *", 2, "an id, an address and a user are needed"),
            ("a/b * *", 1, "'/'"),
            ("vm1 02:00 *", 1, "six pairs"),
            ("vm1 * alice", 1, "the user is to be a number"),
            ("vm1 * -1", 1, "the user is to be a number"),
            ("* 02:00:00:00:00:01 *", 1, "is pinned to one id"),
            ("vm1 * *\nvm1 * 1", 2, "vm1 has another line already"),
            ("* * *\n* * 1", 2, "* has another line already"),
            (
                "vm1 02:00:00:00:00:01 *\nvm2 02:00:00:00:00:01 *",
                2,
                "02:00:00:00:00:01 has another line already",
            ),
        ] {
            let (line, error) = parse(text).unwrap_err();
            assert!(line == number && error.contains(reason), "{text}: {error}");
        }
    }
}

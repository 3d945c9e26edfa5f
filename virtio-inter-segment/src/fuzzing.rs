//! Entry points of fuzz targets (`fuzz/`), where the parts of this crate are not public.

use zerocopy::IntoBytes;

use crate::handshake::{Local, Refusal, Role};
use crate::message::{Message, parse};
use crate::port::LocalPort;

/// A port for targets, whatever they do with it.
///
/// # Panics
///
/// Never: the name and the address are valid.
pub fn port() -> LocalPort {
    let mac = "52:54:00:00:00:01".parse().unwrap();
    LocalPort {
        ring_capacity: virtio_inter_link::MIN_CAPACITY,
        ..LocalPort::new("web".parse().unwrap(), mac)
    }
}

/// Has a port receive a message, and checks what can be said of any.
///
/// # Panics
///
/// When that is not true.
pub fn receive(packet: &[u8], port: &LocalPort) {
    let local = Local {
        port: port.clone(),
        incarnation: 1,
        pid: 1,
        away: false,
        addresses: Default::default(),
    };
    match parse(packet) {
        Ok(Message::Hello(hello)) => {
            // What was understood is understood again, and the same.
            let bytes = hello.to_bytes();
            let Ok(Message::Hello(again)) = parse(&bytes) else {
                panic!("{hello:?} is not understood: {bytes:?}");
            };
            assert_eq!(again.to_bytes(), bytes);
            for role in [Role::Acceptor, Role::Connector("peer".parse().unwrap())] {
                match local.judge(&role, &hello) {
                    Ok(candidate) => {
                        assert_ne!(candidate.id, port.id);
                        assert_ne!(candidate.mac, port.mac);
                        assert!(!candidate.mac.is_multicast());
                        assert!(candidate.queues != 0);
                    }
                    Err(refusal) => refuse(&refusal),
                }
            }
        }
        Ok(Message::Refuse(refuse)) => {
            let _ = (refuse.text(), refuse.versions(), refuse.may_pass());
        }
        Ok(message) => {
            let _ = (message.name(), message.fds());
        }
        Err(error) => refuse(&Refusal::from(error)),
    }
}

/// A refusal is a message that is understood.
fn refuse(refusal: &Refusal) {
    let message = refusal.message();
    let parsed = parse(message.as_bytes());
    assert!(matches!(parsed, Ok(Message::Refuse(_))), "{parsed:?}");
}

#[cfg(test)]
#[path = "../../fuzz/runs/wire.rs"]
mod run;
#[cfg(test)]
#[path = "../../fuzz/runs/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::run_all;

    #[test]
    fn fuzz_seeds_of_wire_hold() {
        run_all("wire", super::run::run);
    }
}

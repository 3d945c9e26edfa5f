//! Sessions that a frontend began with a former process, resumed by the next one.

use std::os::fd::{AsFd, OwnedFd};

use virtio_inter::vhost_user::connection::encode_reply;
use virtio_inter::vhost_user::frontend::{Disconnect, Frontend};
use virtio_inter::vhost_user::session::SessionLimits;
use virtio_inter::vhost_user::session_state::StateFile;

use crate::mock::MockDevice;
use crate::rig::*;

/// The descriptors that a supervisor stores.
struct Stored {
    socket: OwnedFd,
    state: StateFile,
}

impl Rig {
    fn store(&self) -> Stored {
        let frontend = self.frontend.as_ref().expect("a session");
        let state = frontend.state_file().expect("a state file").as_fd();
        Stored {
            socket: frontend.as_fd().try_clone_to_owned().unwrap(),
            state: StateFile::from_fd(state.try_clone_to_owned().unwrap()),
        }
    }

    /// The process dies.
    fn die(&mut self) -> Stored {
        let stored = self.store();
        self.frontend = None;
        self.device = MockDevice::new(2);
        stored
    }

    /// The next process resumes the session.
    fn resume(&mut self, stored: Stored) -> Result<(), Disconnect> {
        let limits = SessionLimits {
            queue_size: 256,
            mtu: 1500,
        };
        let socket = stored.socket.into();
        self.frontend = Some(Frontend::resume(
            socket,
            stored.state,
            limits,
            &self.device,
        )?);
        Ok(())
    }

    /// The frontend is asked to connect again, after what it waits for was answered.
    #[track_caller]
    fn is_sent_away(&mut self, answered: Option<(u32, u32)>) {
        let ended = self.process().expect_err("the session goes on");
        assert!(matches!(ended, Disconnect::NeedsReconnect), "{ended:?}");
        let reply = self.reply();
        assert_eq!(
            reply.map(|(code, _, body)| (code, body[0].into())),
            answered
        );
        assert!(self.is_hung_up());
    }

    fn is_hung_up(&self) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &self.socket,
            rustix::event::PollFlags::empty(),
        )];
        let at_once = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut fds, Some(&at_once)).unwrap() == 1
    }

    /// Sends a request that is not answered yet.
    fn request(&self, code: u32, body: &[u8]) {
        self.send(code, VERSION | NEED_REPLY, body, &[]);
    }
}

/// Cloud Hypervisor does not watch its connection while the VM is paused. The end would be found by
/// a request that fails, upon which it never speaks to the port again.
#[test]
fn stored_connection_of_a_paused_vm_is_answered_and_then_set_up_again() {
    let mut rig = Rig::running();
    for index in 0..2 {
        assert!(rig.ack(SET_VRING_ENABLE, &state(index, 0), &[]));
    }
    // Twice, as a process that took it over may die as well.
    for _ in 0..2 {
        let stored = rig.die();
        assert!(!rig.is_hung_up());
        rig.resume(stored).unwrap();
        rig.process().unwrap();
    }
    // It is resumed.
    assert!(rig.ack(SET_VRING_ENABLE, &state(0, 1), &[]));
    rig.request(SET_VRING_ENABLE, &state(1, 1));
    rig.is_sent_away(Some((SET_VRING_ENABLE, 0)));
    assert_eq!(rig.device.running(), [false, false]);
}

/// Nor does Cloud Hypervisor watch it before the guest's driver has started, or after it was reset.
#[test]
fn stored_connection_of_a_driver_that_has_not_started_continues() {
    for reset in [false, true] {
        let mut rig = Rig::new(2);
        if reset {
            rig.bring_up(memfd(SIZE).as_fd());
            for index in 0..2 {
                rig.tell(SET_VRING_ENABLE, &state(index, 0), &[]);
                rig.ask(GET_VRING_BASE, &state(index, 0));
            }
        } else {
            rig.negotiate();
        }
        let stored = rig.die();
        rig.resume(stored).unwrap();
        // REPLY_ACK is still negotiated.
        let features = number(crate::mock::FEATURES | F_PROTOCOL);
        assert!(rig.ack(SET_FEATURES, &features, &[]));
        let memory = memfd(SIZE);
        let table = table(&[(GUEST, SIZE, USER, 0)]);
        assert!(rig.ack(SET_MEM_TABLE, &table, &[memory.as_fd()]));
        for index in 0..2 {
            rig.set_up_queue(index);
        }
        for index in 0..2 {
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, 1), &[]));
        }
        assert_eq!(rig.device.running(), [true, true]);
        // It is a session like any other from here on.
        let stored = rig.die();
        assert!(matches!(
            rig.resume(stored),
            Err(Disconnect::NeedsReconnect)
        ));
        assert!(rig.is_hung_up());
    }
}

#[test]
fn stored_connection_with_queues_that_run_ends_at_once() {
    let mut rig = Rig::running();
    let stored = rig.die();
    assert!(!rig.is_hung_up());
    assert!(matches!(
        rig.resume(stored),
        Err(Disconnect::NeedsReconnect)
    ));
    assert!(rig.is_hung_up());
}

/// The VM is paused between the death of one process and the start of the next.
#[test]
fn stored_connection_on_which_a_vm_is_paused_meanwhile_is_answered() {
    let mut rig = Rig::running();
    let stored = rig.die();
    rig.request(SET_VRING_ENABLE, &state(0, 0));
    rig.resume(stored).unwrap();
    rig.process().unwrap();
    assert!(rig.reply().is_some());
    assert!(rig.ack(SET_VRING_ENABLE, &state(1, 0), &[]));
    let stored = rig.die();
    rig.resume(stored).unwrap();
    assert!(rig.ack(SET_VRING_ENABLE, &state(0, 1), &[]));
    rig.request(SET_VRING_ENABLE, &state(1, 1));
    rig.is_sent_away(Some((SET_VRING_ENABLE, 0)));
}

/// An answer that the former process owes can be given by nobody.
#[test]
fn stored_connection_with_a_request_under_way_ends() {
    let mut rig = Rig::new(2);
    rig.negotiate();
    let stored = rig.die();
    stored.state.begin().unwrap();
    assert!(matches!(
        rig.resume(stored),
        Err(Disconnect::NeedsReconnect)
    ));
    assert!(rig.is_hung_up());
    // Half a request.
    let mut rig = Rig::new(2);
    rig.negotiate();
    rig.send_bytes(&GET_FEATURES.to_ne_bytes(), &[]);
    rig.process().unwrap();
    let stored = rig.die();
    assert!(matches!(
        rig.resume(stored),
        Err(Disconnect::NeedsReconnect)
    ));
}

impl Rig {
    /// Sends a request. The process dies after it has noted what it is about to reply, with so many
    /// bytes of that sent, and another takes its place.
    fn dies_before_reply(&mut self, code: u32, body: &[u8], sent: usize) -> Result<(), Disconnect> {
        self.request(code, body);
        self.process().unwrap();
        let (_, _, payload) = self.reply().expect("a reply");
        let stored = self.die();
        let state = stored.state.read().expect("a state");
        let reply = encode_reply(code, &payload);
        stored.state.write_with_reply(&state, &reply).unwrap();
        let socket = rustix::fs::sendfile(&stored.socket, stored.state.as_fd(), None, sent);
        assert_eq!(socket, Ok(sent));
        self.resume(stored)
    }
}

/// A VMM that waited for that reply would wait for ever.
#[test]
fn stored_connection_gets_the_reply_that_was_noted_and_not_sent() {
    let length = encode_reply(SET_VRING_ENABLE, &[0; 8]).len();
    for sent in [0, 5, length] {
        // At each request of a pause.
        let mut rig = Rig::running();
        for index in 0..2 {
            let result = rig.dies_before_reply(SET_VRING_ENABLE, &state(index, 0), sent);
            if sent == length && index == 0 {
                // It has its reply. What it asks for next finds no queue, as it knows from the end.
                assert!(matches!(result, Err(Disconnect::NeedsReconnect)));
                break;
            }
            result.unwrap();
            let (code, _, payload) = rig.reply().expect("the reply");
            assert_eq!((code, payload), (SET_VRING_ENABLE, vec![0; 8]));
            assert!(rig.reply().is_none());
        }
        // At the last one of a resume, upon which it is asked to connect again.
        let mut rig = Rig::running();
        for (index, enabled) in [(0, 0), (1, 0), (0, 1)] {
            assert!(rig.ack(SET_VRING_ENABLE, &state(index, enabled), &[]));
        }
        let result = rig.dies_before_reply(SET_VRING_ENABLE, &state(1, 1), sent);
        assert!(matches!(result, Err(Disconnect::NeedsReconnect)));
        assert!(rig.reply().is_some() && rig.is_hung_up());
    }
}

/// The kernel does not copy a reply that it sends out of the file.
#[test]
fn replies_that_wait_to_be_read_stay_as_they_were() {
    let mut rig = Rig::new(2);
    for code in [GET_FEATURES, GET_QUEUE_NUM, GET_FEATURES] {
        rig.send(code, VERSION, &[], &[]);
        rig.process().unwrap();
    }
    let codes: Vec<u32> = (0..3).map(|_| rig.reply().expect("a reply").0).collect();
    assert_eq!(codes, [GET_FEATURES, GET_QUEUE_NUM, GET_FEATURES]);
}

type Step<'a> = Box<dyn Fn(&mut Rig) + 'a>;

/// The former process dies while the driver starts.
#[test]
fn stored_connection_that_is_half_set_up_is_answered_to_the_end_and_then_set_up_again() {
    // The requests to the former process: features, memory, a queue, a queue that is enabled.
    for progress in 0..4 {
        let mut rig = Rig::new(2);
        rig.negotiate();
        let memory = memfd(SIZE);
        let table = table(&[(GUEST, SIZE, USER, 0)]);
        let mut steps: Vec<Step> = vec![
            Box::new(|rig| rig.tell(SET_MEM_TABLE, &table, &[memory.as_fd()])),
            Box::new(|rig| drop(rig.set_up_queue(0))),
            Box::new(|rig| drop(rig.set_up_queue(1))),
            Box::new(|rig| assert!(rig.ack(SET_VRING_ENABLE, &state(0, 1), &[]))),
        ];
        let rest = steps.split_off(progress);
        for step in steps {
            step(&mut rig);
        }
        let stored = rig.die();
        // The frontend goes on at once, as it was answered.
        rig.resume(stored).unwrap();
        for step in rest {
            step(&mut rig);
        }
        rig.request(SET_VRING_ENABLE, &state(1, 1));
        rig.is_sent_away(Some((SET_VRING_ENABLE, 0)));
    }
}

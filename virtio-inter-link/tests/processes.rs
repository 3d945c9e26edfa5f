//! A link between two processes that both sleep whenever they cannot go on: everything arrives, in
//! order, and nobody sleeps for ever.
#![cfg(not(any(miri, loom)))]

use std::os::fd::AsFd;
use std::time::Duration;

use virtio_inter_link::{
    Doorbell, MIN_CAPACITY, Receiver, ReceiverPage, Region, Sender, max_record,
};

mod support;
use support::{Process, Waiter, inherited, receive_fd, send_fd, sockets};

const RECORDS: u32 = 200_000;

/// Longer than any healthy wait: a wake-up was lost.
const LOST: Duration = Duration::from_secs(20);

/// Length of a record, in bytes: most are short, some as long as can be.
fn len(number: u32) -> usize {
    let spread = number.wrapping_mul(2_654_435_761) >> 7;
    let most = if number.is_multiple_of(97) {
        max_record(MIN_CAPACITY)
    } else {
        300
    };
    (4 + spread % (most - 3)) as usize
}

/// The sending process; a test of its own, and empty, unless it was given descriptors.
#[test]
fn sending_process() {
    let Some(fds) = inherited() else { return };
    let [socket, data_doorbell, space_doorbell] = fds.try_into().unwrap();
    let region = Region::create(MIN_CAPACITY).unwrap();
    send_fd(&socket, region.fd());
    let bell = |fd| Doorbell::from_fd(fd).unwrap();
    let mut sender = Sender::new(region, bell(data_doorbell), bell(space_doorbell));
    // As much as the ring holds goes out before the receiver has answered.
    let mut page = Some(socket);
    let waiter = Waiter::new(sender.space_doorbell());
    for number in 0..RECORDS {
        let len = len(number);
        while sender.reserve(len).unwrap().is_none() {
            if let Some(socket) = page.take() {
                let page = ReceiverPage::open(receive_fd(&socket).unwrap()).unwrap();
                sender.attach(page).unwrap();
            } else if sender.arm_space_doorbell(len).unwrap() {
                assert!(waiter.wait(LOST), "no wake-up for space at record {number}");
            }
        }
        let slot = sender.reserve(len).unwrap().unwrap();
        let payload: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(len).collect();
        slot.slice().copy_from(&payload[..]);
        slot.commit();
        if number % 5 == 0 {
            sender.publish().unwrap();
        }
    }
    sender.close().unwrap();
}

#[test]
fn records_arrive_in_order() {
    if inherited().is_some() {
        return;
    }
    let (socket, theirs) = sockets();
    let (data_doorbell, space_doorbell) = (Doorbell::new().unwrap(), Doorbell::new().unwrap());
    let fds = [
        theirs.as_fd(),
        data_doorbell.as_fd(),
        space_doorbell.as_fd(),
    ];
    let mut process = Process::spawn("sending_process", &fds);
    drop(theirs);
    let region = Region::open(receive_fd(&socket).unwrap(), MIN_CAPACITY).unwrap();
    let page = ReceiverPage::create().unwrap();
    let answer = page.fd().try_clone_to_owned().unwrap();
    let mut receiver = Receiver::new(region, page, data_doorbell, space_doorbell);
    let waiter = Waiter::new(receiver.data_doorbell());
    let mut payload = vec![0; max_record(MIN_CAPACITY) as usize];
    let mut number = 0;
    // The sender has filled the ring by then, and sleeps.
    std::thread::sleep(Duration::from_millis(20));
    send_fd(&socket, answer.as_fd());
    while !receiver.is_finished() {
        if let Some(record) = receiver.peek().unwrap() {
            let len = record.slice().copy_to(&mut payload[..]);
            record.consume();
            assert_eq!(len, self::len(number));
            let expected = number.to_le_bytes();
            assert!(
                payload[..len]
                    .chunks(4)
                    .all(|piece| piece == &expected[..piece.len()])
            );
            number += 1;
            if number % 7 == 0 {
                receiver.release().unwrap();
            }
        } else if receiver.arm_data_doorbell().unwrap() && !receiver.is_finished() {
            assert!(waiter.wait(LOST), "no wake-up for data at record {number}");
        }
    }
    assert_eq!(number, RECORDS);
    assert!(process.join());
}

//! The first process of a test guest, and the tools that tests run in it.
//!
//! Started by the kernel as `/init` it sets the guest up and drives it ([`boot`], [`serve`]);
//! started as `agent COMMAND …` it does one thing and ends: `tcp-serve`, `tcp-transfer`, `udp-*`
//! ([`tcp`], [`udp`]), `reboot`, `poweroff`. Results go to standard output as one JSON object a
//! line.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is its interface"
)]

mod boot;
mod failure;
mod serve;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

use failure::Failure;

const USAGE: &str = "Usage: agent serve DEVICE
       agent tcp-serve PORT
       agent tcp-transfer ADDRESS PORT SEND-BYTES RECEIVE-BYTES SEED
       agent udp-echo PORT
       agent udp-check ADDRESS PORT COUNT BYTES SEED
       agent udp-receive PORT COUNT [GROUP]
       agent udp-send ADDRESS PORT TEXT
       agent reboot | poweroff";

fn peer(address: &str, port: &str) -> Result<SocketAddr, Failure> {
    Ok(SocketAddr::new(address.parse()?, port.parse()?))
}

fn run(arguments: &[&str]) -> Result<(), Failure> {
    match arguments {
        ["serve", device] => Ok(serve::serve(device)?),
        ["tcp-serve", port] => Ok(tcp::serve(port.parse()?)?),
        ["tcp-transfer", address, port, send, receive, seed] => tcp::transfer(
            peer(address, port)?,
            &tcp::Plan {
                send: send.parse()?,
                receive: receive.parse()?,
                seed: seed.parse()?,
            },
        ),
        ["udp-echo", port] => Ok(udp::echo(port.parse()?)?),
        ["udp-check", address, port, count, bytes, seed] => udp::check(
            peer(address, port)?,
            count.parse()?,
            bytes.parse()?,
            seed.parse()?,
        ),
        ["udp-receive", port, count] => Ok(udp::receive(port.parse()?, count.parse()?, None)?),
        ["udp-receive", port, count, group] => Ok(udp::receive(
            port.parse()?,
            count.parse()?,
            Some(group.parse()?),
        )?),
        ["udp-send", address, port, text] => Ok(udp::send(peer(address, port)?, text)?),
        ["reboot"] => Ok(reboot(RebootCommand::Restart)?),
        ["poweroff"] => Ok(reboot(RebootCommand::PowerOff)?),
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        boot::boot();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

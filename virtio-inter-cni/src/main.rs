//! `virtio-inter-cni`: a plug-in of the Container Network Interface (CNI 1.1.0) for pods of Kata
//! Containers. It starts a port for an interface, and writes the port's socket into the file from
//! which Kata's Rust runtime takes the devices of a pod (DAN).
//!
//! A container runtime starts it for each call: the call is in environment variables, the network
//! configuration on standard input, the answer on standard output.
#![forbid(unsafe_code)]

mod attachment;
mod commands;
mod config;
mod dan;
mod error;
mod ipam;
mod names;
mod port;
mod port_process;
mod port_status;
mod port_unit;
mod process;
mod program;
mod request;
mod result;

use std::io::{Read, Write, stdin, stdout};
use std::process::ExitCode;

use serde_json::Value;

use crate::error::Error;
use crate::request::Request;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == "--version")
    {
        let version = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), "\n");
        return written(version);
    }
    let mut input = Vec::new();
    // A person who starts it by hand need not type the end of a file to be told what it is.
    let request = Request::from_environment();
    let read = match &request {
        Ok(_) => stdin().read_to_end(&mut input).map(drop),
        Err(_) => Ok(()),
    };
    let answer = request.and_then(|request| {
        read.map_err(|error| Error::io("Cannot read the network configuration", error))?;
        commands::run(&request, &input, &|result| print(&text(result)))
    });
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            written(&text(&error.document(&config::version_of(&input))));
            ExitCode::FAILURE
        }
    }
}

fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

fn print(text: &str) -> std::io::Result<()> {
    let mut output = stdout();
    output.write_all(text.as_bytes())?;
    output.flush()
}

fn written(text: &str) -> ExitCode {
    match print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

//! `virtio-inter extcap`: offers ports to Wireshark as interfaces, by the protocol of its external
//! capture programs (extcap(4)).

use std::fmt::Write;

use anyhow::Result;
use virtio_inter_device::MIN_SNAPLEN;

use crate::args::{CaptureArgs, DEFAULT_SNAPLEN, ExtcapArgs, MAX_FRAME};
use crate::capture;
use crate::capture::filter::Filter;
use crate::document::Document;
use crate::place;
use crate::reader::{self, Port};
use crate::text::safe;

/// Does what Wireshark asks for. Returns what goes to standard output.
///
/// # Errors
///
/// As [`run`](capture::run); a port that is not there is no error of the list.
pub fn extcap(arguments: &ExtcapArgs) -> Result<String> {
    if arguments.extcap_interfaces {
        return Ok(interfaces(&reader::read(&place::find(&arguments.places)?)));
    }
    if arguments.extcap_dlts {
        return Ok("dlt {number=1}{name=EN10MB}{display=Ethernet}\n".to_owned());
    }
    if arguments.extcap_config {
        return Ok(options());
    }
    let (Some(port), Some(fifo), true) = (
        &arguments.extcap_interface,
        &arguments.fifo,
        arguments.capture,
    ) else {
        // Wireshark shows what is printed as the reason why a filter is wrong.
        let filter = arguments.extcap_capture_filter.as_deref();
        let filter = filter.filter(|text| !text.is_empty()).map(Filter::new);
        return Ok(match filter {
            Some(Err(error)) => format!("{error}\n"),
            _ => String::new(),
        });
    };
    capture::run(&CaptureArgs {
        ports: vec![port.clone()],
        write: fifo.clone(),
        snaplen: arguments.snaplen,
        filter: arguments
            .extcap_capture_filter
            .clone()
            .filter(|text| !text.is_empty()),
        direction: arguments.direction,
        drops: arguments.drops,
        count: None,
    })?;
    Ok(String::new())
}

/// The ports that answer, but no uplinks.
fn interfaces(ports: &[Port]) -> String {
    let mut text = concat!("extcap {version=", env!("CARGO_PKG_VERSION"), "}\n").to_owned();
    for port in ports {
        if port
            .status()
            .is_some_and(|document: &Document| !document.is_shared_uplink())
        {
            let name = format!("{}/{}", safe(&port.segment), port.id);
            let _ = writeln!(
                text,
                "interface {{value={name}}}{{display=virtio-inter port}}"
            );
        }
    }
    text
}

/// The options that Wireshark offers its user.
fn options() -> String {
    format!(
        "arg {{number=0}}{{call=--snaplen}}{{display=Bytes of each frame}}{{type=integer}}\
         {{range={MIN_SNAPLEN},{MAX_FRAME}}}{{default={DEFAULT_SNAPLEN}}}\n\
         arg {{number=1}}{{call=--direction}}{{display=Direction}}{{type=selector}}\n\
         value {{arg=1}}{{value=both}}{{display=Both}}{{default=true}}\n\
         value {{arg=1}}{{value=tx}}{{display=From the guest}}{{default=false}}\n\
         value {{arg=1}}{{value=rx}}{{display=For the guest}}{{default=false}}\n\
         arg {{number=2}}{{call=--drops}}{{display=Only frames that were lost}}{{type=boolflag}}\
         {{default=false}}\n"
    )
}

//! The words of the report: names of values and groups, and what they stand for.

use crate::case::Group;

pub(crate) fn metric_name(metric: &str) -> String {
    match metric {
        "tcp_stream" => "netperf TCP_STREAM".to_owned(),
        "tcp_rr" => "netperf TCP_RR, mean round trip".to_owned(),
        "tcp" => "TCP half round trip".to_owned(),
        "tcp_loaded" => "TCP half round trip beside a bulk stream".to_owned(),
        "udp" => "UDP half round trip".to_owned(),
        "udp_loaded" => "UDP half round trip beside a bulk stream".to_owned(),
        "tcp_after_idle" => "TCP half round trip, one message in 10 ms".to_owned(),
        "tcp_burst" => "TCP half round trip, 16 messages at once in 10 ms".to_owned(),
        "datagrams" => "UDP datagrams that arrive".to_owned(),
        "to_host" => "iperf3 over TCP, guest to host".to_owned(),
        "from_host" => "iperf3 over TCP, host to guest".to_owned(),
        "host_tcp" => "TCP half round trip, guest and host".to_owned(),
        "forward" => "frames of a testpmd with two virtio_user (or memif) ports".to_owned(),
        "cold" => "batches of 32, cold memory".to_owned(),
        "pairs" => "streams between pairs, total".to_owned(),
        "all_to_one" => "streams from all to one, total".to_owned(),
        "memory" => "memory of ports".to_owned(),
        "idle" => "idle ports".to_owned(),
        "mesh" => "ports that start at once: time until all are joined".to_owned(),
        "mesh_join_work" => "ports that start at once: CPU of start and joining".to_owned(),
        "mesh_memory" => "memory at rest".to_owned(),
        "mesh_files" => "descriptors at rest".to_owned(),
        "mesh_maps" => "mappings at rest".to_owned(),
        "mesh_pair_memory" => "memory of a pair that talks".to_owned(),
        "mesh_pair_files" => "descriptors of a pair that talks".to_owned(),
        "mesh_pair_maps" => "mappings of a pair that talks".to_owned(),
        "mesh_quiet_memory" => "memory after talk and a quiet time".to_owned(),
        "mesh_sparse" => "a frame to one of many peers".to_owned(),
        "mesh_sparse_ratio" => "a frame to one of many peers ÷ to the only one".to_owned(),
        "mesh_sparse_noise" => {
            "a frame between two ports alone: dearest ÷ cheapest of the pairs".to_owned()
        }
        "mesh_first_frame" => "first frame of a pair: time until it is delivered".to_owned(),
        "mesh_later_frame" => "second frame of a pair: time until it is delivered".to_owned(),
        "mesh_sparse_rings" => "a frame to one of many peers that have rings".to_owned(),
        "mesh_sparse_rings_ratio" => {
            "a frame to one of many peers that have rings ÷ to the only one".to_owned()
        }
        "mesh_return" => "a third of the ports is killed: time until all return".to_owned(),
        other => match other.strip_prefix("batch_") {
            Some(batch) => format!("batches of {batch}"),
            None => other.to_owned(),
        },
    }
}

pub(crate) fn group_name(group: Group) -> &'static str {
    match group {
        Group::Paper => "The paper's two figures",
        Group::Latency => "Latency",
        Group::Udp => "Datagrams",
        Group::Busy => "Beside a busy neighbour",
        Group::Peers => "Other ways between processes",
        Group::Link => "A link alone",
        Group::Uplink => "With uplinks",
        Group::Scale => "Many ports",
    }
}

pub(crate) fn group_words(group: Group) -> &'static str {
    match group {
        Group::Paper => {
            "Throughput and latency over message sizes between two guests (Ding et al., 2011). \
             Loopback is one guest with itself: the paper's upper bound. The guests, their kernels \
             and tools are the same on all ways; both interfaces have TSO, checksum offload and \
             GRO."
        }
        Group::Latency => {
            "sockperf, 64 bytes each way. Half round trips. After idle: all parties have fallen \
             asleep before each message, or before each burst."
        }
        Group::Udp => "iperf3 without a limit of rate; received and lost datagrams.",
        Group::Busy => {
            "Streams of 64 KiB and half round trips of 64 bytes while another program runs a loop \
             on each CPU, in a group of its own (or, in one session, beside the others). Median \
             and 99th percentile."
        }
        Group::Peers => {
            "Frames: one testpmd with two ports, on one CPU, receives on each and sends on the \
             other 1024 frames that circle. The processes on the other CPU join the two ports: two \
             ports of virtio-inter, one more testpmd, or Open vSwitch with two flows. Testpmd and \
             Open vSwitch poll, and map the memory of both ends; the ports sleep, and each maps \
             one. CPU is that of the joining side. Both directions are counted. Memory is in pages \
             of 4 KiB. Bytes: two processes with a CPU each."
        }
        Group::Link => {
            "Two processes on two CPUs. Payloads come from and go to 1 MiB of memory, or, cold, to \
             64 MiB, as the memcpy beside it, which is one copy on one CPU where the link makes \
             two."
        }
        Group::Uplink => {
            "A guest and the host in which its bridge is: by the VMM's own tap device, and by a \
             port whose uplink is a tap device. The host's programs are where the second guest is \
             otherwise. Then two guests: by ports without uplinks, and by ports with uplinks, \
             whose frames go by link all the same."
        }
        Group::Scale => {
            "Guests of User Mode Linux, placed by the host; streams of two seconds with messages \
             of 64 KiB. Memory and idleness: ports without guests on one segment, after all links \
             are up; memory is resident, and memory that two ports share is divided between them. \
             Ports that start at once have mock guests after they have joined: one sends 500 \
             frames with a pause of 2 ms behind each, then each sends a frame to the next."
        }
    }
}

pub(crate) const INTRODUCTION: &str = "\
# Measured

Written by `cargo xtask bench`; `results.json` beside it has each round. The last section names
the cases that did not run.

**How to read it.** Compare within a table only: ways stand side by side in one run, in an order
that changes from round to round, so other work of the machine meets all of them; absolute values
belong to this machine. Goals have five rounds, others three (with `--quick` three and one). A
ratio is of medians; where the spreads of two ways overlap, their order is not known. Throughput:
more is better; times, loss and CPU: less. *Copies* are the host's, between the two ends;
*processes* those of the host that a byte passes between the ends. *CPU s/GB*: processor time of
all guests, ports and the kernel's deferred network work, on 10^9 bytes of payload that arrived;
kernel time in a system call, or on the way out of one, is the calling process's.

*Each in a group of its own*: each guest and each port is in a control group of its own, all with
the same CPU weight, as services are; goals rest on that. *In one session*: all of them are in the
session of the bench, as programs that one shell starts.

";

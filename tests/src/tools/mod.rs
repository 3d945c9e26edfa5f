//! The usual network tools, run in guests, with their results parsed.
//!
//! Client and server may be the same guest: with a loopback address that measures the guest itself.

mod flood;
mod iperf3;
mod limits;
mod netperf;
mod ping;
mod sockperf;
mod stall;
mod transfer;
mod udp;

pub use flood::Flood;
pub use iperf3::{
    BulkStream, Datagrams, IPERF3_PORT, IPERF3_SERVER, Iperf3, Throughput, iperf3, iperf3_stream,
    iperf3_udp,
};
pub use netperf::{
    StreamRate, TcpStream, TransactionRate, netserver, tcp_rr, tcp_rr_of, tcp_stream,
};
pub use ping::{Ping, PingReport, ping};
pub use sockperf::{
    HalfRoundTrip, Pace, SOCKPERF_PORT, SOCKPERF_TCP_SERVER, Transport, Unanswered,
    half_round_trip, sockperf_server, tcp_ping_pong,
};
pub use transfer::{Transfer, TransferPlan, exchange};
pub use udp::{UdpReport, udp_check};

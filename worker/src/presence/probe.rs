//! One look at one worker: what came back, and what it proves.

use std::{io, net::SocketAddr, time::Duration};

use longhaul_shared::{
    domain::ids::WorkerId,
    store::{Evidence, Peer},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::GREETING;

const LIMIT: Duration = Duration::from_secs(1);
/// More than any answer of ours.
const LONGEST_LINE: u64 = 128;

/// What came back from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nobody listens there: the kernel says so.
    Refused,
    /// A worker is there, and this is its name.
    Worker(WorkerId),
    /// Anything else.
    Nothing,
}

/// What is known of a worker after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Alive,
    Gone(Evidence),
    Unknown,
}

/// Connects and listens, for at most [`LIMIT`].
pub(super) async fn look(address: SocketAddr) -> Sign {
    match timeout(LIMIT, hear(address)).await {
        Ok(Ok(line)) => named(&line).map_or(Sign::Nothing, Sign::Worker),
        Ok(Err(Failure::Connect(error))) if error.kind() == io::ErrorKind::ConnectionRefused => Sign::Refused,
        Ok(Err(_)) | Err(_) => Sign::Nothing,
    }
}

enum Failure {
    Connect(io::Error),
    Read,
}

async fn hear(address: SocketAddr) -> Result<String, Failure> {
    let stream = TcpStream::connect(address).await.map_err(Failure::Connect)?;
    let mut line = String::new();
    stream.take(LONGEST_LINE).read_to_string(&mut line).await.map_err(|_| Failure::Read)?;
    Ok(line)
}

fn named(line: &str) -> Option<WorkerId> {
    line.strip_prefix(GREETING)?.strip_suffix('\n')?.parse().ok()
}

/// Whether this watcher may ask the worker at all: a loopback address leads to it from its own place only.
pub(super) fn can_reach(peer: &Peer, own_place: Option<&str>) -> bool {
    !is_loopback(peer) || (own_place.is_some() && peer.presence.place.as_deref() == own_place)
}

/// What a sign proves. `was_heard`: this watcher has heard that worker at its address before. Only the kernel that they
/// share says the truth for sure: on the way to another one, a firewall may refuse from now on, or the address may have
/// moved.
pub(super) fn judge(peer: &Peer, was_heard: bool, sign: Sign) -> Finding {
    match sign {
        Sign::Worker(id) if id == peer.id => Finding::Alive,
        Sign::Refused | Sign::Worker(_) if was_heard => {
            Finding::Gone(if is_loopback(peer) { Evidence::Proof } else { Evidence::Suspicion })
        }
        Sign::Refused | Sign::Worker(_) | Sign::Nothing => Finding::Unknown,
    }
}

fn is_loopback(peer: &Peer) -> bool {
    peer.presence.address.ip().to_canonical().is_loopback()
}

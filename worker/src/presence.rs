//! Proof that a worker's process is gone, long before its lease runs out.
//!
//! The lease stays the truth: whoever is taken for dead is taken for dead by ending its lease in the database, and a
//! lease that has ended is never revived. What is won here is time. Each worker's process listens ([`Listener`]) and
//! says who it is to anybody who connects; each worker watches its next neighbours ([`watch`]). The kernel closes the
//! socket when the process ends, however it ends, and refuses the next connection.
//!
//! Only two things tell of a death: a refused connection, and an answer that names another worker. Silence says
//! nothing, since the kernel goes on accepting for a process that is frozen; neither does a timeout, a reset or an answer
//! that is not ours. Both count only at an address where this very watcher has heard that worker before. If that is a
//! loopback address in the same kernel and network namespace ([`place`]), they are proof. At any other, a firewall may
//! have begun to refuse or the address may have moved: there they are a suspicion, and the worker's own row decides. It is
//! dead if it has also left its row alone for longer than a heartbeat.
//!
//! No worker that lives may be taken for dead, so while it holds a lease its socket is open and says nothing else than its
//! id:
//!
//! - The id is announced before its row is inserted, and another one only when everything held under the first is lost.
//! - The socket belongs to [`Listener`], which ends after the lease. The task that answers has a copy of it: should that
//!   task end, the worker stops, and until then the kernel accepts, and nobody says anything.
//! - No trouble in accepting, such as too many open files, ends the answering.

mod place;
mod probe;
pub mod watch;

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use longhaul_shared::{domain::ids::WorkerId, store::Presence};
use tokio::time::sleep;

pub use self::place::place;

/// What every answer begins with.
const GREETING: &str = "longhaul-worker ";
/// After an error that will be there again at once.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The socket at which this process is found alive, and who it says it is.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    presence: Presence,
    announced: Mutex<Option<WorkerId>>,
}

impl Listener {
    /// Listens at `address`, where it is found at `advertised` if that differs.
    pub fn bind(address: SocketAddr, advertised: Option<SocketAddr>) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = advertised.map_or_else(|| socket.local_addr(), Ok)?;
        let presence = Presence { address, place: place() };
        Ok(Self { socket, presence, announced: Mutex::default() })
    }

    /// Where others find it.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// From now on this process is that worker and no other.
    pub fn announce(&self, worker_id: WorkerId) {
        *self.announced.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker_id);
    }

    /// Answers everybody who connects, for ever. Fails only before it begins.
    pub async fn answer(&self) -> io::Result<()> {
        let socket = tokio::net::TcpListener::from_std(self.socket.try_clone()?)?;
        loop {
            let accepted = socket.accept().await.and_then(|(stream, _)| stream.into_std());
            match accepted {
                // A line fits into the buffer of a fresh connection; who does not take it hears nothing.
                Ok(mut stream) => drop(stream.write(self.line().as_bytes())),
                Err(error) => {
                    tracing::warn!(%error, "cannot say that this worker lives");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn line(&self) -> String {
        let announced = *self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let id = announced.map(|id| id.to_string()).unwrap_or_default();
        format!("{GREETING}{id}\n")
    }
}

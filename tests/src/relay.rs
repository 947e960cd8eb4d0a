//! A cable to cut: a TCP relay in front of Postgres, Redis, the provider or the API, whose state a test switches.
//!
//! A frozen cable loses nothing: like a partition it holds what was sent, and delivers it when it is whole again. Only
//! a connection that is cut loses what was under way.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The direction in which bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server: requests.
    Up,
    /// From the server to the client: answers.
    Down,
    Both,
}

impl Way {
    fn has(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

#[derive(Clone, Copy, Debug)]
struct Cable {
    refusing: bool,
    frozen: Option<Way>,
    latency: Duration,
    /// Where the next cut comes by itself: a direction, and how many more bytes may go.
    fuse: Option<(Way, usize)>,
    /// Rises with each cut; a connection that began under a lower number is over.
    cuts: usize,
    /// A connection that began before the one of this number is silent for ever.
    silent_before: usize,
}

const WHOLE: Cable =
    Cable { refusing: false, frozen: None, latency: Duration::ZERO, fuse: None, cuts: 0, silent_before: 0 };

/// A relay on a free loopback port. Its connections end with it.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    cable: watch::Sender<Cable>,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let cable = watch::Sender::new(WHOLE);
        let accepted = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, target, cable.clone(), Arc::clone(&accepted)));
        Ok(Self { addr, cable, accepted, accepting })
    }

    /// A relay in front of the server that a URL names, and the URL that leads through it.
    pub async fn in_front_of(url: &str) -> io::Result<(Self, String)> {
        let authority = authority(url).ok_or_else(|| io::Error::other("the URL names no host and port"))?;
        let target = tokio::net::lookup_host(authority).await?.next();
        let relay = Self::start(target.ok_or_else(|| io::Error::other("the host has no address"))?).await?;
        let through = url.replacen(authority, &relay.addr.to_string(), 1);
        Ok((relay, through))
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections have come so far.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How often connections were cut, by [`cut`](Self::cut) or by a fuse.
    pub fn cuts(&self) -> usize {
        self.cable.borrow().cuts
    }

    /// Everything passes at once again; what was held goes on its way.
    pub fn pass(&self) {
        self.cable.send_modify(|cable| {
            *cable = Cable { cuts: cable.cuts, silent_before: cable.silent_before, ..WHOLE }
        });
    }

    /// Resets each new connection; those that exist live on.
    pub fn refuse(&self) {
        self.cable.send_modify(|cable| cable.refusing = true);
    }

    /// Resets all connections that exist, on both sides; new ones pass.
    pub fn cut(&self) {
        self.cable.send_modify(|cable| cable.cuts += 1);
    }

    /// Unplugged: what exists is reset, what comes is refused.
    pub fn down(&self) {
        self.refuse();
        self.cut();
    }

    /// Silence: connections live and are accepted, but nothing travels that way.
    pub fn freeze(&self, way: Way) {
        self.cable.send_modify(|cable| cable.frozen = Some(way));
    }

    /// Silence without an end for the connections that exist, as if the other host had gone; new ones pass.
    pub fn forget(&self) {
        let next = self.connections();
        self.cable.send_modify(|cable| cable.silent_before = next);
    }

    /// Everything takes this much longer, in each direction.
    pub fn latency(&self, latency: Duration) {
        self.cable.send_modify(|cable| cable.latency = latency);
    }

    /// After so many more bytes that way, over all connections together, everything is cut, once.
    pub fn cut_after_bytes(&self, way: Way, bytes: usize) {
        self.cable.send_modify(|cable| cable.fuse = Some((way, bytes)));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    host.contains(':').then_some(host)
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    cable: watch::Sender<Cable>,
    accepted: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let number = accepted.fetch_add(1, Ordering::Relaxed);
                if cable.borrow().refusing {
                    reset(&client);
                } else {
                    connections.spawn(connect(client, target, number, cable.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(mut client: TcpStream, target: SocketAddr, number: usize, cable: watch::Sender<Cable>) {
    let begun_under = cable.borrow().cuts;
    let mut is_cut = cable.subscribe();
    // Cannot fail while we hold a sender ourselves.
    let is_cut = async { drop(is_cut.wait_for(|cable| cable.cuts > begun_under).await) };
    tokio::pin!(is_cut);
    let server = tokio::select! {
        () = &mut is_cut => return reset(&client),
        server = TcpStream::connect(target) => server,
    };
    let Ok(mut server) = server else { return reset(&client) };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let ended = {
        // Borrowed halves: owned ones say goodbye when they are dropped, and a cut cable does not.
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Pump { from: from_client, to: to_server, way: Way::Up, number, cable: &cable };
        let down = Pump { from: from_server, to: to_client, way: Way::Down, number, cable: &cable };
        tokio::select! {
            () = &mut is_cut => Err(io::ErrorKind::ConnectionReset.into()),
            ended = async { tokio::try_join!(up.run(), down.run()) } => ended.map(drop),
        }
    };
    // A reset of one side is a reset of the other.
    if ended.is_err() {
        reset(&server);
        reset(&client);
    }
}

/// One direction of one connection.
struct Pump<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    way: Way,
    number: usize,
    cable: &'a watch::Sender<Cable>,
}

impl Pump<'_> {
    async fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        let mut cable = self.cable.subscribe();
        loop {
            let read = self.from.read(&mut buffer).await?;
            let latency = cable.borrow().latency;
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            let thawed = |cable: &Cable| {
                self.number >= cable.silent_before && !cable.frozen.is_some_and(|way| way.has(self.way))
            };
            cable.wait_for(thawed).await.map_err(io::Error::other)?;
            if read == 0 {
                return self.to.shutdown().await;
            }
            let allowed = self.burn(read);
            self.to.write_all(&buffer[..allowed]).await?;
            if allowed < read {
                self.cable.send_modify(|cable| cable.cuts += 1);
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }

    /// How many of these bytes may pass. Fewer than asked means that the fuse is burnt and the cut is due.
    fn burn(&self, bytes: usize) -> usize {
        let mut allowed = bytes;
        self.cable.send_if_modified(|cable| {
            if let Some((way, left)) = cable.fuse
                && way.has(self.way)
            {
                allowed = left.min(bytes);
                cable.fuse = (allowed == bytes).then_some((way, left - allowed));
            }
            // Nobody waits for a fuse, so nobody is woken.
            false
        });
        allowed
    }
}

fn reset(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests;

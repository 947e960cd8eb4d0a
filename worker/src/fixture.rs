//! What several tests begin with: a database with a worker in it, and a server that says exactly what it is told to,
//! byte for byte.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use longhaul_shared::{
    domain::{
        ids::{WorkerId, WorkspaceId},
        message::Part,
        run::{Limits, Trigger},
    },
    net_guard::{ClientOptions, GuardedClient, NetGuard},
    store::{IfBusy, NewRun, NewWorker, SharedStore, sqlite},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep},
};
use url::Url;

/// A database that lives as long as its folder, its workspace, and a worker of nine slots with a lease of a minute.
pub(crate) async fn database() -> (SharedStore, WorkspaceId, WorkerId, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let options = sqlite::Options::new(dir.path().join("test.db"));
    let store: SharedStore = Arc::new(sqlite::SqlStore::open(&options).unwrap());
    store.migrate().await.unwrap();
    let workspace = store.ensure_workspace("default").await.unwrap();
    let id = WorkerId::generate();
    let (host, version) = ("h".to_owned(), "0".to_owned());
    let worker =
        NewWorker { id, host, version, slots: 9, lease_ms: 60_000, renewal_ms: 60_000, presence: None };
    store.register_worker(&worker).await.unwrap();
    (store, workspace, id, dir)
}

/// A submission with nothing special about it.
pub(crate) fn new_run(workspace_id: WorkspaceId, agent: &str) -> NewRun {
    NewRun {
        workspace_id,
        chat_id: None,
        client_chat_id: None,
        client_message_id: None,
        replaces: false,
        agent: agent.to_owned(),
        input: vec![Part::Text { text: "hello".to_owned() }],
        if_busy: IfBusy::Reject,
        start: None,
        trigger: Trigger::User,
        created_by: None,
        limits: Limits::default(),
        tags: vec![],
        metadata: json!({}),
        traceparent: None,
        renderer: 1,
        queue: "default".to_owned(),
        priority: 0,
        idempotency: None,
        request: None,
    }
}

/// What is done with one request after it has been read.
pub(crate) enum Act {
    Send(Vec<u8>),
    Sleep(Duration),
    /// Sends this every few milliseconds until the other side goes away.
    Repeat(Vec<u8>),
    /// Neither sends nor closes.
    Hang,
    /// Ends the connection in good order.
    Close,
    /// Ends it without that courtesy.
    Reset,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Plays one list of acts for each request; the last list again for every further one.
pub(crate) struct Fixture {
    pub(crate) url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepted: Arc<AtomicUsize>,
    closed: Arc<Notify>,
}

impl Fixture {
    pub(crate) async fn start(plays: Vec<Vec<Act>>) -> Self {
        // Another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/v1", listener.local_addr().unwrap())).unwrap();
        let seen = Arc::new(Mutex::new(vec![]));
        let closed = Arc::new(Notify::new());
        let accepted = Arc::new(AtomicUsize::new(0));
        let plays = Arc::new(Mutex::new(plays.into_iter().map(Arc::new).collect::<VecDeque<_>>()));
        let (log, gone, count) = (Arc::clone(&seen), Arc::clone(&closed), Arc::clone(&accepted));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (plays, log, gone) = (Arc::clone(&plays), Arc::clone(&log), Arc::clone(&gone));
                tokio::spawn(async move {
                    // The other side going away is one of the things that are tested.
                    let _ = serve(socket, &plays, &log).await;
                    gone.notify_one();
                });
            }
        });
        Self { url, seen, accepted, closed }
    }

    pub(crate) fn client(&self) -> GuardedClient {
        let pair = format!("{}:{}", self.url.host_str().unwrap(), self.url.port().unwrap());
        NetGuard::new(&[pair]).unwrap().client(&ClientOptions::default()).unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until a connection has gone.
    pub(crate) async fn closed(&self) {
        tokio::time::timeout(Duration::from_secs(5), self.closed.notified()).await.expect("still connected");
    }
}

async fn serve(
    mut socket: TcpStream,
    plays: &Mutex<VecDeque<Arc<Vec<Act>>>>,
    log: &Mutex<Vec<Seen>>,
) -> io::Result<()> {
    while let Some(seen) = read_request(&mut socket).await? {
        log.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        let play = {
            let mut plays = plays.lock().unwrap_or_else(PoisonError::into_inner);
            if plays.len() > 1 { plays.pop_front() } else { plays.front().cloned() }
        };
        for act in play.iter().flat_map(|play| play.iter()) {
            match act {
                Act::Send(bytes) => socket.write_all(bytes).await?,
                Act::Sleep(time) => sleep(*time).await,
                Act::Repeat(bytes) => loop {
                    socket.write_all(bytes).await?;
                    sleep(Duration::from_millis(5)).await;
                },
                Act::Hang => {
                    socket.read_u8().await?;
                }
                Act::Close => return socket.shutdown().await,
                Act::Reset => {
                    socket.set_zero_linger()?;
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

async fn read_request(socket: &mut TcpStream) -> io::Result<Option<Seen>> {
    let mut bytes = vec![];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut seen = Seen { head, body: String::new(), at: Instant::now() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        socket.read_buf(&mut bytes).await?;
    }
    seen.body = String::from_utf8_lossy(&bytes[end..end + length]).into_owned();
    Ok(Some(seen))
}

/// A whole answer of known length.
pub(crate) fn answer(status: &str, headers: &[(&str, &str)], body: &str) -> Vec<Act> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let headers = headers.concat();
    vec![Act::Send(
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes(),
    )]
}

/// The head of an answer whose body ends with the connection.
pub(crate) fn open_head(kind: &str) -> Act {
    Act::Send(format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n").into_bytes())
}

//! Neighbours that live, die, freeze, or turn out to be somebody else, behind real sockets.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
};

use longhaul_shared::{
    bus::in_process::InProcessBus,
    store::{NewWorker, Presence, sqlite},
};
use tempfile::TempDir;

use super::{
    super::{
        Listener,
        probe::{Sign, judge, look},
    },
    *,
};

const HERE: &str = "this host";

struct World {
    watch: Watch,
    heard: Mutex<HashSet<WorkerId>>,
    _dir: TempDir,
}

impl World {
    /// One worker that watches.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = sqlite::Options::new(dir.path().join("test.db"));
        let store: SharedStore = Arc::new(sqlite::SqlStore::open(&options).unwrap());
        store.migrate().await.unwrap();
        let holdings = Arc::new(Holdings::default());
        let bus = Arc::new(InProcessBus::new());
        let done = CancellationToken::new();
        let watch = Watch { store, bus, holdings, place: Some(HERE.to_owned()), done };
        let world = Self { watch, heard: Mutex::default(), _dir: dir };
        let own = world.peer_at(None).await;
        world.watch.holdings.begin(own);
        world
    }

    async fn peer_at(&self, address: Option<SocketAddr>) -> WorkerId {
        self.peer_in(HERE, address).await
    }

    /// One that was heard before.
    async fn known_at(&self, address: SocketAddr) -> WorkerId {
        let id = self.peer_at(Some(address)).await;
        self.heard.lock().unwrap().insert(id);
        id
    }

    async fn peer_in(&self, place: &str, address: Option<SocketAddr>) -> WorkerId {
        let id = WorkerId::generate();
        self.register(id, place, address).await;
        id
    }

    async fn register(&self, id: WorkerId, place: &str, address: Option<SocketAddr>) {
        let presence = address.map(|address| Presence { address, place: Some(place.to_owned()) });
        let (host, version) = ("test".to_owned(), "0".to_owned());
        let worker =
            NewWorker { id, host, version, slots: 1, lease_ms: 60_000, renewal_ms: 60_000, presence };
        self.watch.store.register_worker(&worker).await.unwrap();
    }

    async fn round(&self) -> bool {
        self.watch.round(&self.heard).await.unwrap()
    }

    async fn is_alive(&self, id: WorkerId) -> bool {
        let rows = self.watch.store.list_workers().await.unwrap();
        rows.iter().find(|row| row.id == id).unwrap().is_alive
    }
}

/// A server that says this to everybody and closes; nothing at all if it is `None`, for as long as it lives.
fn says(line: Option<String>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = socket.accept() {
            match &line {
                Some(line) => stream.write_all(line.as_bytes()).unwrap(),
                None => open.push(stream),
            }
        }
    });
    address
}

/// An address at which nobody listens any more.
fn gone() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_refused_connection_ends_the_lease_of_a_neighbour() {
    let world = World::new().await;
    let dead = world.known_at(gone()).await;
    assert!(world.round().await);
    assert!(!world.is_alive(dead).await);
    assert!(!world.round().await, "it is no neighbour any more");
}

#[tokio::test]
async fn a_worker_that_was_never_heard_is_not_taken_for_dead() {
    let world = World::new().await;
    let other = WorkerId::generate();
    for address in [gone(), says(Some(format!("longhaul-worker {other}\n")))] {
        let unheard = world.peer_at(Some(address)).await;
        assert!(!world.round().await && world.is_alive(unheard).await);
    }
}

#[tokio::test]
async fn a_suspicion_leaves_a_worker_alone_that_renews_its_lease() {
    let world = World::new().await;
    let alive = world.peer_at(None).await;
    assert!(!world.watch.take_over(alive, Evidence::Suspicion).await.unwrap());
    assert!(world.is_alive(alive).await);
    assert!(world.watch.take_over(alive, Evidence::Proof).await.unwrap());
    assert!(!world.is_alive(alive).await);
}

#[tokio::test]
async fn everybody_is_heard_long_before_it_becomes_a_neighbour() {
    const WORKERS: usize = 20;
    let world = World::new().await;
    let mut listeners = vec![];
    for _ in 0..WORKERS {
        let listener = Arc::new(Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap());
        let id = world.peer_at(Some(listener.presence().address)).await;
        listener.announce(id);
        let answering = Arc::clone(&listener);
        listeners.push(tokio::spawn(async move { answering.answer().await }));
    }
    for _ in 0..WORKERS.div_ceil(INTRODUCTIONS) {
        assert!(!world.round().await);
    }
    assert_eq!(world.heard.lock().unwrap().len(), WORKERS);
    for listener in listeners {
        listener.abort();
        assert!(listener.await.unwrap_err().is_cancelled());
    }
    while world.round().await {}
    let rows = world.watch.store.list_workers().await.unwrap();
    assert_eq!(rows.iter().filter(|row| row.is_alive).count(), 1, "only the watcher itself");
}

#[tokio::test]
async fn a_neighbour_that_says_its_name_lives() {
    let world = World::new().await;
    let listener = Arc::new(Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap());
    let id = WorkerId::generate();
    world.register(id, HERE, Some(listener.presence().address)).await;
    let answering = Arc::clone(&listener);
    let answering = tokio::spawn(async move { answering.answer().await });
    // Not announced yet: it says no name, which is no other name.
    assert!(!world.round().await);
    assert_eq!(look(listener.presence().address).await, Sign::Nothing);
    listener.announce(id);
    assert!(!world.round().await);
    assert!(world.is_alive(id).await && world.heard.lock().unwrap().contains(&id));
    // It answers no more, but its socket is there.
    answering.abort();
    assert!(answering.await.unwrap_err().is_cancelled());
    assert_eq!(look(listener.presence().address).await, Sign::Nothing);
    assert!(!world.round().await && world.is_alive(id).await);
    // It took another name: what it was before is over.
    let answering = Arc::clone(&listener);
    tokio::spawn(async move { answering.answer().await });
    listener.announce(WorkerId::generate());
    assert!(world.round().await && !world.is_alive(id).await);
}

#[tokio::test]
async fn silence_and_strange_answers_prove_nothing() {
    let world = World::new().await;
    let mut peers = vec![];
    let other = WorkerId::generate();
    let lines = [
        None,
        Some(String::new()),
        Some("HTTP/1.1 200 OK\r\n\r\n".to_owned()),
        Some("longhaul-worker \n".to_owned()),
        // Without its end, it may be half of anything.
        Some(format!("longhaul-worker {other}")),
        Some(format!("longhaul-worker {other} {other}\n")),
        Some(format!("longhaul-worker {other}\n{}", "x".repeat(10_000))),
    ];
    for line in lines {
        peers.push(world.known_at(says(line)).await);
    }
    // All of them, not only the next two.
    for first in &peers {
        world.watch.holdings.begin(*first);
        assert!(!world.round().await);
    }
    for id in peers {
        assert!(world.is_alive(id).await);
    }
}

#[tokio::test]
async fn a_frozen_neighbour_does_not_hide_a_dead_one() {
    let world = World::new().await;
    let frozen = world.peer_at(Some(says(None))).await;
    let dead = world.known_at(gone()).await;
    assert!(world.round().await);
    assert!(world.is_alive(frozen).await && !world.is_alive(dead).await);
}

#[tokio::test]
async fn many_deaths_are_found_one_after_the_other() {
    let world = World::new().await;
    let mut peers = vec![];
    for _ in 0..9 {
        peers.push(world.known_at(gone()).await);
    }
    let mut rounds = 0;
    while world.round().await {
        rounds += 1;
    }
    assert_eq!(rounds, 5);
    for id in peers {
        assert!(!world.is_alive(id).await);
    }
}

#[tokio::test]
async fn a_loopback_address_elsewhere_is_not_asked() {
    let world = World::new().await;
    let elsewhere = world.peer_in("another host", Some(gone())).await;
    world.heard.lock().unwrap().insert(elsewhere);
    assert!(!world.round().await && world.is_alive(elsewhere).await);
    // Nor is any by one that does not know where it is.
    let lost = Watch { place: None, ..world.watch };
    let here = WorkerId::generate();
    let presence = Some(Presence { address: gone(), place: None });
    let (host, version) = ("test".to_owned(), "0".to_owned());
    let worker =
        NewWorker { id: here, host, version, slots: 1, lease_ms: 60_000, renewal_ms: 60_000, presence };
    lost.store.register_worker(&worker).await.unwrap();
    world.heard.lock().unwrap().insert(here);
    assert!(!lost.round(&world.heard).await.unwrap());
}

#[test]
fn only_a_worker_that_was_heard_before_can_be_gone_and_beyond_loopback_that_is_no_proof() {
    let (id, other) = (WorkerId::generate(), WorkerId::generate());
    let peer = |address: &str| Peer {
        id,
        presence: Presence { address: address.parse().unwrap(), place: Some(HERE.to_owned()) },
    };
    let far = peer("192.0.2.1:4690");
    for (was_heard, sign, finding) in [
        (false, Sign::Refused, Finding::Unknown),
        (true, Sign::Refused, Finding::Gone(Evidence::Suspicion)),
        (false, Sign::Worker(other), Finding::Unknown),
        (true, Sign::Worker(other), Finding::Gone(Evidence::Suspicion)),
        (false, Sign::Worker(id), Finding::Alive),
        (true, Sign::Nothing, Finding::Unknown),
    ] {
        assert_eq!(judge(&far, was_heard, sign), finding, "{was_heard} {sign:?}");
    }
    for near in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        let near = peer(near);
        assert_eq!(judge(&near, false, Sign::Refused), Finding::Unknown);
        assert_eq!(judge(&near, false, Sign::Worker(other)), Finding::Unknown);
        assert_eq!(judge(&near, true, Sign::Nothing), Finding::Unknown);
        assert_eq!(judge(&near, true, Sign::Refused), Finding::Gone(Evidence::Proof));
        assert_eq!(judge(&near, true, Sign::Worker(other)), Finding::Gone(Evidence::Proof));
    }
}

#[test]
fn neighbours_stand_behind_each_other_in_a_ring() {
    let ids: Vec<_> = (0..4).map(|_| WorkerId::generate()).collect();
    let presence = Presence { address: gone(), place: Some(HERE.to_owned()) };
    let peers: Vec<_> = ids.iter().map(|id| Peer { id: *id, presence: presence.clone() }).collect();
    let behind = |own: usize| -> Vec<usize> {
        let peers = neighbours(peers.clone(), ids[own], Some(HERE));
        peers.iter().map(|peer| ids.iter().position(|id| *id == peer.id).unwrap()).collect()
    };
    assert_eq!((behind(0), behind(2), behind(3)), (vec![1, 2, 3], vec![3, 0, 1], vec![0, 1, 2]));
}

#[tokio::test]
async fn whoever_connects_and_goes_away_or_stays_disturbs_nobody() {
    let listener = Arc::new(Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap());
    let id = WorkerId::generate();
    listener.announce(id);
    let address = listener.presence().address;
    let answering = Arc::clone(&listener);
    tokio::spawn(async move { answering.answer().await });
    let mut staying = vec![];
    for n in 0..200 {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            staying.push(stream);
        }
    }
    assert_eq!(look(address).await, Sign::Worker(id));
}

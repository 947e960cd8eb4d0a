//! The harness of Longhaul's black-box tests: everything around the product that a test can hold, cut or kill.
//!
//! A scenario starts the real binary as processes ([`process`]), gives them a database of their own ([`postgres`], or
//! a SQLite file) and, where it matters, a Redis ([`redis`]) or a whole Postgres ([`cluster`]) of their own. The outside world is played by two servers
//! that write down what they saw: [`fake_provider`], a model API with scripted answers and faults, and
//! [`tool_server`], which counts side effects. Both have [`gate`]s, so that a test waits for "the stream stands at
//! token 7" instead of for time to pass. [`relay`] is a cable to cut in front of any of them,
//! [`wrong_clock`] a host that does not know the time. [`http`] is the little
//! HTTP that the two servers speak, by hand, because they have to break it. [`world`] puts all of this together for one
//! test; [`client`], [`tail`] and [`story`] are how a test uses the product, [`invariants`] is what must hold after
//! each of them, and [`audit`] what must not have happened in between.
//!
//! `cargo xtask test` sets the variables that name the servers and programs. Without them a test fails and says so;
//! it never leaves itself out, except under `cargo xtask test --quick`, which [`quick`] reports.

pub mod audit;
pub mod client;
pub mod cluster;
pub mod fake_provider;
pub mod gate;
mod http;
pub mod invariants;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod relay;
pub mod rows;
pub mod story;
pub mod tail;
pub mod tool_server;
pub mod world;
pub mod wrong_clock;

use std::time::Duration;

pub use client::Client;
pub use cluster::Cluster;
pub use fake_provider::{At, End, FakeProvider, Fault, Script, Turn};
pub use gate::Gate;
pub use http::asked_by;
pub use process::{Process, Program, Signal};
pub use relay::{Relay, Way};
pub use rows::Rows;
pub use tail::Tail;
pub use tool_server::{Answer, ToolServer};
pub use world::{Bus, FAILPOINTS, Setup, Store, World};

/// How long a harness waits for something that must happen. Long, because the machine may be busy; never slept through.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Whether only tests that need no server should run.
pub fn quick() -> bool {
    std::env::var_os("LONGHAUL_TEST_QUICK").is_some()
}

/// An HTTP client for tests. It ignores the environment's proxies and follows no redirect.
pub fn http_client() -> reqwest::Client {
    http_client_builder().build().expect("a client with these settings can always be built")
}

/// The same, with more to be said about it.
pub fn http_client_builder() -> reqwest::ClientBuilder {
    // Whoever comes second finds a provider installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}

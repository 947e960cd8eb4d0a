//! Redis servers for tests: the one that the test command has started, and some to be killed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use crate::bus::conformance::until;

/// The server that all tests share, or `None` where tests with servers were left out on purpose.
pub(crate) fn server_url() -> Option<String> {
    if quick() {
        return None;
    }
    Some(std::env::var("LONGHAUL_TEST_REDIS_URL").unwrap_or_else(|_| {
        panic!("LONGHAUL_TEST_REDIS_URL is not set: `cargo xtask test` starts a Redis and sets it")
    }))
}

fn quick() -> bool {
    let quick = std::env::var("LONGHAUL_TEST_QUICK").is_ok_and(|value| value == "1");
    if quick {
        println!("left out: LONGHAUL_TEST_QUICK=1 means no Redis");
    }
    quick
}

/// A Redis of the test's own, to be killed and frozen.
pub(crate) struct PrivateRedis {
    port: u16,
    process: Option<Child>,
    folder: tempfile::TempDir,
}

impl PrivateRedis {
    /// Reserves a port; nothing listens there yet.
    pub(crate) fn absent() -> Option<Self> {
        if quick() {
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Some(Self { port, process: None, folder: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) async fn start(&mut self) {
        let program = std::env::var("LONGHAUL_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
        let process = Command::new(&program)
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &self.port.to_string()])
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{program} did not start ({error}): `cargo xtask test` finds or installs one")
            });
        self.process = Some(process);
        let client = redis::Client::open(self.url()).unwrap();
        until("the private Redis answers", async || client.get_multiplexed_async_connection().await.is_ok())
            .await;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn send(&self, signal: &str) {
        let pid = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

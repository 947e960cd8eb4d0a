//! A Redis server for one test, to kill, freeze and restart empty; and the one that all tests share.

use std::env;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::process::{Process, Program, Signal, free_port};

/// The server that `cargo xtask test` keeps for all tests. Nobody may stop it or delete what is not their own.
///
/// # Panics
/// When nobody started one: a suite that needs it must fail, not leave itself out.
pub fn shared_url() -> String {
    env::var("LONGHAUL_TEST_REDIS_URL").unwrap_or_else(|_| {
        panic!(
            "LONGHAUL_TEST_REDIS_URL is not set: run the tests by `cargo xtask test`, or start servers for single \
             tests by `cargo xtask servers`"
        )
    })
}

/// A server of the test's own. It ends with this value.
#[derive(Debug)]
pub struct Redis {
    program: Program,
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Redis {
    pub async fn start() -> io::Result<Self> {
        Self::start_with(&[]).await
    }

    /// With more settings, such as `["--maxmemory", "1mb"]`.
    pub async fn start_with(settings: &[&str]) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port();
        let executable =
            env::var_os("LONGHAUL_TEST_REDIS_SERVER").map_or("redis-server".into(), PathBuf::from);
        let program = Program::other(executable, "redis", dir.path())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(settings);
        let process = program.start().map_err(|error| {
            io::Error::other(format!(
                "cannot start redis-server (`cargo xtask test` finds or installs it): {error}"
            ))
        })?;
        let mut redis = Self { program, process, port, _dir: dir };
        redis.answers().await;
        Ok(redis)
    }

    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What to configure as `LONGHAUL_REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, empty.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.process.kill();
        self.process = self.program.start()?;
        self.answers().await;
        Ok(())
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends it a command, such as `CONFIG SET maxmemory 1mb`, and returns the first line of its answer.
    pub async fn order(&self, command: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.addr()).await?;
            stream.write_all(format!("{command}\r\n").as_bytes()).await?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await?;
            io::Result::Ok(line.trim_end().to_owned())
        };
        let answer = timeout(Duration::from_secs(5), ask).await.expect("Redis answers in time");
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    async fn answers(&mut self) {
        let addr = self.addr();
        self.process.until("it answers", async move || ping(addr).await.unwrap_or(false)).await;
    }
}

async fn ping(addr: SocketAddr) -> io::Result<bool> {
    let ask = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await?;
        Ok(&answer == b"+PONG")
    };
    timeout(Duration::from_secs(1), ask).await?
}

#[cfg(test)]
mod tests {
    use super::{Redis, ping, shared_url};
    use crate::quick;

    #[tokio::test]
    async fn a_private_redis_can_be_killed_and_comes_back_on_its_port() {
        if quick() {
            return;
        }
        let mut redis = Redis::start().await.unwrap();
        assert!(ping(redis.addr()).await.unwrap());
        redis.kill();
        assert!(ping(redis.addr()).await.is_err());
        redis.restart().await.unwrap();
        assert!(ping(redis.addr()).await.unwrap());
    }

    #[tokio::test]
    async fn the_shared_redis_answers() {
        if quick() {
            return;
        }
        let addr = shared_url().strip_prefix("redis://").unwrap().parse().unwrap();
        assert!(ping(addr).await.unwrap());
    }
}

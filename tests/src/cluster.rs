//! A Postgres server of one test's own, to crash and start again; the shared one must live.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::process::{Process, Program, Signal, free_port};

/// A server with the settings of a default installation: what a commit promises is kept.
#[derive(Debug)]
pub struct Cluster {
    process: Process,
    program: Program,
    port: u16,
    _dir: TempDir,
}

impl Cluster {
    pub async fn start() -> io::Result<Self> {
        let bin = env::var_os("LONGHAUL_TEST_POSTGRES_BIN").map(PathBuf::from).unwrap_or_default();
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
        let data = dir.path().join("data");
        fs::create_dir(&data)?;
        // Postgres refuses root.
        let run_as = (id("-u", None)? == 0).then(|| Ok::<_, io::Error>((id("-u", USER)?, id("-g", USER)?)));
        let run_as = run_as.transpose()?;
        if let Some((user, group)) = run_as {
            chown(&data, Some(user), Some(group))?;
        }
        let program = |name: &str| {
            let program = Program::other(bin.join(name), name, dir.path());
            run_as.into_iter().fold(program, |program, (user, group)| program.run_as(user, group))
        };
        let init = program("initdb").args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        init.args(["--locale=C", "--no-sync", "--pgdata"]).args([&data]).run().await?;

        let port = free_port();
        let settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "shared_buffers=128MB",
            "max_wal_size=4GB",
            // Refused appends are the daily bread of a fault test.
            "log_min_error_statement=panic",
        ];
        let program = program("postgres").arg_pair("-D", &data).arg_pair("-p", port.to_string());
        let program = settings.iter().fold(program, |program, setting| program.arg_pair("-c", setting));
        let mut cluster = Self { process: program.start()?, program, port, _dir: dir };
        cluster.answers().await;
        Ok(cluster)
    }

    /// The database `postgres` as its superuser.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it at once, every session with it, and starts it again: it recovers from its log. As by
    /// `pg_ctl restart -m immediate`.
    pub async fn crash(&mut self) -> io::Result<()> {
        self.restart_by(Signal::Quit).await
    }

    /// Ends it in good order, but without waiting for its sessions, and starts it again. As by
    /// `pg_ctl restart -m fast`.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.restart_by(Signal::Int).await
    }

    async fn restart_by(&mut self, signal: Signal) -> io::Result<()> {
        self.process.signal(signal);
        self.process.ended().await;
        self.process = self.program.start()?;
        self.answers().await;
        Ok(())
    }

    pub fn output(&self) -> String {
        self.process.output()
    }

    async fn answers(&mut self) {
        let url = self.url();
        self.process.until("it answers", async || PgConnection::connect(&url).await.is_ok()).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its children end with it; a killed postmaster would leave them to find out.
        self.process.signal(Signal::Quit);
        self.process.wait();
    }
}

const USER: Option<&str> = Some("postgres");

/// A number of a user (`-u`) or a group (`-g`); without a name, our own.
fn id(flag: &str, user: Option<&str>) -> io::Result<u32> {
    let output = Command::new("id").arg(flag).args(user).output()?;
    let number = String::from_utf8_lossy(&output.stdout).trim().parse();
    number.map_err(|_| io::Error::other(format!("there is no user {}", user.unwrap_or("of this process"))))
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, Executor, PgConnection};

    use super::Cluster;
    use crate::quick;

    #[tokio::test]
    async fn a_crashed_server_comes_back_with_what_was_committed() {
        if quick() {
            return;
        }
        let mut cluster = Cluster::start().await.unwrap();
        let mut session = PgConnection::connect(&cluster.url()).await.unwrap();
        session.execute("create table kept as select 7 as n").await.unwrap();
        session.execute("begin").await.unwrap();
        session.execute("insert into kept values (8)").await.unwrap();

        cluster.crash().await.unwrap();
        assert!(session.execute("commit").await.is_err(), "its sessions died with it");
        let mut session = PgConnection::connect(&cluster.url()).await.unwrap();
        session.execute("begin").await.unwrap();
        session.execute("insert into kept values (9)").await.unwrap();
        cluster.restart().await.unwrap();
        assert!(session.execute("commit").await.is_err(), "no session is waited for");

        let mut session = PgConnection::connect(&cluster.url()).await.unwrap();
        let kept: Vec<i32> = sqlx::query_scalar("select n from kept").fetch_all(&mut session).await.unwrap();
        assert_eq!(kept, [7]);
    }
}

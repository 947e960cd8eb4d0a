//! Throw-away Postgres and Redis: fresh, on free loopback ports, gone with everything they wrote when we end.
//!
//! A server whose URL is given in the environment is used instead and never stopped.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::child::{Interrupt, signal, spawn};
use crate::find;

const POSTGRES_URL: &str = "LONGHAUL_TEST_POSTGRES_URL";
const POSTGRES_BIN: &str = "LONGHAUL_TEST_POSTGRES_BIN";
const REDIS_URL: &str = "LONGHAUL_TEST_REDIS_URL";
const REDIS_SERVER: &str = "LONGHAUL_TEST_REDIS_SERVER";

const UP_WITHIN: Duration = Duration::from_mins(1);
const DOWN_WITHIN: Duration = Duration::from_secs(10);

/// A port that was free may be taken a moment later; then the next one is tried.
const TRIES: usize = 4;

/// Servers for tests. They stop when this value is dropped.
pub(crate) struct Servers {
    running: Vec<Server>,
    env: Vec<(&'static str, OsString)>,
    // Declared last, so that the folder goes after those who write in it.
    dir: TempDir,
}

impl Servers {
    pub(crate) fn start(interrupt: &Interrupt) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("longhaul-test-").tempdir().context("no folder for servers")?;
        // Postgres may run as another user, who has to pass through here to its own folder.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
        let mut servers = Self { running: Vec::new(), env: Vec::new(), dir };
        servers.add_postgres(interrupt)?;
        servers.add_redis(interrupt)?;
        Ok(servers)
    }

    /// What tests are told, by environment variables.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&str, &OsString)> {
        self.env.iter().map(|(name, value)| (*name, value))
    }

    fn add_postgres(&mut self, interrupt: &Interrupt) -> Result<()> {
        if let Some(url) = env::var_os(POSTGRES_URL) {
            self.env.push((POSTGRES_URL, url));
            self.env.extend(find::installed_postgres().map(|bin| (POSTGRES_BIN, bin.into())));
            return Ok(());
        }
        let bin = find::postgres(interrupt)?;
        let dir = self.dir.path().join("postgres");
        let cluster = Cluster::create(&bin, dir)?;
        let (server, port) = on_a_free_port(|port| cluster.start(port, interrupt))?;
        self.running.push(server);
        self.env.push((POSTGRES_URL, format!("postgres://postgres@127.0.0.1:{port}/postgres").into()));
        self.env.push((POSTGRES_BIN, bin.into()));
        Ok(())
    }

    fn add_redis(&mut self, interrupt: &Interrupt) -> Result<()> {
        // Tests start Redis servers of their own too, so the program is needed even when a server is given.
        let program = find::redis(interrupt)?;
        if let Some(url) = env::var_os(REDIS_URL) {
            self.env.push((REDIS_URL, url));
        } else {
            let dir = self.dir.path().join("redis");
            fs::create_dir(&dir)?;
            let (server, port) = on_a_free_port(|port| start_redis(&program, &dir, port, interrupt))?;
            self.running.push(server);
            self.env.push((REDIS_URL, format!("redis://127.0.0.1:{port}").into()));
        }
        self.env.push((REDIS_SERVER, program.into()));
        Ok(())
    }
}

/// `cargo xtask servers`: for a developer who runs single tests again and again.
pub(crate) fn keep(interrupt: &Interrupt) -> Result<()> {
    let mut servers = Servers::start(interrupt)?;
    for (name, value) in servers.env() {
        println!("export {name}='{}'", value.to_string_lossy());
    }
    eprintln!("the servers run until Ctrl-C");
    interrupt.wait_while(|| {
        for server in &mut servers.running {
            server.still_running()?;
        }
        Ok(())
    })
}

struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// What makes it stop at once, without a thought for the data.
    stop_signal: libc::c_int,
}

impl Server {
    fn start(
        name: &'static str,
        command: &mut Command,
        log: PathBuf,
        stop_signal: libc::c_int,
    ) -> Result<Self> {
        let file = File::create(&log)?;
        // Its own process group: Ctrl-C reaches us and the tests, who still need it for a moment.
        command.process_group(0).stdout(file.try_clone()?).stderr(file);
        let child = spawn(command, stop_signal)?;
        Ok(Self { name, child, log, stop_signal })
    }

    fn still_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}\n{}", self.name, self.last_words()),
        }
    }

    fn wait_until(&mut self, ready: impl Fn() -> bool, interrupt: &Interrupt) -> Result<()> {
        let begin = Instant::now();
        while !ready() {
            self.still_running()?;
            if interrupt.happened() {
                bail!("interrupted");
            }
            if begin.elapsed() > UP_WITHIN {
                bail!("{} does not answer\n{}", self.name, self.last_words());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for_end(&mut self) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < DOWN_WITHIN {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            sleep(Duration::from_millis(20));
        }
        None
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(&self.child, self.stop_signal);
        if self.wait_for_end().is_none() {
            // Nothing left to try when even this fails: it is not our child any more.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The files of one Postgres server, and who may run it: Postgres refuses root.
struct Cluster<'a> {
    bin: &'a Path,
    dir: PathBuf,
    run_as: Option<(u32, u32)>,
}

impl<'a> Cluster<'a> {
    fn create(bin: &'a Path, dir: PathBuf) -> Result<Self> {
        fs::create_dir(&dir)?;
        let run_as = if find::user_id("-u", None) == Some(0) { Some(unprivileged_user()?) } else { None };
        if let Some((user, group)) = run_as {
            chown(&dir, Some(user), Some(group)).context("cannot give the folder to the user of Postgres")?;
        }
        let cluster = Self { bin, dir, run_as };
        let args =
            ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"];
        let output =
            cluster.command("initdb").args(args).arg(cluster.data()).output().context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(cluster)
    }

    fn start(&self, port: u16, interrupt: &Interrupt) -> Result<Server> {
        // Crash tests judge what survives, so what a commit promises (fsync, full_page_writes) stays on.
        let settings = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=400",
            "shared_buffers=128MB",
            "max_wal_size=4GB",
            "log_line_prefix=%m [%p] ",
        ];
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &port.to_string()]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        // SIGQUIT is its immediate shutdown: no checkpoint of what is deleted anyway.
        let mut server = Server::start("Postgres", &mut command, self.dir.join("log"), libc::SIGQUIT)?;
        let status_file = self.data().join("postmaster.pid");
        server.wait_until(|| is_ready(&status_file), interrupt)?;
        Ok(server)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // The user that it runs as may not be allowed to stand where we stand.
        command.current_dir(&self.dir);
        if let Some((user, group)) = self.run_as {
            command.uid(user).gid(group);
        }
        command
    }
}

/// The eighth line of that file says what the server is doing.
fn is_ready(status_file: &Path) -> bool {
    fs::read_to_string(status_file).is_ok_and(|text| text.lines().nth(7).is_some_and(|l| l.trim() == "ready"))
}

fn unprivileged_user() -> Result<(u32, u32)> {
    let ids = |user| Some((find::user_id("-u", Some(user))?, find::user_id("-g", Some(user))?));
    ids("postgres")
        .or_else(|| ids("nobody"))
        .context("Postgres refuses root, and there is no user postgres or nobody")
}

fn start_redis(program: &Path, dir: &Path, port: u16, interrupt: &Interrupt) -> Result<Server> {
    let mut command = Command::new(program);
    command.current_dir(dir).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    let mut server = Server::start("Redis", &mut command, dir.join("log"), libc::SIGKILL)?;
    server.wait_until(|| answers_ping(port).unwrap_or(false), interrupt)?;
    Ok(server)
}

fn answers_ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}

fn on_a_free_port(start: impl Fn(u16) -> Result<Server>) -> Result<(Server, u16)> {
    let mut tries = 1;
    loop {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        match start(port) {
            Ok(server) => return Ok((server, port)),
            Err(_) if tries < TRIES && is_taken(port) => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

//! The product as processes that a test starts, freezes and kills, exactly as an operator or a crash would.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::PATIENCE;
use crate::http::get_status;

const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The product's binary: `LONGHAUL_TEST_BINARY`, or the one that was built beside this program or test.
///
/// # Panics
/// When there is none.
pub fn longhaul_binary() -> PathBuf {
    let beside = || {
        let ours = std::env::current_exe().expect("a running program has a path");
        let built = ours.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
        built.expect("it lies in target/PROFILE or in its deps").join("longhaul")
    };
    let binary = std::env::var_os("LONGHAUL_TEST_BINARY").map_or_else(beside, PathBuf::from);
    assert!(
        binary.is_file(),
        "{} does not exist: `cargo xtask test` builds it, or `cargo build -p longhaul`",
        binary.display()
    );
    binary
}

/// A loopback port that is free now. It lies below the range from which outgoing connections take theirs, so that
/// nobody takes it by chance before the server that is started on it.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    loop {
        let port = rand::random_range(10_000..30_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && given.insert(port) {
            return port;
        }
    }
}

/// What to start, and with what. Nothing of the caller's `LONGHAUL_*` environment reaches it.
#[derive(Clone, Debug)]
pub struct Program {
    executable: PathBuf,
    name: String,
    dir: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    port: Option<u16>,
    run_as: Option<(u32, u32)>,
}

impl Program {
    /// The product, in a folder that keeps its output and files. `name` tells the processes of one test apart.
    pub fn longhaul(name: &str, dir: &Path) -> Self {
        Self::other(longhaul_binary(), name, dir)
    }

    pub fn other(executable: impl Into<PathBuf>, name: &str, dir: &Path) -> Self {
        let (executable, dir) = (executable.into(), dir.to_owned());
        Self {
            executable,
            name: name.to_owned(),
            dir,
            args: Vec::new(),
            env: Vec::new(),
            port: None,
            run_as: None,
        }
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// An option and its value.
    #[must_use]
    pub fn arg_pair(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.args([name.as_ref(), value.as_ref()])
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The same without a variable that was given.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(given, _)| given != name);
        self
    }

    /// The port that it will listen on, where [`Process::ready`] asks.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The user and the group that it runs as.
    #[must_use]
    pub fn run_as(mut self, user: u32, group: u32) -> Self {
        self.run_as = Some((user, group));
        self
    }

    /// Writes a configuration file and passes it with `--config`.
    pub fn config(self, toml: &str) -> io::Result<Self> {
        let file = self.dir.join(format!("{}.toml", self.name));
        fs::write(&file, toml)?;
        Ok(self.args([OsString::from("--config"), file.into()]))
    }

    /// `longhaul dev` on a SQLite file.
    pub fn dev(name: &str, dir: &Path, port: u16, database: &Path) -> Self {
        let dev = Self::longhaul(name, dir).args(["dev", "--port", &port.to_string(), "--db"]);
        dev.args([database]).port(port)
    }

    /// `longhaul api` on a database.
    pub fn api(name: &str, dir: &Path, port: u16, database_url: &str) -> Self {
        let api = Self::longhaul(name, dir).args(["api"]).env("LONGHAUL_DATABASE_URL", database_url);
        api.env("LONGHAUL_SERVER_HOST", "127.0.0.1").env("LONGHAUL_SERVER_PORT", port.to_string()).port(port)
    }

    /// `longhaul worker` on a database.
    pub fn worker(name: &str, dir: &Path, database_url: &str) -> Self {
        Self::longhaul(name, dir).args(["worker"]).env("LONGHAUL_DATABASE_URL", database_url)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LONGHAUL_"))
        {
            command.env_remove(name);
        }
        let env = self.env.iter().map(|(name, value)| (name, value));
        command.args(&self.args).envs(env).current_dir(&self.dir).stdin(Stdio::null());
        if let Some((user, group)) = self.run_as {
            command.uid(user).gid(group);
        }
        command
    }

    /// Starts it; what it prints goes to `NAME.log` in its folder, after what an earlier start left there.
    pub fn start(&self) -> io::Result<Process> {
        let log = self.dir.join(format!("{}.log", self.name));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = self.command().stdout(file.try_clone()?).stderr(file).spawn()?;
        let addr = self.port.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Ok(Process { name: self.name.clone(), child, log, addr })
    }

    /// Runs it to its end and returns what it printed.
    ///
    /// # Panics
    /// When it fails: its output is in the message.
    pub async fn run(&self) -> io::Result<String> {
        let mut command = self.command();
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.map_err(io::Error::other)??;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "{} {:?}: {}\n{stdout}{stderr}",
            self.name,
            self.args,
            output.status
        );
        Ok(stdout.into_owned())
    }
}

/// What can be done to a process from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A crash: nothing is tidied up.
    Kill,
    /// A polite request to end.
    Term,
    /// To Postgres: end every session and then yourself, in good order.
    Int,
    /// To Postgres: end at once, without a checkpoint, as after a power cut.
    Quit,
    /// Frozen, as by a paused virtual machine.
    Stop,
    /// Goes on, as if no time had passed.
    Cont,
}

/// A running process. It is killed when this value is dropped; if the test fails, its output is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    addr: Option<SocketAddr>,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    ///
    /// # Panics
    /// When its program was given no port.
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("a process that serves was given its port")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it is frozen, by whomever.
    pub fn is_frozen(&self) -> bool {
        // The state stands behind the name, which is in parentheses and may hold anything.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Everything it printed so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Waits until `/readyz` says yes.
    pub async fn ready(&mut self) {
        let addr = self.addr();
        self.until("it is ready", async move || get_status(addr, "/readyz").await == Some(200)).await;
    }

    /// Waits until it has printed this.
    pub async fn says(&mut self, text: &str) {
        let log = self.log.clone();
        let holds = async move || fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
        self.until(&format!("it says {text:?}"), holds).await;
    }

    /// Waits for something that this process is to bring about, and fails at once if it ends instead.
    pub async fn until(&mut self, what: &str, holds: impl AsyncFn() -> bool) {
        let begin = Instant::now();
        while !holds().await {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended ({status}) before {what}", self.name);
            }
            assert!(begin.elapsed() < PATIENCE, "{}: not within {PATIENCE:?}: {what}", self.name);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether it ended, by itself or as it was told.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Sends a signal. A process that has ended gets none, because its number may be somebody else's by now.
    pub fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            send(&self.child, signal);
        }
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        // Fails only for a process that has been waited for, which is as dead as it can be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Bytes of memory that it occupies.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        kilobytes.and_then(|number| number.parse::<u64>().ok()).expect("a live process has memory") * 1024
    }

    /// Holds one thread of it, by its name, while the others go on; until the result is dropped.
    pub fn hold_thread(&self, name: &str) -> io::Result<HeldThread> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id()))?;
        let named = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let task = tasks.filter_map(Result::ok).find(named);
        let id = task.and_then(|task| task.file_name().to_str()?.parse().ok());
        HeldThread::hold(id.ok_or_else(|| io::Error::other(format!("there is no thread {name}")))?)
    }

    /// From now on it gets no file or socket whose number is not below this; those that are open stay open.
    pub fn limit_files(&self, count: usize) {
        limit_files(&self.child, count as u64);
    }

    /// Waits, without a limit, for a process that is about to end.
    pub fn wait(&mut self) {
        // Fails only for a process that has been waited for.
        let _ = self.child.wait();
    }

    /// Asks it to end and waits until it does.
    ///
    /// # Panics
    /// When it does not.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::Term);
        self.ended().await
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("our own child can be waited for") {
                    return status;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let Ok(status) = timeout(PATIENCE, wait).await else {
            panic!("{} did not end within {PATIENCE:?}", self.name);
        };
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- output of {} ----\n{}---- end of {} ----", self.name, self.output(), self.name);
        }
    }
}

/// A thread of another process that is held, as a debugger does it. It goes on when this is dropped.
#[derive(Debug)]
pub struct HeldThread {
    /// Whoever holds a thread must be the one to let it go.
    holder: Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

impl HeldThread {
    fn hold(id: i32) -> io::Result<Self> {
        let (let_go, until) = mpsc::channel::<()>();
        let (tell, held) = mpsc::channel();
        let holder = thread::spawn(move || {
            let result = stop_thread(id);
            let is_held = result.is_ok();
            let _ = tell.send(result);
            if is_held {
                // Ends with an error: nobody sends anything.
                let _ = until.recv();
                free_thread(id);
            }
        });
        held.recv().map_err(io::Error::other)??;
        Ok(Self { holder: Some((let_go, holder)) })
    }
}

impl Drop for HeldThread {
    fn drop(&mut self) {
        if let Some((let_go, holder)) = self.holder.take() {
            drop(let_go);
            let _ = holder.join();
        }
    }
}

const NOTHING: *mut libc::c_void = std::ptr::null_mut();

#[expect(unsafe_code, reason = "the standard library is no debugger")]
fn stop_thread(id: i32) -> io::Result<()> {
    // SAFETY: none of these calls is given memory but the status, which lives longer than the call.
    unsafe {
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            if libc::ptrace(request, id, NOTHING, NOTHING) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let mut status = 0;
        if libc::waitpid(id, &raw mut status, libc::__WALL) != id {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the standard library is no debugger")]
fn free_thread(id: i32) {
    // SAFETY: as above. Fails only for a thread that is gone.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, id, NOTHING, NOTHING) };
}

#[expect(unsafe_code, reason = "the standard library sends only SIGKILL")]
fn send(child: &Child, signal: Signal) {
    let signal = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Term => libc::SIGTERM,
        Signal::Int => libc::SIGINT,
        Signal::Quit => libc::SIGQUIT,
        Signal::Stop => libc::SIGSTOP,
        Signal::Cont => libc::SIGCONT,
    };
    // SAFETY: kill() takes two numbers and touches no memory of ours.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
}

#[expect(unsafe_code, reason = "the standard library knows no limits")]
fn limit_files(child: &Child, count: u64) {
    let (id, mut limit) = (child.id().cast_signed(), libc::rlimit { rlim_cur: 0, rlim_max: 0 });
    // SAFETY: prlimit() reads and writes the one structure that each call is given.
    unsafe {
        assert_eq!(libc::prlimit(id, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit), 0);
        limit.rlim_cur = count.min(limit.rlim_max);
        assert_eq!(libc::prlimit(id, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Program, Signal, free_port};

    fn shell(dir: &tempfile::TempDir, script: &str) -> Program {
        Program::other("/bin/sh", "shell", dir.path()).args(["-c", script])
    }

    #[tokio::test]
    async fn a_process_is_heard_frozen_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap 'echo bye; exit 3' TERM; echo hello $NAME; while :; do sleep 0.01; done";
        let mut process = shell(&dir, script).env("NAME", "you").start().unwrap();
        process.says("hello you").await;
        process.signal(Signal::Stop);
        process.signal(Signal::Term);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(process.child.try_wait().unwrap().is_none(), "a frozen process does not hear");
        process.signal(Signal::Cont);
        assert_eq!(process.ended().await.code(), Some(3));
        assert!(process.output().ends_with("bye\n"));
    }

    #[tokio::test]
    async fn a_command_returns_what_it_printed_and_nothing_of_our_settings_reaches_it() {
        let dir = tempfile::tempdir().unwrap();
        let program = shell(&dir, "env | grep -c ^LONGHAUL_ || true").env("LONGHAUL_SERVER_PORT", "1");
        assert_eq!(program.run().await.unwrap(), "1\n");
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell(&dir, "sleep 60").start().unwrap();
        let id = process.id();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn free_ports_differ() {
        assert_ne!(free_port(), free_port());
    }
}

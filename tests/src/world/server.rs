//! One process of the product that a test can end and start again as the same program.

use std::net::SocketAddr;
use std::process::ExitStatus;

use crate::{Process, Program, Signal};

/// Where and how a process of the product is to fail; see the product's `failpoint` module.
pub const FAILPOINTS: &str = "LONGHAUL_FAILPOINTS";

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.process.name())
    }
}

/// A program and its present process.
#[derive(Debug)]
pub struct Server {
    program: Program,
    process: Process,
    serves: bool,
}

impl Server {
    /// Starts it; one that `serves` is waited for until it is ready.
    pub(super) async fn start(program: Program, serves: bool) -> Self {
        let process = program.start().expect("the product's binary can be started");
        let mut server = Self { program, process, serves };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        if self.serves {
            self.process.ready().await;
        }
    }

    /// The same program once more, after its process has ended.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = self.program.start().expect("the product's binary can be started");
        self.ready().await;
    }

    /// Starts otherwise from the next time on.
    pub fn change(&mut self, change: impl FnOnce(Program) -> Program) {
        self.program = change(self.program.clone());
    }

    /// Starts again without its failpoints: what killed it once must not do so for ever.
    pub async fn restart_unharmed(&mut self) {
        self.program = self.program.clone().without_env(FAILPOINTS);
        self.restart().await;
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.is_alive()
    }

    pub fn is_frozen(&self) -> bool {
        self.process.is_frozen()
    }

    pub fn addr(&self) -> SocketAddr {
        self.process.addr()
    }

    pub fn url(&self) -> String {
        self.process.url()
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn freeze(&mut self) {
        self.process.signal(Signal::Stop);
    }

    pub fn thaw(&mut self) {
        self.process.signal(Signal::Cont);
    }

    /// Asks it to end, without waiting for that.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::Term);
    }

    pub async fn ended(&mut self) -> ExitStatus {
        self.process.ended().await
    }

    /// Waits until it has printed this.
    pub async fn says(&mut self, text: &str) {
        self.process.says(text).await;
    }

    pub fn output(&self) -> String {
        self.process.output()
    }
}

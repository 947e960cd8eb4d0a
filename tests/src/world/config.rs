//! What a world is made of, and the configuration file that says so to the product.

use std::fmt::Write;
use std::time::Duration;

use crate::{FakeProvider, ToolServer};

/// What the provider's key must never be seen as, anywhere.
pub(super) const PROVIDER_KEY: &str = "sk-canary-0123456789";
/// What agents are told; no log may repeat it.
pub(super) const INSTRUCTIONS: &str = "Be brief, canary-5af1.";

/// The database, and with it the form of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `longhaul dev` on a file: API and worker in one process.
    Sqlite,
    /// `longhaul api` and `longhaul worker` on a database of their own.
    Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// No Redis is configured.
    Absent,
    /// The server that all tests share.
    Shared,
    /// A server that this test may stop.
    Own,
}

/// A world to start.
#[derive(Clone, Debug)]
pub struct Setup {
    pub store: Store,
    pub bus: Bus,
    pub apis: usize,
    pub workers: usize,
    /// Lease and heartbeat; three seconds and one where a test waits for a lease to run out.
    pub lease: Duration,
    pub slots: u32,
    /// Whether the Postgres server is the test's own, to be restarted and spoilt.
    pub own_server: bool,
    /// Connections of each process to the database, beside those for leases and commits.
    pub connections: u32,
    /// Whether `dev` asks for a key, as the others always do.
    pub asks_for_keys: bool,
    /// How often a worker looks for jobs that nobody told it of.
    poll: Duration,
    /// The longest `Retry-After` that is honoured.
    max_retry_delay: Duration,
    /// What stands in `[limits]`, as TOML.
    limits: Vec<(String, String)>,
    /// Names of agents and their models.
    agents: Vec<(String, String)>,
    /// What each process of the product is told by its environment.
    pub(super) env: Vec<(&'static str, String)>,
}

impl Setup {
    pub fn sqlite() -> Self {
        Self {
            store: Store::Sqlite,
            bus: Bus::Absent,
            apis: 1,
            workers: 1,
            lease: Duration::from_secs(15),
            slots: 64,
            own_server: false,
            connections: 6,
            asks_for_keys: false,
            poll: Duration::from_secs(1),
            max_retry_delay: Duration::from_secs(2),
            limits: Vec::new(),
            agents: vec![
                ("helper".to_owned(), "helper".to_owned()),
                ("quick".to_owned(), "tokens-2".to_owned()),
            ],
            env: Vec::new(),
        }
    }

    pub fn postgres() -> Self {
        Self { store: Store::Postgres, bus: Bus::Shared, ..Self::sqlite() }
    }

    #[must_use]
    pub fn bus(self, bus: Bus) -> Self {
        Self { bus, ..self }
    }

    #[must_use]
    pub fn apis(self, apis: usize) -> Self {
        Self { apis, ..self }
    }

    /// How many workers to begin with; `dev` has one, always.
    #[must_use]
    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// A lease that a test can wait for.
    #[must_use]
    pub fn short_lease(self) -> Self {
        Self { lease: Duration::from_secs(3), ..self }
    }

    #[must_use]
    pub fn own_server(self) -> Self {
        Self { own_server: true, ..self }
    }

    #[must_use]
    pub fn connections(self, connections: u32) -> Self {
        Self { connections, ..self }
    }

    #[must_use]
    pub fn slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    #[must_use]
    pub fn with_keys(self) -> Self {
        Self { asks_for_keys: true, ..self }
    }

    #[must_use]
    pub fn poll(self, poll: Duration) -> Self {
        Self { poll, ..self }
    }

    #[must_use]
    pub fn max_retry_delay(self, max_retry_delay: Duration) -> Self {
        Self { max_retry_delay, ..self }
    }

    /// A setting of `[limits]`, such as `("tool_timeout", "1s")`.
    #[must_use]
    pub fn limit(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        // A string or a number is written alike in both.
        self.limits.push((name.to_owned(), value.into().to_string()));
        self
    }

    /// Another agent. `helper` (model `helper`) and `quick` (model `tokens-2`) are always there.
    #[must_use]
    pub fn agent(mut self, name: &str, model: &str) -> Self {
        self.agents.push((name.to_owned(), model.to_owned()));
        self
    }

    /// One more variable for each process of the product.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// The file. Tools: `clock`, `look` reads, `put` is idempotent, `charge` must happen once; so must `pay`, which can be
    /// asked what became of a call.
    pub(super) fn toml(&self, provider: &FakeProvider, tools: &ToolServer, redis_prefix: &str) -> String {
        let (lease, heartbeat) = (self.lease.as_millis(), self.lease.as_millis() / 3);
        let limits: Vec<_> = self.limits.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let auth = if self.asks_for_keys { "required" } else { "loopback" };
        let mut toml = format!(
            r#"
[database]
max_connections = {connections}
[redis]
prefix = "{redis_prefix}"
[worker]
slots = {slots}
lease = "{lease}ms"
heartbeat = "{heartbeat}ms"
poll = "{poll}ms"
drain_timeout = "10s"
[stream]
heartbeat = "1s"
[limits]
requests_per_minute = 0
{limits}
[net]
allow = ["{provider_at}", "{tools_at}"]
[providers.fake]
kind = "openai"
base_url = "{provider_url}"
api_key = "{PROVIDER_KEY}"
max_retry_delay = "{max_retry_delay}ms"
"#,
            slots = self.slots,
            connections = self.connections,
            poll = self.poll.as_millis(),
            limits = limits.join("\n"),
            max_retry_delay = self.max_retry_delay.as_millis(),
            provider_at = provider.addr(),
            tools_at = tools.addr(),
            provider_url = provider.url(),
        );
        if self.store == Store::Sqlite {
            let _ = writeln!(toml, "[auth]\nmode = \"{auth}\"");
        }
        // It answers whoever names a model and no agent.
        let default = [("default".to_owned(), "default".to_owned())];
        for (name, model) in self.agents.iter().chain(&default) {
            let _ = write!(
                toml,
                "[agents.{name}]\nprovider = \"fake\"\nmodel = \"{model}\"\ninstructions = \"{INSTRUCTIONS}\"\n\
                 tools = [\"clock\", \"look\", \"put\", \"charge\", \"pay\"]\n"
            );
        }
        for (name, url, effect) in [
            ("look", tools.tool_url("look"), "read"),
            ("put", tools.idem_url("put"), "idempotent"),
            ("charge", tools.tool_url("charge"), "once"),
            ("pay", tools.tool_url("pay"), "once"),
        ] {
            let _ = write!(
                toml,
                "[tools.{name}]\nkind = \"http\"\ndescription = \"Does {name}.\"\nurl = \"{url}\"\n\
                 effect = \"{effect}\"\nparameters = {{ type = \"object\", \
                 properties = {{ op = {{ type = \"string\" }} }}, required = [\"op\"] }}\n"
            );
        }
        // The tool that was declared last.
        let _ = writeln!(toml, "reconcile_url = \"{}\"", tools.reconcile_url("pay"));
        toml
    }
}

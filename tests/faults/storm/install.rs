//! The installation that the storm breaks: its own Postgres and Redis, two API and three worker processes, and a cable
//! on every connection between them and to the outside world.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use longhaul_tests::process::free_port;
use longhaul_tests::redis::Redis;
use longhaul_tests::{Cluster, FakeProvider, Process, Program, Relay, Signal, ToolServer, asked_by};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::audit;
use super::scripts::{self, KINDS};

/// Short, so that a storm sees many of them run out.
pub(crate) const LEASE: Duration = Duration::from_secs(5);
/// How long a call of a tool may take.
pub(crate) const TOOL_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const PROVIDER_RETRIES: usize = 4;
/// No log may have these.
pub(crate) const SECRETS: [&str; 2] = ["sk-canary-0123456789", "Be brief, canary-5af1."];

const APIS: usize = 2;
const WORKERS: usize = 3;
/// Shorter than most streams, so that runs are handed over in the middle of one.
const DRAIN: Duration = Duration::from_secs(3);

pub(crate) struct Installation {
    // Processes end before what they use.
    /// API processes, then workers.
    pub(crate) slots: Vec<Slot>,
    pub(crate) provider: FakeProvider,
    pub(crate) tools: ToolServer,
    pub(crate) redis: Mutex<Redis>,
    pub(crate) cluster: Mutex<Cluster>,
    pub(crate) redis_addr: SocketAddr,
    pub(crate) database_url: String,
    /// The secrets of two admins, each of another workspace.
    pub(crate) keys: Vec<String>,
    _dir: TempDir,
}

/// A place for one process of the product, which is started again whenever it ends.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) url: Option<String>,
    pub(crate) links: Vec<Link>,
    /// Held while a fault is done to it.
    pub(crate) process: Mutex<Process>,
    program: Program,
}

pub(crate) struct Link {
    pub(crate) to: &'static str,
    pub(crate) relay: Relay,
}

impl Installation {
    pub(crate) async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("longhaul-storm-").tempdir()?;
        let (cluster, redis) = (Cluster::start().await?, Redis::start().await?);
        let (provider, tools) = (FakeProvider::start_lean().await?, ToolServer::start().await?);
        scripts::teach(&provider);
        for (tool, millis) in [("look", 20), ("put", 200), ("charge", 600)] {
            tools.delay(tool, Duration::from_millis(millis));
        }
        let (database_url, redis_addr) = (cluster.url(), redis.addr());
        let config = dir.path().join("admin.toml");
        std::fs::write(&config, config_toml("admin", provider.addr(), tools.addr()))?;
        let admin = |name: &str| {
            let program = Program::longhaul(name, dir.path()).arg_pair("--config", &config);
            program.env("LONGHAUL_DATABASE_URL", &database_url)
        };
        admin("migrate").args(["migrate", "up"]).run().await?;
        // Before anybody is there: triggers on several tables at once would lock somebody out.
        audit::install(&PgPool::connect(&database_url).await?).await?;
        let mut keys = Vec::new();
        for workspace in ["default", "next-door"] {
            let create = ["keys", "create", "storm", "--role", "admin", "--workspace", workspace];
            let printed = admin("keys").args(create).run().await?;
            let key = printed.split_whitespace().find(|word| word.starts_with("lh_"));
            keys.push(key.context("the binary printed no key")?.to_owned());
        }

        let mut slots = Vec::new();
        let world = Outside {
            database_url: &database_url,
            redis: redis_addr,
            provider: provider.addr(),
            tools: tools.addr(),
        };
        for nth in 1..=APIS {
            slots.push(Slot::start(format!("api{nth}"), false, &world, dir.path()).await?);
        }
        for nth in 1..=WORKERS {
            slots.push(Slot::start(format!("worker{nth}"), true, &world, dir.path()).await?);
        }
        let (redis, cluster) = (Mutex::new(redis), Mutex::new(cluster));
        let installation =
            Self { slots, provider, tools, redis, cluster, redis_addr, database_url, keys, _dir: dir };
        installation.ready().await;
        Ok(installation)
    }

    /// Waits until all API processes serve.
    pub(crate) async fn ready(&self) {
        for slot in self.apis() {
            slot.process.lock().await.ready().await;
        }
    }

    pub(crate) fn apis(&self) -> &[Slot] {
        &self.slots[..APIS]
    }

    pub(crate) fn workers(&self) -> &[Slot] {
        &self.slots[APIS..]
    }

    /// One of all links, and whose it is.
    pub(crate) fn link(&self, pick: usize) -> (&Slot, &Link) {
        let count: usize = self.slots.iter().map(|slot| slot.links.len()).sum();
        let mut all = self.slots.iter().flat_map(|slot| slot.links.iter().map(move |link| (slot, link)));
        all.nth(pick % count).expect("it is below their number")
    }

    pub(crate) fn api_urls(&self) -> Vec<String> {
        self.apis().iter().filter_map(|slot| slot.url.clone()).collect()
    }
}

/// What a process is connected to.
struct Outside<'a> {
    database_url: &'a str,
    redis: SocketAddr,
    provider: SocketAddr,
    tools: SocketAddr,
}

impl Slot {
    /// Its cable to that server.
    pub(crate) fn link_to(&self, server: &str) -> &Link {
        self.links.iter().find(|link| link.to == server).expect("each process has a cable to each server")
    }

    async fn start(name: String, is_worker: bool, outside: &Outside<'_>, dir: &Path) -> Result<Self> {
        let (postgres, database_url) = Relay::in_front_of(outside.database_url).await?;
        let redis = Relay::start(outside.redis).await?;
        let redis_url = format!("redis://{}", redis.addr());
        let mut links = vec![Link { to: "postgres", relay: postgres }, Link { to: "redis", relay: redis }];
        let (mut provider, mut tools) = (outside.provider, outside.tools);
        if is_worker {
            for (to, at) in [("provider", &mut provider), ("tools", &mut tools)] {
                let relay = Relay::start(*at).await?;
                *at = relay.addr();
                links.push(Link { to, relay });
            }
        }
        let port = free_port();
        let program = if is_worker {
            Program::worker(&name, dir, &database_url)
        } else {
            Program::api(&name, dir, port, &database_url)
        };
        let program =
            program.env("LONGHAUL_REDIS_URL", redis_url).config(&config_toml(&name, provider, tools))?;
        let process = program.start()?;
        let url = (!is_worker).then(|| process.url());
        Ok(Self { name, url, links, process: Mutex::new(process), program })
    }

    /// The same program once more.
    pub(crate) fn start_again(&self, process: &mut Process) {
        *process = self.program.start().expect("what was started once can be started again");
    }

    /// Asks it to end. Whether it did so by itself, in time.
    pub(crate) async fn drain(&self, process: &mut Process) -> bool {
        process.signal(Signal::Term);
        let begin = Instant::now();
        while begin.elapsed() < DRAIN * 4 {
            if process.has_ended() {
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        process.kill();
        false
    }

    /// Everything that its processes printed.
    pub(crate) async fn output(&self) -> String {
        self.process.lock().await.output()
    }
}

fn config_toml(name: &str, provider: SocketAddr, tools: SocketAddr) -> String {
    let [key, instructions] = SECRETS;
    let (lease, tool_timeout, drain) = (LEASE.as_secs(), TOOL_TIMEOUT.as_secs(), DRAIN.as_secs());
    let mut toml = format!(
        r#"
[worker]
lease = "{lease}s"
heartbeat = "1s"
drain_timeout = "{drain}s"
[stream]
heartbeat = "2s"
[limits]
requests_per_minute = 0
tool_timeout = "{tool_timeout}s"
provider_silence = "3s"
first_byte = "4s"
[net]
allow = ["{provider}", "{tools}"]
[providers.fake]
kind = "openai"
base_url = "http://{provider}/v1"
api_key = "{key}"
max_retries = {PROVIDER_RETRIES}
max_retry_delay = "2s"
"#
    );
    for kind in KINDS {
        let (agent, max_steps) = (kind.name, kind.max_steps);
        let _ = write!(
            toml,
            "[agents.{agent}]\nprovider = \"fake\"\nmodel = \"{agent}\"\ninstructions = \"{instructions}\"\n\
             tools = [\"look\", \"put\", \"charge\"]\nlimits = {{ max_steps = {max_steps} }}\n"
        );
    }
    for (tool, path, effect) in
        [("look", "tool", "read"), ("put", "idem", "idempotent"), ("charge", "tool", "once")]
    {
        let _ = write!(
            toml,
            "[tools.{tool}]\nkind = \"http\"\ndescription = \"Does {tool}.\"\n\
             url = \"http://{tools}/{path}/{tool}\"\neffect = \"{effect}\"\nparameters = {{ type = \"object\", \
             properties = {{ op = {{ type = \"string\" }} }}, required = [\"op\"] }}\n"
        );
    }
    asked_by(&asked_by(&toml, provider, name), tools, name)
}

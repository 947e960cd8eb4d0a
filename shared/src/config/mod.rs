//! The configuration: `longhaul.toml` < environment < flags, read once at the start and checked as a whole.
//!
//! Defaults stand in the sections' code. A key that does not exist is refused, with the one that was probably meant;
//! values that contradict each other are refused together, each with its rule and where it came from. A loaded
//! [`Config`] therefore holds what it says: references between agents, providers and tools resolve, secrets are
//! read. This is the only place that reads the environment.

mod agents;
mod auth;
mod check;
mod database;
mod docs;
mod environment;
mod error;
mod layers;
mod limits;
mod log;
mod metrics;
mod net;
mod origin;
mod providers;
mod redis;
mod report;
mod secret;
mod server;
mod settings;
mod span;
mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod values;
mod worker;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use self::origin::Origins;
pub use self::{
    agents::{AgentConfig, AgentLimits},
    auth::{AuthConfig, AuthMode},
    database::{DatabaseConfig, DatabaseKind, DatabaseUrl},
    docs::{env_example, markdown},
    environment::Environment,
    error::ConfigError,
    layers::{Overrides, Profile, Sources},
    limits::LimitsConfig,
    log::{LogConfig, LogFormat},
    metrics::MetricsConfig,
    net::NetConfig,
    origin::Shown,
    providers::{ProviderConfig, ProviderKind},
    redis::{RedisConfig, RedisUrl},
    report::Problem,
    secret::Secret,
    server::ServerConfig,
    stream::{RedoneSteps, StreamConfig},
    tools::{BUILT_IN_TOOLS, ToolConfig, ToolKind},
    values::{ByteSize, HostPort, HttpUrl},
    worker::WorkerConfig,
};

/// Everything that can be set, one field per section of the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub database: DatabaseConfig,
    pub redis: RedisConfig,
    pub server: ServerConfig,
    pub worker: WorkerConfig,
    pub stream: StreamConfig,
    pub limits: LimitsConfig,
    pub auth: AuthConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub net: NetConfig,
    pub providers: BTreeMap<String, ProviderConfig>,
    pub agents: BTreeMap<String, AgentConfig>,
    pub tools: BTreeMap<String, ToolConfig>,
    #[serde(skip)]
    origins: Origins,
}

impl Config {
    /// Reads `file` (which must exist when it is named, else `./longhaul.toml` if there is one), the environment of
    /// this process and the flags, and checks the whole.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Sources::of_process(Profile::Plain, file, overrides).load()
    }

    /// The same for `longhaul dev`: without any setting it is complete, with SQLite, no keys, and the demo agent.
    pub fn load_dev(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Sources::of_process(Profile::Dev, file, overrides).load()
    }
}

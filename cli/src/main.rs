//! `longhaul`: the server in its parts, the commands that look after it, and a client for it.

mod api;
mod chats;
mod client;
mod config;
mod database;
mod dev;
mod doctor;
mod exit;
mod follow;
mod health;
mod input;
mod keys;
mod lock;
mod migrate;
mod output;
mod process;
mod run;
mod runs;
mod screen;
mod worker;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use longhaul_shared::faults;
use url::Url;

use crate::{
    client::Client,
    exit::{Failure, Outcome},
    output::{Format, Output, print},
};

/// Where `longhaul dev` listens.
const DEFAULT_URL: &str = "http://127.0.0.1:4680";

/// Durable background jobs for agent runs.
#[derive(Debug, Parser)]
#[command(name = "longhaul", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The configuration file of server commands [default: LONGHAUL_CONFIG, else ./longhaul.toml if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The server that client commands talk to
    #[arg(long, global = true, env = "LONGHAUL_URL", default_value = DEFAULT_URL)]
    pub(crate) url: Url,
    /// A file with the API key of client commands [default: the key in LONGHAUL_API_KEY]
    #[arg(long, global = true, env = "LONGHAUL_API_KEY_FILE", value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// Prints results only, no notes
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

impl Global {
    pub(crate) fn output(&self) -> Output {
        Output::new(self.output, self.quiet)
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(self.url.clone(), client::key::find(self.api_key_file.as_deref())?.as_deref())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// API and worker in one process on SQLite, for trying things out
    Dev(dev::Args),
    /// Serves the HTTP API; runs no agents
    Api(api::Args),
    /// Executes runs
    Worker(worker::Args),
    /// Brings the database's schema up to date
    #[command(subcommand)]
    Migrate(migrate::Command),
    /// Makes, lists and revokes API keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Checks configuration, database, clock, Redis and providers
    Doctor(doctor::Args),
    /// Asks a server how it is, for health checks
    Health(health::Args),
    /// Shows and checks the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Prints the OpenAPI document
    Openapi,
    /// Prints the version
    Version,
    /// Submits a run
    Run(run::Args),
    /// Lists, shows, tails and stops runs
    #[command(subcommand)]
    Runs(runs::Command),
    /// Lists conversations and their messages
    #[command(subcommand)]
    Chats(chats::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = faults::arm() {
        return end(Err(Failure::usage(error.to_string())));
    }
    // Database, Redis and HTTP share this one; installing fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Failure::during("cannot start", &error))),
    };
    let outcome = runtime.block_on(dispatch(cli));
    // A read of stdin that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    end(outcome)
}

async fn dispatch(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    match command {
        Command::Dev(args) => dev::run(&global, args).await,
        Command::Api(args) => api::run(&global, args).await,
        Command::Worker(args) => worker::run(&global, args).await,
        Command::Migrate(command) => migrate::run(&global, command).await,
        Command::Keys(command) => keys::run(&global, command).await,
        Command::Doctor(args) => doctor::run(&global, args).await,
        Command::Health(args) => health::run(&global, args).await,
        Command::Config(command) => config::run(&global, &command),
        Command::Openapi => print(&longhaul_api::openapi_json()),
        Command::Version => print(&format!("longhaul {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Run(args) => run::run(&global, args).await,
        Command::Runs(command) => runs::run(&global, command).await,
        Command::Chats(command) => chats::run(&global, command).await,
    }
}

fn end(outcome: Outcome) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(Failure { exit, message }) => {
            if let Some(message) = message {
                output::complain(&message);
            }
            exit
        }
    };
    exit.into()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;
    use crate::exit::Exit;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_tree_of_commands_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_command_parses() {
        for line in [
            "longhaul dev --port 4681 --host 0.0.0.0 --db x.db --slots 3",
            "longhaul dev --ephemeral",
            "longhaul api --config longhaul.toml",
            "longhaul worker --slots 2",
            "longhaul migrate up",
            "longhaul migrate status -o json",
            "longhaul keys create ci --role operator --workspace acme",
            "longhaul keys list",
            "longhaul keys revoke 0197a5c0-0000-7000-8000-000000000000",
            "longhaul doctor",
            "longhaul health livez",
            "longhaul health readyz --url http://127.0.0.1:1",
            "longhaul config show --origin",
            "longhaul config check",
            "longhaul config docs",
            "longhaul config env-example",
            "longhaul openapi",
            "longhaul version",
            "longhaul run demo hello --follow --if-busy enqueue --tag a --tag b --delay 5s --chat C",
            "longhaul run demo - --wait=30s --idempotency-key k",
            "longhaul runs list --status running --status failed --agent demo --since 24h --all",
            "longhaul runs get ID",
            "longhaul runs steps ID",
            "longhaul runs tail ID --after 7 --format events",
            "longhaul runs stop ID --wait",
            "longhaul chats list --limit 5",
            "longhaul chats messages ID -o jsonl",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_wait_does_not_swallow_the_input() {
        let Command::Run(args) = parse("longhaul run demo --wait hello").unwrap().command else { panic!() };
        assert_eq!((args.input.as_deref(), args.wait), (Some("hello"), Some(None)));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "longhaul run demo hi --follow --wait",
            "longhaul dev --ephemeral --db x.db",
            "longhaul keys create ci",
            "longhaul keys create ci --role king",
            "longhaul run demo hi --if-busy panic",
            "longhaul run demo hi --delay soon",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
            assert_ne!(error.kind(), ErrorKind::UnknownArgument, "{line}");
        }
    }
}

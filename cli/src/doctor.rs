//! `longhaul doctor`: looks at everything that a server needs, changes nothing, and calls no model.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use longhaul_shared::{
    backends::{Processes, open},
    config::{Config, DatabaseKind, ProviderKind},
    domain::ids::Millis,
    store::{SharedStore, StoreError, bounded},
};
use owo_colors::OwoColorize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Global, config,
    database::missing_file,
    exit::{Exit, Outcome},
    output::{Format, json_lines, print},
};

/// What one question to a server may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Leases go by the database's clock, so a skew costs only readable times; from here on those mislead.
const SKEW: Millis = 2_000;
const OLDEST_POSTGRES: u32 = 15;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Checks what `longhaul dev` would use
    #[arg(long)]
    dev: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug)]
struct Finding {
    what: String,
    verdict: Verdict,
    detail: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Finding { what: what.into(), verdict, detail: detail.into() });
    }
}

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let mut findings = Findings::default();
    match config::load(global, args.dev) {
        Ok(config) => {
            findings.add("config", Verdict::Ok, format!("agents: {}", config.agents.len()));
            look(&config, args.dev, WITHIN, &mut findings).await;
        }
        Err(failure) => {
            findings.add("config", Verdict::Fail, failure.message.unwrap_or_default());
        }
    }
    let documents = || findings.0.iter().map(document);
    print(&match global.output().format {
        Format::Table => findings.0.iter().map(line).collect::<String>(),
        Format::Json => format!("{:#}\n", Value::Array(documents().collect())),
        Format::Jsonl => json_lines(documents()),
    })?;
    let failed = findings.0.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed { Exit::Error } else { Exit::Ok })
}

async fn look(config: &Config, dev: bool, patience: Duration, findings: &mut Findings) {
    let url = config.database.url.to_string();
    if let Some(path) = missing_file(config) {
        if dev {
            findings.add("database", Verdict::Ok, format!("{path} will be made at the first start"));
        } else {
            let detail = format!("{path} does not exist; `longhaul migrate up` makes it");
            findings.add("database", Verdict::Fail, detail);
        }
        look_at_providers(config, findings);
        return;
    }
    match open(config, Processes::One) {
        Err(error) => findings.add("database", Verdict::Fail, format!("{url}: {error}")),
        Ok(backends) => {
            look_at_database(config, &backends.store, findings).await;
            if let Some(url) = &config.redis.url {
                let begin = Instant::now();
                while !backends.bus.is_connected() && begin.elapsed() < patience {
                    sleep(Duration::from_millis(20)).await;
                }
                if backends.bus.is_connected() {
                    findings.add("redis", Verdict::Ok, url.to_string());
                } else {
                    let detail = format!("{url} cannot be reached; servers work without it, only slower");
                    findings.add("redis", Verdict::Fail, detail);
                }
            } else if !dev {
                let detail = "not configured; several processes are faster with it";
                findings.add("redis", Verdict::Ok, detail);
            }
            backends.close().await;
        }
    }
    look_at_providers(config, findings);
}

async fn look_at_database(config: &Config, store: &SharedStore, findings: &mut Findings) {
    let url = &config.database.url;
    let version = match ask(store, |store| async move { store.server_version().await }).await {
        Ok(version) => version,
        Err(error) => return findings.add("database", Verdict::Fail, format!("{url}: {error}")),
    };
    let major = version.split(['.', ' ']).next().and_then(|major| major.parse::<u32>().ok());
    let old = url.kind() == DatabaseKind::Postgres && major.is_some_and(|major| major < OLDEST_POSTGRES);
    let detail = format!("{} {version} at {url}", store.kind());
    if old {
        let detail = format!("{detail}; at least {OLDEST_POSTGRES} is needed");
        findings.add("database", Verdict::Fail, detail);
    } else {
        findings.add("database", Verdict::Ok, detail);
    }
    match ask(store, |store| async move { store.migrations().await }).await {
        Ok(known) => match known.iter().filter(|(_, _, applied)| !applied).count() {
            0 => findings.add("migrations", Verdict::Ok, format!("all {} are applied", known.len())),
            missing => {
                let detail = format!("{missing} of {} are missing: `longhaul migrate up`", known.len());
                findings.add("migrations", Verdict::Fail, detail);
            }
        },
        Err(error) => findings.add("migrations", Verdict::Fail, error.to_string()),
    }
    if let Ok(workers) = ask(store, |store| async move { store.list_workers().await }).await {
        let (alive, held) = workers
            .iter()
            .filter(|worker| worker.is_alive)
            .fold((0, 0), |(alive, held), worker| (alive + 1, held + worker.held));
        findings.add("workers", Verdict::Ok, format!("{alive} alive, with {held} runs"));
    }
    let before = local_now();
    match ask(store, |store| async move { store.now().await }).await {
        Ok(theirs) => {
            // Half of the way there and back.
            let skew = theirs - Millis::midpoint(before, local_now());
            let verdict = if skew.abs() <= SKEW { Verdict::Ok } else { Verdict::Warn };
            findings.add("clock", verdict, format!("the database's is {skew:+} ms from this machine's"));
        }
        Err(error) => findings.add("clock", Verdict::Fail, error.to_string()),
    }
}

/// One question to the database, which may have fallen silent since the last.
async fn ask<T, F>(store: &SharedStore, question: impl FnOnce(SharedStore) -> F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    bounded(WITHIN, question(SharedStore::clone(store))).await
}

/// Keys that cannot be read have already been refused with the configuration.
fn look_at_providers(config: &Config, findings: &mut Findings) {
    for (name, provider) in &config.providers {
        let what = format!("provider {name}");
        let base = provider.base_url.as_ref().map(ToString::to_string).unwrap_or_default();
        match (provider.kind, &provider.api_key) {
            (ProviderKind::Scripted, _) => findings.add(what, Verdict::Ok, "scripted, needs no key"),
            (ProviderKind::Openai, Some(_)) => findings.add(what, Verdict::Ok, format!("{base}, with a key")),
            (ProviderKind::Openai, None) => {
                findings.add(what, Verdict::Warn, format!("{base}, without a key"));
            }
        }
    }
}

fn local_now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn line(Finding { what, verdict, detail }: &Finding) -> String {
    let word = match verdict {
        Verdict::Ok => "ok  ".green().to_string(),
        Verdict::Warn => "warn".yellow().to_string(),
        Verdict::Fail => "fail".red().to_string(),
    };
    format!("{word}  {what}: {detail}\n")
}

fn document(Finding { what, verdict, detail }: &Finding) -> Value {
    let verdict = match verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "fail",
    };
    json!({"check": what, "verdict": verdict, "detail": detail})
}

#[cfg(test)]
mod tests {
    use longhaul_shared::config::{Environment, Overrides, Profile, Sources};

    use super::*;

    fn config(database: &str, redis: &str) -> Config {
        Sources {
            profile: Profile::Plain,
            file: None,
            environment: Environment::from_iter([
                ("LONGHAUL_DATABASE_URL", database),
                ("LONGHAUL_REDIS_URL", redis),
            ]),
            overrides: Overrides::new(),
        }
        .load()
        .unwrap()
    }

    async fn verdicts(config: &Config) -> Vec<(String, Verdict)> {
        let mut findings = Findings::default();
        look(config, false, Duration::from_millis(500), &mut findings).await;
        findings.0.into_iter().map(|finding| (finding.what, finding.verdict)).collect()
    }

    #[tokio::test]
    async fn a_file_is_not_made_by_looking_for_it_and_migrations_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let config = config(&format!("sqlite:{}", file.display()), "");
        assert_eq!(verdicts(&config).await, [("database".to_owned(), Verdict::Fail)]);
        assert!(!file.exists());

        std::fs::write(&file, "").unwrap();
        let expected = |migrations| {
            // Who works on it is in the database, once it has its tables.
            let workers = (migrations == Verdict::Ok).then_some(("workers", Verdict::Ok));
            [("database", Verdict::Ok), ("migrations", migrations)]
                .into_iter()
                .chain(workers)
                .chain([("clock", Verdict::Ok), ("redis", Verdict::Ok)])
                .map(|(what, verdict)| (what.to_owned(), verdict))
                .collect::<Vec<_>>()
        };
        assert_eq!(verdicts(&config).await, expected(Verdict::Fail));
        let store = longhaul_shared::backends::open_store(&config).unwrap();
        store.migrate().await.unwrap();
        assert_eq!(verdicts(&config).await, expected(Verdict::Ok));
    }

    #[tokio::test]
    async fn a_redis_that_is_away_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        std::fs::write(&file, "").unwrap();
        let config = config(&format!("sqlite:{}", file.display()), "redis://127.0.0.1:1");
        assert!(verdicts(&config).await.contains(&("redis".to_owned(), Verdict::Fail)));
    }
}

//! The promises of the configuration as a whole; each section's own values are tested beside it.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use super::{docs::defaults, settings::SETTINGS, *};
use crate::domain::{run::Limits, tool::Effect};

const FULL: &str = r#"
[providers.main]
kind = "openai"
base_url = "http://127.0.0.1:9100/v1"
api_key = "env:OPENAI_API_KEY"
[agents.helper]
provider = "main"
model = "some-model"
instructions = "You are …"
tools = ["clock", "charge"]
limits = { max_steps = 50, deadline = "1h" }
[tools.charge]
kind = "http"
description = "Charges the customer once."
url = "http://127.0.0.1:9200/tool/charge"
parameters = { type = "object", properties = { op = { type = "string" } }, required = ["op"] }
effect = "once"
[net]
allow = ["127.0.0.1:9100", "127.0.0.1:9200"]
[stream]
heartbeat = "15s"
[limits]
requests_per_minute = 600          # per key; 0 = off
"#;

struct Given {
    folder: tempfile::TempDir,
    environment: Vec<(String, String)>,
    overrides: Overrides,
    profile: Profile,
}

/// A start with this file and a database, and nothing else from outside.
fn given(file: &str) -> Given {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("longhaul.toml"), file).unwrap();
    let environment = vec![("LONGHAUL_DATABASE_URL".to_owned(), "sqlite:test.db".to_owned())];
    Given { folder, environment, overrides: Overrides::new(), profile: Profile::Plain }
}

impl Given {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(self) -> Result<Config, ConfigError> {
        let file = Some(self.file("longhaul.toml"));
        let environment = self.environment.into_iter().collect();
        Sources { profile: self.profile, file, environment, overrides: self.overrides }.load()
    }

    fn refused(self) -> String {
        self.load().expect_err("the configuration should be refused").to_string()
    }
}

#[test]
fn the_documented_example_loads() {
    let config = given(FULL).env("OPENAI_API_KEY", "sk-1").load().unwrap();
    let key = config.providers["main"].api_key.as_ref().unwrap();
    assert_eq!(key.expose(), "sk-1");
    let agent = &config.agents["helper"];
    assert_eq!((agent.limits.max_steps, agent.limits.deadline), (Some(50), Some(Duration::from_hours(1))));
    let tool = &config.tools["charge"];
    assert_eq!((tool.effect, tool.method.as_str()), (Effect::Once, "POST"));
    assert_eq!(tool.parameters["required"][0], "op");
    assert_eq!(config.net.allow[1].to_string(), "127.0.0.1:9200");
}

#[test]
fn an_agents_limits_fall_back_to_the_common_ones() {
    let file = "[limits]\nmax_steps = 7\ndeadline = \"2m\"\n[providers.p]\nkind = \"scripted\"\n[agents.a]\n\
                provider = \"p\"\nmodel = \"m\"\nlimits = { deadline = \"1m\", max_output_tokens = 9 }";
    let config = given(file).load().unwrap();
    let limits = config.agents["a"].run_limits(&config.limits);
    assert_eq!((limits.max_steps, limits.deadline_ms), (7, 60_000));
    assert_eq!((limits.tool_timeout_ms, limits.max_output_tokens), (120_000, Some(9)));
    let untouched = LimitsConfig::default();
    let limits =
        AgentConfig { limits: AgentLimits::default(), ..config.agents["a"].clone() }.run_limits(&untouched);
    assert_eq!(limits, Limits::default(), "both places write the same defaults");
}

#[test]
fn a_key_missing_from_the_environment_is_named_with_its_provider() {
    let text = given(FULL).refused();
    assert!(text.contains("providers.main.api_key") && text.contains("OPENAI_API_KEY is not set"), "{text}");
    assert!(text.contains("the provider `main`") && text.contains("longhaul.toml"), "{text}");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = "[worker]\nslots = 1\npoll = \"2s\"\nheartbeat = \"4s\"\n";
    let given = given(file).env("LONGHAUL_WORKER_SLOTS", "2").env("LONGHAUL_WORKER_POLL", "3s");
    let overrides =
        Overrides::new().set("--slots", "worker.slots", Some(3u32)).set("--port", "server.port", None::<u16>);
    let config = Given { overrides, ..given }.load().unwrap();
    assert_eq!(config.worker.slots, 3);
    assert_eq!(config.worker.poll, Duration::from_secs(3));
    assert_eq!(config.worker.heartbeat, Duration::from_secs(4));
    assert_eq!(config.worker.lease, Duration::from_secs(15));

    let origin = |key: &str| {
        config.show_origin().into_iter().find(|shown| shown.key == key).map(|shown| shown.origin).unwrap()
    };
    assert_eq!(origin("worker.slots"), "the flag --slots");
    assert_eq!(origin("worker.poll"), "the environment variable LONGHAUL_WORKER_POLL");
    assert!(origin("worker.heartbeat").ends_with("longhaul.toml"));
    assert_eq!(origin("worker.lease"), "default");
}

#[test]
fn every_shape_of_value_can_come_from_the_environment() {
    let config = given("")
        .env("LONGHAUL_SERVER_PORT", "0")
        .env("LONGHAUL_SERVER_BODY_LIMIT", "2097152")
        .env("LONGHAUL_REDIS_PREFIX", "123")
        .env("LONGHAUL_WORKER_QUEUES", "default, bulk,")
        .env("LONGHAUL_NET_ALLOW", "localhost:80")
        .env("LONGHAUL_AUTH_MODE", "loopback")
        .env("LONGHAUL_STREAM_COALESCE", "0s")
        .env("LONGHAUL_SERVER_HOST", "")
        .load()
        .unwrap();
    assert_eq!((config.server.port, config.server.body_limit), (0, ByteSize::mib(2)));
    assert_eq!((config.redis.prefix.as_str(), config.auth.mode), ("123", AuthMode::Loopback));
    assert_eq!(config.worker.queues, ["default", "bulk"]);
    assert_eq!(config.net.allow.len(), 1);
    assert_eq!(config.server.host, "127.0.0.1", "an empty variable is one that is not set");
}

#[test]
fn other_well_known_variables_are_asked_last() {
    let only = |variables: &[(&str, &str)], profile| {
        let environment = variables.iter().copied().collect();
        Sources { profile, file: Some("/dev/null".into()), environment, overrides: Overrides::new() }
            .load()
            .unwrap()
    };
    let both = [("DATABASE_URL", "sqlite:other.db"), ("LONGHAUL_DATABASE_URL", "sqlite:own.db")];
    assert_eq!(only(&both[..1], Profile::Plain).database.url.expose(), "sqlite:other.db");
    assert_eq!(only(&both, Profile::Plain).database.url.expose(), "sqlite:own.db");
    let dev = only(&both[..1], Profile::Dev).database.url;
    assert_eq!(dev.expose(), "sqlite:./.longhaul/dev.db", "a stray address must not become the playground");

    let log = [("RUST_LOG", "warn"), ("LONGHAUL_LOG", "debug"), ("LONGHAUL_LOG_LEVEL", "trace")];
    for (count, level) in [(1, "warn"), (2, "debug"), (3, "trace")] {
        let config = only(&[&both[1..], &log[..count]].concat(), Profile::Plain);
        assert_eq!(config.log.level, level);
    }
}

#[test]
fn a_secret_setting_can_come_from_a_file() {
    let secret = given("");
    std::fs::write(secret.file("url"), "postgres://app:hunter2@db/jobs\n").unwrap();
    let path = secret.file("url").display().to_string();
    let config =
        Given { environment: Vec::new(), ..secret }.env("LONGHAUL_DATABASE_URL_FILE", &path).load().unwrap();
    assert_eq!(config.database.url.expose(), "postgres://app:hunter2@db/jobs");
    assert!(!format!("{config:?} {:?}", config.show_origin()).contains("hunter2"));

    let text = given("").env("LONGHAUL_DATABASE_URL_FILE", "/nowhere").refused();
    assert!(text.contains("a second time by LONGHAUL_DATABASE_URL_FILE"), "{text}");
}

#[test]
fn unknown_keys_are_refused_with_the_one_that_was_meant() {
    for (file, key, meant) in [
        ("[worker]\nleese = \"15s\"", "worker.leese", "worker.lease"),
        ("[wroker]\nlease = \"15s\"", "wroker", "worker"),
        ("[agent.helper]\nmodel = \"m\"", "agent", "agents"),
        ("[server]\nslots = 3", "server.slots", "worker.slots"),
        (
            "[agents.a]\nprovider = \"p\"\nmodel = \"m\"\nlimits = { max_step = 1 }",
            "agents.a.limits.max_step",
            "agents.a.limits.max_steps",
        ),
        (
            "[tools.t]\nkind = \"http\"\nurls = \"http://x\"\ndescription = \"d\"",
            "tools.t.urls",
            "tools.t.url",
        ),
    ] {
        let text = given(file).refused();
        assert!(text.starts_with(&format!("unknown key `{key}` in ")), "{text}");
        assert!(
            text.contains("longhaul.toml; ") && text.ends_with(&format!("did you mean `{meant}`?")),
            "{text}"
        );
    }
    let text = given("[worker]\nzebra = 1").refused();
    assert!(text.ends_with("longhaul.toml"), "no suggestion is better than a wild one: {text}");
}

#[test]
fn a_misspelt_variable_is_refused_and_foreign_ones_are_left_alone() {
    let text = given("").env("LONGHAUL_WORKER_SLOT", "3").refused();
    assert_eq!(
        text,
        "unknown key `LONGHAUL_WORKER_SLOT` in the environment; did you mean `LONGHAUL_WORKER_SLOTS`?"
    );
    given("")
        .env("LONGHAUL_URL", "http://localhost:4680")
        .env("LONGHAUL_REDIS_SERVICE_HOST", "10.0.0.1")
        .env("LONGHAUL_REDIS_PORT_6379_TCP_ADDR", "10.0.0.1")
        .load()
        .unwrap();
}

#[test]
fn values_of_the_wrong_form_name_the_key_and_the_form() {
    for (file, parts) in [
        ("[worker]\nlease = 15", ["worker.lease", "a duration with its unit"]),
        ("[worker]\nlease = \"15 parsecs\"", ["worker.lease", "15 parsecs"]),
        (
            "[worker]\nslots = \"many\"",
            ["worker.slots", "must be a whole number from 0 to 4294967295, not string \"many\""],
        ),
        ("[server]\nport = 65536", ["server.port", "must be a whole number from 0 to 65535"]),
        ("[worker]\nqueues = \"bulk\"", ["worker.queues", "must be a list"]),
        ("[agents]\na = 3", ["agents.a", "must be a table"]),
        ("[server]\nbody_limit = \"big\"", ["server.body_limit", "64 KiB"]),
        ("[auth]\nmode = \"open\"", ["auth.mode", "one of required, loopback"]),
        ("[providers.p]\nkind = \"gpt\"", ["providers.p.kind", "one of openai, scripted"]),
        (
            "[providers.p]\nkind = \"openai\"\nbase_url = \"ftp://x\"",
            ["providers.p.base_url", "http or https"],
        ),
        ("[agents.a]\nprovider = \"p\"", ["agents.a.model", "is required"]),
        ("[net]\nallow = [\"localhost\"]", ["net.allow", "host:port"]),
        ("[worker]\npoll = \"1s\"\nlease = sk-1", ["longhaul.toml is not valid TOML: line 3: ", ""]),
    ] {
        let text = given(file).refused();
        assert!(parts.iter().all(|part| text.contains(part)), "{file}: {text}");
    }
}

#[test]
fn a_file_that_was_named_must_exist() {
    let given = given("");
    std::fs::remove_file(given.file("longhaul.toml")).unwrap();
    assert!(given.refused().starts_with("cannot read the configuration file"));
}

#[test]
fn a_presence_that_nobody_could_find_is_refused() {
    for (file, key) in [
        ("presence = \"0.0.0.0:4690\"", "worker.presence_advertise"),
        ("presence = \"0.0.0.0:4690\"\npresence_advertise = \"0.0.0.0:4690\"", "worker.presence_advertise"),
        ("presence = \"0.0.0.0:4690\"\npresence_advertise = \"10.0.0.7:0\"", "worker.presence_advertise"),
        ("presence = \"0.0.0.0:0\"\npresence_advertise = \"10.0.0.7:4690\"", "worker.presence"),
        ("presence = \"somewhere:4690\"", "worker.presence"),
    ] {
        let text = given(&format!("[worker]\n{file}")).refused();
        assert!(text.contains(key), "{text}");
    }
    let config = given("[worker]\npresence = \"[::]:4690\"\npresence_advertise = \"10.0.0.7:4690\"").load();
    assert_eq!(config.unwrap().worker.presence_advertise, Some("10.0.0.7:4690".parse().unwrap()));
}

#[test]
fn a_lease_shorter_than_three_heartbeats_is_refused() {
    let text = given("").env("LONGHAUL_WORKER_LEASE", "5s").refused();
    assert!(text.contains("worker.lease (the environment variable LONGHAUL_WORKER_LEASE)"), "{text}");
    assert!(text.contains("at least 3 × worker.heartbeat (2s), not 5s"), "{text}");
    given("").env("LONGHAUL_WORKER_LEASE", "3s").env("LONGHAUL_WORKER_HEARTBEAT", "1s").load().unwrap();
}

#[test]
fn time_limits_nest_and_those_that_do_not_are_refused() {
    let times = |lease: &str, heartbeat: &str, poll: &str, statement: &str, drain: &str| {
        let statement =
            if statement.is_empty() { String::new() } else { format!("statement_timeout = \"{statement}\"") };
        let file = format!(
            "[worker]\nlease = \"{lease}\"\nheartbeat = \"{heartbeat}\"\npoll = \"{poll}\"\n\
             drain_timeout = \"{drain}\"\n[database]\n{statement}"
        );
        given(&file).load().map_err(|error| error.to_string())
    };
    for (lease, heartbeat, poll, statement, drain) in [
        ("15s", "5s", "1s", "", "30s"),
        ("15s", "5s", "15s", "14999ms", "0s"),
        ("3s", "1s", "1s", "2s", "59m"),
        ("1h", "1s", "1s", "", "30s"),
    ] {
        let config = times(lease, heartbeat, poll, statement, drain).unwrap();
        let WorkerConfig { lease, heartbeat, .. } = config.worker;
        assert!(config.statement_timeout() < lease && heartbeat * 3 <= lease);
    }
    for (lease, heartbeat, poll, statement, drain, key) in [
        ("14999ms", "5s", "1s", "", "30s", "worker.lease"),
        ("15s", "5001ms", "1s", "", "30s", "worker.lease"),
        ("15s", "5s", "15001ms", "", "30s", "worker.poll"),
        ("15s", "5s", "1s", "15s", "30s", "database.statement_timeout"),
        ("15s", "5s", "1s", "0s", "30s", "database.statement_timeout"),
        ("0s", "0s", "0s", "", "30s", "worker.heartbeat"),
        ("15s", "5s", "1s", "", "1h", "worker.drain_timeout"),
    ] {
        let refused = times(lease, heartbeat, poll, statement, drain).expect_err(key);
        assert!(refused.contains(key), "{refused}");
    }
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let agent = "[providers.p]\nkind = \"scripted\"\n[agents.a]\nprovider = \"p\"\nmodel = \"m\"\n";
    let tool = "[tools.t]\nkind = \"http\"\ndescription = \"d\"\nurl = \"http://localhost/\"\n";
    for (file, key, rule) in [
        ("[worker]\ndrain_timeout = \"2h\"".to_owned(), "worker.drain_timeout", "shorter than 1h"),
        ("[worker]\npoll = \"16s\"".into(), "worker.poll", "no longer than worker.lease"),
        ("[worker]\nslots = 0".into(), "worker.slots", "between 1 and 10000"),
        ("[worker]\nqueues = []".into(), "worker.queues", "at least one"),
        ("[database]\nmax_connections = 2".into(), "database.max_connections", "at least 3"),
        (
            "[database]\nstatement_timeout = \"15s\"".into(),
            "database.statement_timeout",
            "shorter than worker.lease",
        ),
        ("[limits]\nmax_steps = 0".into(), "limits.max_steps", "above 0"),
        ("[limits]\ndeadline = \"0s\"".into(), "limits.deadline", "above 0s and at most 365days"),
        ("[stream]\nheartbeat = \"0s\"".into(), "stream.heartbeat", "above 0s and at most 365days"),
        ("[limits]\ndeadline = \"500years\"".into(), "limits.deadline", "at most 365days"),
        ("[log]\nlevel = \"a=b=c\"".into(), "log.level", "not a log filter"),
        (
            "[auth]\nmode = \"loopback\"\n[server]\nhost = \"0.0.0.0\"".into(),
            "auth.mode",
            "must be `required`",
        ),
        ("[server]\ncors_origins = [\"a.example\"]".into(), "server.cors_origins", "not an origin"),
        ("[providers.p]\nkind = \"openai\"".into(), "providers.p.base_url", "is required"),
        ("[providers.p]\nkind = \"scripted\"\napi_key = \"x\"".into(), "providers.p.api_key", "calls nobody"),
        (
            "[agents.a]\nprovider = \"pp\"\nmodel = \"m\"".into(),
            "agents.a.provider",
            "declare it as [providers.pp]",
        ),
        (format!("{agent}tools = [\"clok\"]"), "agents.a.tools", "did you mean `clock`?"),
        (format!("{agent}temperature = 3.0"), "agents.a.temperature", "between 0 and 2"),
        (format!("{agent}limits = {{ max_steps = 0 }}"), "agents.a.limits.max_steps", "above 0"),
        (agent.replace("agents.a", "agents.\"a b\""), "agents.a b", "1 to 64 letters"),
        (format!("{tool}parameters = \"x\""), "tools.t.parameters", "type = \"object\""),
        (format!("{tool}parameters = {{ type = \"array\" }}"), "tools.t.parameters", "type = \"object\""),
        (format!("{tool}method = \"GET\""), "tools.t.method", "one of POST"),
        (format!("{tool}headers = {{ traceparent = \"x\" }}"), "tools.t.headers", "set by the worker"),
        (format!("{tool}headers = {{ A = \"env:NONE\" }}"), "tools.t.headers", "NONE is not set"),
        (tool.replace("tools.t", "tools.clock"), "tools.clock", "built in"),
    ] {
        let error = given(&file).load().expect_err(&file);
        let ConfigError::Refused(problems) = &error else { panic!("{file}: {error}") };
        assert!(
            problems.iter().any(|problem| problem.key == key && problem.rule.contains(rule)),
            "{file}: {error}"
        );
        assert_eq!(problems.len(), 1, "{file}: {error}");
        assert!(
            problems[0].origin.as_ref().is_some_and(|origin| origin.ends_with("longhaul.toml")),
            "{error}"
        );
    }
}

#[test]
fn all_broken_rules_are_shown_at_once() {
    let text = given("[worker]\nslots = 0\n[limits]\nmax_steps = 0").refused();
    assert!(text.contains("\n  worker.slots") && text.contains("\n  limits.max_steps"), "{text}");
    let text = Given { environment: Vec::new(), ..given("") }.refused();
    assert!(text.contains("database.url: is required"), "{text}");
}

#[test]
fn a_development_start_is_complete_without_any_setting() {
    let dev = |file| Given { environment: Vec::new(), profile: Profile::Dev, ..given(file) };
    let config = dev("").load().unwrap();
    assert_eq!(config.database.url.expose(), "sqlite:./.longhaul/dev.db");
    assert_eq!(config.auth.mode, AuthMode::Loopback);
    assert_eq!(config.agents["demo"].tools, ["clock"]);
    assert_eq!(config.providers["demo"].kind, ProviderKind::Scripted);
    assert!(config.check().is_ok());

    let config =
        dev("[agents.demo]\ninstructions = \"Mine.\"\n[providers.demo]\nscript = \"s.json\"").load().unwrap();
    assert_eq!(config.agents["demo"].instructions, "Mine.");
    assert_eq!(config.agents["demo"].model, "demo");
    assert!(config.providers["demo"].script.as_ref().unwrap().is_absolute(), "relative to the file's folder");
}

#[test]
fn no_secret_is_ever_shown() {
    let file = format!("{FULL}\n[tools.charge.headers]\nAuthorization = \"Bearer swordfish\"\n");
    let config = given(&file)
        .env("OPENAI_API_KEY", "sk-swordfish")
        .env("LONGHAUL_REDIS_URL", "redis://:swordfish@cache:6379")
        .load()
        .unwrap();
    assert_eq!(config.redis.url.as_ref().unwrap().expose(), "redis://:swordfish@cache:6379");
    assert_eq!(config.tools["charge"].headers["Authorization"].expose(), "Bearer swordfish");
    let shown = config.show_origin();
    let everything = format!("{config:?} {shown:?} {}", serde_json::to_string(&config).unwrap());
    assert!(!everything.contains("swordfish"), "{everything}");
    let value = |key: &str| shown.iter().find(|shown| shown.key == key).unwrap().value.as_str();
    assert_eq!(value("providers.main.api_key"), "***");
    assert_eq!(value("redis.url"), "redis://:***@cache:6379");

    for (file, says) in [
        ("[providers.p]\nkind = \"openai\"\napi_key = 4242", "must be a string"),
        ("[providers.p]\nkind = \"openai\"\napi_key = sk-4242", "line 3"),
        ("[redis]\nurl = \"cache:4242\"", "must be written as redis://"),
        ("[database]\nurl = \"mysql://a:4242@b\"", "must be written as postgres://"),
    ] {
        let text = Given { environment: Vec::new(), ..given(file) }.refused();
        assert!(text.contains(says) && !text.contains("4242"), "{text}");
    }
}

#[test]
fn the_table_of_settings_and_the_types_name_the_same_keys() {
    let table: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key.to_owned()).collect();
    let types: BTreeSet<_> = defaults().into_keys().collect();
    assert_eq!(table.difference(&types).collect::<Vec<_>>(), [""; 0], "in the table only");
    assert_eq!(types.difference(&table).collect::<Vec<_>>(), [""; 0], "in the types only");
    assert_eq!(table.len(), SETTINGS.len(), "no key stands twice");
}

#[test]
fn every_default_that_is_documented_as_a_value_can_be_set_as_it_is_written() {
    let mut given = given("");
    for line in env_example().lines() {
        if let Some((name, value)) = line.strip_prefix("# ").and_then(|line| line.split_once('='))
            && name != "LONGHAUL_CONFIG"
            && !value.is_empty()
            && !name.contains(' ')
        {
            given = given.env(name, value);
        }
    }
    assert!(given.environment.len() > 20);
    let config = given.load().unwrap();
    assert_eq!(config.worker, WorkerConfig::default());
    assert_eq!((config.limits, config.server), (LimitsConfig::default(), ServerConfig::default()));
}

#[test]
fn the_reference_says_each_key_its_variable_and_its_default() {
    let page = markdown();
    for line in [
        "## `[worker]`",
        "| `worker.lease` | `LONGHAUL_WORKER_LEASE` | `15s` |",
        "| `server.body_limit` | `LONGHAUL_SERVER_BODY_LIMIT` | `1MiB` |",
        "| `database.url` | `LONGHAUL_DATABASE_URL`, `DATABASE_URL`, `LONGHAUL_DATABASE_URL_FILE` | required |",
        "| `log.level` | `LONGHAUL_LOG_LEVEL`, `LONGHAUL_LOG`, `RUST_LOG` | `info` |",
        "## `[tools.<name>]`\n\n| Key | Default | Meaning |",
        "| `tools.<name>.effect` | `once` |",
        "| `providers.<name>.max_retry_delay` | `1m` |",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    assert_eq!(page.matches("## `[agents.<name>]`").count(), 1);
}

#[test]
fn dev_beyond_loopback_asks_for_keys_unless_somebody_says_otherwise() {
    let dev = |variables: &[(&str, &str)]| {
        Sources {
            profile: Profile::Dev,
            file: None,
            environment: variables.iter().copied().collect(),
            overrides: Overrides::new().set("--host", "server.host", Some("0.0.0.0")),
        }
        .load()
    };
    assert_eq!(dev(&[]).unwrap().auth.mode, AuthMode::Required);
    let refused = dev(&[("LONGHAUL_AUTH_MODE", "loopback")]).unwrap_err().to_string();
    assert!(refused.contains("auth.mode"), "{refused}");
}

//! The one table of all settings. Documentation, the example file, the environment's names and the masking of
//! secrets are made from it; a test holds it against the sections' types.

use super::layers::Profile;

/// How the text of an environment variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Number,
    List,
}

/// One setting. Named entries are written with a placeholder, `providers.<name>.kind`.
#[derive(Debug)]
pub(super) struct Setting {
    pub key: &'static str,
    pub shape: Shape,
    /// May also be read from a file that an environment variable names, and is never shown.
    pub secret: bool,
    /// Further environment variables, asked after the setting's own.
    pub also: &'static [&'static str],
    /// What the documentation says where the type's own default says nothing.
    pub default: Option<&'static str>,
    pub meaning: &'static str,
}

const fn text(key: &'static str, meaning: &'static str) -> Setting {
    Setting { key, shape: Shape::Text, secret: false, also: &[], default: None, meaning }
}

const fn number(key: &'static str, meaning: &'static str) -> Setting {
    Setting { shape: Shape::Number, ..text(key, meaning) }
}

const fn list(key: &'static str, meaning: &'static str) -> Setting {
    Setting { shape: Shape::List, ..text(key, meaning) }
}

const fn required(key: &'static str, meaning: &'static str) -> Setting {
    Setting { default: Some("required"), ..text(key, meaning) }
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        secret: true,
        also: &["DATABASE_URL"],
        ..required(
            "database.url",
            "Where everything is kept: `postgres://user@host/name`, or `sqlite:PATH` for one node. `longhaul dev` uses `sqlite:./.longhaul/dev.db` and does not look at `DATABASE_URL`.",
        )
    },
    number(
        "database.max_connections",
        "Connections of one process, at least 3. No connection is held while a run waits for a model or a tool.",
    ),
    text(
        "database.acquire_timeout",
        "How long a request waits for a free connection before it is answered with 503.",
    ),
    Setting {
        default: Some("two thirds of `worker.lease`"),
        ..text("database.statement_timeout", "How long one statement may take; shorter than `worker.lease`.")
    },
    Setting {
        secret: true,
        ..text(
            "redis.url",
            "`redis://host:port` or `rediss://…`. Without it everything works, tails and wake-ups are slower between processes.",
        )
    },
    text("redis.prefix", "Stands before every channel name, so that installations may share a server."),
    text("server.host", "The address to listen on."),
    number("server.port", "The port to listen on; 0 chooses a free one."),
    text("server.body_limit", "The largest request body, in bytes or as `1 MiB`."),
    list(
        "server.cors_origins",
        "Origins whose pages may call the API from a browser, such as `https://app.example.com`; `*` is any, for calls with a key.",
    ),
    number("worker.slots", "Runs that one worker process carries at the same time."),
    text(
        "worker.lease",
        "How long a silent worker keeps its runs before another one takes over; at least 3 × `worker.heartbeat`.",
    ),
    text("worker.heartbeat", "How often a worker says that it is alive."),
    text("worker.poll", "How often a worker looks for jobs that no wake-up announced."),
    text(
        "worker.drain_timeout",
        "How long a stopping worker waits for its runs' current steps before it hands them over; shorter than the grace period of whatever stops it.",
    ),
    list("worker.queues", "The queues that this worker takes jobs from."),
    text(
        "worker.presence",
        "The address at which other workers ask whether this process lives, so that they need not wait for the lease of a dead one; port 0 takes a free one. A loopback address helps workers on the same host, in the same network namespace.",
    ),
    text(
        "worker.presence_advertise",
        "The `IP:port` at which workers on other hosts reach `worker.presence`, if it is another one. It must lead to this worker and to no other.",
    ),
    text(
        "stream.heartbeat",
        "How often a silent event stream sends a comment, so that proxies keep it open.",
    ),
    text(
        "stream.coalesce",
        "Deltas of one run are gathered for this long before they are saved and shown; the first is not delayed.",
    ),
    number("stream.coalesce_bytes", "Gathered deltas of this many bytes are saved at once."),
    text(
        "stream.redone_steps",
        "What pages of the AI SDK show of a step that is done over: `keep` its torn text with the new one behind it, or `drop` it, which version 7 of the SDK and none before it understands.",
    ),
    number("limits.requests_per_minute", "Requests per key and minute; 0 is no limit."),
    number("limits.max_steps", "Model calls of one run."),
    text("limits.deadline", "How long one run may take from its first claim."),
    text("limits.tool_timeout", "How long one tool call may take."),
    text("limits.provider_silence", "How long a model may send nothing in the middle of an answer."),
    text("limits.first_byte", "How long a model may take to begin its answer."),
    text("limits.max_output_bytes", "The largest output of one model call."),
    number("limits.max_calls_per_step", "The most tool calls that one model output may ask for."),
    number(
        "limits.loop_lines",
        "A run whose model goes on writing the same line ends when it has done so this often; 0 is never.",
    ),
    number("limits.loop_blocks", "The same for a piece of up to 150 characters."),
    number("limits.loop_characters", "The same for a single character."),
    number(
        "limits.loop_calls",
        "A run ends when each of so many steps in a row was the same tool call with the same result; 0 is never.",
    ),
    text(
        "auth.mode",
        "`required`: every call carries a key. `loopback`: no key, only while the server listens on a loopback address, as `longhaul dev` does.",
    ),
    Setting {
        also: &["LONGHAUL_LOG", "RUST_LOG"],
        ..text(
            "log.level",
            "`error`, `warn`, `info`, `debug`, `trace`, or directives per module such as `info,longhaul_worker=debug`.",
        )
    },
    text("log.format", "`text`, `json`, or `auto`: text on a terminal, JSON otherwise."),
    text(
        "metrics.listen",
        "The `IP:port` at which this process serves its metrics for Prometheus under `/metrics`, to anybody who asks. Without it nothing is served.",
    ),
    list(
        "net.allow",
        "Addresses inside the own network that providers and tools may have, each as `host:port`. Everything public is allowed, everything else is not.",
    ),
    required(
        "providers.<name>.kind",
        "`openai`: any endpoint that speaks Chat Completions. `scripted`: plays a script, without network or key.",
    ),
    Setting {
        default: Some("required for `openai`"),
        ..text("providers.<name>.base_url", "The endpoint, up to and including `/v1`.")
    },
    Setting {
        secret: true,
        ..text(
            "providers.<name>.api_key",
            "The key: `env:NAME`, `file:PATH` (relative to the configuration file), or the key itself.",
        )
    },
    Setting {
        default: Some("the demo script"),
        ..text(
            "providers.<name>.script",
            "The script of a `scripted` provider; relative to the configuration file.",
        )
    },
    number("providers.<name>.max_retries", "Repetitions of a call that failed before its first byte."),
    text(
        "providers.<name>.max_retry_delay",
        "The longest pause between them, also when the endpoint asks for more.",
    ),
    Setting {
        default: Some("none"),
        ..text("agents.<name>.description", "What the agent is for, shown in lists.")
    },
    required("agents.<name>.provider", "The name of the provider."),
    required("agents.<name>.model", "The model's name, as the provider knows it."),
    Setting { default: Some("none"), ..text("agents.<name>.instructions", "The system prompt.") },
    list(
        "agents.<name>.tools",
        "The tools it may call: names of declared tools, or `clock`, which is built in.",
    ),
    Setting { default: Some("the model's own"), ..text("agents.<name>.temperature", "Between 0 and 2.") },
    Setting {
        default: Some("`limits.max_steps`"),
        ..number("agents.<name>.limits.max_steps", "Model calls of one run.")
    },
    Setting {
        default: Some("`limits.deadline`"),
        ..text("agents.<name>.limits.deadline", "How long one run may take.")
    },
    Setting {
        default: Some("`limits.tool_timeout`"),
        ..text("agents.<name>.limits.tool_timeout", "How long one tool call may take.")
    },
    Setting {
        default: Some("the model's own"),
        ..number("agents.<name>.limits.max_output_tokens", "Tokens of one model call.")
    },
    required("tools.<name>.kind", "`http`: the arguments are sent to a URL, its answer is the result."),
    required("tools.<name>.description", "What the tool does; the model chooses by it."),
    required("tools.<name>.url", "Where the arguments are sent."),
    text("tools.<name>.method", "`POST`, `PUT`, `PATCH` or `DELETE`."),
    Setting {
        secret: true,
        default: Some("none"),
        ..text(
            "tools.<name>.headers",
            "A table of further headers; a value may be `env:NAME` or `file:PATH` and is never shown.",
        )
    },
    Setting {
        default: Some("no arguments"),
        ..text(
            "tools.<name>.parameters",
            "The JSON Schema of the arguments, an object; checked before each call.",
        )
    },
    text(
        "tools.<name>.effect",
        "What a second call would do. `read`: nothing. `idempotent`: nothing more than the first, given the same `Idempotency-Key`. `once`: harm, so a call with an unknown outcome is never made again.",
    ),
    Setting {
        default: Some("the run's limit"),
        ..text("tools.<name>.timeout", "How long one call may take.")
    },
    text("tools.<name>.max_bytes", "The largest answer that is read."),
    Setting {
        default: Some("none"),
        ..text(
            "tools.<name>.reconcile_url",
            "Asked what became of a `once` call whose answer was not seen; see docs/tools.md. Without it such a call stays `unknown`.",
        )
    },
];

impl Setting {
    /// Entries with a name of their own live in the file only; their secrets may refer to the environment.
    pub(super) fn in_environment(&self) -> bool {
        !self.key.contains('<')
    }

    /// `worker.lease` is `LONGHAUL_WORKER_LEASE`.
    pub(super) fn variable(&self) -> String {
        format!("LONGHAUL_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The variables that may set this, the strongest first.
    pub(super) fn variables(&self, profile: Profile) -> Vec<String> {
        if !self.in_environment() {
            return Vec::new();
        }
        // A database address that lies around for something else must not become the playground of `dev`.
        let also = self.also.iter().filter(|name| profile == Profile::Plain || **name != "DATABASE_URL");
        std::iter::once(self.variable()).chain(also.map(ToString::to_string)).collect()
    }

    /// The variable that names a file with the value, for secrets.
    pub(super) fn file_variable(&self) -> Option<String> {
        (self.secret && self.in_environment()).then(|| format!("{}_FILE", self.variable()))
    }
}

fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| same(setting.key, key))
}

/// Whether a concrete key (`agents.helper.model`) is the table's (`agents.<name>.model`).
fn same(pattern: &str, key: &str) -> bool {
    let mut parts = key.split('.');
    pattern.split('.').all(|part| parts.next().is_some_and(|own| part == "<name>" || part == own))
        && parts.next().is_none()
}

pub(super) fn is_setting(key: &str) -> bool {
    find(key).is_some()
}

/// Whether this key or the one that it lies in holds a secret.
pub(super) fn is_secret(key: &str) -> bool {
    let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
    [key, parent].into_iter().filter_map(find).any(|setting| setting.secret)
}

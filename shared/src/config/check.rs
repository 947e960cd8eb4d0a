//! The rules between sections, each written once, and the one place that runs all checks.

use std::{path::Path, time::Duration};

use super::{
    AuthMode, BUILT_IN_TOOLS, Config, ConfigError, environment::Environment, error::closest, report::Report,
};

impl Config {
    /// Whether the values go together; a loaded configuration has passed.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut report = Report::default();
        self.check_into(&mut report);
        self.refuse(report)
    }

    /// How long one statement may take: always shorter than a lease, so that a slow one ends before a takeover.
    pub fn statement_timeout(&self) -> Duration {
        self.database.statement_timeout.unwrap_or(self.worker.lease * 2 / 3)
    }

    pub(super) fn check_into(&self, report: &mut Report) {
        self.database.check(report);
        self.redis.check(report);
        self.server.check(report);
        self.worker.check(report);
        self.stream.check(report);
        self.limits.check(report);
        self.log.check(report);
        for (name, provider) in &self.providers {
            provider.check(name, report);
        }
        for (name, agent) in &self.agents {
            agent.check(name, report);
        }
        for (name, tool) in &self.tools {
            tool.check(name, report);
        }
        self.check_time_limits(report);
        self.check_references(report);
        report.require(
            self.auth.mode == AuthMode::Required || self.server.is_loopback(),
            "auth.mode",
            || {
                format!(
                    "must be `required` when server.host is not a loopback address, as {} is",
                    self.server.host
                )
            },
        );
    }

    fn check_time_limits(&self, report: &mut Report) {
        report.require(self.statement_timeout() < self.worker.lease, "database.statement_timeout", || {
            format!(
                "must be shorter than worker.lease ({}): a statement may not outlive the lease it writes under",
                humantime::format_duration(self.worker.lease)
            )
        });
    }

    fn check_references(&self, report: &mut Report) {
        for (name, agent) in &self.agents {
            if !self.providers.contains_key(&agent.provider) {
                let known = self.providers.keys().map(String::as_str);
                let rule = missing("provider", "providers", &agent.provider, known);
                report.refuse(format!("agents.{name}.provider"), rule);
            }
            for tool in &agent.tools {
                if !self.tools.contains_key(tool) && !BUILT_IN_TOOLS.contains(&tool.as_str()) {
                    let known = self.tools.keys().map(String::as_str).chain(BUILT_IN_TOOLS.iter().copied());
                    report.refuse(format!("agents.{name}.tools"), missing("tool", "tools", tool, known));
                }
            }
        }
    }

    /// Reads secrets and sets paths relative to the file's folder. What cannot be read is reported by its key.
    pub(super) fn resolve(&mut self, environment: &Environment, folder: &Path, report: &mut Report) {
        for (name, provider) in &mut self.providers {
            if let Some(script) = &mut provider.script {
                *script = folder.join(&*script);
            }
            if let Some(Err(reason)) = provider.api_key.as_mut().map(|key| key.resolve(environment, folder)) {
                report.refuse(
                    format!("providers.{name}.api_key"),
                    format!("{reason}, and the provider `{name}` takes its key from there"),
                );
            }
        }
        for (name, tool) in &mut self.tools {
            for (header, value) in &mut tool.headers {
                if let Err(reason) = value.resolve(environment, folder) {
                    report.refuse(
                        format!("tools.{name}.headers"),
                        format!("{reason}, and the header `{header}` takes its value from there"),
                    );
                }
            }
        }
    }

    pub(super) fn refuse(&self, report: Report) -> Result<(), ConfigError> {
        let mut problems = report.into_problems();
        for problem in &mut problems {
            problem.origin = self.origins.near(&problem.key).map(str::to_owned);
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Refused(problems)) }
    }
}

fn missing<'a>(kind: &str, section: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match closest(name, known) {
        Some(known) => format!("there is no {kind} `{name}`; did you mean `{known}`?"),
        None => format!("there is no {kind} `{name}`: declare it as [{section}.{name}]"),
    }
}

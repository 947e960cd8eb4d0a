//! `[providers.<name>]`: model endpoints.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    report::{Report, is_name},
    secret::Secret,
    span,
    values::HttpUrl,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Any endpoint that speaks Chat Completions.
    Openai,
    /// Plays a script, without network and key.
    Scripted,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    pub kind: ProviderKind,
    /// Set in every loaded provider of kind `openai`.
    #[serde(default)]
    pub base_url: Option<HttpUrl>,
    /// Absent for endpoints that ask for none.
    #[serde(default)]
    pub api_key: Option<Secret>,
    /// The script of a scripted provider; absent is the demo.
    #[serde(default)]
    pub script: Option<PathBuf>,
    #[serde(default = "default_retries")]
    pub max_retries: u32,
    #[serde(default = "default_retry_delay", with = "span")]
    pub max_retry_delay: Duration,
}

fn default_retries() -> u32 {
    4
}

fn default_retry_delay() -> Duration {
    Duration::from_mins(1)
}

impl ProviderConfig {
    /// A provider of this kind with nothing else set.
    pub fn new(kind: ProviderKind) -> Self {
        Self {
            kind,
            base_url: None,
            api_key: None,
            script: None,
            max_retries: default_retries(),
            max_retry_delay: default_retry_delay(),
        }
    }

    pub(super) fn check(&self, name: &str, report: &mut Report) {
        let key = |field: &str| format!("providers.{name}.{field}");
        report.require(is_name(name), format!("providers.{name}"), || {
            "a provider's name must be 1 to 64 letters, digits, `_` or `-`".to_owned()
        });
        match self.kind {
            ProviderKind::Openai => {
                report.require(self.base_url.is_some(), key("base_url"), || {
                    "is required for a provider of kind openai, for example https://host/v1".to_owned()
                });
                report.require(self.script.is_none(), key("script"), || {
                    "belongs to providers of kind scripted only".to_owned()
                });
            }
            ProviderKind::Scripted => {
                for (field, set) in
                    [("base_url", self.base_url.is_some()), ("api_key", self.api_key.is_some())]
                {
                    report.require(!set, key(field), || {
                        "belongs to providers of kind openai only: a script calls nobody".to_owned()
                    });
                }
            }
        }
        report.require(self.max_retries <= 10, key("max_retries"), || {
            format!("must be at most 10, not {}", self.max_retries)
        });
        report.positive(key("max_retry_delay"), self.max_retry_delay);
    }
}

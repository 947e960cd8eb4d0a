//! `[auth]`: whether callers need a key.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    pub mode: AuthMode,
}

/// The safe mode is the default; only `longhaul dev` on the loopback interface starts in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Every call carries a key.
    #[default]
    Required,
    /// No key: whoever reaches the loopback interface may do everything.
    Loopback,
}

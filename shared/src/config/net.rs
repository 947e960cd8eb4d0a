//! `[net]`: which non-public addresses runs may call. Everything public is allowed, everything else is not.

use serde::{Deserialize, Serialize};

use super::values::HostPort;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    pub allow: Vec<HostPort>,
}

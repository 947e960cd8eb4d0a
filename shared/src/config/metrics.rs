//! `[metrics]`: where a process tells its counters.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Absent: nothing is served.
    pub listen: Option<SocketAddr>,
}

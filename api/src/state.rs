//! The handles that a route may use.

use std::{ops::Deref, sync::Arc, time::Duration};

use longhaul_shared::{
    admission::Agents,
    bus::Bus,
    config::{AuthMode, Config, RedoneSteps},
    domain::ids::WorkspaceId,
    store::{SharedStore, StoreError},
    tail::Tails,
};
use tokio::sync::OnceCell;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::DEFAULT_WORKSPACE,
    key_cache::KeyCache,
    rate_limit::RateLimits,
    views::{
        frames::FrameCache,
        ui::{PORTABLE, RESETTING},
    },
};

/// How the API behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// With `loopback` also whoever can reach the address that the server is bound to, as the administrator of the
    /// workspace `default`.
    pub auth: AuthMode,
    /// Per key; 0 = no limit.
    pub requests_per_minute: u32,
    /// Bytes of a request's body.
    pub body_limit: usize,
    /// Silence on a stream after which a comment is sent.
    pub heartbeat: Duration,
    /// Of the runs that are admitted here: [`PORTABLE`](crate::views::ui::PORTABLE) or
    /// [`RESETTING`](crate::views::ui::RESETTING).
    pub renderer: i32,
    /// Pages from these origins may call.
    pub cors_origins: Vec<String>,
    /// How this process was started, such as `dev` or `api`.
    pub mode: &'static str,
    pub version: &'static str,
}

impl Settings {
    /// Out of the configuration; `mode` says how this process was started.
    pub fn of(config: &Config, mode: &'static str) -> Self {
        Self {
            auth: config.auth.mode,
            requests_per_minute: config.limits.requests_per_minute,
            body_limit: config.server.body_limit.as_usize(),
            heartbeat: config.stream.heartbeat,
            renderer: match config.stream.redone_steps {
                RedoneSteps::Keep => PORTABLE,
                RedoneSteps::Drop => RESETTING,
            },
            cors_origins: config.server.cors_origins.clone(),
            mode,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// What an API process is made of.
pub struct Parts {
    pub store: SharedStore,
    pub bus: Arc<dyn Bus>,
    pub tails: Tails,
    pub agents: Arc<Agents>,
    pub settings: Settings,
}

pub struct Shared {
    pub(crate) store: SharedStore,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) tails: Tails,
    pub(crate) agents: Arc<Agents>,
    pub(crate) settings: Settings,
    pub(crate) keys: KeyCache,
    pub(crate) rates: RateLimits,
    pub(crate) frames: FrameCache,
    /// The handlers under way.
    pub(crate) tasks: TaskTracker,
    /// Set when the process is about to end: tails break off, waits return.
    pub(crate) draining: CancellationToken,
    default_workspace: OnceCell<WorkspaceId>,
}

/// One per process; cheap to clone.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

impl Deref for AppState {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    pub fn new(parts: Parts) -> Self {
        let Parts { store, bus, tails, agents, settings } = parts;
        Self(Arc::new(Shared {
            store,
            bus,
            tails,
            agents,
            keys: KeyCache::default(),
            rates: RateLimits::per_minute(settings.requests_per_minute),
            frames: FrameCache::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            default_workspace: OnceCell::new(),
            settings,
        }))
    }

    /// From now on `/readyz` answers 503, open tails are reset and waiting calls return.
    pub fn begin_drain(&self) {
        self.draining.cancel();
    }
}

impl Shared {
    /// The workspace of calls without a key, made at the first one.
    pub(crate) async fn default_workspace(&self) -> Result<WorkspaceId, StoreError> {
        self.default_workspace
            .get_or_try_init(|| self.store.ensure_workspace(DEFAULT_WORKSPACE))
            .await
            .copied()
    }
}

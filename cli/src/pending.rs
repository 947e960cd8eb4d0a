//! The shape of `longhaul-api` and `longhaul-worker` as this crate uses them, until they are merged.

pub(crate) mod longhaul_api {
    use std::sync::Arc;

    use longhaul_shared::{bus::Bus, config::Config, shutdown::Shutdown, store::SharedStore};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Mode {
        Dev,
        Server,
    }

    pub(crate) struct Parts {
        pub(crate) store: SharedStore,
        pub(crate) bus: Arc<dyn Bus>,
        pub(crate) config: Arc<Config>,
        pub(crate) mode: Mode,
    }

    pub(crate) async fn serve(
        listener: tokio::net::TcpListener,
        parts: Parts,
        shutdown: &Shutdown,
    ) -> std::io::Result<()> {
        shutdown.soft.cancelled().await;
        drop((listener, parts.store, parts.bus, parts.config, parts.mode));
        Ok(())
    }

    pub(crate) fn openapi_json() -> String {
        "{}\n".to_owned()
    }
}

pub(crate) mod longhaul_worker {
    use std::{convert::Infallible, sync::Arc};

    use longhaul_shared::{bus::Bus, config::Config, shutdown::Shutdown, store::SharedStore};

    pub(crate) type Error = Infallible;

    pub(crate) struct Parts {
        pub(crate) store: SharedStore,
        pub(crate) bus: Arc<dyn Bus>,
        pub(crate) config: Arc<Config>,
    }

    pub(crate) async fn run(parts: Parts, shutdown: Shutdown) -> Result<(), Error> {
        shutdown.soft.cancelled().await;
        drop((parts.store, parts.bus, parts.config));
        Ok(())
    }
}

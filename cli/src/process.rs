//! A server process: its parts run side by side until it is told to stop, or one of them ends.

use std::{future::Future, time::Duration};

use longhaul_shared::{
    config::Config,
    shutdown::{Finish, Shutdown},
    telemetry::metrics,
};
use tokio::{task::JoinSet, time::timeout};

use crate::exit::{Exit, Failure, Outcome};

/// What the parts get beyond the drain time to save and hand over.
const MARGIN: Duration = Duration::from_secs(5);
/// What is left of them after a hard stop gets this long.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// The parts of one process.
pub(crate) struct Parts {
    shutdown: Shutdown,
    tasks: JoinSet<Result<(), String>>,
    /// What lasts as long as the process: it ends when this is dropped.
    lasting: JoinSet<()>,
}

impl Parts {
    pub(crate) fn new(shutdown: &Shutdown) -> Self {
        Self { shutdown: shutdown.clone(), tasks: JoinSet::new(), lasting: JoinSet::new() }
    }

    /// Serves metrics where the configuration says so, to the end of the drain.
    pub(crate) fn serve_metrics(&mut self, config: &Config) -> Result<(), Failure> {
        if let Some(listen) = config.metrics.listen {
            let serving = metrics::serve(listen).map_err(|error| Failure::error(error.to_string()))?;
            self.lasting.spawn(serving);
        }
        Ok(())
    }

    /// Starts a part, which ends by itself after a soft stop. Its end stops the others.
    pub(crate) fn spawn<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let soft = self.shutdown.soft.clone();
        self.tasks.spawn(async move {
            // Also after a panic: half a process only pretends to work.
            let _stop = soft.drop_guard();
            part.await.map_err(|error| format!("the {name} failed: {error}"))
        });
    }

    /// Runs until the process is told to stop, then lets the parts drain.
    pub(crate) async fn run(mut self, config: &Config) -> Outcome {
        self.shutdown.soft.cancelled().await;
        let patience = config.worker.drain_timeout + MARGIN;
        let mut failures = Vec::new();
        let drained = tokio::select! {
            drained = timeout(patience, join(&mut self.tasks, &mut failures)) => drained.is_ok(),
            () = self.shutdown.hard.cancelled() => false,
        };
        if !drained {
            self.shutdown.hard.cancel();
            // What does not end now is cut off with the process.
            let _ = timeout(LAST_MOMENT, join(&mut self.tasks, &mut failures)).await;
        }
        let finish = self.shutdown.finish(MARGIN).await;
        match (failures.is_empty(), drained, finish) {
            (true, true, Finish::Drained) => Ok(Exit::Ok),
            (false, ..) => Err(Failure::error(failures.join("; "))),
            (true, ..) => {
                Err(Failure::error("stopped before everything was handed over; the leases will run out"))
            }
        }
    }
}

async fn join(tasks: &mut JoinSet<Result<(), String>>, failures: &mut Vec<String>) {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => failures.push(failure),
            Err(error) => failures.push(format!("a part of the process broke: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use super::*;

    fn config(drain: Duration) -> Config {
        let mut config = Config::default();
        config.worker.drain_timeout = drain;
        config
    }

    #[tokio::test]
    async fn parts_that_drain_after_a_soft_stop_end_well() {
        let shutdown = Shutdown::new();
        let mut parts = Parts::new(&shutdown);
        let soft = shutdown.soft.clone();
        parts.spawn("worker", async move {
            soft.cancelled().await;
            Ok::<(), Infallible>(())
        });
        shutdown.soft.cancel();
        assert_eq!(parts.run(&config(Duration::ZERO)).await.unwrap(), Exit::Ok);
    }

    #[tokio::test]
    async fn a_part_that_fails_stops_the_others_and_is_named() {
        let shutdown = Shutdown::new();
        let mut parts = Parts::new(&shutdown);
        let soft = shutdown.soft.clone();
        parts.spawn("worker", async move {
            soft.cancelled().await;
            Ok::<(), Infallible>(())
        });
        parts.spawn("API", async { Err("no port") });
        let failure = parts.run(&config(Duration::ZERO)).await.unwrap_err();
        assert_eq!(failure.message.as_deref(), Some("the API failed: no port"));
    }

    #[tokio::test]
    async fn a_hard_stop_does_not_wait() {
        let shutdown = Shutdown::new();
        let mut parts = Parts::new(&shutdown);
        parts.spawn("worker", pending::<Result<(), Infallible>>());
        shutdown.hard.cancel();
        assert!(parts.run(&config(Duration::from_mins(5))).await.is_err());
    }
}

//! How a process ends. A soft stop: no new work, what is under way comes to a good place. A hard stop: now.
//!
//! The first SIGINT or SIGTERM stops softly; a second one, or running out of time in [`Shutdown::finish`], stops
//! hard. A hard stop includes the soft one. Every task that is spawned here is waited for, and one that panics
//! stops the process softly: without its heartbeat or recorder it would only pretend to work.

use std::{
    any::Any,
    future::Future,
    io,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What tasks get after a hard stop to drop what they hold.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// The stops of one process and the tasks to wait for. Clones are the same stops and the same tasks.
#[derive(Clone, Debug)]
pub struct Shutdown {
    pub soft: CancellationToken,
    pub hard: CancellationToken,
    pub tasks: TaskTracker,
    failed: Arc<AtomicBool>,
}

/// How [`Shutdown::finish`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All tasks ended by themselves.
    Drained,
    /// Time ran out, or a second signal came; this many tasks did not even end then.
    Cut { left: usize },
    /// All tasks ended, but one of them by a panic.
    Failed,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self { soft: hard.child_token(), hard, tasks: TaskTracker::new(), failed: Arc::default() }
    }

    /// Listens for SIGINT and SIGTERM until the hard stop. From here on they no longer end the process by themselves.
    pub fn listen(&self) -> io::Result<()> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        // Not one of the tracked tasks: it must still hear the second signal while those are waited for.
        let listener = listen(interrupt, terminate, self.soft.clone(), self.hard.clone());
        let ended = self.hard.clone();
        tokio::spawn(async move {
            let _ = ended.run_until_cancelled(listener).await;
        });
        Ok(())
    }

    /// Starts a task that `finish` waits for. It ends by itself after a soft stop, and soon after a hard one.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (soft, failed) = (self.soft.clone(), self.failed.clone());
        self.tasks.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                tracing::error!(task = name, reason = reason(&*panic), "a task panicked; the process stops");
                failed.store(true, Ordering::Release);
                soft.cancel();
            }
        });
    }

    /// Stops softly, waits for the tasks, and stops hard when they take longer than `patience`.
    pub async fn finish(&self, patience: Duration) -> Finish {
        self.finish_within(patience, LAST_MOMENT).await
    }

    async fn finish_within(&self, patience: Duration, last_moment: Duration) -> Finish {
        self.soft.cancel();
        self.tasks.close();
        let drained = tokio::select! {
            biased;
            () = self.hard.cancelled() => false,
            () = self.tasks.wait() => true,
            () = tokio::time::sleep(patience) => {
                tracing::warn!(tasks = self.tasks.len(), "tasks did not end in time; stopping them");
                false
            }
        };
        self.hard.cancel();
        match (drained, self.failed.load(Ordering::Acquire)) {
            (true, false) => Finish::Drained,
            (true, true) => Finish::Failed,
            (false, _) => {
                // The count below says what a missed moment means.
                let _ = timeout(last_moment, self.tasks.wait()).await;
                Finish::Cut { left: self.tasks.len() }
            }
        }
    }
}

async fn listen(
    mut interrupt: Signal,
    mut terminate: Signal,
    soft: CancellationToken,
    hard: CancellationToken,
) {
    loop {
        let name = tokio::select! {
            Some(()) = interrupt.recv() => "SIGINT",
            Some(()) = terminate.recv() => "SIGTERM",
            else => return,
        };
        if soft.is_cancelled() {
            tracing::warn!(signal = name, "stopping at once");
            hard.cancel();
            return;
        }
        tracing::info!(signal = name, "stopping; a second signal stops at once");
        soft.cancel();
    }
}

fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn tasks_that_heed_the_soft_stop_are_waited_for() {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft.clone();
        shutdown.spawn("polite", async move {
            soft.cancelled().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        });
        assert!(!shutdown.soft.is_cancelled());
        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, Finish::Drained);
    }

    #[tokio::test]
    async fn tasks_that_take_too_long_get_the_hard_stop() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard.clone();
        shutdown.spawn("slow", async move { hard.cancelled().await });
        shutdown.spawn("deaf", std::future::pending());
        assert_eq!(shutdown.finish_within(SHORT, SHORT).await, Finish::Cut { left: 1 });
    }

    #[tokio::test]
    async fn a_hard_stop_includes_the_soft_one_and_ends_the_waiting() {
        let shutdown = Shutdown::new();
        let hard = shutdown.hard.clone();
        shutdown.spawn("slow", async move { hard.cancelled().await });
        let other = shutdown.clone();
        let finish = tokio::spawn(async move { other.finish(Duration::from_hours(1)).await });
        shutdown.soft.cancelled().await;
        assert!(!shutdown.hard.is_cancelled());
        shutdown.hard.cancel();
        assert_eq!(finish.await.unwrap(), Finish::Cut { left: 0 });
        let unused = Shutdown::new();
        unused.hard.cancel();
        assert!(unused.soft.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_panics_stops_the_process_softly() {
        let shutdown = Shutdown::new();
        shutdown.spawn("broken", async { panic!("no luck") });
        shutdown.soft.cancelled().await;
        assert!(!shutdown.hard.is_cancelled());
        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, Finish::Failed);
    }

    #[tokio::test]
    async fn one_signal_stops_softly_and_a_second_one_hard() {
        let shutdown = Shutdown::new();
        shutdown.listen().unwrap();
        let send = || {
            let own = std::process::id().to_string();
            assert!(std::process::Command::new("kill").args(["-TERM", &own]).status().unwrap().success());
        };
        send();
        shutdown.soft.cancelled().await;
        assert!(!shutdown.hard.is_cancelled());
        send();
        shutdown.hard.cancelled().await;
    }
}

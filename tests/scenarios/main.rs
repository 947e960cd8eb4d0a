//! Longhaul as its users and operators meet it: real processes, real HTTP, real databases, and everything that can
//! happen to them. Files are named by what happens.

#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

mod crashing;
mod crowding;
mod database;
mod demonstrating;
mod draining;
mod exhausting;
mod interrupting;
mod isolation;
mod limiting;
mod losing;
mod measuring;
mod mistiming;
mod oddities;
mod poisoning;
mod provider;
mod racing;
mod reconciling;
mod redis;
mod refusing;
mod replaying;
mod restarting;
mod stalling;
mod stopping;
mod streaming;
mod submitting;
mod taking_over;
mod tools;
mod waking;

/// Each scenario once on SQLite (`longhaul dev`) and once on Postgres and Redis, with separate processes.
macro_rules! on_both {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use longhaul_tests::Setup;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$scenario(Setup::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                if !longhaul_tests::quick() {
                    super::$scenario(Setup::postgres()).await;
                }
            }
        }
    )+};
}

/// Each scenario on Postgres and Redis only: it needs several processes.
macro_rules! on_postgres {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use longhaul_tests::Setup;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                if !longhaul_tests::quick() {
                    super::$scenario(Setup::postgres()).await;
                }
            }
        }
    )+};
}

/// Each scenario on SQLite only: it is about `longhaul dev`.
macro_rules! on_sqlite {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use longhaul_tests::Setup;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$scenario(Setup::sqlite()).await;
            }
        }
    )+};
}

pub(crate) use {on_both, on_postgres, on_sqlite};

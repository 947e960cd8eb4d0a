//! Cases that do not fit the grid: the API's own crash points, the hand-back, the reaper, poison, Redis, stops,
//! and a run that somebody ended behind the log's back.

mod admission;
mod ends;
mod handing_over;
mod poison;

use std::time::Duration;

use longhaul_tests::world::Server;
use longhaul_tests::{FAILPOINTS, Setup, Store, World};

const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    /// A submission whose process dies before it is committed: nothing of it is there, and its repeat is the first.
    AdmissionLost,
    /// One that is committed and not answered: its repeat gets the same run.
    AdmissionUnanswered,
    /// One whose process freezes in the middle: its repeat elsewhere waits or is told to, and there is one run.
    AdmissionFrozen,
    /// One key at two API processes at once.
    OneKeyTwoApis,
    /// A worker that drains dies before it has given its run back.
    HandBackLost,
    /// It dies when it has, and nobody was told.
    HandBackUntold,
    /// It freezes, and goes on when somebody else has the run.
    HandBackFrozen,
    /// A reaper that froze after it looked takes nothing from those who have it now.
    ReaperLate,
    /// A reaper dies when it has taken runs, and nobody was told.
    ReaperUntold,
    /// A run that kills each of its workers is given up, and the others are not.
    PoisonAbort,
    /// A run that panics is given up, and its process lives.
    PoisonPanic,
    /// Redis dies before the end of a run, and its tails end.
    RedisGone,
    /// Somebody ended a run by hand: the worker that is still at it changes nothing.
    EndedByHand,
    /// The stream of a run that is stopped is closed at once.
    StopClosesUpstream,
    /// A stop is taken while its run's end is on its way to the database.
    StopBeforeEnd,
    /// Only for a mutant, since it takes a debugger's rights: a zombie whose heart still stands still goes on.
    HeartStandsStill,
    /// Only for the mutant whose end is not one transaction: its process dies in between.
    JobLeftBehind,
}

impl Special {
    pub(crate) const ALL: &[Self] = &[
        Self::AdmissionLost,
        Self::AdmissionUnanswered,
        Self::AdmissionFrozen,
        Self::OneKeyTwoApis,
        Self::HandBackLost,
        Self::HandBackUntold,
        Self::HandBackFrozen,
        Self::ReaperLate,
        Self::ReaperUntold,
        Self::PoisonAbort,
        Self::PoisonPanic,
        Self::RedisGone,
        Self::EndedByHand,
        Self::StopClosesUpstream,
        Self::StopBeforeEnd,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AdmissionLost => "admission_lost",
            Self::AdmissionUnanswered => "admission_unanswered",
            Self::AdmissionFrozen => "admission_frozen",
            Self::OneKeyTwoApis => "one_key_two_apis",
            Self::HandBackLost => "hand_back_lost",
            Self::HandBackUntold => "hand_back_untold",
            Self::HandBackFrozen => "hand_back_frozen",
            Self::ReaperLate => "reaper_late",
            Self::ReaperUntold => "reaper_untold",
            Self::PoisonAbort => "poison_abort",
            Self::PoisonPanic => "poison_panic",
            Self::RedisGone => "redis_gone",
            Self::EndedByHand => "ended_by_hand",
            Self::StopClosesUpstream => "stop_closes_upstream",
            Self::StopBeforeEnd => "stop_before_end",
            Self::HeartStandsStill => "heart_stands_still",
            Self::JobLeftBehind => "job_left_behind",
        }
    }

    pub(crate) fn stores(self) -> &'static [Store] {
        match self {
            Self::AdmissionLost
            | Self::AdmissionUnanswered
            | Self::PoisonAbort
            | Self::PoisonPanic
            | Self::EndedByHand
            | Self::StopClosesUpstream
            | Self::JobLeftBehind => &[Store::Postgres, Store::Sqlite],
            _ => &[Store::Postgres],
        }
    }

    /// The failpoints that it uses.
    pub(crate) fn failpoints(self) -> Vec<&'static str> {
        match self {
            Self::AdmissionLost | Self::AdmissionFrozen => vec!["in_admission_before_commit"],
            Self::AdmissionUnanswered => vec!["after_admission_before_answer"],
            Self::HandBackLost | Self::HandBackFrozen => vec!["before_hand_back"],
            Self::HandBackUntold => vec!["after_hand_back"],
            Self::ReaperLate => vec!["reaper_after_scan"],
            Self::ReaperUntold => vec!["after_reap"],
            Self::PoisonAbort => vec!["abort_if_tag"],
            Self::PoisonPanic => vec!["panic_if_tag"],
            Self::HeartStandsStill => vec!["after_tool_record_before_send"],
            Self::JobLeftBehind => vec!["between_end_and_job"],
            Self::StopBeforeEnd => vec!["before_finalize"],
            Self::OneKeyTwoApis | Self::RedisGone | Self::EndedByHand | Self::StopClosesUpstream => vec![],
        }
    }

    /// What was broken, in words. The setup says which store it is on, and which mutant.
    pub(crate) async fn run(self, setup: Setup) -> Vec<String> {
        let setup = setup.short_lease();
        match self {
            Self::AdmissionLost => admission::admission(setup, "in_admission_before_commit").await,
            Self::AdmissionUnanswered => admission::admission(setup, "after_admission_before_answer").await,
            Self::AdmissionFrozen => admission::admission_frozen(setup).await,
            Self::OneKeyTwoApis => admission::one_key_two_apis(setup).await,
            Self::HandBackLost => handing_over::hand_back(setup, "before_hand_back", "kill").await,
            Self::HandBackUntold => handing_over::hand_back(setup, "after_hand_back", "kill").await,
            Self::HandBackFrozen => handing_over::hand_back(setup, "before_hand_back", "stop").await,
            Self::ReaperLate => handing_over::reaper_late(setup).await,
            Self::ReaperUntold => handing_over::reaper_untold(setup).await,
            Self::PoisonAbort => poison::poison_abort(setup).await,
            Self::PoisonPanic => poison::poison_panic(setup).await,
            Self::RedisGone => ends::redis_gone(setup).await,
            Self::EndedByHand => ends::ended_by_hand(setup).await,
            Self::StopClosesUpstream => ends::stop_closes_upstream(setup).await,
            Self::StopBeforeEnd => ends::stop_before_end(setup).await,
            Self::HeartStandsStill => handing_over::heart_stands_still(setup).await,
            Self::JobLeftBehind => ends::job_left_behind(setup).await,
        }
    }
}

/// Waits until nothing moves and somebody has looked for what is to be repaired; what was broken, in words.
async fn at_rest(world: &mut World) -> Vec<String> {
    world.reconciled().await;
    world.settled().await
}

/// A world whose executing process fails at these points, which is the first API process or worker.
async fn world_that(setup: Setup, failpoints: &str) -> World {
    match setup.store {
        Store::Postgres => {
            let mut world = World::start(setup.workers(0)).await;
            world.start_worker_that(failpoints).await;
            world
        }
        Store::Sqlite => World::start(setup.env(FAILPOINTS, failpoints)).await,
    }
}

/// The process that executes runs.
fn executor(world: &mut World) -> &mut Server {
    world.workers.first_mut().unwrap_or(&mut world.apis[0])
}

/// Somebody who goes on in its place.
async fn successor(world: &mut World) {
    match world.store() {
        Store::Postgres => world.start_worker().await,
        Store::Sqlite => world.apis[0].restart_unharmed().await,
    }
}

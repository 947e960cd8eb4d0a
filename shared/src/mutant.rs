//! The product with one guard taken out, chosen by `LONGHAUL_MUTANT`: each must turn some test red, or that guard is not
//! tested. In a build without faults [`is`] is `false` and [`sql`] the text itself.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use crate::faults::{COMPILED_IN, FaultsError, named};

pub const VARIABLE: &str = "LONGHAUL_MUTANT";

named! {
    /// Every mutant there is.
    Mutant {
        NoStatusCondition = "no_status_condition": "steps and ends are written whatever the run and its message are",
        NoExpectedPosition = "no_expected_position": "an append takes the next free position instead of the one it expects",
        PublishBeforeCommit = "publish_before_commit": "watchers are shown what is not committed yet",
        ReaperBlindToRenewal = "reaper_blind_to_renewal": "the reaper takes what it found without looking again under the lock",
        FinalizeAndJobApart = "finalize_and_job_apart": "a run's job is deleted after the transaction that ends the run",
        IdempotencyPerProcess = "idempotency_per_process": "an idempotency key is known to the process that saw it first",
        TailEndFromRedisOnly = "tail_end_from_redis_only": "a tail that has caught up hears of the rest from Redis alone",
        ToolSentWithoutLease = "tool_sent_without_lease": "a tool call is sent although the lease may have run out",
        StopNotDelivered = "stop_not_delivered": "a holder is not told that its run is to stop",
        EndAheadOfStop = "end_ahead_of_stop": "a run ends as it was going to although its stop was requested before",
        DispatchBeforeRecord = "dispatch_before_record": "a tool call is sent before it is marked as dispatched",
    }
}

static SELECTED: OnceLock<Mutant> = OnceLock::new();

pub(crate) fn parse(text: &str) -> Result<Mutant, FaultsError> {
    Mutant::find(text.trim())
}

pub(crate) fn select(mutant: Mutant) {
    assert!(SELECTED.set(mutant).is_ok(), "a mutant is selected once per process");
    eprintln!("this process is the mutant {}: {}", mutant.name(), mutant.what());
}

/// Whether this process is that mutant.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must vanish from builds without faults")]
pub fn is(mutant: Mutant) -> bool {
    COMPILED_IN && SELECTED.get() == Some(&mutant)
}

/// A statement as this process executes it.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must vanish from builds without faults")]
pub fn sql(text: &'static str) -> &'static str {
    if COMPILED_IN && let Some(mutant) = SELECTED.get() { mutated(*mutant, text) } else { text }
}

/// What is replaced in which mutant's statements. Postgres writes aliases before its columns; SQLite has none.
const REPLACED: &[(Mutant, &str, &str)] = &[
    (
        Mutant::NoStatusCondition,
        "and r.status not in ('succeeded', 'failed', 'aborted')\n    returning r.workspace_id",
        "returning r.workspace_id",
    ),
    (Mutant::NoStatusCondition, " and m.status = 'streaming'\n    returning m.id", "\n    returning m.id"),
    (
        Mutant::NoStatusCondition,
        " and id = $2 and status not in ('succeeded', 'failed', 'aborted')",
        " and id = $2",
    ),
    (Mutant::NoStatusCondition, " and id = $2 and status = 'streaming'", " and id = $2"),
    (
        Mutant::NoExpectedPosition,
        "select share.* from unnest(",
        "select share.workspace_id, share.run_id, n.seq, n.seq + share.last_seq - share.first_seq, share.epoch, \
         share.events from unnest(",
    ),
    (
        Mutant::NoExpectedPosition,
        "select workspace_id, run_id, first_seq, last_seq, epoch, events from share where",
        "select workspace_id, run_id, n.seq, n.seq + last_seq - first_seq, epoch, events from share where",
    ),
    (Mutant::NoExpectedPosition, "where share.first_seq = 1 + (", ", lateral (select 1 + ("),
    (
        Mutant::NoExpectedPosition,
        "order by e.first_seq desc limit 1)",
        "order by e.first_seq desc limit 1) as seq) n",
    ),
    (
        Mutant::NoExpectedPosition,
        "select $1, $2, $3, $4, $5, $6 where $3 = 1 + (",
        "select $1, $2, n.seq, n.seq + $4 - $3, $5, $6 from (select 1 + (",
    ),
    (
        Mutant::NoExpectedPosition,
        "limit 1) returning created_at",
        "limit 1) as seq) as n returning created_at",
    ),
    (
        Mutant::FinalizeAndJobApart,
        "delete from jobs j using run where",
        "delete from jobs j using run where false and",
    ),
    (Mutant::FinalizeAndJobApart, "delete from jobs where", "delete from jobs where false and"),
];

fn mutated(mutant: Mutant, text: &'static str) -> &'static str {
    static TEXTS: Mutex<Option<HashMap<&'static str, &'static str>>> = Mutex::new(None);
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    // Leaked once per statement: the driver keeps prepared statements by their text.
    texts.get_or_insert_default().entry(text).or_insert_with(|| replaced(mutant, text).leak())
}

fn replaced(mutant: Mutant, text: &str) -> String {
    let ours = REPLACED.iter().filter(|(of, ..)| *of == mutant);
    ours.fold(text.to_owned(), |text, (_, from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for mutant in Mutant::ALL {
            assert_eq!(parse(mutant.name()), Ok(*mutant));
        }
    }

    #[test]
    fn a_process_that_is_no_mutant_executes_what_is_written() {
        let text = "select 1 where status = 'streaming'";
        assert!(std::ptr::eq(sql(text), text));
    }
}

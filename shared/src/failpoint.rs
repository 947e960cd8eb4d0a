//! Places at which a process under test dies, freezes or dawdles, where no barrier from outside reaches.
//!
//! `LONGHAUL_FAILPOINTS="after_claim=kill;before_commit=stop:3"`: what happens, and at which hit; without a number at the
//! first, and with `*` at each. A build without faults compiles [`hit`] to nothing.

use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use signal_hook::{consts, low_level};

use crate::faults::{COMPILED_IN, FaultsError, named};

pub const VARIABLE: &str = "LONGHAUL_FAILPOINTS";
const FORM: &str = "POINT=kill|stop|panic|abort|delay:MS[:N|:*][;…]";

named! {
    /// Every failpoint there is.
    Point {
        AfterClaim = "after_claim": "a worker has claimed a run and not begun it",
        BeforeModelCall = "before_model_call": "a step is about to be asked of the model",
        AfterModelBeforePersist = "after_model_before_persist": "a model's answer is whole and not saved",
        BeforeCommit = "before_commit": "what runs have said is gathered and not sent to the database",
        AfterPersistBeforePublish = "after_persist_before_publish": "it is committed and not published",
        BeforeToolRecord = "before_tool_record": "tool calls are planned and not marked as dispatched",
        AfterToolRecordBeforeSend = "after_tool_record_before_send": "they are marked and not sent",
        AfterToolAnswerBeforeRecord = "after_tool_answer_before_record": "a tool has answered, and nothing says so",
        AfterToolResult = "after_tool_result": "a tool's result is saved, and the model has not seen it",
        BeforeFinalize = "before_finalize": "a run's end is gathered and not sent to the database",
        AfterFinalizeBeforeAck = "after_finalize_before_ack": "a run's end is committed, and nobody was told",
        BetweenEndAndJob = "between_end_and_job": "with the mutant finalize_and_job_apart: the run is over, its job is there",
        BeforeHandBack = "before_hand_back": "a worker is about to give a run back",
        AfterHandBack = "after_hand_back": "a run is given back, and nobody was told",
        ReaperAfterScan = "reaper_after_scan": "the reaper has found orphans and taken none",
        AfterReap = "after_reap": "orphans are taken, and nobody was told",
        InAdmissionBeforeCommit = "in_admission_before_commit": "a run is inserted and not committed",
        AfterAdmissionBeforeAnswer = "after_admission_before_answer": "a run is committed, and its sender not answered",
        BeforeHeartbeat = "before_heartbeat": "a worker is about to renew its lease",
        AbortIfTag = "abort_if_tag": "a run with the tag `abort` begins",
        PanicIfTag = "panic_if_tag": "a run with the tag `panic` begins",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Kill,
    /// Until somebody sends SIGCONT.
    Stop,
    Panic,
    Abort,
    Delay(Duration),
}

/// Which hits of a point count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Nth(u32),
    Always,
}

#[derive(Debug)]
struct Armed {
    action: Action,
    when: When,
    hits: AtomicU32,
}

/// What the variable asks for.
#[derive(Debug)]
pub struct Failpoints(HashMap<Point, Armed>);

static ARMED: OnceLock<Failpoints> = OnceLock::new();

pub(crate) fn arm(failpoints: Failpoints) {
    assert!(ARMED.set(failpoints).is_ok(), "failpoints are armed once per process");
}

/// Does here what was asked for, if anything was.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must vanish from builds without faults")]
pub fn hit(point: Point) {
    if COMPILED_IN {
        hit_armed(point);
    }
}

/// The same, only where it is `so`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it must vanish from builds without faults")]
pub fn hit_if(point: Point, so: impl FnOnce() -> bool) {
    if COMPILED_IN && ARMED.get().is_some_and(|armed| armed.0.contains_key(&point)) && so() {
        hit_armed(point);
    }
}

#[cold]
fn hit_armed(point: Point) {
    let Some(armed) = ARMED.get().and_then(|armed| armed.0.get(&point)) else { return };
    let hit = armed.hits.fetch_add(1, Ordering::Relaxed) + 1;
    if armed.when.counts(hit) {
        // Not a log line: it has to be out before the signal.
        eprintln!("failpoint {} hit {hit}: {:?}", point.name(), armed.action);
        armed.action.perform(point);
    }
}

impl When {
    fn counts(self, hit: u32) -> bool {
        match self {
            Self::Nth(nth) => hit == nth,
            Self::Always => true,
        }
    }
}

impl Action {
    fn perform(self, point: Point) {
        match self {
            Self::Kill => low_level::raise(consts::SIGKILL).expect("a process may kill itself"),
            Self::Stop => low_level::raise(consts::SIGSTOP).expect("a process may stop itself"),
            Self::Panic => panic!("failpoint {}", point.name()),
            Self::Abort => std::process::abort(),
            Self::Delay(time) => thread::sleep(time),
        }
    }
}

pub(crate) fn parse(text: &str) -> Result<Failpoints, FaultsError> {
    let mut points = HashMap::new();
    for one in text.split(';').map(str::trim).filter(|one| !one.is_empty()) {
        let malformed = || FaultsError::Malformed { variable: VARIABLE, given: one.to_owned(), form: FORM };
        let (name, rest) = one.split_once('=').ok_or_else(malformed)?;
        let point = Point::find(name)?;
        let mut words = rest.split(':');
        let action = match words.next() {
            Some("kill") => Action::Kill,
            Some("stop") => Action::Stop,
            Some("panic") => Action::Panic,
            Some("abort") => Action::Abort,
            Some("delay") => {
                let ms = words.next().and_then(|ms| ms.parse().ok()).ok_or_else(malformed)?;
                Action::Delay(Duration::from_millis(ms))
            }
            _ => return Err(malformed()),
        };
        let when = match words.next() {
            None => When::Nth(1),
            Some("*") => When::Always,
            Some(nth) => When::Nth(nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(malformed)?),
        };
        let armed = Armed { action, when, hits: AtomicU32::new(0) };
        if words.next().is_some() || points.insert(point, armed).is_some() {
            return Err(malformed());
        }
    }
    Ok(Failpoints(points))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (Action, When) {
        let points = parse(text).unwrap().0;
        let (_, armed) = points.iter().next().unwrap();
        (armed.action, armed.when)
    }

    #[test]
    fn points_are_read_with_action_and_hit() {
        assert_eq!(one("after_claim=kill"), (Action::Kill, When::Nth(1)));
        assert_eq!(one("after_claim=stop:3;"), (Action::Stop, When::Nth(3)));
        assert_eq!(one("abort_if_tag=abort:*"), (Action::Abort, When::Always));
        assert_eq!(one("after_claim=delay:20:2"), (Action::Delay(Duration::from_millis(20)), When::Nth(2)));
        assert_eq!(parse("after_claim=kill; before_commit=panic").unwrap().0.len(), 2);
    }

    #[test]
    fn what_is_no_failpoint_is_refused() {
        for text in [
            "after_claim",
            "after_claim=explode",
            "after_claim=kill:0",
            "after_claim=kill:1:1",
            "after_claim=delay",
            "after_claim=kill;after_claim=stop",
        ] {
            assert!(matches!(parse(text), Err(FaultsError::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}

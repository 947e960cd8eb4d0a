//! One run as the recorder has it: what is to be appended next, and what is under way.

use std::sync::Weak;

use longhaul_shared::{
    domain::{
        ids::{Millis, Seq},
        settle::{Stop, end_by_stop},
    },
    store::{Append, StopRequest},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Position, RecordError, Reply, Writer, answer, pending::Pending};

/// What one attempt has to say, and what of it is on its way.
pub(super) struct Run {
    pub(super) writer: Weak<Writer>,
    /// Everything of an append that does not change.
    pub(super) template: Append,
    pub(super) lost: CancellationToken,
    /// The number of the next event.
    pub(super) next: Seq,
    pub(super) step_started: Seq,
    /// When that was written, by the database's clock.
    pub(super) step_started_at: Millis,
    pub(super) pending: Pending,
    /// An append whose outcome is unknown: it goes again as it was, before anything else of this run.
    pub(super) unconfirmed: Option<InFlight>,
    /// An append is under way beside the others.
    pub(super) is_aside: bool,
}

/// An append on its way, and who waits for it.
pub(super) struct InFlight {
    pub(super) append: Append,
    pub(super) step_started: Seq,
    pub(super) replies: Vec<Reply>,
    /// When it is due.
    pub(super) since: Instant,
    /// How often it found its chat locked and no place to wait for it.
    pub(super) put_off: u32,
}

impl Run {
    pub(super) fn new(writer: Weak<Writer>, template: Append, lost: CancellationToken) -> Self {
        Self {
            writer,
            next: template.first_seq,
            template,
            lost,
            step_started: 0,
            step_started_at: 0,
            pending: Pending::default(),
            unconfirmed: None,
            is_aside: false,
        }
    }

    /// The attempt is gone and everything that it said is written.
    pub(super) fn is_over(&self) -> bool {
        self.writer.strong_count() == 0
            && self.pending.is_empty()
            && self.unconfirmed.is_none()
            && !self.is_aside
    }

    /// Since when or from when it has something to commit.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.is_aside {
            return None;
        }
        match &self.unconfirmed {
            Some(unconfirmed) => Some(unconfirmed.since),
            None => self.pending.due(),
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// What goes into the next commit.
    pub(super) fn begin(&mut self) -> Option<InFlight> {
        // Told that the run is lost, this worker writes no more of it, although the fence would let it.
        if self.lost.is_cancelled() {
            let unconfirmed = self.unconfirmed.take().map(|one| one.replies).unwrap_or_default();
            for reply in unconfirmed.into_iter().chain(self.pending.abandon()) {
                answer(Some(reply), &Err(RecordError::LeaseLost));
            }
            return None;
        }
        if let Some(unconfirmed) = self.unconfirmed.take() {
            return Some(unconfirmed);
        }
        let Some(mut gathered) = self.pending.take(self.next, &mut self.step_started) else {
            // Nothing to append: everything that they ask about is written.
            let position = Position { last: self.next - 1, step_started: self.step_started };
            for reply in self.pending.abandon() {
                answer(Some(reply), &Ok(position));
            }
            return None;
        };
        // Of a step that begins in this append, the store writes the append's own time.
        if (1..self.next).contains(&self.step_started) {
            for step in gathered.steps.iter_mut().filter(|step| step.started_at == 0) {
                step.started_at = self.step_started_at;
            }
        }
        let append = Append {
            first_seq: self.next,
            events: gathered.events,
            steps: gathered.steps,
            calls: gathered.calls,
            ending: gathered.ending,
            ..self.template.clone()
        };
        self.next = append.last_seq() + 1;
        Some(InFlight {
            append,
            step_started: self.step_started,
            replies: gathered.replies,
            since: Instant::now(),
            put_off: 0,
        })
    }
}

impl InFlight {
    /// Lets the run end by this stop, which came before the end that it was going to come to.
    pub(super) fn end_by(&mut self, wish: StopRequest) {
        let refused = self.append.ending.take();
        tracing::info!(
            run.id = %wish.run_id,
            epoch = self.append.epoch,
            reason = %wish.reason,
            instead_of = refused.as_ref().map(|ending| ending.reason.as_str()),
            error = refused.and_then(|ending| ending.error).map(|error| error.code),
            "a stop comes before the run's end"
        );
        let stop = Stop { requested_at: wish.requested_at, is_delivered: true };
        self.append.ending = Some(end_by_stop(&mut self.append.events, wish.reason, stop));
        self.append.stop_requested_at = Some(wish.requested_at);
    }
}

//! What one run has said since its last append.

use std::time::Duration;

use longhaul_shared::domain::{
    event::{Event, EventData},
    ids::Seq,
    run::Ending,
    step::Step,
    tool::ToolCall,
};
use tokio::time::Instant;

use super::{
    Coalesce, Reply,
    run_log::{Delta, DeltaKind, Write},
};

const STEP_STARTED: &str = "step.started";
const STEP_FINISHED: &str = "step.finished";

#[derive(Default)]
pub(super) struct Pending {
    items: Vec<Item>,
    steps: Vec<Step>,
    calls: Vec<ToolCall>,
    ending: Option<Ending>,
    replies: Vec<Reply>,
    delta_bytes: usize,
    due: Option<Instant>,
    /// Each time that the step under way shows deltas moves this on by the pause between two times, from now on or from
    /// where it stood.
    paid_until: Option<Instant>,
    pause: Duration,
}

enum Item {
    Event(Event),
    Delta(Delta),
}

/// The content of one append.
pub(super) struct Gathered {
    pub(super) events: Vec<Event>,
    pub(super) steps: Vec<Step>,
    pub(super) calls: Vec<ToolCall>,
    pub(super) ending: Option<Ending>,
    pub(super) replies: Vec<Reply>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.replies.is_empty()
    }

    /// When it is to be committed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn push_delta(&mut self, delta: Delta, coalesce: Coalesce) {
        self.delta_bytes += delta.text.len();
        let now = Instant::now();
        self.pause = coalesce.time;
        // One pause may be owed. A stream that is no faster than that shows every delta at once, also behind one that came
        // late; without this, all that follow would be as late.
        let wait = match self.paid_until.and_then(|paid| paid.checked_sub(coalesce.time)) {
            Some(due) if self.delta_bytes < coalesce.bytes => due.max(now),
            _ => now,
        };
        self.due = Some(self.due.map_or(wait, |due| due.min(wait)));
        match self.items.last_mut() {
            Some(Item::Delta(last)) if last.continues_with(&delta) => last.text.push_str(&delta.text),
            _ => self.items.push(Item::Delta(delta)),
        }
    }

    pub(super) fn push(&mut self, write: Write, reply: Option<Reply>, coalesce: Coalesce) {
        if write.events.iter().any(|event| event.kind == STEP_STARTED) {
            self.paid_until = None;
        }
        self.items.extend(write.events.into_iter().map(Item::Event));
        self.steps.extend(write.steps);
        for call in write.calls {
            // One row can be written once in a statement: the later state of a call holds.
            self.calls.retain(|known| (known.step, known.call) != (call.step, call.call));
            self.calls.push(call);
        }
        self.ending = write.ending.or(self.ending.take());
        // What nobody waits for goes with what comes next: a step's beginning with its first delta.
        let now = Instant::now();
        let wait = if reply.is_some() { now } else { now + coalesce.time };
        self.due = Some(self.due.map_or(wait, |due| due.min(wait)));
        self.replies.extend(reply);
    }

    /// Everything gathered, numbered from `first`, or `None` if there is nothing to append.
    pub(super) fn take(&mut self, first: Seq, step_started: &mut Seq) -> Option<Gathered> {
        self.due = None;
        if self.items.is_empty() {
            return None;
        }
        self.delta_bytes = 0;
        if self.items.iter().any(|item| matches!(item, Item::Delta(_))) {
            let now = Instant::now();
            self.paid_until = Some(self.paid_until.map_or(now, |paid| paid.max(now)) + self.pause);
        }
        let mut events = Vec::with_capacity(self.items.len());
        for (seq, item) in (first..).zip(self.items.drain(..)) {
            let event = match item {
                Item::Event(event) => event,
                Item::Delta(delta) => delta.into_event(),
            };
            if event.kind == STEP_STARTED {
                *step_started = seq;
            }
            for step in self.steps.iter_mut().filter(|step| is_end_of(&event, step)) {
                // A step that an earlier owner began and this one only closes keeps its beginning.
                if *step_started > 0 {
                    step.first_seq = *step_started;
                }
                step.last_seq = seq;
            }
            events.push(event);
        }
        Some(Gathered {
            events,
            steps: std::mem::take(&mut self.steps),
            calls: std::mem::take(&mut self.calls),
            ending: self.ending.take(),
            replies: std::mem::take(&mut self.replies),
        })
    }

    /// Forgets everything; those who wait are to be told.
    pub(super) fn abandon(&mut self) -> Vec<Reply> {
        std::mem::take(self).replies
    }
}

fn is_end_of(event: &Event, step: &Step) -> bool {
    event.kind == STEP_FINISHED && event.step == Some(step.step)
}

impl Delta {
    fn continues_with(&self, next: &Self) -> bool {
        (self.kind, self.step, self.attempt) == (next.kind, next.step, next.attempt)
    }

    fn into_event(self) -> Event {
        let data = match self.kind {
            DeltaKind::Text => EventData::TextDelta { text: self.text },
            DeltaKind::Reasoning => EventData::ReasoningDelta { text: self.text },
        };
        data.of_step(self.step, self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COALESCE: Coalesce = Coalesce { time: Duration::from_millis(50), bytes: 8 };

    fn text(text: &str) -> Delta {
        Delta { kind: DeltaKind::Text, step: 1, attempt: 1, text: text.into() }
    }

    fn started() -> Write {
        Write::events([EventData::StepStarted { model: "m".into() }.of_step(1, 1)])
    }

    #[test]
    fn the_first_delta_of_a_step_goes_at_once_and_later_ones_keep_their_distance() {
        let mut pending = Pending::default();
        pending.push(started(), None, COALESCE);
        assert!(pending.due().unwrap() > Instant::now(), "nobody waits for the beginning alone");
        pending.push_delta(text("a"), COALESCE);
        assert!(pending.due().unwrap() <= Instant::now());
        pending.take(1, &mut 0);
        pending.push_delta(text("b"), COALESCE);
        assert!(pending.due().unwrap() <= Instant::now(), "one pause may be owed");
        pending.take(2, &mut 0);
        pending.push_delta(text("c"), COALESCE);
        assert!(pending.due().unwrap() > Instant::now(), "but not two");
        pending.paid_until = Some(Instant::now());
        pending.due = None;
        pending.push_delta(text("c"), COALESCE);
        assert!(pending.due().unwrap() <= Instant::now(), "nothing is owed");
        pending.take(3, &mut 0);
        pending.paid_until = Some(Instant::now() + 2 * COALESCE.time);
        pending.push_delta(text("d"), COALESCE);
        assert!(pending.due().unwrap() > Instant::now());
        pending.push_delta(text("cdefghij"), COALESCE);
        assert!(pending.due().unwrap() <= Instant::now(), "as many bytes as are gathered at most");
        pending.take(4, &mut 0);
        pending.push(started(), None, COALESCE);
        pending.take(5, &mut 0);
        pending.push_delta(text("k"), COALESCE);
        assert!(pending.due().unwrap() <= Instant::now(), "a new step");
    }

    #[test]
    fn deltas_of_one_kind_become_one_event_and_steps_learn_their_place() {
        let mut pending = Pending::default();
        pending.push(started(), None, COALESCE);
        for piece in ["He", "llo"] {
            pending.push_delta(text(piece), COALESCE);
        }
        pending.push_delta(Delta { kind: DeltaKind::Reasoning, ..text("hm") }, COALESCE);
        pending.push(Write::step_finished_for_test(), None, COALESCE);
        let mut step_started = 0;
        let gathered = pending.take(10, &mut step_started).unwrap();
        let kinds: Vec<_> = gathered.events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["step.started", "text.delta", "reasoning.delta", "step.finished"]);
        assert_eq!(gathered.events[1].data(), Some(EventData::TextDelta { text: "Hello".into() }));
        assert_eq!((gathered.steps[0].first_seq, gathered.steps[0].last_seq), (10, 13));
        assert_eq!(step_started, 10);
        assert!(pending.is_empty() && pending.due().is_none());
    }
}

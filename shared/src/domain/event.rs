//! What watchers see of a run: events with a number, a type, a time and data, kept in segments.
//!
//! Stored names are stable. A reader that meets an event type of a newer version passes it through.

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, IntoDeserializer, MapAccess, value::MapAccessDeserializer},
};
use serde_json::value::RawValue;

use super::{
    ids::{Epoch, Millis, RunId, Seq, WaitId, WorkerId},
    run::{RunError, Usage},
    step::FinishReason,
    tool::{CallState, Effect},
    transition::{Reason, RunStatus},
};

/// The type of the event that ends every log, and of no other.
pub const RUN_FINISHED: &str = "run.finished";

/// One event as stored: its number and its time are those of the segment that holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    pub data: Box<RawValue>,
}

/// A committed row of the log: the events `first..=last`, all made visible at `at`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    pub run_id: RunId,
    pub first: Seq,
    pub last: Seq,
    pub at: Millis,
    pub events: Vec<Event>,
}

impl Segment {
    /// The events numbered above `seq`, with their numbers.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = (Seq, &Event)> {
        (self.first..).zip(&self.events).filter(move |(n, _)| *n > seq)
    }

    /// Whether the run's last event is in here.
    pub fn is_end(&self) -> bool {
        self.events.last().is_some_and(|event| event.kind == RUN_FINISHED)
    }

    /// Whether the numbers and the events agree, which a hint from elsewhere need not.
    pub fn is_consistent(&self) -> bool {
        self.first >= 1
            && !self.events.is_empty()
            && self.first.checked_add(self.events.len() as Seq - 1) == Some(self.last)
    }
}

/// Why a run was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseReason {
    /// Its worker shuts down in good order.
    HandBack,
    /// Its worker's lease ran out.
    Expired,
    /// Its attempt ended in an error of the system or a panic.
    Broken,
}

/// How far a stop has come. The third stage is `run.finished`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopStage {
    /// It is a durable fact.
    Requested,
    /// The run's holder has heard of it and has left off.
    Delivered,
}

/// What a run waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Wait {
    /// Somebody's word that this call may be made. It is planned when it is given, and settled as denied when it is not.
    Approval { call: u32, call_id: String, name: String, arguments: String, effect: Effect },
}

/// The data of each event type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all_fields = "camelCase")]
pub enum EventData {
    #[serde(rename = "run.queued")]
    RunQueued {
        status: RunStatus,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run_at: Option<Millis>,
    },
    #[serde(rename = "run.claimed")]
    RunClaimed { worker_id: WorkerId, epoch: Epoch },
    #[serde(rename = "run.released")]
    RunReleased { reason: ReleaseReason, epoch: Epoch },
    /// No worker holds the run until what it waits for is there. Its answer goes no further for now.
    #[serde(rename = "run.waiting")]
    RunWaiting { usage: Usage },
    /// It goes on.
    #[serde(rename = "run.resumed")]
    RunResumed {},
    #[serde(rename = "run.stopping")]
    RunStopping {
        stage: StopStage,
        /// Of the stage `requested`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requested_at: Option<Millis>,
    },
    #[serde(rename = "run.finished")]
    RunFinished {
        status: RunStatus,
        reason: Reason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<RunError>,
        usage: Usage,
        step_count: u32,
    },
    #[serde(rename = "step.started")]
    StepStarted { model: String },
    /// The step is done over: watchers drop every event of this step from number `drop_from` on.
    #[serde(rename = "step.restarted")]
    StepRestarted { drop_from: Seq, why: String },
    #[serde(rename = "step.finished")]
    StepFinished { finish_reason: FinishReason, usage: Usage, tool_calls: u32 },
    #[serde(rename = "text.delta")]
    TextDelta { text: String },
    #[serde(rename = "reasoning.delta")]
    ReasoningDelta { text: String },
    #[serde(rename = "tool.planned")]
    ToolPlanned { call: u32, call_id: String, name: String, arguments: String, effect: Effect },
    /// The run is to wait for this before it goes on.
    #[serde(rename = "wait.created")]
    WaitCreated {
        wait_id: WaitId,
        #[serde(flatten)]
        wait: Wait,
    },
    /// The model asks for a tool that the client runs. The run ends with its step.
    #[serde(rename = "tool.requested")]
    ToolRequested { call_id: String, name: String, arguments: String },
    #[serde(rename = "tool.started")]
    ToolStarted { call: u32, call_id: String },
    #[serde(rename = "tool.finished")]
    ToolFinished {
        call: u32,
        call_id: String,
        state: CallState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

impl EventData {
    /// An event of the run as a whole.
    pub fn of_run(&self) -> Event {
        self.encode(None, None)
    }

    /// An event of one step; `step` and `attempt` count from 1.
    pub fn of_step(&self, step: u32, attempt: u32) -> Event {
        self.encode(Some(step), Some(attempt))
    }

    fn encode(&self, step: Option<u32>, attempt: Option<u32>) -> Event {
        #[derive(Deserialize)]
        struct Tagged {
            #[serde(rename = "type")]
            kind: String,
            data: Box<RawValue>,
        }
        let json = serde_json::to_string(self).expect("event data has string keys and finite numbers only");
        let Tagged { kind, data } = serde_json::from_str(&json).expect("this enum writes a type and data");
        Event { kind, step, attempt, data }
    }
}

impl Event {
    /// The typed data, or `None` for a type or a shape that this version does not know.
    pub fn data(&self) -> Option<EventData> {
        EventData::deserialize(MapAccessDeserializer::new(Tagged {
            event: self,
            fields: ["type", "data"].iter(),
        }))
        .ok()
    }
}

/// An event as the object that [`EventData`] is read from, without writing it down first.
struct Tagged<'a> {
    event: &'a Event,
    fields: std::slice::Iter<'a, &'static str>,
}

impl<'de> MapAccess<'de> for Tagged<'de> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> serde_json::Result<Option<K::Value>> {
        let next = self.fields.as_slice().first();
        next.map(|name| seed.deserialize(name.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> serde_json::Result<V::Value> {
        match self.fields.next() {
            Some(&"type") => seed.deserialize(self.event.kind.as_str().into_deserializer()),
            _ => seed.deserialize(&mut serde_json::Deserializer::from_str(self.event.data.get())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(text: &str) -> Event {
        EventData::TextDelta { text: text.into() }.of_step(1, 2)
    }

    #[test]
    fn an_event_keeps_its_type_step_and_data() {
        let event = delta("Hel\"lo\n");
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"type":"text.delta","step":1,"attempt":2,"data":{"text":"Hel\"lo\n"}}"#);
        let back: Event = serde_json::from_str(&json).unwrap();
        assert_eq!(back.data(), Some(EventData::TextDelta { text: "Hel\"lo\n".into() }));
    }

    #[test]
    fn what_a_run_waits_for_is_told_by_its_kind() {
        let data = EventData::WaitCreated {
            wait_id: WaitId(uuid::Uuid::nil()),
            wait: Wait::Approval {
                call: 1,
                call_id: "c1".into(),
                name: "pay".into(),
                arguments: "{}".into(),
                effect: Effect::Once,
            },
        };
        let event = data.of_step(1, 1);
        let expected = r#"{"waitId":"00000000-0000-0000-0000-000000000000","kind":"approval","call":1,"callId":"c1","name":"pay","arguments":"{}","effect":"once"}"#;
        assert_eq!((event.kind.as_str(), event.data.get()), ("wait.created", expected));
        assert_eq!(event.data(), Some(data));
        let json = expected.replace("approval", "moonrise");
        let later = Event { data: RawValue::from_string(json).unwrap(), ..event };
        assert_eq!(later.data(), None, "a kind of a newer version");
        assert_eq!(EventData::RunResumed {}.of_run().data.get(), "{}");
    }

    #[test]
    fn an_unknown_type_passes_through() {
        let json = r#"{"type":"moon.rose","data":{"a":1}}"#;
        let event: Event = serde_json::from_str(json).unwrap();
        assert_eq!(event.data(), None);
        assert_eq!(serde_json::to_string(&event).unwrap(), json);
    }

    #[test]
    fn a_segment_numbers_its_events_from_first() {
        let segment = Segment {
            run_id: RunId::generate(),
            first: 4,
            last: 6,
            at: 0,
            events: vec![delta("a"), delta("b"), delta("c")],
        };
        assert!(segment.is_consistent());
        assert_eq!(segment.after(4).map(|(n, _)| n).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(segment.after(0).count(), 3);
        assert_eq!(segment.after(6).count(), 0);
        assert!(!segment.is_end());
    }
}

//! What goes over Redis: channel names, and payloads that are believed only after a check. A shared
//! server may carry anything, so whatever is too big, malformed or about another run is dropped.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    bus::{BusError, Signal},
    domain::{event::Segment, ids::RunId},
};

const MAX_SEGMENT_BYTES: usize = 1 << 20;
const MAX_SIGNAL_BYTES: usize = 4 << 10;

/// The channels of one deployment.
#[derive(Clone)]
pub(super) struct Names {
    run_prefix: Arc<str>,
    signal: Arc<str>,
}

/// What a message says, once checked.
pub(super) enum Channel {
    Run(RunId),
    Signal,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Result<Self, BusError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(plain) {
            return Err(BusError::Prefix(prefix.to_owned()));
        }
        Ok(Self { run_prefix: format!("{prefix}:run:").into(), signal: format!("{prefix}:signal").into() })
    }

    pub(super) fn run(&self, run: RunId) -> String {
        format!("{}{run}", self.run_prefix)
    }

    pub(super) fn signal(&self) -> &str {
        &self.signal
    }

    pub(super) fn parse(&self, channel: &[u8]) -> Option<Channel> {
        if channel == self.signal.as_bytes() {
            return Some(Channel::Signal);
        }
        let id = channel.strip_prefix(self.run_prefix.as_bytes())?;
        Uuid::try_parse_ascii(id).ok().map(|id| Channel::Run(RunId(id)))
    }
}

/// `None` when it is too big to send: its subscribers find it in the log.
pub(super) fn encode_segment(segment: &Segment) -> Option<Vec<u8>> {
    let json = serde_json::to_vec(segment).expect("segments have string keys only");
    (json.len() <= MAX_SEGMENT_BYTES).then_some(json)
}

pub(super) fn decode_segment(run: RunId, payload: &[u8]) -> Option<Segment> {
    if payload.len() > MAX_SEGMENT_BYTES {
        return None;
    }
    let segment: Segment = serde_json::from_slice(payload).ok()?;
    let ordered = segment.first >= 1 && segment.first <= segment.last;
    (segment.run_id == run && ordered && segment.is_consistent()).then_some(segment)
}

pub(super) fn encode_signal(signal: &Signal) -> Vec<u8> {
    serde_json::to_vec(signal).expect("signals have string keys only")
}

pub(super) fn decode_signal(payload: &[u8]) -> Option<Signal> {
    if payload.len() > MAX_SIGNAL_BYTES {
        return None;
    }
    serde_json::from_slice(payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventData;

    fn segment(run_id: RunId) -> Segment {
        let event = EventData::TextDelta { text: "hello".into() }.of_step(1, 1);
        Segment { run_id, first: 3, last: 3, at: 7, events: vec![event] }
    }

    #[test]
    fn a_channel_name_leads_back_to_its_run_and_no_other_prefix_does() {
        let run = RunId::generate();
        let names = Names::new("acme").unwrap();
        assert!(matches!(names.parse(names.run(run).as_bytes()), Some(Channel::Run(id)) if id == run));
        assert!(matches!(names.parse(b"acme:signal"), Some(Channel::Signal)));
        for foreign in [format!("acme2:run:{run}"), "acme:run:".into(), "acme:run:x".into(), "signal".into()]
        {
            assert!(names.parse(foreign.as_bytes()).is_none(), "{foreign}");
        }
    }

    #[test]
    fn a_prefix_that_could_collide_or_break_a_channel_name_is_refused() {
        for prefix in ["", "a b", "a*", "ä", &"x".repeat(65)] {
            assert!(Names::new(prefix).is_err(), "{prefix}");
        }
        assert!(Names::new(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn only_a_consistent_segment_of_the_channels_run_is_believed() {
        let run = RunId::generate();
        let good = encode_segment(&segment(run)).unwrap();
        assert!(decode_segment(run, &good).is_some());
        assert!(decode_segment(RunId::generate(), &good).is_none());
        assert!(decode_segment(run, b"\xff\x00{").is_none());
        for (first, last) in [(0, 0), (3, 4), (3, i64::MIN), (i64::MIN, i64::MAX), (1, i64::MAX)] {
            let bad = serde_json::to_vec(&Segment { first, last, ..segment(run) }).unwrap();
            assert!(decode_segment(run, &bad).is_none(), "{first}..={last}");
        }
        let empty =
            serde_json::to_vec(&Segment { first: 1, last: 0, events: vec![], ..segment(run) }).unwrap();
        assert!(decode_segment(run, &empty).is_none());
    }

    #[test]
    fn a_segment_above_the_size_limit_is_neither_sent_nor_believed() {
        let run = RunId::generate();
        let sized = |text: usize| {
            let event = EventData::TextDelta { text: "x".repeat(text) }.of_step(1, 1);
            Segment { events: vec![event], ..segment(run) }
        };
        let overhead = serde_json::to_vec(&sized(0)).unwrap().len();
        let at_limit = sized(MAX_SEGMENT_BYTES - overhead);
        assert!(decode_segment(run, &encode_segment(&at_limit).unwrap()).is_some());
        let above = sized(MAX_SEGMENT_BYTES - overhead + 1);
        assert!(encode_segment(&above).is_none());
        assert!(decode_segment(run, &serde_json::to_vec(&above).unwrap()).is_none());
    }

    #[test]
    fn a_signal_keeps_its_form_on_the_wire() {
        let wake = Signal::Wake { queue: "default".into() };
        assert_eq!(encode_signal(&wake), br#"{"type":"wake","queue":"default"}"#);
        assert_eq!(decode_signal(&encode_signal(&wake)), Some(wake));
        let run_id = RunId(Uuid::nil());
        let stop = Signal::Stop { run_id };
        assert_eq!(decode_signal(format!(r#"{{"type":"stop","runId":"{run_id}"}}"#).as_bytes()), Some(stop));
        assert_eq!(decode_signal(b"{\"type\":\"dance\"}"), None);
        assert_eq!(decode_signal(&vec![b' '; MAX_SIGNAL_BYTES + 1]), None);
    }
}

//! Rendered segments that all tails of a run share: two thousand watchers cost one rendering.
//!
//! A small cache: what is live is wanted by everybody within moments, what is replayed by one reader at a time.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use longhaul_shared::domain::{
    event::Segment,
    ids::{RunId, Seq},
};

use super::native::write_frame;

/// Rendered bytes that are kept, over all segments.
const CAPACITY: usize = 2 * 1024 * 1024;

/// A whole segment as server-sent events.
struct Rendered {
    bytes: Bytes,
    first: Seq,
    /// Where each event begins.
    starts: Box<[u32]>,
}

impl Rendered {
    fn of(segment: &Segment) -> Self {
        let mut text = String::new();
        let mut starts = Vec::with_capacity(segment.events.len());
        for (seq, event) in segment.after(0) {
            starts.push(text.len() as u32);
            write_frame(&mut text, seq, segment.at, event);
        }
        Self { bytes: Bytes::from(text), first: segment.first, starts: starts.into_boxed_slice() }
    }

    /// The events numbered above `after`, without a copy.
    fn after(&self, after: Seq) -> Bytes {
        let skipped = usize::try_from(after.saturating_sub(self.first - 1)).unwrap_or(0);
        match self.starts.get(skipped) {
            Some(start) => self.bytes.slice(*start as usize..),
            None => Bytes::new(),
        }
    }
}

type Key = (RunId, Seq, Seq);

#[derive(Default)]
struct Kept {
    rendered: HashMap<Key, Arc<Rendered>>,
    oldest_first: VecDeque<Key>,
    bytes: usize,
}

#[derive(Default)]
pub(crate) struct FrameCache {
    kept: Mutex<Kept>,
}

impl FrameCache {
    /// The events of the segment numbered above `after`, as server-sent events.
    pub(crate) fn render(&self, segment: &Segment, after: Seq) -> Bytes {
        let key = (segment.run_id, segment.first, segment.last);
        if let Some(rendered) = self.lock().rendered.get(&key) {
            return rendered.after(after);
        }
        let rendered = Arc::new(Rendered::of(segment));
        let bytes = rendered.after(after);
        self.keep(key, rendered);
        bytes
    }

    fn keep(&self, key: Key, rendered: Arc<Rendered>) {
        let size = rendered.bytes.len();
        // A segment this long comes from a replay; it would push out what is live.
        if size > CAPACITY / 16 {
            return;
        }
        let mut kept = self.lock();
        let kept = &mut *kept;
        if kept.rendered.insert(key, rendered).is_none() {
            kept.oldest_first.push_back(key);
            kept.bytes += size;
        }
        while kept.bytes > CAPACITY {
            let Some(oldest) = kept.oldest_first.pop_front() else { break };
            if let Some(dropped) = kept.rendered.remove(&oldest) {
                kept.bytes -= dropped.bytes.len();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::event::EventData;

    use super::*;

    fn segment(run_id: RunId, first: Seq, texts: &[&str]) -> Segment {
        Segment {
            run_id,
            first,
            last: first + texts.len() as Seq - 1,
            at: 0,
            events: texts
                .iter()
                .map(|text| EventData::TextDelta { text: (*text).into() }.of_step(1, 1))
                .collect(),
        }
    }

    #[test]
    fn a_part_of_a_segment_is_a_part_of_the_same_bytes() {
        let cache = FrameCache::default();
        let segment = segment(RunId::generate(), 5, &["a", "b", "c"]);
        let whole = cache.render(&segment, 0);
        assert_eq!(whole, cache.render(&segment, 4));
        assert!(cache.render(&segment, Seq::MAX).is_empty());
        for after in 4..=7 {
            let mut expected = String::new();
            for (seq, event) in segment.after(after) {
                write_frame(&mut expected, seq, segment.at, event);
            }
            assert_eq!(cache.render(&segment, after), expected.as_bytes(), "after {after}");
        }
        assert!(cache.render(&segment, 100).is_empty());
        assert_eq!(whole.as_ptr(), cache.render(&segment, 0).as_ptr(), "rendered once");
    }

    #[test]
    fn the_cache_stays_within_its_bound() {
        let cache = FrameCache::default();
        let long = "x".repeat(10_000);
        for first in 1..=1000 {
            cache.render(&segment(RunId::generate(), first, &[&long]), 0);
        }
        let kept = cache.lock();
        assert!(kept.bytes <= CAPACITY);
        assert_eq!(kept.rendered.len(), kept.oldest_first.len());
        assert_eq!(kept.bytes, kept.rendered.values().map(|rendered| rendered.bytes.len()).sum::<usize>());
    }
}

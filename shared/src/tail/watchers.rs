//! The tails that wait for live segments, and how far each has come, for the poll to look behind them.
//! A tail that is not waiting, because it reads the log or its client is slow, is nobody's concern here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use super::LogCursor;
use crate::domain::ids::{RunId, Seq, WorkspaceId};

/// With its workspace, so that no tail is looked up under another one's.
pub(super) type Place = (WorkspaceId, RunId);

const NOT_WAITING: Seq = Seq::MAX;

#[derive(Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next_id: u64,
    all: BTreeMap<u64, (Place, Arc<Progress>)>,
    is_polled: bool,
}

pub(super) struct Progress {
    /// The number up to which a waiting tail has come, else [`NOT_WAITING`].
    waits_at: AtomicI64,
    /// What the poll put into the tail's feed. The feed loses nothing silently, so the poll need not look
    /// there again: a client that takes nothing while its tail waits costs no repeated reads.
    offered: AtomicI64,
}

/// Where the poll has to look for one run, and whom it looks for.
pub(super) struct Look {
    pub(super) after: Seq,
    pub(super) waiting: Vec<Arc<Progress>>,
}

impl Watchers {
    /// Adds a tail. `true`: there is no poll, and the caller starts it.
    pub(super) fn add(&self, cursor: LogCursor) -> (Watcher, bool) {
        let progress =
            Arc::new(Progress { waits_at: AtomicI64::new(NOT_WAITING), offered: AtomicI64::new(0) });
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.all.insert(id, ((cursor.workspace_id, cursor.run_id), Arc::clone(&progress)));
        let starts = !std::mem::replace(&mut state.is_polled, true);
        drop(state);
        (Watcher { id, progress, watchers: self.clone() }, starts)
    }

    /// Whether the poll may end, since nobody is left. The next tail then starts another.
    pub(super) fn poll_may_end(&self) -> bool {
        let mut state = self.state();
        state.is_polled = !state.all.is_empty();
        !state.is_polled
    }

    /// For each run with a waiting tail the lowest number that one of them waits at.
    pub(super) fn looks(&self) -> BTreeMap<Place, Look> {
        let mut looks = BTreeMap::new();
        for (place, progress) in self.state().all.values() {
            let waits_at = progress.waits_at.load(Ordering::Acquire);
            if waits_at == NOT_WAITING {
                continue;
            }
            let after = waits_at.max(progress.offered.load(Ordering::Acquire));
            let look = looks.entry(*place).or_insert_with(|| Look { after, waiting: Vec::new() });
            look.after = look.after.min(after);
            look.waiting.push(Arc::clone(progress));
        }
        looks
    }

    pub(super) fn len(&self) -> usize {
        self.state().all.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Look {
    /// Notes that the feed of these tails was given everything from `after` up to `last`.
    pub(super) fn offered(&self, last: Seq) {
        for progress in &self.waiting {
            progress.offered.fetch_max(last, Ordering::AcqRel);
        }
    }
}

/// One tail's entry, for as long as it lives.
pub(super) struct Watcher {
    id: u64,
    progress: Arc<Progress>,
    watchers: Watchers,
}

/// Marks the tail as waiting until dropped.
pub(super) struct Waiting<'a>(&'a Progress);

impl Watcher {
    pub(super) fn wait(&self, at: Seq) -> Waiting<'_> {
        self.progress.waits_at.store(at, Ordering::Release);
        Waiting(&self.progress)
    }

    /// The tail has read the log and may have passed over what its feed held: the poll looks anew.
    pub(super) fn caught_up(&self) {
        self.progress.offered.store(0, Ordering::Release);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waits_at.store(NOT_WAITING, Ordering::Release);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.state().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> LogCursor {
        LogCursor { workspace_id: WorkspaceId::generate(), run_id: RunId::generate(), after: 0 }
    }

    fn place(cursor: LogCursor) -> Place {
        (cursor.workspace_id, cursor.run_id)
    }

    #[test]
    fn a_run_is_looked_at_from_its_lowest_waiting_tail() {
        let (watchers, cursor) = (Watchers::default(), cursor());
        let tails: Vec<_> = (0..3).map(|_| watchers.add(cursor).0).collect();
        assert!(watchers.looks().is_empty());
        let waiting = [tails[0].wait(9), tails[1].wait(5)];
        let looks = watchers.looks();
        let look = &looks[&place(cursor)];
        assert_eq!((look.after, look.waiting.len()), (5, 2));
        drop(waiting);
        assert!(watchers.looks().is_empty());
    }

    #[test]
    fn what_was_offered_once_is_not_looked_up_again_until_the_tail_has_caught_up() {
        let (watchers, cursor) = (Watchers::default(), cursor());
        let (tail, _) = watchers.add(cursor);
        let waiting = tail.wait(5);
        watchers.looks()[&place(cursor)].offered(8);
        assert_eq!(watchers.looks()[&place(cursor)].after, 8);
        drop(waiting);
        tail.caught_up();
        let _waiting = tail.wait(6);
        assert_eq!(watchers.looks()[&place(cursor)].after, 6);
    }

    #[test]
    fn the_first_tail_starts_the_poll_and_the_last_one_lets_it_end() {
        let watchers = Watchers::default();
        let (one, starts) = watchers.add(cursor());
        let (other, again) = watchers.add(cursor());
        assert!(starts && !again);
        drop(one);
        assert!(!watchers.poll_may_end());
        drop(other);
        assert!(watchers.poll_may_end());
        assert!(watchers.add(cursor()).1);
    }
}

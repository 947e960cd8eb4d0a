//! A gate: a place at which somebody waits until the test lets them go on.

use tokio::sync::watch;
use tokio::time::timeout;

use crate::PATIENCE;

/// Closed at first. Whoever comes to it waits until it is opened; it stays open for those who come later.
#[derive(Clone, Debug)]
pub struct Gate {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    arrived: usize,
    waiting: usize,
    open: bool,
    /// Who comes behind so many passes even so.
    holds_only: Option<usize>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: watch::Sender::new(State::default()) }
    }
}

impl Gate {
    /// Waits until somebody has come to the gate.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until `count` have come to the gate, whether or not they still stand there.
    pub async fn reached_by(&self, count: usize) {
        let mut state = self.state.subscribe();
        let Ok(reached) = timeout(PATIENCE, state.wait_for(|state| state.arrived >= count)).await else {
            panic!("{} of {count} reached the gate within {PATIENCE:?}", self.state.borrow().arrived);
        };
        reached.expect("the gate itself holds the sender");
    }

    /// How many stand at the gate now: those who went away while it was closed do not count.
    pub fn waiting(&self) -> usize {
        self.state.borrow().waiting
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    /// Lets those pass who come from now on; those who have come stay.
    pub fn open_to_others(&self) {
        self.state.send_modify(|state| state.holds_only = Some(state.arrived));
    }

    /// Stops everybody who comes from now on.
    pub fn close(&self) {
        self.state.send_modify(|state| state.open = false);
    }

    pub(crate) async fn pass(&self) {
        let mut state = self.state.subscribe();
        let mut before = 0;
        self.state.send_modify(|state| {
            before = state.arrived;
            state.arrived += 1;
            state.waiting += 1;
        });
        let _leave = Leave(&self.state);
        let passes = |state: &State| state.open || state.holds_only.is_some_and(|held| before >= held);
        state.wait_for(passes).await.expect("the gate itself holds the sender");
    }
}

/// Whoever stops waiting is no longer counted, also when their future is dropped.
struct Leave<'a>(&'a watch::Sender<State>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.waiting -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[tokio::test]
    async fn a_gate_holds_everybody_until_it_is_opened() {
        let gate = Gate::default();
        let walker = gate.clone();
        let walk = tokio::spawn(async move { walker.pass().await });
        gate.reached().await;
        assert_eq!(gate.waiting(), 1);
        assert!(!walk.is_finished());
        gate.open();
        walk.await.unwrap();
        assert_eq!(gate.waiting(), 0);
        gate.pass().await;
    }

    #[tokio::test]
    async fn those_who_have_come_stay_when_it_is_opened_to_others() {
        let gate = Gate::default();
        let walker = gate.clone();
        let walk = tokio::spawn(async move { walker.pass().await });
        gate.reached().await;
        gate.open_to_others();
        gate.pass().await;
        assert!(!walk.is_finished());
        gate.open();
        walk.await.unwrap();
    }
}

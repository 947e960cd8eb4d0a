//! The promises of the port, run against both back-ends. "Here" and "there" are two processes on one
//! transport, which are one and the same where there is only one process.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Bus, Live, Signal, Subscription};
use crate::domain::{
    event::{EventData, Segment},
    ids::{RunId, Seq},
};

pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) struct Pair {
    pub(super) here: Arc<dyn Bus>,
    pub(super) there: Arc<dyn Bus>,
}

pub(super) fn segment(run_id: RunId, first: Seq) -> Arc<Segment> {
    let event = EventData::TextDelta { text: format!("token {first}") }.of_step(1, 1);
    Arc::new(Segment { run_id, first, last: first, at: 1_700_000_000_000, events: vec![event] })
}

pub(super) async fn next(subscription: &mut Subscription) -> Live {
    timeout(SOON, subscription.recv()).await.expect("something should have arrived by now")
}

/// The next segment's first number, whatever else is heard before it.
pub(super) async fn next_segment(subscription: &mut Subscription) -> Seq {
    loop {
        if let Live::Segment(segment) = next(subscription).await {
            return segment.first;
        }
    }
}

/// Waits for a fact about the outside.
pub(crate) async fn until(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let reached = async {
        while !fact().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, reached).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

pub(super) async fn segments_arrive_in_order_and_unchanged(pair: Pair) {
    let run = RunId::generate();
    let mut subscription = pair.there.subscribe(run).await;
    for first in 1..=20 {
        pair.here.publish(segment(run, first));
    }
    for first in 1..=20 {
        let Live::Segment(heard) = next(&mut subscription).await else { panic!("interrupted") };
        let sent = segment(run, first);
        assert_eq!(serde_json::to_string(&heard).unwrap(), serde_json::to_string(&sent).unwrap());
    }
}

pub(super) async fn a_run_hears_nothing_of_another(pair: Pair) {
    let (mine, other) = (RunId::generate(), RunId::generate());
    let mut subscription = pair.there.subscribe(mine).await;
    let _other = pair.there.subscribe(other).await;
    pair.here.publish(segment(other, 1));
    pair.here.publish(segment(mine, 2));
    assert_eq!(next_segment(&mut subscription).await, 2);
}

pub(super) async fn subscribers_of_one_run_share_each_segment(pair: Pair) {
    let run = RunId::generate();
    let mut first = pair.there.subscribe(run).await;
    let mut second = pair.there.subscribe(run).await;
    pair.here.publish(segment(run, 1));
    let (Live::Segment(one), Live::Segment(two)) = (next(&mut first).await, next(&mut second).await) else {
        panic!("interrupted")
    };
    assert!(Arc::ptr_eq(&one, &two));
}

pub(super) async fn a_subscription_is_live_when_subscribe_returns(pair: Pair) {
    for _ in 0..50 {
        let run = RunId::generate();
        let mut subscription = pair.there.subscribe(run).await;
        pair.here.publish(segment(run, 1));
        assert_eq!(next_segment(&mut subscription).await, 1);
    }
}

pub(super) async fn a_run_that_everyone_left_can_be_joined_again(pair: Pair) {
    let run = RunId::generate();
    for round in 1..=20 {
        let one = pair.there.subscribe(run).await;
        let mut other = pair.there.subscribe(run).await;
        drop(one);
        pair.here.publish(segment(run, round));
        assert_eq!(next_segment(&mut other).await, round);
    }
}

pub(super) async fn a_subscriber_that_falls_behind_is_told_to_resync_and_then_goes_on(pair: Pair) {
    let run = RunId::generate();
    let mut slow = pair.there.subscribe(run).await;
    let mut fast = pair.there.subscribe(run).await;
    for first in 1..=100 {
        pair.here.publish(segment(run, first));
        assert_eq!(next_segment(&mut fast).await, first);
    }
    assert!(matches!(next(&mut slow).await, Live::Resync));
    pair.here.publish(segment(run, 101));
    assert_eq!(next_segment(&mut slow).await, 101);
}

pub(super) async fn delivering_stays_in_this_process(pair: Pair) {
    let run = RunId::generate();
    let mut subscription = pair.here.subscribe(run).await;
    pair.here.deliver(run, Live::Segment(segment(run, 4)));
    assert_eq!(next_segment(&mut subscription).await, 4);
    pair.here.deliver(run, Live::Resync);
    assert!(matches!(next(&mut subscription).await, Live::Resync));
    if !Arc::ptr_eq(&pair.here, &pair.there) {
        let mut outside = pair.there.subscribe(run).await;
        pair.here.deliver(run, Live::Segment(segment(run, 5)));
        pair.here.publish(segment(run, 6));
        assert_eq!(next_segment(&mut outside).await, 6);
    }
}

pub(super) async fn signals_reach_every_listener_in_every_process(pair: Pair) {
    let mut listeners = [pair.here.signals(), pair.there.signals(), pair.there.signals()];
    let sent = [Signal::Wake { queue: "default".into() }, Signal::Stop { run_id: RunId::generate() }];
    for signal in &sent {
        pair.here.signal(signal.clone());
    }
    for listener in &mut listeners {
        for signal in &sent {
            let heard = timeout(SOON, listener.recv()).await.expect("a signal should have arrived").unwrap();
            assert_eq!(heard, *signal);
        }
    }
}

pub(super) async fn what_was_published_has_left_when_close_returns(pair: Pair) {
    let run = RunId::generate();
    let mut subscription = pair.there.subscribe(run).await;
    for first in 1..=10 {
        pair.here.publish(segment(run, first));
    }
    pair.here.close().await;
    if !Arc::ptr_eq(&pair.here, &pair.there) {
        drop(pair.here);
    }
    for first in 1..=10 {
        assert_eq!(next_segment(&mut subscription).await, first);
    }
}

/// Stamps the suite for one back-end; `$pair` makes two fresh buses, or none where it is left out.
macro_rules! conforms {
    ($pair:path: $($promise:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            if let Some(pair) = $pair().await {
                $crate::bus::conformance::$promise(pair).await;
            }
        }
    )+};
    ($pair:path) => {
        $crate::bus::conformance::conforms!($pair:
            segments_arrive_in_order_and_unchanged,
            a_run_hears_nothing_of_another,
            subscribers_of_one_run_share_each_segment,
            a_subscription_is_live_when_subscribe_returns,
            a_run_that_everyone_left_can_be_joined_again,
            a_subscriber_that_falls_behind_is_told_to_resync_and_then_goes_on,
            delivering_stays_in_this_process,
            signals_reach_every_listener_in_every_process,
            what_was_published_has_left_when_close_returns,
        );
    };
}
pub(super) use conforms;

mod in_process {
    use super::*;
    use crate::bus::in_process::InProcessBus;

    #[expect(clippy::unused_async, reason = "the suite makes every pair the same way")]
    async fn pair() -> Option<Pair> {
        let here: Arc<dyn Bus> = Arc::new(InProcessBus::new());
        Some(Pair { there: Arc::clone(&here), here })
    }

    super::conforms!(pair);
}

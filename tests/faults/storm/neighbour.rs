//! Somebody else in the same installation, with a workspace of their own: they ask for what is not theirs, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::sleep;

use super::journal::Outcome;
use super::load::{Load, is_worth_repeating};

const PAUSE: Duration = Duration::from_millis(300);

/// Asks for runs of the others as this one. Never returns; `refused` counts how often that was refused.
pub(crate) async fn pry(neighbour: Arc<Load>, others: Arc<Load>, seed: u64, refused: &AtomicUsize) -> ! {
    let mut random = StdRng::seed_from_u64(seed ^ 0xbad);
    loop {
        sleep(PAUSE).await;
        let Some(run) = one_run(&others, &mut random) else { continue };
        let (read, _) = neighbour.get(&format!("/v1/runs/{run}")).await;
        let (tail, _) = neighbour.get(&format!("/v1/runs/{run}/events")).await;
        let (stop, _) = neighbour.post(&format!("/v1/runs/{run}/stop")).await;
        for answer in [read, tail, stop] {
            if answer.starts_with("404") {
                refused.fetch_add(1, Ordering::Relaxed);
            } else if !is_worth_repeating(&answer) {
                let complaint = format!("a stranger who asked for {run} was answered with {answer}");
                neighbour.journal().complaints.push(complaint);
            }
        }
    }
}

fn one_run(load: &Load, random: &mut StdRng) -> Option<String> {
    let journal = load.journal();
    let count = journal.submissions.len();
    let newest = count.saturating_sub(30);
    let one = (count > 0).then(|| &journal.submissions[random.random_range(newest..count)])?;
    match &one.outcome {
        Outcome::Accepted { run, .. } => Some(run.clone()),
        Outcome::Refused | Outcome::GivenUp => None,
    }
}

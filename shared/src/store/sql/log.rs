//! The group commit as the recorder sees it: one answer for each append.

use async_trait::async_trait;
use uuid::Uuid;

use super::{super::commit::commit_together, SqlStore};
use crate::{
    domain::{event::Segment, ids::Millis},
    store::{Append, Committed, Log, Result, StoreError},
};

/// What one append of a batch led to.
pub(crate) struct Outcome {
    pub(crate) run_id: Uuid,
    pub(crate) at: Millis,
    /// Segments of the chat's next run, which took over the slot.
    pub(crate) caused: Vec<Segment>,
    pub(crate) wake: Vec<String>,
}

#[async_trait]
impl Log for SqlStore {
    async fn commit(&self, appends: &[Append]) -> Vec<Result<Committed>> {
        let batch: Vec<&Append> = appends.iter().collect();
        match commit_together(self, &batch).await {
            Ok(outcomes) => spread(&batch, outcomes),
            Err(error) if batch.len() == 1 || error.is_transient() => vec![Err(error); batch.len()],
            // One bad share must not fail the others.
            Err(_) => {
                let mut results = Vec::with_capacity(batch.len());
                for append in batch {
                    match commit_together(self, &[append]).await {
                        Ok(outcomes) => results.extend(spread(&[append], outcomes)),
                        Err(error) => results.push(Err(error)),
                    }
                }
                results
            }
        }
    }
}

/// The outcomes in the order of the appends; one that is missing lost its lease.
pub(crate) fn spread(batch: &[&Append], mut outcomes: Vec<Outcome>) -> Vec<Result<Committed>> {
    batch
        .iter()
        .map(|append| {
            let place = outcomes.iter().position(|outcome| outcome.run_id == append.run_id.0);
            let outcome = outcomes.swap_remove(place.ok_or(StoreError::LeaseLost)?);
            Ok(Committed {
                segment: Segment {
                    run_id: append.run_id,
                    first: append.first_seq,
                    last: append.last_seq(),
                    at: outcome.at,
                    events: append.events.clone(),
                },
                caused: outcome.caused,
                wake: outcome.wake,
            })
        })
        .collect()
}

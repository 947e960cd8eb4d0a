//! One worker's go at a run: load it, do one thing after the other, record how it ended or hand it back.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use longhaul_shared::{
    admission::announce,
    bus::Bus,
    config::LimitsConfig,
    domain::{
        asked::Asked,
        event::{Event, ReleaseReason},
        replay::{ModelMessage, Replay},
        retry::Backoff,
        run::{Ending, Run, RunError, Usage},
        settle::{Stop, settle},
        transition::Reason,
    },
    failpoint::{Point, hit, hit_if},
    jitter::jitter,
    queue::Leased,
    store::{SharedStore, StoreError, bounded},
    telemetry,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    decide::{Next, State, next},
    interrupt::{Exit, Interrupts},
    late::Late,
    prompt,
    tool_calls::Sent,
};
use crate::{
    agents::{Agent, Agents},
    recorder::{RecordError, Recorder, RunLog, Write},
};

/// What all attempts of a worker share.
pub struct Attempts {
    pub store: SharedStore,
    pub bus: Arc<dyn Bus>,
    pub recorder: Recorder,
    pub agents: Agents,
    pub limits: LimitsConfig,
    pub late: Late,
    /// How many runs are handed back at the same time.
    pub hand_backs: Semaphore,
    /// No new work is begun; attempts hand back at their next saved point.
    pub drain: CancellationToken,
    /// The drain time is over; attempts hand back where they are.
    pub hard_stop: CancellationToken,
}

/// The wait before a run is tried again whose attempt broke for a reason of ours.
const BROKEN_DELAY: Duration = Duration::from_secs(1);
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

impl Attempts {
    /// Works on the run until it is over, lost or handed back. Never panics: a panic is a broken attempt.
    pub async fn work(&self, leased: Leased) {
        let span = tracing::info_span!(
            telemetry::ATTEMPT_SPAN,
            run.id = %leased.claim.run.id,
            epoch = leased.claim.epoch,
            step = tracing::field::Empty,
        );
        self.work_in_span(leased).instrument(span).await;
    }

    async fn work_in_span(&self, leased: Leased) {
        let log = self.recorder.open(&leased.claim, leased.orders.lost.clone()).await;
        tracing::debug!("the attempt begins");
        hit(Point::AfterClaim);
        let (reason, delay) = match AssertUnwindSafe(self.attempt(&leased, &log)).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(Broken::Lost)) => {
                tracing::warn!("the run was lost to another worker");
                return;
            }
            Ok(Err(Broken::HandBack)) => (ReleaseReason::HandBack, Duration::ZERO),
            Ok(Err(Broken::Store(error))) => {
                tracing::error!(%error, "the attempt broke");
                (ReleaseReason::Broken, BROKEN_DELAY)
            }
            // The panic itself was logged where it happened.
            Err(_) => (ReleaseReason::Broken, BROKEN_DELAY),
        };
        if let Err(error) = self.hand_back(&leased, &log, reason, delay).await {
            // The lease runs out or the run is found to be held by nobody: the reaper has it then.
            tracing::warn!(%error, "cannot hand the run back");
        }
    }

    async fn attempt(&self, leased: &Leased, log: &RunLog) -> Result<(), Broken> {
        hit_if(Point::AbortIfTag, || leased.claim.run.tags.iter().any(|tag| tag == "abort"));
        hit_if(Point::PanicIfTag, || leased.claim.run.tags.iter().any(|tag| tag == "panic"));
        let mut attempt = Attempt::load(self, leased, log).await?;
        // Once it has begun it goes on, even if late answers have made the conversation longer.
        if attempt.asked.whole_history && !attempt.is_whole && attempt.replay.last_step().is_none() {
            let told = "the conversation is too long, and was not to be truncated";
            let error = RunError::new("context_length_exceeded", told);
            return attempt.finish(Ending::failed(Reason::Provider, error)).await;
        }
        loop {
            let exit = match attempt.next() {
                Next::CallModel { step } => attempt.call_model(step).await,
                Next::RunTools { step } => attempt.run_tools(step).await,
                Next::Finish(ending) => Err(Exit::Finish(ending)),
                Next::HandBack => Err(Exit::HandBack),
            };
            match exit {
                Ok(()) => {}
                Err(Exit::Finish(ending)) => return attempt.finish(ending).await,
                Err(Exit::HandBack) => return Err(Broken::HandBack),
                Err(Exit::Refused) => return attempt.finish_refused().await,
                Err(Exit::Lost) => return Err(Broken::Lost),
            }
            if attempt.is_over {
                return Ok(());
            }
        }
    }

    /// Gives a run back that this worker has claimed, whether or not it was begun.
    async fn hand_back(
        &self,
        leased: &Leased,
        log: &RunLog,
        reason: ReleaseReason,
        delay: Duration,
    ) -> Result<(), StoreError> {
        let position = match log.position().await {
            Ok(position) => position.last,
            Err(RecordError::LeaseLost) => return Ok(()),
            Err(RecordError::Refused(error)) => return Err(error),
        };
        let delay_ms = delay.as_millis() as i64;
        let mut failures = 0;
        loop {
            // A drain hands everything back at once; the heartbeat needs a connection too.
            let turn = self.hand_backs.acquire().await;
            hit(Point::BeforeHandBack);
            let (store, claim) = (Arc::clone(&self.store), leased.claim.clone());
            let hand_back = async move { store.hand_back(&claim, position, reason, delay_ms).await };
            let released = bounded(self.store.patience(), hand_back).await;
            drop(turn);
            match released {
                Ok(released) => {
                    hit(Point::AfterHandBack);
                    announce(&*self.bus, released.segments, released.wake);
                    return Ok(());
                }
                // Handed back by a try whose answer was lost, or taken over meanwhile.
                Err(StoreError::LeaseLost) => return Ok(()),
                Err(error) if error.is_transient() && !leased.orders.lost.is_cancelled() => {
                    failures += 1;
                    sleep(RETRY.wait(failures, jitter())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Why an attempt ends without the run's end.
enum Broken {
    Lost,
    HandBack,
    Store(StoreError),
}

impl From<RecordError> for Exit {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::LeaseLost => Self::Lost,
            // The cause was logged where it happened; it means nothing to the run's owner.
            RecordError::Refused(_) => Self::Refused,
        }
    }
}

/// The state of one attempt.
pub(super) struct Attempt<'a> {
    pub(super) cx: &'a Attempts,
    pub(super) log: &'a RunLog,
    pub(super) run: &'a Run,
    pub(super) epoch: i64,
    pub(super) agent: Arc<Agent>,
    pub(super) asked: Asked,
    /// What the log says of this run. Its numbers are this attempt's own count: the recorder knows the real ones.
    pub(super) replay: Replay,
    pub(super) conversation: Arc<Vec<ModelMessage>>,
    /// Nothing of it had to be left out.
    is_whole: bool,
    /// The last step that the conversation contains; they are complete before the model is asked again.
    pub(super) steps_in_conversation: u32,
    pub(super) usage: Usage,
    pub(super) interrupts: Interrupts,
    /// Calls under way that the end of the run does not wait for.
    pub(super) unanswered: Vec<Sent>,
    /// The end is written.
    pub(super) is_over: bool,
}

impl<'a> Attempt<'a> {
    async fn load(cx: &'a Attempts, leased: &'a Leased, log: &'a RunLog) -> Result<Self, Broken> {
        let run = &leased.claim.run;
        let agent = cx.agents.get(&run.agent);
        let age = leased.claim.now - run.started_at.unwrap_or(leased.claim.now);
        let left = u64::try_from(run.limits.deadline_ms - age).unwrap_or(0);
        let interrupts = Interrupts {
            orders: Arc::clone(&leased.orders),
            deadline: Instant::now() + Duration::from_millis(left),
            hard_stop: cx.hard_stop.clone(),
        };
        let (replay, (conversation, is_whole), asked) = loop_until_read(&interrupts, || {
            let (store, run, agent) = (Arc::clone(&cx.store), run.clone(), Arc::clone(&agent));
            bounded(cx.store.patience(), async move {
                let replay = if run.attempts > 1 {
                    prompt::replay(&*store, &run).await?
                } else {
                    // Nobody has worked on it: there is nothing to read.
                    Replay::new(run.id)
                };
                let input = store.input(run.workspace_id, run.id).await?;
                let conversation = prompt::conversation(&*store, &run, &agent, &input).await?;
                Ok((replay, conversation, input.asked.unwrap_or_default()))
            })
        })
        .await?;
        let agent = match &asked.model {
            Some(model) => cx.agents.with_model(&agent, model),
            None => agent,
        };
        Ok(Self {
            cx,
            log,
            run,
            epoch: leased.claim.epoch,
            agent,
            asked,
            replay,
            conversation: Arc::new(conversation),
            is_whole,
            steps_in_conversation: 0,
            usage: run.usage,
            interrupts,
            unanswered: vec![],
            is_over: false,
        })
    }

    fn next(&self) -> Next {
        next(State {
            replay: &self.replay,
            max_steps: self.run.limits.max_steps,
            max_same_calls: self.cx.limits.loop_calls,
            output_left: self.output_left(),
            stop: self.interrupts.orders.stop_reason(),
            is_past_deadline: Instant::now() >= self.interrupts.deadline,
            is_draining: self.cx.drain.is_cancelled(),
        })
    }

    /// How many tokens the model may still write, if its client has set a limit for the run.
    pub(super) fn output_left(&self) -> Option<u32> {
        let used = u32::try_from(self.usage.output_tokens).unwrap_or(u32::MAX);
        self.asked.max_output_tokens.map(|limit| limit.saturating_sub(used))
    }

    /// Takes an event into this attempt's own picture of the log.
    pub(super) fn note(&mut self, event: &Event) {
        self.replay.apply(self.replay.position() + 1, 0, event);
    }

    /// Writes the end of the run.
    async fn finish(&mut self, ending: Ending) -> Result<(), Broken> {
        let write = self.ending(ending);
        let written = self.log.write(write).await;
        // Also when somebody else ended the run meanwhile: the answer will be its too.
        if !matches!(written, Err(RecordError::Refused(_))) {
            self.cx.late.follow(self.run.workspace_id, std::mem::take(&mut self.unanswered));
        }
        match written {
            Ok(_) => {
                self.is_over = true;
                Ok(())
            }
            Err(RecordError::LeaseLost) => Err(Broken::Lost),
            Err(RecordError::Refused(error)) => Err(Broken::Store(error)),
        }
    }

    /// Ends a run whose log refused the last of what this attempt said, behind the rest of it.
    async fn finish_refused(&mut self) -> Result<(), Broken> {
        if let Err(RecordError::LeaseLost) = self.log.position().await {
            return Err(Broken::Lost);
        }
        self.replay = loop_until_read(&self.interrupts, || {
            let (store, run) = (Arc::clone(&self.cx.store), self.run.clone());
            bounded(self.cx.store.patience(), async move { prompt::replay(&*store, &run).await })
        })
        .await?;
        let error = RunError::new("log_refused", "the log refused what the run had to say");
        self.finish(Ending::failed(Reason::Internal, error)).await
    }

    /// Everything that the end of the run consists of.
    pub(super) fn ending(&self, ending: Ending) -> Write {
        let wish = self.interrupts.orders.stop_request().filter(|_| ending.reason.is_ordered());
        let stop = wish.map(|wish| Stop { requested_at: wish.requested_at, is_delivered: true });
        let (events, settlement) = settle(self.run.id, &self.replay, self.usage, &ending, stop, self.epoch);
        tracing::info!(status = %ending.status(), reason = %ending.reason, "the run is to end");
        Write { events, steps: settlement.steps, calls: settlement.calls, ending: Some(ending) }
    }
}

/// Reads until the database answers or the answer is final. Interrupted, the run is given back: what it said so far,
/// which its end would have to know, could not be read.
async fn loop_until_read<T, F: Future<Output = Result<T, StoreError>>>(
    interrupts: &Interrupts,
    read: impl Fn() -> F,
) -> Result<T, Broken> {
    let mut failures = 0;
    loop {
        match read().await {
            Ok(value) => return Ok(value),
            Err(error) if error.is_transient() => {
                failures += 1;
                tracing::warn!(%error, "cannot read the run; trying again");
                match interrupts.race(sleep(RETRY.wait(failures, jitter()))).await {
                    Ok(()) => {}
                    Err(Exit::Lost) => return Err(Broken::Lost),
                    Err(_) => return Err(Broken::HandBack),
                }
            }
            Err(error) => return Err(Broken::Store(error)),
        }
    }
}

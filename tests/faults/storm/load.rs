//! The clients: they submit, watch, stop and come back, and repeat what was not answered.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::journal::{Journal, Outcome, Stop, Submission};
use super::scripts::{Kind, PROBE};
use super::tails::watch;
use crate::clock::now_ms;

/// More than these are never under way at once, so that a slow machine is not asked for more and more.
const MAX_VISITS: usize = 48;
const TAILS: usize = 200;
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long a client repeats itself before it gives up.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Load {
    pub(crate) http: reqwest::Client,
    pub(crate) apis: Vec<String>,
    pub(crate) key: String,
    /// What the marks of its messages begin with, and those of others.
    pub(crate) marks: &'static str,
    pub(crate) foreign_marks: &'static str,
    pub(crate) live_tails: AtomicUsize,
    journal: Mutex<Journal>,
    /// Chats in which nothing goes on.
    idle: Mutex<Vec<String>>,
}

impl Load {
    /// Clients of the workspace that this key is for.
    pub(crate) fn new(
        apis: Vec<String>,
        key: &str,
        marks: &'static str,
        foreign_marks: &'static str,
    ) -> reqwest::Result<Self> {
        // Longer than the server's heartbeats: a tail whose server is gone without a word asks another one.
        let http = longhaul_tests::http_client_builder().connect_timeout(CONNECT_WITHIN);
        let http = http.read_timeout(Duration::from_secs(10)).pool_max_idle_per_host(4).build()?;
        let (journal, idle) = (Mutex::default(), Mutex::default());
        let (key, live_tails) = (key.to_owned(), AtomicUsize::new(0));
        Ok(Self { http, apis, key, marks, foreign_marks, live_tails, journal, idle })
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<String>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many visits a second until then; returns when all of them are over, or says how many are not.
    pub(crate) async fn run(
        self: Arc<Self>,
        seed: u64,
        per_second: f64,
        until: Instant,
        rest: Duration,
    ) -> Result<(), String> {
        let mut random = StdRng::seed_from_u64(seed ^ 0x10ad);
        let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let places = Arc::new(Semaphore::new(MAX_VISITS));
        let mut visits = JoinSet::new();
        while Instant::now() < until {
            ticks.tick().await;
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            let (load, random) = (Arc::clone(&self), StdRng::seed_from_u64(random.random()));
            visits.spawn(async move {
                load.visit(random).await;
                drop(place);
            });
            while visits.try_join_next().is_some() {}
        }
        let finish = async { while visits.join_next().await.is_some() {} };
        if timeout(rest, finish).await.is_ok() {
            return Ok(());
        }
        Err(format!("{} visits are not over {} s after the storm", visits.len(), rest.as_secs()))
    }

    async fn visit(self: Arc<Self>, mut random: StdRng) {
        let old = if random.random_bool(0.4) { self.take_idle(&mut random) } else { None };
        let style = random.random_range(0..100);
        let mut submissions = JoinSet::new();
        // One in twelve visits of an old chat is made by two people at once.
        let people = if old.is_some() && style < 20 { 2 } else { 1 };
        for _ in 0..people {
            let (load, chat) = (Arc::clone(&self), old.clone());
            let kind = Kind::draw(&mut random);
            let random = StdRng::seed_from_u64(random.random());
            submissions.spawn(async move { load.ask(kind, chat, style >= 92, random).await });
        }
        let mut chats: BTreeSet<String> = old.into_iter().collect();
        for chat in submissions.join_all().await {
            chats.extend(chat);
        }
        self.idle().extend(chats);
    }

    fn take_idle(&self, random: &mut StdRng) -> Option<String> {
        let mut idle = self.idle();
        let count = idle.len();
        (count > 0).then(|| idle.swap_remove(random.random_range(0..count)))
    }

    /// Submits, watches, perhaps stops, and waits for the end. Answers with the chat.
    async fn ask(
        self: &Arc<Self>,
        kind: &'static Kind,
        chat: Option<String>,
        is_doubled: bool,
        mut random: StdRng,
    ) -> Option<String> {
        let mut submission = Submission::new(self.marks, kind, &mut random);
        let first = random.random_range(0..self.apis.len());
        if is_doubled {
            let mut twin = submission.clone();
            let mut twin_random = StdRng::seed_from_u64(random.random());
            tokio::join!(
                self.submit(&mut submission, chat.as_deref(), first, &mut random),
                self.submit(&mut twin, chat.as_deref(), first + 1, &mut twin_random),
            );
            submission.merge(twin);
        } else {
            self.submit(&mut submission, chat.as_deref(), first, &mut random).await;
        }
        let outcome = submission.outcome.clone();
        self.journal().submissions.push(submission);
        let Outcome::Accepted { run, chat } = outcome else { return chat };

        let live = self.live_tails.load(std::sync::atomic::Ordering::Relaxed);
        let tails = 2 + (TAILS.saturating_sub(live) / 8).min(10);
        let mut watching = JoinSet::new();
        for _ in 0..tails {
            let random = StdRng::seed_from_u64(random.random());
            watching.spawn(watch(Arc::clone(self), run.clone(), random));
        }
        // There is most to stop in what takes longest.
        if random.random_bool(if kind.name.starts_with("long") { 0.4 } else { 0.1 }) {
            sleep(Duration::from_millis(random.random_range(0..6_000))).await;
            let first = random.random_range(0..self.apis.len());
            if random.random_bool(0.3) {
                let other = StdRng::seed_from_u64(random.random());
                tokio::join!(self.stop(&run, first, random), self.stop(&run, first + 1, other));
            } else {
                self.stop(&run, first, random).await;
            }
        }
        while let Some(watched) = watching.join_next().await {
            let watched = watched.expect("a tail does not panic");
            self.journal().tails.push(watched);
        }
        Some(chat)
    }

    async fn submit(
        &self,
        submission: &mut Submission,
        chat: Option<&str>,
        first: usize,
        random: &mut StdRng,
    ) {
        let mut body = json!({"agent": submission.kind, "input": format!("Hello, {}.", submission.mark)});
        if let Some(chat) = chat {
            body["chatId"] = chat.into();
        }
        let begin = Instant::now();
        for attempt in 0.. {
            let api = &self.apis[(first + attempt) % self.apis.len()];
            let request = self.http.post(format!("{api}/v1/runs")).header("idempotency-key", &submission.key);
            let (answer, body) = self.send(request.json(&body)).await;
            *submission.answers.entry(answer.clone()).or_default() += 1;
            let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
            match answer.as_str() {
                "202" => {
                    let (run, chat) = (text("runId"), text("chatId"));
                    submission.runs.insert(run.clone());
                    submission.outcome = Outcome::Accepted { run, chat };
                    return;
                }
                "409 A_RUN_ALREADY_ACTIVE" => {
                    submission.outcome = Outcome::Refused;
                    return;
                }
                _ if !is_worth_repeating(&answer) => {
                    let complaint = format!("a submission of {} was answered with {answer}", submission.kind);
                    self.journal().complaints.push(complaint);
                    return;
                }
                _ if begin.elapsed() > PATIENCE => return,
                _ => self.pause(attempt, random).await,
            }
        }
    }

    /// Stops a run, as often as it takes.
    pub(crate) async fn stop(&self, run: &str, first: usize, mut random: StdRng) {
        self.journal().stops_asked.insert(run.to_owned());
        let begin = Instant::now();
        for attempt in 0.. {
            let at = now_ms();
            let api = &self.apis[(first + attempt) % self.apis.len()];
            let (answer, _) = self.send(self.http.post(format!("{api}/v1/runs/{run}/stop"))).await;
            match answer.as_str() {
                "202" => {
                    self.journal().stops.push(Stop { run: run.to_owned(), at });
                    return;
                }
                // It was over.
                "200" => return,
                _ if !is_worth_repeating(&answer) => {
                    self.journal().complaints.push(format!("a stop of {run} was answered with {answer}"));
                    return;
                }
                _ if begin.elapsed() > PATIENCE => return,
                _ => self.pause(attempt, &mut random).await,
            }
        }
    }

    /// Status and code of the answer, or `no answer`; and its body.
    async fn send(&self, request: reqwest::RequestBuilder) -> (String, Value) {
        let exchange = async {
            let response = request.bearer_auth(&self.key).send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.bytes().await?))
        };
        let Ok(Ok((status, body))) = timeout(ANSWER_WITHIN, exchange).await else {
            return ("no answer".to_owned(), Value::Null);
        };
        if String::from_utf8_lossy(&body).contains(self.foreign_marks) {
            self.journal().complaints.push("an answer has words of another workspace".to_owned());
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = body["code"].as_str();
        (code.map_or_else(|| status.to_string(), |code| format!("{status} {code}")), body)
    }

    /// What an API process answers to this, whichever comes first to mind.
    pub(crate) async fn get(&self, path: &str) -> (String, Value) {
        self.send(self.http.get(format!("{}{path}", self.apis[path.len() % self.apis.len()]))).await
    }

    pub(crate) async fn post(&self, path: &str) -> (String, Value) {
        self.send(self.http.post(format!("{}{path}", self.apis[path.len() % self.apis.len()]))).await
    }

    async fn pause(&self, attempt: usize, random: &mut StdRng) {
        self.journal().retries += 1;
        let longest = (100_u64 << attempt.min(5)).min(2_000);
        sleep(Duration::from_millis(random.random_range(longest / 2..=longest))).await;
    }

    /// One more question in each of these chats; complains of those that are good for nothing any more.
    pub(crate) async fn probe(self: &Arc<Self>, chats: Vec<String>) -> Result<(), String> {
        let places = Arc::new(Semaphore::new(8));
        let mut probes = JoinSet::new();
        for (nth, chat) in chats.into_iter().enumerate() {
            let (load, places) = (Arc::clone(self), Arc::clone(&places));
            probes.spawn(async move {
                let _place = places.acquire().await.expect("nobody closes it");
                load.probe_one(chat, StdRng::seed_from_u64(nth as u64)).await;
            });
        }
        let finish = async { while probes.join_next().await.is_some() {} };
        timeout(Duration::from_mins(3), finish).await.map_err(|_| "the probes did not end".to_owned())
    }

    async fn probe_one(self: &Arc<Self>, chat: String, mut random: StdRng) {
        let kind = Kind::named(PROBE).expect("it is one of them");
        let mut submission = Submission::new("probe", kind, &mut random);
        self.submit(&mut submission, Some(&chat), 0, &mut random).await;
        let outcome = submission.outcome.clone();
        self.journal().submissions.push(submission);
        let ended = match outcome {
            Outcome::Accepted { run, .. } => {
                let watched = watch(Arc::clone(self), run, random).await;
                let ended = watched.end.clone();
                self.journal().tails.push(watched);
                ended.unwrap_or_default()
            }
            outcome => format!("{outcome:?}"),
        };
        if ended != "succeeded done" {
            self.journal().complaints.push(format!("a message in chat {chat} after the storm: {ended}"));
        }
    }

    /// Every chat in which nothing goes on.
    pub(crate) fn idle_chats(&self) -> Vec<String> {
        self.idle().clone()
    }
}

/// What a real client tries again: an unreachable or busy server, and a twin of its own under way.
pub(crate) fn is_worth_repeating(answer: &str) -> bool {
    answer == "no answer"
        || answer == "409 IDEMPOTENCY_KEY_IN_FLIGHT"
        || answer.starts_with("429")
        || answer.starts_with("500")
        || answer.starts_with("503")
}

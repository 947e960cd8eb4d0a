//! A schedule as data: what happens when, made from a seed, so that it can be replayed and made smaller.

use std::fmt;

use fastrand::Rng;
use longhaul_shared::store::IfBusy;

/// Everything that befalls one simulated installation.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub workers: usize,
    pub chats: usize,
    pub slots: u32,
    pub weather: Weather,
    /// In the order of their times.
    pub events: Vec<Event>,
    /// When the faults end.
    pub heals_at: u64,
}

/// How often ordinary things go wrong, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// A store call fails and was not applied.
    pub unavailable: u16,
    /// A store call is applied and its answer is lost.
    pub lost_answer: u16,
    /// A store call takes longer than a lease.
    pub slow: u16,
    /// A hint between processes is lost, repeated or late.
    pub lost_hint: u16,
    pub repeated_hint: u16,
    /// A model's stream breaks off.
    pub torn: u16,
    /// A tool has its effect and its answer is lost.
    pub lost_effect: u16,
    /// A tool says that it failed.
    pub failed_tool: u16,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub at: u64,
    /// Its name, which stays when others are taken out.
    pub id: u32,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// Somebody writes in a chat, or in a new one.
    Submit {
        chat: Option<usize>,
        key: Option<u32>,
        message_id: Option<u32>,
        if_busy: IfBusy,
        delay: Option<u64>,
    },
    /// Somebody stops the newest run of the chat.
    Stop {
        chat: usize,
    },
    /// Somebody stops whatever was or will be submitted with that key.
    StopKey {
        key: u32,
    },
    Delete {
        chat: usize,
    },
    /// Somebody watches the newest run of the chat.
    Watch {
        chat: usize,
    },
    /// The watcher's connection breaks; it comes back with its cursor.
    Disconnect,
    Crash {
        process: usize,
        /// Another worker finds out before the lease runs out.
        is_seen: bool,
    },
    Freeze {
        process: usize,
        ms: u64,
    },
    Drain {
        process: usize,
    },
    DatabaseOutage {
        ms: u64,
    },
    HintOutage {
        ms: u64,
    },
}

impl Schedule {
    /// Nothing goes wrong in it: neither is there weather, nor do processes or networks fail.
    pub fn is_calm(&self) -> bool {
        let is_fault = |what: &What| {
            matches!(
                what,
                What::Crash { .. }
                    | What::Freeze { .. }
                    | What::Drain { .. }
                    | What::DatabaseOutage { .. }
                    | What::HintOutage { .. }
            )
        };
        self.weather == Weather::default() && !self.events.iter().any(|event| is_fault(&event.what))
    }

    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let workers = rng.usize(1..=3);
        let chats = rng.usize(1..=2);
        let mut schedule = Self {
            seed,
            workers,
            chats,
            slots: rng.u32(1..=3),
            weather: weather(&mut rng),
            events: vec![],
            heals_at: rng.u64(300..1_400),
        };
        match rng.u8(0..=u8::MAX) {
            0..2 => schedule.lose_every_worker(&mut rng),
            // Long enough for a step to be done over until it is given up.
            2..6 => (schedule.weather.torn, schedule.heals_at) = (900, 4_000),
            _ => {}
        }
        for _ in 0..rng.usize(1..=4) {
            schedule.submission(&mut rng);
        }
        for _ in 0..rng.usize(0..=4) {
            let at = rng.u64(0..schedule.heals_at);
            let chat = rng.usize(0..chats);
            let what = match rng.u8(0..10) {
                0..4 => What::Watch { chat },
                4..7 => {
                    schedule.stop(at, chat, &mut rng);
                    continue;
                }
                7 => What::Delete { chat },
                _ => What::Disconnect,
            };
            schedule.push(at, what);
        }
        for _ in 0..[0, 1, 1, 2, 2, 3, 4, 6][rng.usize(0..8)] {
            let at = rng.u64(20..schedule.heals_at);
            // The first process serves clients, the others work.
            let process = if rng.u8(0..6) == 0 { 0 } else { rng.usize(1..=workers) };
            let what = match rng.u8(0..12) {
                0..5 => What::Crash { process, is_seen: rng.bool() },
                5..9 => What::Freeze { process, ms: rng.u64(100..1_800) },
                9 => What::Drain { process: process.max(1) },
                10 => What::DatabaseOutage { ms: rng.u64(20..900) },
                _ => What::HintOutage { ms: rng.u64(100..1_000) },
            };
            schedule.push(at, what);
        }
        schedule.events.sort_by_key(|event| (event.at, event.id));
        schedule
    }

    /// So often and for so long that a run is given up.
    fn lose_every_worker(&mut self, rng: &mut Rng) {
        self.heals_at = 18_000;
        // Several, so that those which merely were there are told from the one that kills its workers.
        for _ in 0..rng.usize(1..=3) {
            let if_busy = IfBusy::Enqueue;
            let what = What::Submit { chat: None, key: None, message_id: None, if_busy, delay: None };
            self.push(rng.u64(0..50), what);
        }
        let mut at = 100;
        while at < self.heals_at {
            for process in 1..=self.workers {
                self.push(at + rng.u64(0..10), What::Crash { process, is_seen: rng.u8(0..4) == 0 });
            }
            at += rng.u64(60..160);
        }
    }

    /// A stop, often repeated, sometimes of a run whose holder does not hear it.
    fn stop(&mut self, at: u64, chat: usize, rng: &mut Rng) {
        self.push(at, What::Stop { chat });
        if rng.u8(0..3) == 0 {
            self.push(at + rng.u64(200..800), What::Stop { chat });
        }
        if rng.u8(0..4) == 0 {
            let (process, ms) = (rng.usize(1..=self.workers), rng.u64(300..1_000));
            self.push(at.saturating_sub(rng.u64(0..40)), What::Freeze { process, ms });
        }
    }

    fn submission(&mut self, rng: &mut Rng) {
        let at = rng.u64(0..self.heals_at.min(1_400) * 2 / 3);
        let id = self.events.len() as u32;
        let chat = if rng.u8(0..8) == 0 { None } else { Some(rng.usize(0..self.chats)) };
        let what = What::Submit {
            chat,
            key: (rng.u8(0..3) > 0).then_some(id),
            message_id: (chat.is_some() && rng.u8(0..4) == 0).then_some(id),
            if_busy: [IfBusy::Enqueue, IfBusy::Enqueue, IfBusy::Reject, IfBusy::Interrupt][rng.usize(0..4)],
            delay: (rng.u8(0..8) == 0).then(|| rng.u64(50..700)),
        };
        if let What::Submit { key: Some(key), .. } = what
            && rng.u8(0..6) == 0
        {
            self.push((at + rng.u64(0..300)).saturating_sub(150), What::StopKey { key });
        }
        let is_repeatable =
            matches!(what, What::Submit { key, message_id, .. } if key.or(message_id).is_some());
        if is_repeatable && rng.u8(0..3) == 0 {
            let again = at + rng.u64(0..80);
            self.push(at, what.clone());
            self.push(again, what);
        } else {
            self.push(at, what);
        }
    }

    fn push(&mut self, at: u64, what: What) {
        let id = self.events.len() as u32;
        self.events.push(Event { at, id, what });
    }
}

fn weather(rng: &mut Rng) -> Weather {
    // Fair, mixed or foul: in a storm alone nothing would ever get far enough to go wrong late.
    let most = [0, 20, 60, 150][rng.usize(0..4)];
    let mut rate = || if rng.bool() { rng.u16(0..=most) } else { 0 };
    Weather {
        unavailable: rate(),
        lost_answer: rate(),
        slow: rate() / 2,
        lost_hint: rate() * 4,
        repeated_hint: rate(),
        torn: rate() * 2,
        lost_effect: rate() * 2,
        failed_tool: rate(),
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} workers with {} slots, {} chats, faults until {} ms",
            self.seed, self.workers, self.slots, self.chats, self.heals_at
        )?;
        writeln!(f, "  {:?}", self.weather)?;
        for event in &self.events {
            writeln!(f, "  {:>5} ms  #{} {:?}", event.at, event.id, event.what)?;
        }
        Ok(())
    }
}

/// A number that depends on nothing but what is given.
pub fn hash(parts: &[u64]) -> u64 {
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        let mixed = (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    })
}

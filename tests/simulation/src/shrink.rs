//! Makes a schedule smaller that shows a violation, by leaving out what it does not need.

use crate::{
    schedule::{Schedule, Weather},
    simulate::simulate,
};

/// The smallest schedule found that still shows a violation, and the violation.
pub fn shrink(schedule: &Schedule, violation: &str) -> (Schedule, String) {
    let mut best = (schedule.clone(), violation.to_owned());
    loop {
        let Some(smaller) = candidates(&best.0).into_iter().find_map(|candidate| {
            let violation = simulate(&candidate, false).violation?;
            Some((candidate, violation))
        }) else {
            return best;
        };
        best = smaller;
    }
}

/// Schedules that are a little smaller, the boldest first.
fn candidates(schedule: &Schedule) -> Vec<Schedule> {
    let mut candidates = vec![];
    let mut with = |change: &dyn Fn(&mut Schedule)| {
        let mut candidate = schedule.clone();
        change(&mut candidate);
        candidates.push(candidate);
    };
    let count = schedule.events.len();
    let mut chunk = count / 2;
    while chunk > 0 {
        for from in (0..count).step_by(chunk) {
            with(&|candidate| drop(candidate.events.drain(from..(from + chunk).min(count))));
        }
        chunk /= 2;
    }
    if schedule.weather != Weather::default() {
        with(&|candidate| candidate.weather = Weather::default());
        let calm: [fn(&mut Weather) -> &mut u16; 8] = [
            |weather| &mut weather.unavailable,
            |weather| &mut weather.lost_answer,
            |weather| &mut weather.slow,
            |weather| &mut weather.lost_hint,
            |weather| &mut weather.repeated_hint,
            |weather| &mut weather.torn,
            |weather| &mut weather.lost_effect,
            |weather| &mut weather.failed_tool,
        ];
        for rate in calm {
            let mut weather = schedule.weather;
            if std::mem::take(rate(&mut weather)) > 0 {
                with(&|candidate| candidate.weather = weather);
            }
        }
    }
    let last = schedule.events.last().map_or(1, |event| event.at + 1);
    for heals_at in [last, schedule.heals_at * 3 / 4] {
        if heals_at < schedule.heals_at {
            with(&|candidate| candidate.heals_at = heals_at);
        }
    }
    candidates
}

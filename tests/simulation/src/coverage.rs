//! What the schedules have met. A long run that never met something has proved nothing about it.

/// Makes the counters, their names and their sum.
macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        #[derive(Clone, Debug, Default)]
        pub struct Coverage { $(pub $name: u64),+ }

        impl Coverage {
            pub fn add(&mut self, other: &Self) { $(self.$name += other.$name;)+ }

            pub fn counters(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($name), self.$name)),+] }
        }
    };
}

counters! {
    runs, ended_done, ended_stop, ended_chat_deleted, ended_superseded, ended_provider, ended_crash_limit,
    submissions_unanswered, submissions_refused_busy, submissions_repeated, submissions_queued,
    submissions_scheduled, submissions_interrupting, submissions_over_at_once, chats_deleted_meanwhile, stops_requested, stops_of_idle_runs, stops_too_late,
    stops_by_key_known, stops_by_key_noted, stops_delivered, stops_carried_out,
    crashes, freezes, freezes_beyond_the_lease, drains, workers_registered_again,
    deaths_proven, suspects_claimed, suspects_left_waiting,
    takeovers, hand_backs, disowned, broken_attempts,
    store_calls, store_unavailable, store_answers_lost, store_calls_slow, late_writes, fenced_writes,
    commits_confirmed, ends_after_a_stop,
    model_calls, streams_torn, steps_restarted, steps_interrupted,
    effects_once, effects_idempotent, effects_idempotent_repeated, effects_lost_answer, effects_after_takeover,
    told_succeeded, told_failed, told_not_received, told_pending, told_nonsense, effects_refused,
    late_answers, late_answers_refused,
    calls_unknown, calls_cancelled, calls_failed,
    tails, tails_resumed, tails_reset, hints_lost, hints_repeated, hint_outages, database_outages,
}

impl Coverage {
    /// The names of what was never met.
    pub fn missing(&self) -> Vec<&'static str> {
        self.counters().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}

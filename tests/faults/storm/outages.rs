//! What was away when. How fast the product is, is asked of the moments in which everything was there that it needs for it;
//! the others are counted apart.

use super::weather::{EXIT, Incident};

/// How long somebody may be on the way back when an outage is over.
const AFTERMATH_MS: i64 = 1_000;
/// How finely down time is measured.
const GRAIN_MS: i64 = 50;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Outages<'a>(&'a [Incident]);

impl<'a> Outages<'a> {
    pub(crate) fn of(incidents: &'a [Incident]) -> Self {
        Self(incidents)
    }

    fn any(&self, from: i64, until: i64, is_one: impl Fn(&Incident) -> bool) -> bool {
        self.0.iter().any(|incident| {
            // Whoever sleeps is well when it wakes up, however long it is left alone after that.
            let is_left_alone =
                ["worker_freezes", "worker_naps", "worker_strandings"].contains(&incident.fault);
            let over = incident.turned.filter(|_| is_left_alone).unwrap_or(incident.until);
            incident.from <= until && over + AFTERMATH_MS >= from && is_one(incident)
        })
    }

    pub(crate) fn postgres(&self, from: i64, until: i64) -> bool {
        self.any(from, until, |incident| incident.fault == "postgres_crashes")
    }

    pub(crate) fn redis(&self, from: i64, until: i64) -> bool {
        self.any(from, until, |incident| {
            incident.fault.starts_with("redis_") || incident.link == Some("redis")
        })
    }

    /// Something was wrong with the cable of this process to that server.
    pub(crate) fn link(&self, slot: &str, server: &str, from: i64, until: i64) -> bool {
        self.any(from, until, |incident| {
            incident.slot.as_deref() == Some(slot) && incident.link == Some(server)
        })
    }

    /// The process was dead, asleep or told to end, or its cable to Postgres was not whole.
    pub(crate) fn process(&self, slot: &str, from: i64, until: i64) -> bool {
        self.any(from, until, |incident| {
            let is_process = incident.link.is_none() || incident.link == Some("postgres");
            incident.slot.as_deref() == Some(slot) && is_process && incident.fault != EXIT
        })
    }

    /// Postgres was away, or all of these processes were.
    pub(crate) fn everybody<'s>(
        &self,
        slots: impl IntoIterator<Item = &'s str>,
        from: i64,
        until: i64,
    ) -> bool {
        self.postgres(from, until) || slots.into_iter().all(|slot| self.process(slot, from, until))
    }
}

impl Outages<'_> {
    /// How much of that time nobody of them could do anything: milliseconds.
    pub(crate) fn down_time(&self, slots: &[&str], from: i64, until: i64) -> i64 {
        let moments = (from..until).step_by(GRAIN_MS as usize);
        let down = moments.filter(|at| self.everybody(slots.iter().copied(), *at, *at)).count();
        (down as i64 * GRAIN_MS).min(until - from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::weather::Incident;
    use super::Outages;

    fn incident(fault: &'static str, slot: &str, link: Option<&'static str>) -> Incident {
        Incident { fault, from: 10_000, until: 11_000, turned: None, slot: Some(slot.to_owned()), link }
    }

    #[test]
    fn an_outage_counts_while_it_lasts_and_a_little_longer() {
        let incidents = [incident("worker_freezes", "w1", None), incident("link_cuts", "w2", Some("tools"))];
        let outages = Outages::of(&incidents);
        assert!(outages.process("w1", 9_000, 10_000) && outages.process("w1", 11_500, 11_600));
        assert!(!outages.process("w1", 9_000, 9_999) && !outages.process("w1", 12_001, 14_000));
        assert!(!outages.process("w2", 10_000, 11_000), "tools are not what keeps a worker alive");
        assert!(outages.link("w2", "tools", 10_000, 10_000));
        assert!(!outages.everybody(["w1", "w2"], 10_000, 11_000));
        assert!(outages.everybody(["w1"], 10_000, 11_000));
        assert_eq!(outages.down_time(&["w1", "w2"], 9_000, 20_000), 0);
        assert_eq!(outages.down_time(&["w1"], 9_000, 20_000), 2_050);
    }
}

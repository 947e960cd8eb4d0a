//! What is tried: each fault at each place of each script that has such a place, and what does not fit this grid.

use longhaul_tests::{At, Store, Way};

use super::script::{PIECES, Script};
use super::special::Special;

/// Where the process is when the fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The model's answer stands there.
    Model(At),
    /// The tool has the request and has done nothing.
    BeforeEffect(&'static str),
    /// The tool has done it and not answered.
    AfterEffect(&'static str),
    /// A failpoint of the product.
    Failpoint(&'static str),
}

pub(crate) const PLACES: &[Place] = &[
    Place::Model(At::BeforeHead),
    Place::Model(At::Token(1)),
    Place::Model(At::Token(PIECES / 2)),
    Place::Model(At::Token(PIECES - 1)),
    Place::Model(At::BeforeEnd),
    Place::BeforeEffect("charge"),
    Place::AfterEffect("charge"),
    Place::BeforeEffect("put"),
    Place::AfterEffect("put"),
    Place::Failpoint("after_claim"),
    Place::Failpoint("before_model_call"),
    Place::Failpoint("after_model_before_persist"),
    Place::Failpoint("before_commit"),
    Place::Failpoint("after_persist_before_publish"),
    Place::Failpoint("before_tool_record"),
    Place::Failpoint("after_tool_record_before_send"),
    Place::Failpoint("after_tool_answer_before_record"),
    Place::Failpoint("after_tool_result"),
    Place::Failpoint("before_finalize"),
    Place::Failpoint("after_finalize_before_ack"),
    Place::Failpoint("before_heartbeat"),
];

impl Place {
    fn name(self) -> String {
        match self {
            Self::Model(At::BeforeHead) => "headers".to_owned(),
            Self::Model(At::Token(count)) => format!("token_{count}"),
            Self::Model(At::BeforeEnd) => "before_end".to_owned(),
            Self::BeforeEffect(tool) => format!("before_{tool}"),
            Self::AfterEffect(tool) => format!("after_{tool}"),
            Self::Failpoint(name) => name.to_owned(),
        }
    }

    fn is_in(self, script: Script) -> bool {
        let has_tools = script != Script::Text;
        match self {
            Self::Model(_) => true,
            Self::BeforeEffect(_) | Self::AfterEffect(_) => has_tools,
            Self::Failpoint(name) => has_tools || !name.contains("tool"),
        }
    }
}

/// What happens to the process that executes the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP until somebody else has the run, then SIGCONT.
    Stop,
    /// Its database is silent until somebody else has the run; then everything that was held arrives.
    Link(Way),
}

pub(crate) const FAULTS: &[Fault] =
    &[Fault::Kill, Fault::Stop, Fault::Link(Way::Both), Fault::Link(Way::Up), Fault::Link(Way::Down)];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Link(Way::Both) => "link",
            Self::Link(Way::Up) => "link_up",
            Self::Link(Way::Down) => "link_down",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Grid { script: Script, place: Place, fault: Fault },
    Special(Special),
}

/// One thing to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) store: Store,
    pub(crate) what: What,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let store = if self.store == Store::Sqlite { "sqlite" } else { "postgres" };
        match self.what {
            What::Grid { script, place, fault } => {
                format!("{store}/{}/{}/{}", script.name(), place.name(), fault.name())
            }
            What::Special(special) => format!("{store}/{}", special.name()),
        }
    }

    /// The failpoints that it uses.
    pub(crate) fn failpoints(&self) -> Vec<&'static str> {
        match self.what {
            What::Grid { place: Place::Failpoint(name), .. } => vec![name],
            What::Grid { .. } => vec![],
            What::Special(special) => special.failpoints(),
        }
    }
}

/// Every case there is. SQLite has one process: it is killed and started again.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in PLACES {
        cases.extend(at(*place, Store::Postgres, FAULTS));
        cases.extend(at(*place, Store::Sqlite, &[Fault::Kill]));
    }
    cases.extend(specials());
    cases
}

/// A choice in which each place, each fault and each script is there, always the same.
pub(crate) fn quick() -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, place) in PLACES.iter().enumerate() {
        for (store, faults, some) in [(Store::Postgres, FAULTS, 2), (Store::Sqlite, &[Fault::Kill], 1)] {
            let here = at(*place, store, faults);
            // No count of faults or scripts has these factors, so all of them get their turn.
            cases.extend((0..some).map(|one| here[(number * 7 + one * 8) % here.len()]));
        }
    }
    cases.extend(specials());
    cases
}

fn at(place: Place, store: Store, faults: &[Fault]) -> Vec<Case> {
    let scripts = Script::ALL.iter().filter(|script| place.is_in(**script));
    scripts
        .flat_map(|script| {
            faults
                .iter()
                .map(move |fault| Case { store, what: What::Grid { script: *script, place, fault: *fault } })
        })
        .collect()
}

fn specials() -> impl Iterator<Item = Case> {
    Special::ALL.iter().flat_map(|special| {
        special.stores().iter().map(|store| Case { store: *store, what: What::Special(*special) })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn of<T: PartialEq>(cases: &[Case], part: impl Fn(Script, Place, Fault) -> T, what: &T) -> bool {
        cases.iter().any(|case| match case.what {
            What::Grid { script, place, fault } => part(script, place, fault) == *what,
            What::Special(_) => false,
        })
    }

    #[test]
    fn the_quick_choice_has_each_place_each_fault_and_each_script() {
        let cases = quick();
        assert!(PLACES.iter().all(|place| of(&cases, |_, place, _| place, place)));
        assert!(FAULTS.iter().all(|fault| of(&cases, |_, _, fault| fault, fault)));
        assert!(Script::ALL.iter().all(|script| of(&cases, |script, _, _| script, script)));
    }

    #[test]
    fn names_are_unique() {
        for cases in [all(), quick()] {
            let names: HashSet<String> = cases.iter().map(Case::name).collect();
            assert_eq!(names.len(), cases.len());
        }
    }
}

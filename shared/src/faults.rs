//! Faults on purpose, for tests: [failpoints](crate::failpoint) at which a process dies or freezes, and
//! [mutants](crate::mutant), each with one guard taken out.
//!
//! They are in debug builds and in builds with the feature `faults`. Any other build costs nothing for them and refuses
//! to start when it is asked for one: an installation must not be told that it was tested when it was not, nor be
//! brought down by a variable that was left behind.

use std::env;

use crate::{failpoint, mutant};

/// Whether this build has them.
pub const COMPILED_IN: bool = cfg!(any(debug_assertions, feature = "faults"));

/// Why a process does not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultsError {
    #[error(
        "{0} is set, and this build has no faults to turn on; unset it, or use a debug build or the feature `faults`"
    )]
    NotInThisBuild(&'static str),
    #[error("{variable}: `{given}` is not of the form {form}")]
    Malformed { variable: &'static str, given: String, form: &'static str },
    #[error("{variable}: there is no `{given}`; there are:\n{known}")]
    Unknown { variable: &'static str, given: String, known: String },
}

/// Turns on what the environment asks for. Once per process, before anything else.
pub fn arm() -> Result<(), FaultsError> {
    // An empty variable counts as one that is not set.
    let asked = |variable: &str| env::var(variable).ok().filter(|value| !value.is_empty());
    let failpoints = accept(COMPILED_IN, failpoint::VARIABLE, asked(failpoint::VARIABLE), failpoint::parse)?;
    let mutant = accept(COMPILED_IN, mutant::VARIABLE, asked(mutant::VARIABLE), mutant::parse)?;
    if let Some(failpoints) = failpoints {
        failpoint::arm(failpoints);
    }
    if let Some(mutant) = mutant {
        mutant::select(mutant);
    }
    Ok(())
}

/// What a variable asks for, in a build that has it.
fn accept<T>(
    compiled_in: bool,
    variable: &'static str,
    asked: Option<String>,
    parse: impl Fn(&str) -> Result<T, FaultsError>,
) -> Result<Option<T>, FaultsError> {
    match asked {
        None => Ok(None),
        Some(_) if !compiled_in => Err(FaultsError::NotInThisBuild(variable)),
        Some(text) => parse(&text).map(Some),
    }
}

/// A table of names as an error shows it.
pub(crate) fn listed<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    rows.map(|(name, what)| format!("  {name}: {what}")).collect::<Vec<_>>().join("\n")
}

/// An enum of names that stand in an environment variable, each with a sentence about what it is.
macro_rules! named {
    ($(#[$about:meta])* $of:ident { $($variant:ident = $name:literal: $what:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $of {
            $(#[doc = $what] $variant,)+
        }

        impl $of {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it is, in a sentence.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$variant => $what,)+
                }
            }

            fn find(name: &str) -> Result<Self, crate::faults::FaultsError> {
                Self::ALL.iter().copied().find(|one| one.name() == name).ok_or_else(|| {
                    crate::faults::FaultsError::Unknown {
                        variable: VARIABLE,
                        given: name.to_owned(),
                        known: crate::faults::listed(Self::ALL.iter().map(|one| (one.name(), one.what()))),
                    }
                })
            }
        }
    };
}

pub(crate) use named;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_faults_refuses_to_start_when_one_is_asked_for() {
        let asked = || Some("after_claim=kill".to_owned());
        let refused = accept(false, failpoint::VARIABLE, asked(), failpoint::parse).unwrap_err();
        assert_eq!(refused, FaultsError::NotInThisBuild("LONGHAUL_FAILPOINTS"));
        assert!(accept(true, failpoint::VARIABLE, asked(), failpoint::parse).unwrap().is_some());
        assert!(accept(false, failpoint::VARIABLE, None, failpoint::parse).unwrap().is_none());
    }

    #[test]
    fn an_unknown_name_is_refused_in_any_build_and_shown_the_known_ones() {
        let text = failpoint::parse("after_lunch=kill").unwrap_err().to_string();
        assert!(text.contains("no `after_lunch`") && text.contains("  after_claim: "), "{text}");
        let text = mutant::parse("no_tests").unwrap_err().to_string();
        assert!(text.contains("no `no_tests`") && text.contains("  no_status_condition: "), "{text}");
    }
}

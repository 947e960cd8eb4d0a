//! The agent run: from a claim to its recorded outcome.
//!
//! [`decide`] says what comes next and is pure; [`attempt`] does it, one step after the other; [`model_call`] and
//! [`tool_calls`] are the two things that a step consists of; [`prompt`] is what the model is given.

pub mod attempt;
pub mod decide;
mod interrupt;
mod model_call;
mod prompt;
mod tool_calls;

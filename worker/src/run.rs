//! The agent run: from a claim to its recorded outcome.
//!
//! [`decide`] says what comes next and is pure; [`attempt`] does it, one step after the other; [`model_call`] and
//! [`tool_calls`] are the two things that a step consists of; [`prompt`] is what the model is given, [`dialogue`] how it reads
//! what a client sent. [`repetition`] notices a model that goes round in circles; [`late`] waits for answers that a run's end left behind.

pub mod attempt;
pub mod decide;
mod dialogue;
mod interrupt;
pub mod late;
mod model_call;
mod prompt;
mod repetition;
#[cfg(test)]
mod tests;
mod tool_calls;

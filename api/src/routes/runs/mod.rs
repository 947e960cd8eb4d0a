//! Runs: submit, read, watch, stop.

pub(crate) mod create;
pub(crate) mod events;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod steps;
pub(crate) mod stop;
pub(crate) mod stop_by_key;
pub(crate) mod token;

//! What callers read: encoders of rows and of the log, pure.

pub(crate) mod chat;
pub(crate) mod frames;
pub(crate) mod message;
pub(crate) mod native;
pub(crate) mod responses;
pub(crate) mod run;
pub(crate) mod step;
pub(crate) mod time;
pub(crate) mod ui;
pub(crate) mod words;

//! Values and rules: no I/O, no clock, no async.

pub mod arguments;
pub mod asked;
pub mod chat;
pub mod event;
pub mod ids;
pub mod message;
pub mod release;
pub mod replay;
pub mod retry;
pub mod run;
pub mod settle;
pub mod step;
pub mod text;
pub mod tool;
pub mod transition;

//! The deterministic simulation: the engine's own code against a store, a network and clocks that do their worst.
//!
//! - [`schedule`] makes from a seed what will happen, as data; [`shrink`] makes it smaller.
//! - [`simulate`] plays one schedule: it moves time, delivers what is on its way, and steps every process in turn.
//! - [`process`] is one API process or worker, made of the engine's parts, on a runtime and a clock of its own: dropped
//!   in mid-air it has crashed, not stepped it is frozen.
//! - [`world`] is everything outside: [`database`] the way to the store in memory, with lost requests and lost answers,
//!   [`hints`] the way between processes, [`model`] and [`effects`] what runs talk to, [`client`] who asks and watches.
//! - [`check`] says what must hold, after every request and at rest; [`coverage`] what was met on the way; [`campaign`]
//!   plays many schedules on several threads, [`mutants`] shows that a missing guard would be seen.
//!
//! A schedule is the same every time: it runs on one thread, chance comes from its seed, and time is moved by hand.

pub mod campaign;
pub mod check;
pub mod client;
pub mod coverage;
pub mod database;
pub mod effects;
pub mod hints;
pub mod model;
pub mod mutants;
pub mod process;
pub mod schedule;
pub mod shrink;
pub mod simulate;
pub mod world;

//! The randomness of waits, so that many who wait for the same thing do not come back together. It comes from a source
//! of the thread that `fastrand::seed` makes repeatable, which is how the simulation replays a schedule.

/// A number in `0.0..1.0`. Not for secrets.
pub fn jitter() -> f64 {
    fastrand::f64()
}

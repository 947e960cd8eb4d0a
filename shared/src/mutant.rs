//! Guards that can be taken out by name, so that the tests that watch over them can be seen to fail.
//!
//! A build with debug assertions or the feature `faults` reads the name from `LONGHAUL_MUTANT`; in any other the answer
//! is a constant and the guards stand.

/// Whether the guard of that name is taken out.
#[cfg(any(debug_assertions, feature = "faults"))]
pub fn is(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("LONGHAUL_MUTANT").ok());
    CHOSEN.as_deref() == Some(name)
}

/// Whether the guard of that name is taken out.
#[cfg(not(any(debug_assertions, feature = "faults")))]
pub const fn is(_: &str) -> bool {
    false
}

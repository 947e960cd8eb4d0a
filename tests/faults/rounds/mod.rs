//! One fault, again and again.

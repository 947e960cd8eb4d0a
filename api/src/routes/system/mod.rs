//! The server itself: what it is, whether it lives, whether it can serve.

pub(crate) mod info;
pub(crate) mod livez;
pub(crate) mod openapi;
pub(crate) mod readyz;

//! Identifiers. All are UUIDv7, so that keys made later sort later.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh identifier, greater than every one made before it on this machine.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )+};
}

id! {
    /// A tenant. Every row and every query names one.
    WorkspaceId,
    /// An API key.
    KeyId,
    /// A conversation.
    ChatId,
    /// One message of a conversation.
    MessageId,
    /// One answer being worked on, from admission to its end.
    RunId,
    /// A claimable piece of work.
    JobId,
    /// One start of one worker process; never used again.
    WorkerId,
    /// Something that a run waits for.
    WaitId,
}

/// The number of an event within its run: 1, 2, 3 … without a gap.
pub type Seq = i64;

/// How often a job has changed hands.
pub type Epoch = i64;

/// Unix time in milliseconds, by the database's clock.
pub type Millis = i64;

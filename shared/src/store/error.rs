//! What can go wrong with the truth.

use std::sync::Arc;

/// A failure of the store, sorted by what the caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing of this workspace has that id.
    #[error("not found")]
    NotFound,
    /// The row is not in the state that the change expects. The name is that of the constraint or condition.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Somebody else holds the run now: the writer stops at once and writes nothing more.
    #[error("the lease is lost")]
    LeaseLost,
    /// The database cannot serve now; the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// The database did not answer; whether the call took effect is unknown.
    #[error("the database did not answer in time")]
    TimedOut,
    /// The call itself is wrong, or the database refuses it for good.
    #[error("the database refused: {0}")]
    Refused(#[source] Arc<sqlx::Error>),
    /// A row that makes no sense.
    #[error("corrupt row in {table}.{column} ({id}): {detail}")]
    Corrupt { table: &'static str, column: &'static str, id: String, detail: String },
    #[error("cannot migrate: {0}")]
    Migrate(#[source] Arc<sqlx::migrate::MigrateError>),
}

impl StoreError {
    /// Somebody holds a lock for too long: only calls that need it fail.
    pub fn is_about_locks(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| matches!(&*code, "55P03" | "40P01"))
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TimedOut)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => Self::Unavailable(Arc::new(error)),
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                if is_transient_code(&code) {
                    Self::Unavailable(Arc::new(error))
                } else if code == LEASE_LOST_STATE {
                    Self::LeaseLost
                } else if database.is_unique_violation() || database.is_foreign_key_violation() {
                    Self::Conflict(database.constraint().unwrap_or(database.message()).to_owned())
                } else {
                    Self::Refused(Arc::new(error))
                }
            }
            _ => Self::Refused(Arc::new(error)),
        }
    }
}

/// The SQLSTATE that the schema's `fence` function raises.
const LEASE_LOST_STATE: &str = "LH001";

/// SQLSTATE classes and SQLite result codes that pass: connection trouble, rollbacks for serialization and deadlock,
/// lack of resources, operator intervention, lock timeouts, read-only phases, busy and full files.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 {
        let class = &code[..2];
        return matches!(class, "08" | "40" | "53" | "57" | "58")
            || matches!(code, "55P03" | "25006" | "25P02");
    }
    // SQLite reports the extended code; its low byte is the primary one: BUSY, LOCKED, IOERR, FULL, CANTOPEN.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_passes_is_told_from_trouble_that_stays() {
        for code in ["08006", "40001", "40P01", "53300", "57P01", "57P03", "55P03", "25006", "5", "13", "261"]
        {
            assert!(is_transient_code(code), "{code}");
        }
        for code in ["23505", "42P01", "22P05", "1", "19", "1555"] {
            assert!(!is_transient_code(code), "{code}");
        }
    }
}

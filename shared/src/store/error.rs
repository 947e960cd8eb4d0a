//! What can go wrong with the truth.

use std::sync::Arc;

use super::StopRequest;

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
    /// A stop was recorded before the end that was to be committed: the run ends by the stop.
    #[error("the run is to stop: {}", .0.reason)]
    Stopping(StopRequest),
    /// The database cannot serve now; the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Arc<sqlx::Error>),
    /// Somebody has locked what the call needs, and it was not to wait.
    #[error("somebody has locked what this needs")]
    Locked,
    /// It made the store's own code panic, and whether it took effect is unknown.
    #[error("the store panicked")]
    Panicked,
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
        matches!(self, Self::Locked) || self.code().is_some_and(|code| matches!(&*code, "55P03" | "40P01"))
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Locked | Self::TimedOut)
    }

    /// The transaction was rolled back in favour of another one, as a deadlock's victim or because it cannot be put in
    /// order with the others: nothing of it happened, and it can be done again at once.
    pub fn is_rolled_back(&self) -> bool {
        self.code().is_some_and(|code| matches!(&*code, "40P01" | "40001"))
    }

    /// The database is there and lets nobody in under this name: passwords are changed and databases restored while
    /// processes run, so that it may pass, but whoever starts should not wait for it.
    pub fn is_about_access(&self) -> bool {
        self.code().is_some_and(|code| code.starts_with("28") || code == "3D000")
    }

    /// What the database itself called it.
    fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
        let Self::Unavailable(error) = self else { return None };
        error.as_database_error().and_then(sqlx::error::DatabaseError::code)
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

/// SQLSTATE classes and SQLite result codes that pass: connection trouble, a login that is refused, rollbacks for
/// serialization and deadlock, lack of resources, operator intervention, lock timeouts, read-only phases, busy, full and
/// write-protected files.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 {
        let class = &code[..2];
        return matches!(class, "08" | "28" | "40" | "53" | "57" | "58")
            || matches!(code, "3D000" | "55P03" | "25006" | "25P02" | "25P03" | "25P04");
    }
    // SQLite reports the extended code; its low byte is the primary one: BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL,
    // CANTOPEN, PROTOCOL.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 7 | 8 | 10 | 13 | 14 | 15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_that_passes_is_told_from_trouble_that_stays() {
        for (code, what) in [
            ("08000", "connection exception"),
            ("08006", "connection failure"),
            ("08P01", "protocol violation, as poolers report a time-out"),
            ("25006", "read-only transaction"),
            ("25P02", "in failed transaction"),
            ("25P03", "idle in a transaction for too long, as after a freeze"),
            ("25P04", "a transaction that took too long"),
            ("28000", "invalid authorization, while access is changed"),
            ("28P01", "invalid password, while it is rotated"),
            ("3D000", "no such database, while it is restored"),
            ("40001", "serialization failure"),
            ("40003", "completion unknown"),
            ("40P01", "deadlock"),
            ("53000", "insufficient resources"),
            ("53100", "disk full"),
            ("53200", "out of memory"),
            ("53300", "too many connections"),
            ("53400", "configuration limit exceeded"),
            ("55P03", "lock not available"),
            ("57014", "query canceled, as by statement_timeout"),
            ("57P01", "admin shutdown"),
            ("57P02", "crash shutdown"),
            ("57P03", "cannot connect now: it starts up"),
            ("57P05", "idle session timeout"),
            ("58000", "system error"),
            ("58030", "I/O error"),
            ("5", "SQLITE_BUSY"),
            ("6", "SQLITE_LOCKED"),
            ("7", "SQLITE_NOMEM"),
            ("8", "SQLITE_READONLY"),
            ("13", "SQLITE_FULL"),
            ("14", "SQLITE_CANTOPEN"),
            ("15", "SQLITE_PROTOCOL"),
            ("261", "SQLITE_BUSY_RECOVERY"),
            ("778", "SQLITE_IOERR_WRITE"),
        ] {
            assert!(is_transient_code(code), "{code}: {what}");
        }
        for (code, what) in [
            ("0A000", "feature not supported"),
            ("22021", "character not in repertoire"),
            ("22P02", "invalid text representation"),
            ("22P05", "untranslatable character"),
            ("23502", "not null violation"),
            ("23503", "foreign key violation"),
            ("23505", "unique violation"),
            ("23514", "check violation"),
            ("42501", "insufficient privilege"),
            ("42703", "undefined column"),
            ("42P01", "undefined table"),
            ("54000", "program limit exceeded"),
            ("LH001", "our own fence"),
            ("XX000", "internal error"),
            ("XX001", "data corrupted"),
            ("1", "SQLITE_ERROR"),
            ("11", "SQLITE_CORRUPT"),
            ("18", "SQLITE_TOOBIG"),
            ("19", "SQLITE_CONSTRAINT"),
            ("26", "SQLITE_NOTADB"),
            ("1555", "SQLITE_CONSTRAINT_PRIMARYKEY"),
        ] {
            assert!(!is_transient_code(code), "{code}: {what}");
        }
    }
}

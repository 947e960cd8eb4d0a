//! Instants as RFC 3339 in UTC with milliseconds, durations as "30s".

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use longhaul_shared::domain::ids::Millis;
use serde::{Serialize, Serializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr,
        schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type},
    },
};

/// An instant as callers read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(pub(crate) Millis);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let instant = DateTime::<Utc>::from_timestamp_millis(self.0).unwrap_or(DateTime::UNIX_EPOCH);
        f.write_str(&instant.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("RFC 3339, UTC, with milliseconds"))
            .into()
    }
}

impl ToSchema for Timestamp {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Timestamp")
    }
}

/// The instant in a request.
pub(crate) fn parse_instant(text: &str) -> Result<Millis, &'static str> {
    DateTime::parse_from_rfc3339(text)
        .map(|instant| instant.timestamp_millis())
        .map_err(|_| "must be an RFC 3339 time such as 2026-11-20T10:00:00Z")
}

/// The longest duration that a request may name.
const MAX_DURATION: Duration = Duration::from_hours(366 * 24);

/// The duration in a request, in milliseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, &'static str> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= MAX_DURATION => Ok(duration.as_millis() as i64),
        Ok(_) => Err("must be at most 366 days"),
        Err(_) => Err("must be a duration such as \"30s\" or \"1h 30m\""),
    }
}

/// A duration as callers read it.
pub(crate) fn show_duration(millis: i64) -> String {
    let duration = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_go_out_and_come_in_alike() {
        let shown = Timestamp(1_795_168_800_123).to_string();
        assert_eq!(shown, "2026-11-20T10:00:00.123Z");
        assert_eq!(parse_instant(&shown), Ok(1_795_168_800_123));
        assert_eq!(parse_instant("2026-11-20T11:00:00.123+01:00"), Ok(1_795_168_800_123));
        for bad in ["", "tomorrow", "2026-11-20", "1795168800123"] {
            assert!(parse_instant(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_words_with_a_bound() {
        assert_eq!(parse_duration("30s"), Ok(30_000));
        assert_eq!(parse_duration("366d"), Ok(366 * 24 * 3_600_000));
        assert_eq!(show_duration(3_600_000), "1h");
        assert_eq!(show_duration(90_500), "1m 30s 500ms");
        for bad in ["", "30", "-1s", "367d", "soon", "999999999999999999999y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}

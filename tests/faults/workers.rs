//! Which worker a process was: it says so when it gets its lease.

use serde_json::Value;

/// The identities that a process printed, with the time of each: Unix milliseconds.
pub(crate) fn identities(output: &str) -> Vec<(i64, String)> {
    said(output, "the worker holds a lease")
}

/// When a process said something of which worker.
pub(crate) fn said(output: &str, text: &str) -> Vec<(i64, String)> {
    let of_worker = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let at = chrono::DateTime::parse_from_rfc3339(line["timestamp"].as_str()?).ok()?;
        Some((at.timestamp_millis(), line["worker.id"].as_str()?.to_owned()))
    };
    output.lines().filter(|line| line.contains(text)).filter_map(of_worker).collect()
}

#[cfg(test)]
mod tests {
    use super::identities;

    #[test]
    fn a_worker_is_known_by_what_it_says() {
        let output = r#"error: something else
{"timestamp":"1970-01-01T00:00:01.5Z","level":"INFO","message":"the worker holds a lease","worker.id":"a","slots":64}
{"timestamp":"1970-01-01T00:00:02Z","level":"INFO","message":"the run ends","worker.id":"b"}"#;
        assert_eq!(identities(output), [(1_500, "a".to_owned())]);
    }
}

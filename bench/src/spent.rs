//! What a process has used so far, by the kernel's own books.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// The unit of CPU times in /proc: what Linux shows to programs, whatever it counts in by itself.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of the process, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let file = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("{file} is not understood"))?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Resident memory of the process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<f64> {
    let file = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("{file} has no VmRSS"))?;
    Ok(kib)
}

/// The name in the second field may hold spaces and parentheses, so fields are counted behind its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_strange_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 10 0 0 0 120 30 0 0 20 0 3 0 99 1 1";
        assert_eq!(cpu_ticks(stat), Some(150));
    }

    #[test]
    fn this_very_process_uses_memory() {
        assert!(resident_kib(std::process::id()).unwrap() > 100.0);
        cpu(std::process::id()).unwrap();
    }
}

//! What Linux tells of a process in `/proc`.

use std::fs;

/// Ticks a second of the times in `/proc/PID/stat`: `USER_HZ`, 100 on every architecture that matters.
const USER_HZ: f64 = 100.0;

/// CPU time that process `pid` has used, in user and kernel mode of all its threads, in seconds.
pub(super) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold spaces (proc_pid_stat(5)).
    let mut rest = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let utime: f64 = rest.nth(11)?.parse().ok()?;
    let stime: f64 = rest.next()?.parse().ok()?;
    Some((utime + stime) / USER_HZ)
}

/// The largest memory that process `pid` has had, in KiB.
pub(super) fn peak_kib(pid: u32) -> Option<u64> {
    field(pid, "status", "VmHWM:")
}

/// The memory of process `pid`, in KiB.
pub(super) fn rss_kib(pid: u32) -> Option<u64> {
    field(pid, "status", "VmRSS:")
}

/// The memory of process `pid` with shared pages divided among their users, in KiB.
pub(super) fn pss_kib(pid: u32) -> Option<u64> {
    field(pid, "smaps_rollup", "Pss:")
}

fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).is_some_and(|seconds| (0.0..1e6).contains(&seconds)));
        for kib in [peak_kib(pid), rss_kib(pid), pss_kib(pid)] {
            assert!(kib.is_some_and(|kib| (100..1 << 30).contains(&kib)), "{kib:?}");
        }
    }
}

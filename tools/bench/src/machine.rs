//! [`Machine`]: what a result was measured on, and when.

use std::time::{SystemTime, UNIX_EPOCH};

use hostveil::units::ByteCount;
use serde::{Deserialize, Serialize};

/// A machine at the time of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) cpu: String,
    /// CPUs that the program may use.
    pub(crate) cpus: usize,
    /// Bytes of main memory.
    pub(crate) memory: u64,
    /// The operating system with its release.
    pub(crate) system: String,
    /// The load averages when the result was put together.
    pub(crate) load: String,
    /// When that was.
    pub(crate) time: String,
}

impl Machine {
    pub(crate) fn examine() -> Self {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let info = rustix::system::sysinfo();
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            cpu: cpu_model().unwrap_or_else(|| text(uname.machine())),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: u64::from(info.mem_unit) * info.totalram,
            system: format!("{} {} {}", text(uname.sysname()), text(uname.release()), text(uname.machine())),
            load: load().unwrap_or_default(),
            time: utc(seconds),
        }
    }

    /// All of it on one line.
    pub(crate) fn sentence(&self) -> String {
        let Self { cpu, cpus, system, load, time, .. } = self;
        let memory = ByteCount(self.memory);
        format!("{cpu}, {cpus} CPUs, {memory}, {system}, load {load}, {time}")
    }
}

fn cpu_model() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> Option<String> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    Some(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

/// A time in seconds since 1970 by the Gregorian calendar, to the minute.
fn utc(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn a_machine_can_be_described() {
        let machine = Machine::examine();
        assert!(machine.cpus >= 1 && machine.memory > 1 << 20 && !machine.cpu.is_empty());
        assert!(machine.sentence().contains("Linux"));
    }
}

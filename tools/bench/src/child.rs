//! [`Child`]: another program's process, which ends with this one, whatever happens.
//!
//! Each is the leader of a process group of its own: a terminal's Ctrl-C reaches this program alone,
//! which then ends all of them in order, their own children included.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::interrupt;

/// How long a process may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(15);
/// Of what a process printed to standard error, so much is quoted.
const QUOTED: usize = 400;

pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    descriptor: OwnedFd,
    ended: Option<ExitStatus>,
    stdout: File,
    stderr: File,
}

impl Child {
    /// Starts a program.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let cannot = |e| Error::io(format!("cannot run {name}"), e);
        let files = || {
            let file = tempfile::tempfile()?;
            Ok((Stdio::from(file.try_clone()?), file))
        };
        let ((out, stdout), (err, stderr)) = (files().map_err(cannot)?, files().map_err(cannot)?);
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let mut process = command.spawn().map_err(cannot)?;
        let opened = pidfd_open(Pid::from_child(&process), PidfdFlags::empty());
        let descriptor = match opened {
            Ok(descriptor) => descriptor,
            Err(error) => {
                let _ = process.kill().and_then(|()| process.wait());
                return Err(cannot(error.into()));
            }
        };
        Ok(Self { name, process, descriptor, ended: None, stdout, stderr })
    }

    /// Runs a program to its end; gives what it printed.
    ///
    /// # Errors
    /// When it fails, takes longer than `limit`, or a signal comes.
    pub(crate) fn run(command: Command, limit: Duration) -> Result<String> {
        let mut child = Self::start(command)?;
        match child.wait(limit)? {
            Some(status) if status.success() => Ok(text(&mut child.stdout)),
            Some(_) => Err(child.failure()),
            None => Err(Error::new(ErrorKind::Io, format!("{} took too long", child.name))),
        }
    }

    /// Waits for its end, at most so long, or until a signal comes.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        while self.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.sleep(left, true)? && left.is_zero() {
                break;
            }
            interrupt::check()?;
        }
        Ok(self.ended)
    }

    /// Sleeps until the process ends, the time is over, or (if asked for) a signal comes; whether it ended.
    fn sleep(&mut self, limit: Duration, interruptible: bool) -> Result<bool> {
        let cannot = |e: std::io::Error| Error::io("cannot wait for a process", e);
        let mut wait_for = vec![PollFd::new(&self.descriptor, PollFlags::IN)];
        let signal = interrupt::descriptor().filter(|_| interruptible);
        wait_for.extend(signal.as_ref().map(|signal| PollFd::new(signal, PollFlags::IN)));
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut wait_for, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(cannot(error.into())),
        }
        if !wait_for[0].revents().is_empty() {
            self.ended = Some(self.process.wait().map_err(cannot)?);
        }
        Ok(self.ended.is_some())
    }

    /// Processor time that it has spent, its threads included, its children not.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("cannot read {path}"), e))?;
        let ticks = cpu_ticks(&stat).ok_or_else(|| Error::new(ErrorKind::Io, format!("{path} is odd")))?;
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_secs(ticks) / u32::try_from(per_second).unwrap_or(u32::MAX))
    }

    /// Resident memory now, and at most so far.
    pub(crate) fn memory(&self) -> Result<(ByteCount, ByteCount)> {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(format!("cannot read {path}"), e))?;
        let memory = memory_of(&text, "VmRSS:").zip(memory_of(&text, "VmHWM:"));
        memory.ok_or_else(|| Error::new(ErrorKind::Io, format!("{path} is odd")))
    }

    /// Tells it to end, and makes it end when it does not.
    pub(crate) fn stop(&mut self) {
        self.end_by(&[Signal::TERM, Signal::KILL]);
    }

    /// Ends it without a warning.
    pub(crate) fn kill(&mut self) {
        self.end_by(&[Signal::KILL]);
    }

    fn end_by(&mut self, signals: &[Signal]) {
        let group = Pid::from_child(&self.process);
        for signal in signals.iter().copied() {
            // A process that has ended, but was not waited for, still owns its number.
            if self.ended.is_none() && kill_process_group(group, signal).is_ok() {
                let deadline = Instant::now() + PATIENCE;
                while !matches!(
                    self.sleep(deadline.saturating_duration_since(Instant::now()), false),
                    Ok(true)
                ) && Instant::now() < deadline
                {}
            }
        }
    }

    /// Why it failed, from its exit code, in which hostveil and cryptsetup agree, and its words.
    pub(crate) fn failure(&mut self) -> Error {
        let said = text(&mut self.stderr) + &text(&mut self.stdout);
        let said = said.trim();
        let start = said.len().saturating_sub(QUOTED);
        let start = (start..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
        let kind = match self.ended.and_then(|status| status.code()) {
            Some(2) if self.name.ends_with("hostveil") => ErrorKind::WrongKey,
            Some(4) if self.name.ends_with("hostveil") => ErrorKind::WrongDevice,
            Some(5) if self.name.ends_with("hostveil") => ErrorKind::Busy,
            _ => ErrorKind::Io,
        };
        let status = self.ended.map_or("did not end".to_owned(), |status| status.to_string());
        Error::new(kind, format!("{}: {status}: {}", self.name, said[start..].replace('\n', "; ")))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop();
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read any more is not quoted.
    let _ = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// User and system time in the text of `/proc/PID/stat` (proc_pid_stat(5), fields 14 and 15).
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

/// A size in the text of `/proc/PID/status` (proc_pid_status(5)).
fn memory_of(status: &str, field: &str) -> Option<ByteCount> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(ByteCount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_program_prints_is_what_comes_back() {
        assert_eq!(Child::run(shell("echo good; echo bad >&2"), PATIENCE).unwrap(), "good\n");
        let error = Child::run(shell("echo good; echo bad >&2; exit 3"), PATIENCE).unwrap_err();
        assert!(error.to_string().contains("bad") && error.to_string().contains('3'), "{error}");
        assert!(Child::run(Command::new("/no/such/program"), PATIENCE).is_err());
    }

    #[test]
    fn whoever_takes_too_long_is_ended_with_its_children() {
        let place = tempfile::tempdir().unwrap();
        let pids = place.path().join("pids");
        let script = format!("sleep 1000 & echo $! >{}; wait", pids.display());
        let error = Child::run(shell(&script), Duration::from_millis(500)).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let grandchild = std::fs::read_to_string(pids).unwrap().trim().to_owned();
        let state = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_gone = || state(&grandchild).is_empty() || state(&grandchild).contains(") Z");
        // It was told to end; ending, and being waited for by whoever inherits it, may take a moment.
        for _ in 0..200 {
            if is_gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("process {grandchild} lives: {}", state(&grandchild));
    }

    #[test]
    fn a_process_that_ignores_a_polite_request_is_not_asked_twice() {
        let mut child = Child::start(shell("exec sleep 1000")).unwrap();
        assert!(child.wait(Duration::from_millis(10)).unwrap().is_none());
        child.stop();
        assert!(child.ended.is_some_and(|status| !status.success()));
        assert!(child.cpu().is_err(), "it is gone");
    }

    #[test]
    fn memory_is_read_in_its_unit() {
        let status = "Name:\tVmRSS: 1 kB\nVmHWM:\t   12 kB\nVmRSS:\t    7 kB\n";
        assert_eq!(memory_of(status, "VmHWM:"), Some(ByteCount(12 << 10)));
        assert_eq!(memory_of(status, "VmRSS:"), Some(ByteCount(7 << 10)));
        assert_eq!(memory_of("VmRSS: much", "VmRSS:"), None);
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 70 30 5 5 20 0 1 0 1";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("nonsense"), None);
    }
}

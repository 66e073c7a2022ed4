//! [`restrict_calls`]: seccomp. The table of system calls that a server makes; all others fail with
//! EPERM, and those that only an intruder makes end the process.
//!
//! EPERM, because libraries try things that they can do without, and a server should not die of that.
//! An end without a word for what no library tries: to run programs, and to look into other processes.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::Confinement;

/// What is allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Reading and writing what is open: disks, headers, sockets, standard error.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    // Durability, holes and extents of disks; locks, which end with their files.
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_lseek,
    libc::SYS_flock,
    // What a file is. By path as well: who may remove a socket's file looks first whose it is.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_close,
    // Connections that come in. None goes out: there is no socket(2) and no connect(2).
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Memory; mmap(2) and mprotect(2) stand below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
    // Threads: their locks, their stacks' ends, their processors. clone3(2) must be allowed here, since
    // a filter of its own says ENOSYS to it.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals that arrive.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Time, randomness, and who and where this process is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// What the C library of this architecture calls in place of some of those.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Where a socket's file is to be removed. Landlock says which.
#[cfg(target_arch = "x86_64")]
const REMOVING: &[c_long] = &[libc::SYS_unlinkat, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const REMOVING: &[c_long] = &[libc::SYS_unlinkat];

/// Where files change in a directory. Landlock says in which, and without it that is every one.
const CHANGING: &[c_long] =
    &[libc::SYS_openat, libc::SYS_renameat2, libc::SYS_renameat, libc::SYS_fchmod, libc::SYS_getdents64];
#[cfg(target_arch = "x86_64")]
const CHANGING_HERE: &[c_long] = &[libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const CHANGING_HERE: &[c_long] = &[];

/// What no library tries, and no server.
const DEADLY: &[c_long] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes' memory.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    // Other views of the file system.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
];

/// Binds every thread of this process.
///
/// # Errors
/// Why nothing is in force, as a clause.
pub fn restrict_calls(confinement: &Confinement) -> Result<(), String> {
    let no = |e: &dyn std::fmt::Display| e.to_string();
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("there is no table of system calls for {}", std::env::consts::ARCH))?;
    let filter = |rules, otherwise, matched| -> Result<BpfProgram, String> {
        let filter = SeccompFilter::new(rules, otherwise, matched, arch).map_err(|e| no(&e))?;
        BpfProgram::try_from(filter).map_err(|e| no(&e))
    };
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    // Of several filters the strictest answer counts.
    let programs = [
        filter(always(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        // Its flags lie in memory, where no filter can see them; the C library then takes clone(2).
        filter(always(&[libc::SYS_clone3]), SeccompAction::Allow, errno(libc::ENOSYS))?,
        filter(allowed(confinement).map_err(|e| no(&e))?, errno(libc::EPERM), SeccompAction::Allow)?,
    ];
    // The last takes seccomp(2) away, so nothing can come after it.
    programs.iter().try_for_each(|program| apply_filter_all_threads(program).map_err(|e| no(&e)))
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;
type RuleResult<T> = Result<T, seccompiler::BackendError>;

/// Rules that match calls whatever their arguments are.
fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn allowed(confinement: &Confinement) -> RuleResult<Rules> {
    let mut rules = always(ALLOWED);
    rules.extend(always(ALLOWED_HERE));
    if !confinement.sockets.is_empty() || !confinement.writable.is_empty() {
        rules.extend(always(REMOVING));
    }
    if !confinement.writable.is_empty() {
        rules.extend(always(CHANGING));
        rules.extend(always(CHANGING_HERE));
    }
    rules.extend(limited()?);
    Ok(rules)
}

/// What is allowed with some arguments only.
fn limited() -> RuleResult<Rules> {
    let flag = |number: i32| u64::from(number.unsigned_abs());
    let executable = flag(libc::PROT_EXEC);
    let thread = flag(libc::CLONE_THREAD);
    let this_process = u64::from(std::process::id());
    Ok(BTreeMap::from([
        // No memory becomes code.
        (libc::SYS_mmap, vec![bits(2, executable, 0)?]),
        (libc::SYS_mprotect, vec![bits(2, executable, 0)?]),
        // Threads, and no processes.
        (libc::SYS_clone, vec![bits(0, thread, thread)?]),
        // Signals to this process's own threads: how a process aborts.
        (libc::SYS_tgkill, vec![equals(0, this_process)?]),
        // Limits are read, not set.
        (libc::SYS_prlimit64, vec![bits(2, u64::MAX, 0)?]),
        (libc::SYS_prctl, one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA])?),
        (libc::SYS_fcntl, one_of(1, &DESCRIPTOR_COMMANDS)?),
        (libc::SYS_ioctl, one_of_requests(1, &[libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO])?),
    ]))
}

/// What fcntl(2) is used for: descriptors' flags and copies, and locks on disks.
const DESCRIPTOR_COMMANDS: [i32; 7] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_OFD_SETLK,
    libc::F_OFD_GETLK,
];

/// The bits of `mask` of an argument are `value`.
fn bits(argument: u8, mask: u64, value: u64) -> RuleResult<SeccompRule> {
    rule(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
}

fn equals(argument: u8, value: u64) -> RuleResult<SeccompRule> {
    rule(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn rule(argument: u8, len: SeccompCmpArgLen, is: SeccompCmpOp, value: u64) -> RuleResult<SeccompRule> {
    SeccompRule::new(vec![SeccompCondition::new(argument, len, is, value)?])
}

fn one_of(argument: u8, values: &[i32]) -> RuleResult<Vec<SeccompRule>> {
    values.iter().map(|value| equals(argument, u64::from(value.unsigned_abs()))).collect()
}

fn one_of_requests(argument: u8, values: &[libc::Ioctl]) -> RuleResult<Vec<SeccompRule>> {
    // The type of a request differs between C libraries.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    values.iter().map(|value| equals(argument, *value as u64)).collect()
}

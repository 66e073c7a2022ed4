//! The sandbox from within: this test binary starts itself again, enters the sandbox or one half of it
//! in that child, tries what should and what should not be possible, and reports.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them
#![allow(unsafe_code)] // system calls that no safe interface offers

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use hostveil::serve::sandbox::{self, Confinement};

/// What the child is to do, and where.
const CASE: &str = "HOSTVEIL_SANDBOX_CASE";
const PLACE: &str = "HOSTVEIL_SANDBOX_PLACE";

/// What a child tried, and the error number that came of it; 0 for none.
type Report = BTreeMap<String, i32>;

/// Runs one case in a child of its own, in a fresh directory.
fn run(case: &str) -> (Report, ExitStatus) {
    let place = tempfile::tempdir().unwrap();
    for dir in ["sockets", "writable", "elsewhere"] {
        fs::create_dir(place.path().join(dir)).unwrap();
    }
    fs::write(place.path().join("elsewhere/foreign"), "not yours").unwrap();
    fs::write(place.path().join("disk"), vec![7; 1 << 20]).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "without_a_sandbox_all_of_it_is_possible", "--nocapture"]);
    child.env(CASE, case).env(PLACE, place.path());
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let tried = text.lines().filter_map(|line| line.strip_prefix("tried ")?.split_once('='));
    let report = tried.map(|(what, errno)| (what.to_owned(), errno.parse().unwrap())).collect();
    eprintln!("{case}: {text}{}", String::from_utf8_lossy(&output.stderr));
    (report, output.status)
}

fn expect(case: &str, expected: &[(&str, i32)]) {
    let (report, status) = run(case);
    assert!(status.success(), "{case}: {status}");
    let expected: Report = expected.iter().map(|(what, errno)| ((*what).to_owned(), *errno)).collect();
    assert_eq!(report, expected, "{case}");
}

/// By itself, what shows that the refusals below come of the sandbox and of nothing else. Started by
/// [`run`], the child.
#[test]
fn without_a_sandbox_all_of_it_is_possible() {
    if let Ok(case) = std::env::var(CASE) {
        be_the_child(&case);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("foreign");
    fs::write(&file, "open to all").unwrap();
    fs::rename(&file, dir.path().join("renamed")).unwrap();
    File::open(dir.path().join("renamed")).unwrap();
    fs::remove_file(dir.path().join("renamed")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(port.local_addr().unwrap()).unwrap();
    rustix::process::test_kill_process(rustix::process::getppid().unwrap()).unwrap();
    let code = usize::try_from(libc::PROT_READ | libc::PROT_EXEC).unwrap();
    let anonymous = usize::try_from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).unwrap();
    call(libc::SYS_mmap, [0, 4096, code, anonymous, usize::MAX, 0]).unwrap();
    assert!(Command::new("true").status().unwrap().success());
}

fn be_the_child(case: &str) -> ! {
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    match case {
        "files" => files(&place),
        "calls" => calls(&place),
        "work" => work(&place),
        "changes" => changes(&place),
        deadly => die(deadly),
    }
    std::process::exit(0);
}

fn confinement(place: &Path) -> Confinement {
    Confinement { sockets: vec![place.join("sockets")], writable: Vec::new() }
}

/// Notes what came of an attempt.
fn tried<T>(what: &str, result: std::io::Result<T>) -> Option<T> {
    let errno = result.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(-1));
    println!("tried {what}={errno}");
    result.ok()
}

/// A system call by its number.
fn call(number: libc::c_long, arguments: [usize; 6]) -> std::io::Result<()> {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the calls that the cases name get null pointers and lengths of 0, or are refused.
    match unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

// ------------------------------------------------------------------ Landlock alone

#[test]
fn landlock_closes_every_path_but_that_of_the_socket() {
    let (mut report, status) = run("files");
    assert!(status.success(), "{status}");
    let abi = report.remove("ABI").unwrap();
    // What a kernel's version of the interface does not know yet is possible.
    let since = |first: i32, errno: i32| if abi >= first { errno } else { 0 };
    let expected: Report = [
        ("read what is open", 0),
        ("write what is open", 0),
        ("shorten what is open", 0),
        ("read a foreign file", libc::EACCES),
        ("write a foreign file", libc::EACCES),
        ("remove a foreign file", libc::EACCES),
        ("open the disk again", libc::EACCES),
        ("list a directory", libc::EACCES),
        ("read this process's memory map", libc::EACCES),
        ("make a file beside the socket", libc::EACCES),
        ("make a directory", libc::EACCES),
        ("bind a port", since(4, libc::EACCES)),
        ("connect to a port", since(4, libc::EACCES)),
        ("connect to a foreign abstract socket", since(6, libc::EPERM)),
        ("signal the parent", since(6, libc::EPERM)),
        ("remove the socket", 0),
        ("read a foreign file from a new thread", libc::EACCES),
    ]
    .map(|(what, errno): (&str, i32)| (what.to_owned(), errno))
    .into();
    assert_eq!(report, expected, "ABI {abi}");
}

fn files(place: &Path) {
    let disk = OpenOptions::new().read(true).write(true).open(place.join("disk")).unwrap();
    let socket = place.join("sockets/s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("hostveil-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let _foreign = UnixListener::bind_addr(&abstract_name).unwrap();
    let parent = rustix::process::getppid().unwrap();

    let abi = sandbox::restrict_files(&confinement(place)).expect("this test needs a kernel with Landlock");
    println!("tried ABI={abi}");
    tried("read what is open", disk.read_exact_at(&mut [0; 100], 0));
    tried("write what is open", disk.write_all_at(&[1; 100], 0));
    tried("shorten what is open", disk.set_len(4096));
    let foreign = place.join("elsewhere/foreign");
    tried("read a foreign file", File::open(&foreign));
    tried("write a foreign file", OpenOptions::new().write(true).open(&foreign));
    tried("remove a foreign file", fs::remove_file(&foreign));
    tried("open the disk again", File::open(place.join("disk")));
    tried("list a directory", fs::read_dir(place));
    tried("read this process's memory map", File::open("/proc/self/maps"));
    tried("make a file beside the socket", File::create(place.join("sockets/x")));
    tried("make a directory", fs::create_dir(place.join("sockets/d")));
    tried("bind a port", TcpListener::bind("127.0.0.1:0"));
    tried("connect to a port", TcpStream::connect(port.local_addr().unwrap()));
    tried("connect to a foreign abstract socket", UnixStream::connect_addr(&abstract_name));
    let signal = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
    tried("signal the parent", signal.map_err(Into::into));
    tried("remove the socket", fs::remove_file(&socket));
    let read = std::thread::spawn(move || File::open(foreign)).join().unwrap();
    tried("read a foreign file from a new thread", read);
}

// ------------------------------------------------------------------- seccomp alone

#[test]
fn seccomp_refuses_what_a_server_does_not_do() {
    let refused = [
        "open a file",
        "make a file",
        "rename",
        "make a link",
        "change a mode",
        "a socket",
        "connect",
        "bind",
        "listen",
        "io_uring",
        "a signal to another process",
        "memory that is code",
        "data that becomes code",
        "a new process",
        "dumps again",
        "a higher limit",
        "typing into the terminal",
        "another filter",
        "keys",
        "another user",
        "open a file from a new thread",
        "open a file from an old thread",
    ];
    let mut expected: Vec<_> = refused.iter().map(|what| (*what, libc::EPERM)).collect();
    expected.extend([
        ("enter", 0),
        ("clone3", libc::ENOSYS),
        ("read what is open", 0),
        ("accept", libc::EAGAIN),
    ]);
    expect("calls", &expected);
}

fn calls(place: &Path) {
    let disk = File::open(place.join("disk")).unwrap();
    let foreign = place.join("elsewhere/foreign");
    let socket = place.join("sockets/s");
    let listener = UnixListener::bind(&socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut page = vec![0_u8; 8192];
    let page = page.as_mut_ptr() as usize & !4095;
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let path = foreign.clone();
    let old = std::thread::spawn(move || {
        may_go.recv().unwrap();
        File::open(path)
    });

    sandbox::restrict_calls(&confinement(place)).unwrap();
    tried("enter", Ok(()));
    tried("read what is open", disk.read_exact_at(&mut [0; 100], 0));
    tried("accept", listener.accept());
    tried("open a file", File::open(&foreign));
    tried("make a file", File::create(place.join("sockets/x")));
    tried("rename", fs::rename(&foreign, place.join("sockets/x")));
    tried("make a link", fs::hard_link(&foreign, place.join("sockets/x")));
    tried("change a mode", call(libc::SYS_fchmodat, [0; 6]));
    tried("a socket", TcpListener::bind("127.0.0.1:0"));
    tried("connect", call(libc::SYS_connect, [0; 6]));
    tried("bind", call(libc::SYS_bind, [0; 6]));
    tried("listen", call(libc::SYS_listen, [0; 6]));
    tried("io_uring", call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]));
    tried("a signal to another process", call(libc::SYS_kill, [1, 0, 0, 0, 0, 0]));
    let code = usize::try_from(libc::PROT_READ | libc::PROT_EXEC).unwrap();
    let anonymous = usize::try_from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).unwrap();
    tried("memory that is code", call(libc::SYS_mmap, [0, 4096, code, anonymous, usize::MAX, 0]));
    tried("data that becomes code", call(libc::SYS_mprotect, [page, 4096, code, 0, 0, 0]));
    tried("a new process", call(libc::SYS_clone, [usize::try_from(libc::SIGCHLD).unwrap(), 0, 0, 0, 0, 0]));
    tried("clone3", call(libc::SYS_clone3, [0; 6]));
    let dumpable = usize::try_from(libc::PR_SET_DUMPABLE).unwrap();
    tried("dumps again", call(libc::SYS_prctl, [dumpable, 1, 0, 0, 0, 0]));
    let limit = [0_u64; 2];
    let core = libc::RLIMIT_CORE as usize;
    tried("a higher limit", call(libc::SYS_prlimit64, [0, core, limit.as_ptr() as usize, 0, 0, 0]));
    let typing = usize::try_from(libc::TIOCSTI).unwrap();
    tried("typing into the terminal", call(libc::SYS_ioctl, [0, typing, 0, 0, 0, 0]));
    tried("another filter", call(libc::SYS_seccomp, [0; 6]));
    tried("keys", call(libc::SYS_keyctl, [0; 6]));
    tried("another user", call(libc::SYS_setuid, [0; 6]));
    let path = foreign.clone();
    tried("open a file from a new thread", std::thread::spawn(move || File::open(path)).join().unwrap());
    go.send(()).unwrap();
    tried("open a file from an old thread", old.join().unwrap());
}

#[test]
fn what_only_an_intruder_does_is_the_end() {
    for deadly in
        ["execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "mount", "setns"]
    {
        let (report, status) = run(deadly);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{deadly}: {status}");
        assert_eq!(report, Report::from([("enter".to_owned(), 0)]), "{deadly}");
    }
}

fn die(how: &str) {
    sandbox::restrict_calls(&Confinement::default()).unwrap();
    tried("enter", Ok(()));
    let number = match how {
        "execve" => libc::SYS_execve,
        "execveat" => libc::SYS_execveat,
        "ptrace" => libc::SYS_ptrace,
        "process_vm_readv" => libc::SYS_process_vm_readv,
        "process_vm_writev" => libc::SYS_process_vm_writev,
        "bpf" => libc::SYS_bpf,
        "mount" => libc::SYS_mount,
        "setns" => libc::SYS_setns,
        other => panic!("there is no case {other}"),
    };
    // From a thread, since the whole process must end and not that thread alone.
    let _ = std::thread::spawn(move || tried(how_name(number), call(number, [0; 6]))).join();
    tried("go on", Ok(()));
}

fn how_name(number: libc::c_long) -> &'static str {
    if number == libc::SYS_execve { "execve" } else { "a deadly call" }
}

// --------------------------------------------------------------- both, and real work

/// What the rest of the program, the standard library and the C library do, none of which may fail.
#[test]
fn a_servers_work_goes_on_in_the_sandbox() {
    let work = [
        "enter",
        "threads and their names",
        "many threads at once",
        "key derivation",
        "randomness",
        "clocks",
        "durable writes",
        "holes",
        "extents",
        "what a file is",
        "sockets",
        "secret memory",
        "much memory",
        "a panic that is caught",
        "asking for processors",
        "sleeping",
        "locks on a disk",
        "TLS's randomness",
        "remove the socket",
    ];
    expect("work", &work.map(|what| (what, 0)));
}

fn work(place: &Path) {
    use hostveil::crypto::{Kdf, KdfAlgorithm};
    use rustix::fs::{FallocateFlags, SeekFrom};
    use std::os::fd::AsFd;
    let disk = OpenOptions::new().read(true).write(true).open(place.join("disk")).unwrap();
    let socket = place.join("sockets/s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut client = UnixStream::connect(&socket).unwrap();

    let entered = sandbox::enter(&confinement(place));
    assert!(entered.to_string().ends_with(" + seccomp") && entered.landlock.is_ok(), "{entered:?}");
    tried("enter", Ok(()));
    let named = std::thread::Builder::new().name("a name".into()).spawn(|| 1).unwrap().join().unwrap();
    tried("threads and their names", is(named == 1));
    let many: Vec<_> = (0..40).map(|n| std::thread::spawn(move || vec![n; 100_000].len())).collect();
    tried("many threads at once", is(many.into_iter().all(|thread| thread.join().unwrap() == 100_000)));
    let algorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 1024, lanes: 2 };
    let derived = Kdf { algorithm, salt: vec![1; 16] }.derive(b"a passphrase", &mut [0; 32]);
    tried("key derivation", is(derived.is_ok()));
    tried("randomness", is(getrandom::fill(&mut [0; 64]).is_ok()));
    let now = (std::time::Instant::now(), std::time::SystemTime::now());
    tried("clocks", is(now.0.elapsed().as_secs() < 1000 && now.1.elapsed().is_ok()));
    let durable = rustix::io::ReadWriteFlags::DSYNC;
    let written = rustix::io::pwritev2(&disk, &[std::io::IoSlice::new(&[1; 4096])], 0, durable);
    tried(
        "durable writes",
        written.map_err(Into::into).and_then(|_| disk.sync_data()).and_then(|()| disk.sync_all()),
    );
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    tried("holes", rustix::fs::fallocate(&disk, punch, 65536, 65536).map_err(Into::into));
    tried("extents", rustix::fs::seek(&disk, SeekFrom::Hole(0)).map_err(Into::into));
    tried("what a file is", disk.metadata());
    tried("sockets", exchange(&listener, &mut client));
    tried(
        "secret memory",
        hostveil::secret::SecretBytes::random(64, &hostveil::env::OsEntropy).map_err(std::io::Error::other),
    );
    let mut much = vec![1_u8; 1 << 20];
    much.resize(64 << 20, 2);
    tried("much memory", is(much[63 << 20] == 2));
    let panicked = std::panic::catch_unwind(|| panic!("a panic that the test asks for"));
    tried("a panic that is caught", is(panicked.is_err()));
    tried("asking for processors", std::thread::available_parallelism());
    std::thread::sleep(std::time::Duration::from_millis(1));
    tried("sleeping", Ok(()));
    let lock = hostveil::sys::lock_range(disk.as_fd(), hostveil::sys::RangeLock::Shared, 100, 1);
    tried("locks on a disk", lock);
    tried("TLS's randomness", is(cipher_librarys_randomness()));
    tried("remove the socket", fs::symlink_metadata(&socket).and_then(|_| fs::remove_file(&socket)));
}

fn is(true_of_it: bool) -> std::io::Result<()> {
    if true_of_it { Ok(()) } else { Err(std::io::Error::other("it is not")) }
}

#[cfg(feature = "aws-lc")]
fn cipher_librarys_randomness() -> bool {
    aws_lc_rs::rand::fill(&mut [0; 32]).is_ok()
}

#[cfg(not(feature = "aws-lc"))]
fn cipher_librarys_randomness() -> bool {
    true
}

/// One connection accepted, and a few bytes each way.
fn exchange(listener: &UnixListener, client: &mut UnixStream) -> std::io::Result<()> {
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    client.write_all(b"question")?;
    server.read_exact(&mut [0; 8])?;
    server.write_all(b"answer")?;
    client.read_exact(&mut [0; 6])?;
    server.shutdown(std::net::Shutdown::Both)
}

/// A directory in which files change, as records of a volume's state need it, and nothing beside it.
#[test]
fn a_writable_directory_is_writable_and_no_other() {
    expect(
        "changes",
        &[
            ("enter", 0),
            ("make", 0),
            ("rename", 0),
            ("read", 0),
            ("sync the directory", 0),
            ("remove", 0),
            ("make a directory", libc::EPERM),
            ("a link to elsewhere", libc::EPERM),
            ("read elsewhere", libc::EACCES),
            ("rename to elsewhere", libc::EACCES),
        ],
    );
}

fn changes(place: &Path) {
    let writable = place.join("writable");
    let confinement = Confinement { sockets: Vec::new(), writable: vec![writable.clone()] };
    let entered = sandbox::enter(&confinement);
    assert!(entered.landlock.is_ok() && entered.seccomp.is_ok(), "{entered:?}");
    tried("enter", Ok(()));
    let (new, current) = (writable.join("record.new"), writable.join("record"));
    let made = File::create(&new).and_then(|mut file| file.write_all(b"7").and_then(|()| file.sync_all()));
    tried("make", made);
    tried("rename", fs::rename(&new, &current));
    tried("read", fs::read(&current));
    tried("sync the directory", File::open(&writable).and_then(|dir| dir.sync_all()));
    tried("rename to elsewhere", fs::rename(&current, place.join("elsewhere/record")));
    tried("remove", fs::remove_file(&current));
    tried("make a directory", fs::create_dir(writable.join("d")));
    tried("a link to elsewhere", std::os::unix::fs::symlink(place, writable.join("l")));
    tried("read elsewhere", File::open(place.join("elsewhere/foreign")));
}

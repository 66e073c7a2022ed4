//! What the tests share: places for files, peers' programs, volumes, and servers that end with
//! their test.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The program that is tested.
pub(crate) const HOSTVEIL: &str = env!("CARGO_BIN_EXE_hostveil");

/// Seconds after which a peer is taken to hang.
const PATIENCE: &str = "600";

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Which package brings a program, for the message when it is missing.
const PACKAGES: [(&str, &str); 15] = [
    ("certtool", "gnutls-bin"),
    ("cryptsetup", "cryptsetup-bin"),
    ("fio", "fio"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("prlimit", "util-linux"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("setpriv", "util-linux"),
    ("strace", "strace"),
];

/// Where a peer's program lies. Fails the test when it lies nowhere.
pub(crate) fn find_peer(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps administrators' programs out of other users' PATH.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.map(|place: PathBuf| place.join(program)).find(|path| path.is_file()).unwrap_or_else(|| {
        let package =
            PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
        panic!("{program} is missing: install the package {package} (tools/test.sh does that)")
    })
}

/// A command that runs a peer's program, and ends it when it hangs.
pub(crate) fn peer(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", PATIENCE]).arg(find_peer(program));
    command
}

/// A command that runs hostveil.
pub(crate) fn hostveil() -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", PATIENCE, HOSTVEIL]);
    command
}

/// Running a command to its end.
pub(crate) trait Run {
    /// What it printed. Fails the test when it fails.
    fn run(&mut self) -> String;
    /// How it failed. Fails the test when it succeeds.
    fn fail(&mut self) -> Failure;
}

/// How a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code; a signal's number plus 128 when a signal ended it.
    pub(crate) code: i32,
    /// What it printed, errors last.
    pub(crate) text: String,
}

impl Run for Command {
    fn run(&mut self) -> String {
        let output = output(self);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?} failed with {}:\n{text}{errors}", output.status);
        text
    }

    fn fail(&mut self) -> Failure {
        let output = output(self);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{self:?} succeeded:\n{text}");
        let code = output.status.code().or(output.status.signal().map(|s| s + 128)).unwrap();
        assert!(code != 124, "{self:?} did not end:\n{text}");
        Failure { code, text }
    }
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"))
}

/// A directory for one test's files, which vanishes with it.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("hostveil-peers.").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of a file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file into it.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Writes a file of `len` bytes that do not repeat and cannot be compressed.
    pub(crate) fn noise(&self, name: &str, len: u64) -> PathBuf {
        self.file(name, &noise(len, len))
    }
}

/// `len` bytes that look random and depend on `seed` alone (xorshift64*).
pub(crate) fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap());
    while (bytes.len() as u64) < len {
        bytes.extend(next(&mut state).to_le_bytes());
    }
    bytes.truncate(usize::try_from(len).unwrap());
    bytes
}

/// The next number of the sequence that [`noise`] consists of.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// How many bytes a file takes on its file system.
pub(crate) fn allocated(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

/// Whether two files hold the same bytes; names the first that differs.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    let (a, b) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    assert_eq!(a.len(), b.len(), "{} and {} differ in length", one.display(), other.display());
    if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
        panic!("{} and {} differ at byte {at}", one.display(), other.display());
    }
}

/// Whether `needle` occurs in a file.
pub(crate) fn contains(path: &Path, needle: &[u8]) -> bool {
    let mut file = File::open(path).unwrap();
    let mut window = Vec::new();
    loop {
        let kept = window.len().min(needle.len() - 1);
        window.drain(..window.len() - kept);
        if (&mut file).take(4 * MIB).read_to_end(&mut window).unwrap() == 0 {
            return false;
        }
        if window.windows(needle.len()).any(|bytes| bytes == needle) {
            return true;
        }
    }
}

/// A disk, the key file that opens it, and the file that its anchor is, if it has one.
pub(crate) struct Volume {
    pub(crate) disk: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) anchor: Option<PathBuf>,
}

impl Volume {
    /// What the key file of every volume holds.
    pub(crate) const PASSPHRASE: &str = "correct horse battery staple 4711";

    /// A LUKS volume of `size` bytes that hostveil formats in `place`, its key derivation a cheap one.
    pub(crate) fn format(place: &Path, size: u64, options: &[&str]) -> Self {
        let volume = Self::named(place, "disk.img");
        let size = size.to_string();
        volume.format_command(options).args(["--size", &size]).arg(&volume.disk).run();
        volume
    }

    /// A volume that is yet to be made.
    pub(crate) fn named(place: &Path, name: &str) -> Self {
        let key = place.join("key");
        std::fs::write(&key, Self::PASSPHRASE).unwrap();
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        Self { disk: place.join(name), key, anchor: None }
    }

    /// The command that formats it, to which the disk must be added.
    pub(crate) fn format_command(&self, options: &[&str]) -> Command {
        let mut command = hostveil();
        command
            .args(["format", "--type", "luks", "--pbkdf", "pbkdf2", "--key-file"])
            .arg(&self.key)
            .args(options);
        command
    }

    /// A server of it that is yet to be started.
    pub(crate) fn serve(&self) -> Serve {
        let serve = Serve::new(&self.disk, &self.key);
        match self.anchor_address() {
            Some(address) => serve.arg("--anchor").arg(address),
            None => serve,
        }
    }

    /// The anchor, as arguments name it.
    pub(crate) fn anchor_address(&self) -> Option<String> {
        self.anchor.as_ref().map(|path| format!("file:{}", path.display()))
    }
}

/// How to start a server.
pub(crate) struct Serve {
    wrapper: Vec<OsString>,
    program: PathBuf,
    arguments: Vec<OsString>,
    place: TempDir,
}

impl Serve {
    pub(crate) fn new(disk: &Path, key: &Path) -> Self {
        let place = tempfile::Builder::new().prefix("hostveil-socket.").tempdir().unwrap();
        let socket = place.path().join("s");
        let arguments: [&OsStr; 7] = [
            "serve".as_ref(),
            disk.as_ref(),
            "--key-file".as_ref(),
            key.as_ref(),
            "--json".as_ref(),
            "--socket".as_ref(),
            socket.as_ref(),
        ];
        Self {
            wrapper: vec![],
            program: HOSTVEIL.into(),
            arguments: arguments.map(OsString::from).into(),
            place,
        }
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs it by another command: `setpriv`, say. That must replace itself by the server, as all
    /// that only change a process' limits and privileges do.
    pub(crate) fn wrapped(mut self, words: &[&str]) -> Self {
        self.wrapper.extend(words.iter().map(OsString::from));
        self
    }

    /// Runs a copy of the program: one that another user can reach.
    pub(crate) fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Has it listen on a TCP port of this machine instead of a Unix socket.
    pub(crate) fn on_tcp(mut self) -> Self {
        let socket = self.arguments.iter().position(|argument| argument == "--socket").unwrap();
        self.arguments.splice(socket..socket + 2, ["--listen".into(), "127.0.0.1:0".into()]);
        self
    }

    /// The directory that holds its socket and its log.
    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.program.clone().into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(&self.arguments).stdin(Stdio::null());
        command
    }

    /// Starts it, and returns when it is ready. Fails the test when it does not get there.
    pub(crate) fn start(self) -> Server {
        let (mut server, line) = self.launch();
        server.ready = serde_json::from_str(&line).unwrap_or_else(|e| {
            let _ = server.child.kill();
            let status = server.child.wait().unwrap();
            panic!("a server ended with {status}, having said {line:?} ({e}):\n{}", server.log())
        });
        assert_eq!(server.ready["event"], "ready", "{line}");
        server
    }

    /// Starts it where something may kill it before it is ready, and kills it then. Whether it got there;
    /// fails the test when it ends in another way.
    pub(crate) fn start_to_be_killed(self) -> bool {
        let (mut server, line) = self.launch();
        let _ = server.child.kill();
        let status = server.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{status}, {line:?}:\n{}", server.log());
        !line.is_empty()
    }

    /// Starts it, and waits for its first line, or its end.
    fn launch(self) -> (Server, String) {
        let log = self.place.path().join("log");
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        (Server { child, ready: Value::Null, output, log, place: self.place }, line)
    }

    /// How it refuses to start. Fails the test when it starts.
    pub(crate) fn refused(self) -> Failure {
        // It would serve until it is told to stop.
        let mut command = Command::new("timeout");
        let inner = self.command();
        command.args(["-k", "5", "60"]).arg(inner.get_program()).args(inner.get_args());
        command.fail()
    }
}

/// A running server; it ends with the test, whatever happens.
pub(crate) struct Server {
    child: Child,
    ready: Value,
    // Held open: a server may say more than the first line.
    output: BufReader<ChildStdout>,
    log: PathBuf,
    place: TempDir,
}

impl Server {
    /// Where clients find the export.
    pub(crate) fn uri(&self) -> &str {
        self.ready["uri"].as_str().unwrap()
    }

    /// The export's name.
    pub(crate) fn name(&self) -> &str {
        self.ready["export"].as_str().unwrap()
    }

    /// Its Unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path().join("s")
    }

    /// What it said when it was ready.
    pub(crate) fn ready(&self) -> &Value {
        &self.ready
    }

    /// How many bytes the export has.
    pub(crate) fn size(&self) -> u64 {
        self.ready["size"].as_u64().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// A file of its directory in `/proc`.
    pub(crate) fn proc(&self, name: &str) -> String {
        let bytes = std::fs::read(format!("/proc/{}/{name}", self.pid())).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn signal(&self, signal: &str) {
        Command::new("kill").args(["-s", signal, &self.pid().to_string()]).run();
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Tells it to stop, and checks that it does so well.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        let status = self.wait();
        assert!(status.success(), "the server ended with {status}:\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

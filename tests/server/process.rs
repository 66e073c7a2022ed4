//! Volumes, and the real program that serves them.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use hostveil::block::BufferPool;
use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm};
use hostveil::env::{OsEntropy, Silent};
use hostveil::luks;
use hostveil::secret::{Passphrase, SecretBytes};
use hostveil::units::{BlockSize, ByteCount};
use hostveil::volume::{self, CreateOptions, DiscardPolicy, Format, Located, OpenOptions, Place, Target};

const KEY: &[u8] = b"the key file's bytes";
/// A program that takes longer to end hangs: it gives connections ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A volume in a directory of its own, with the key file that opens it.
pub(crate) struct Volume {
    pub(crate) disk: PathBuf,
    pub(crate) key: PathBuf,
    dir: tempfile::TempDir,
}

/// How many bytes a file takes on its file system.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

impl Volume {
    /// A LUKS volume of `size` bytes that takes no time to open.
    pub(crate) fn create(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, key) = (dir.path().join("disk.img"), dir.path().join("key"));
        fs::write(&key, KEY).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let options = CreateOptions {
            format: Format::Luks { sector_size: BlockSize::B4096, label: String::new() },
            size: Some(ByteCount(size)),
            pbkdf: luks::Pbkdf::Exactly(KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 }),
            preallocate: false,
            force: false,
        };
        let target = Target::examine(&Place { disk: disk.clone(), header: None }, &options).unwrap();
        volume::create(&target, &options, &passphrase(), &OsEntropy, &Silent).unwrap();
        Self { disk, key, dir }
    }

    /// Opens it in this process, with discards that give space back.
    pub(crate) fn open(&self, pool: BufferPool, limits: CostLimits) -> volume::Volume {
        let options = OpenOptions {
            read_only: false,
            discard: DiscardPolicy::Unmap,
            kind: None,
            uuid: None,
            limits,
            require_authenticated_header: false,
            anchor: None,
            anchor_mode: None,
            sealed_memory: None,
        };
        let place = Place { disk: self.disk.clone(), header: None };
        Located::at(&place, &options).unwrap().unlock(&passphrase(), pool).unwrap()
    }

    /// Starts `hostveil serve` with it, its export named `disk`, and waits until it is ready.
    pub(crate) fn serve(&self) -> Process {
        let socket = self.dir.path().join("s");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostveil"));
        command.args(["serve", "--json", "--name", "disk", "--key-file"]).arg(&self.key);
        command.arg("--socket").arg(&socket).arg(&self.disk);
        command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped());
        let log = self.dir.path().join("log");
        command.stderr(fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let process = Process { child, socket, log };
        assert!(line.contains("\"ready\""), "{line}{}", process.log());
        process
    }
}

fn passphrase() -> Passphrase {
    Passphrase::new(SecretBytes::copy_of(KEY).unwrap())
}

/// A running program; killed on drop.
pub(crate) struct Process {
    child: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal to a program that may have ended already.
    pub(crate) fn try_signal(&self, signal: Signal) {
        // Not waited for yet, its number is still its own.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub(crate) fn log(&self) -> String {
        let mut log = String::new();
        fs::File::open(&self.log).unwrap().read_to_string(&mut log).unwrap();
        log
    }

    /// That it runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and checks that it was a good one. Returns what it has logged.
    pub(crate) fn ends_well(mut self) -> String {
        let began = Instant::now();
        while self.lives() {
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
        self.log()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

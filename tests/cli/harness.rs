//! Running the binary, and volumes to run it on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use hostveil::anchor::{AnchorAddress, AnchorMode};
use hostveil::crypto::{Hash, KdfAlgorithm};
use hostveil::env::{OsEntropy, Silent};
use hostveil::luks;
use hostveil::secret::{Passphrase, SecretBytes};
use hostveil::units::{BlockSize, ByteCount};
use hostveil::volume::{self, CreateOptions, Format, SealedFormat, Target};

pub(crate) const KEY: &[u8] = b"the key file's bytes";
pub(crate) const PASSPHRASE: &str = "correct horse battery";
/// The cheapest key derivation that a sealed volume's key slot can have.
const CHEAP: KdfAlgorithm = KdfAlgorithm::Argon2id { time: 1, memory_kib: 8, lanes: 1 };
/// Size of the volumes' data.
pub(crate) const SIZE: u64 = 1 << 20;

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// That it failed with `code`, and that its error on stderr, behind any warnings, is this sentence.
    pub(crate) fn fails(&self, code: i32, sentence: &str) {
        let error = self.stderr.lines().find(|line| line.starts_with("hostveil: ")).unwrap_or_default();
        assert_eq!((self.code, error), (code, format!("hostveil: {sentence}").as_str()), "{self:?}");
    }

    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A directory of a test's own, with a key file.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.file("vm.key", KEY);
        place
    }

    /// A directory with a volume as well, `disk.img`, which `vm.key` opens.
    pub(crate) fn with_volume() -> Self {
        let place = Self::new();
        fs::copy(template(), place.path("disk.img")).unwrap();
        place
    }

    /// A directory with a sealed volume instead.
    pub(crate) fn with_sealed_volume() -> Self {
        let place = Self::new();
        fs::copy(sealed_template(), place.path("disk.img")).unwrap();
        place
    }

    /// A directory with a sealed volume with an anchor, `vm.anchor`.
    pub(crate) fn with_anchored_volume(mode: AnchorMode) -> Self {
        let place = Self::new();
        let anchor = Some((AnchorAddress::File(place.path("vm.anchor")), mode));
        let made = make(Format::Sealed(SealedFormat { anchor, ..SealedFormat::default() }), CHEAP);
        fs::copy(&made, place.path("disk.img")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn file(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The names of all that lies here, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `hostveil ARGS` with this directory as the current one, not started yet.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hostveil"));
        command.args(args.split_whitespace()).current_dir(self.dir.path());
        command.env_remove("RUST_LOG").env("XDG_RUNTIME_DIR", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `hostveil ARGS` to its end.
    pub(crate) fn run(&self, args: &str) -> Outcome {
        outcome(self.command(args).spawn().unwrap())
    }

    /// Runs `hostveil ARGS` with `input` on its standard input.
    pub(crate) fn run_with_input(&self, args: &str, input: &[u8]) -> Outcome {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        outcome(child)
    }

    /// Starts `hostveil serve --json ARGS` and waits until it is ready.
    pub(crate) fn serve(&self, args: &str) -> Serving {
        let mut child = self.command(&format!("serve --json {args}")).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        match serde_json::from_str(&line) {
            Ok(ready) => Serving { child: Some(child), ready },
            Err(error) => panic!("not ready ({error}): {:?}", outcome(child)),
        }
    }
}

pub(crate) fn outcome(child: Child) -> Outcome {
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A server that is ready; killed on drop.
pub(crate) struct Serving {
    child: Option<Child>,
    pub(crate) ready: serde_json::Value,
}

impl Serving {
    pub(crate) fn socket(&self) -> PathBuf {
        let uri = self.ready["uri"].as_str().unwrap();
        Path::new(uri.split_once("socket=").unwrap().1).to_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal and waits for the end.
    pub(crate) fn stop(mut self, signal: rustix::process::Signal) -> Outcome {
        let child = self.child.take().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        outcome(child)
    }
}

impl Serving {
    /// What a guest finds at `at`: `len` bytes, or the error.
    pub(crate) fn read(&self, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut guest = self.attach()?;
        guest.seek(SeekFrom::Start(at))?;
        guest.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Has a guest write, and flush.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut guest = self.attach()?;
        guest.seek(SeekFrom::Start(at))?;
        guest.write_all(bytes)?;
        guest.flush()
    }

    fn attach(&self) -> std::io::Result<nbd::client::NbdClient<UnixStream>> {
        let mut stream = UnixStream::connect(self.socket())?;
        let export = nbd::client::handshake(&mut stream, b"")?;
        Ok(nbd::client::NbdClient::new(stream, &export))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A LUKS volume that takes no time to open, made once.
fn template() -> &'static Path {
    static MADE: OnceLock<tempfile::TempPath> = OnceLock::new();
    MADE.get_or_init(|| {
        let format = Format::Luks { sector_size: BlockSize::B4096, label: "a label".into() };
        make(format, KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 })
    })
}

/// A sealed volume that takes no time to open, made once.
fn sealed_template() -> &'static Path {
    static MADE: OnceLock<tempfile::TempPath> = OnceLock::new();
    MADE.get_or_init(|| make(Format::Sealed(SealedFormat::default()), CHEAP))
}

fn make(format: Format, kdf: KdfAlgorithm) -> tempfile::TempPath {
    {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::remove_file(&path).unwrap();
        let options = CreateOptions {
            format,
            size: Some(ByteCount(SIZE)),
            pbkdf: luks::Pbkdf::Exactly(kdf),
            preallocate: false,
            force: false,
        };
        let key = Passphrase::new(SecretBytes::copy_of(KEY).unwrap());
        let target =
            Target::examine(&volume::Place { disk: path.to_path_buf(), header: None }, &options).unwrap();
        volume::create(&target, &options, &key, &OsEntropy, &Silent).unwrap();
        path
    }
}

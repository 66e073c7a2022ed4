//! `hostveil demo`: the whole of it in a few seconds, with nothing installed: a key, a volume, a
//! server, a guest's write and read through an independent NBD client (the `nbd` crate's), and what
//! the host sees of it.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::crypto::CostLimits;
use crate::env::{OsEntropy, Silent};
use crate::keys;
use crate::luks;
use crate::net::{Address, Listener};
use crate::secret::{Passphrase, SecretBytes};
use crate::serve::{Access, Front, Offer, Options, Server, Service};
use crate::units::{BlockSize, ByteCount};
use crate::volume::{
    self, CreateOptions, DiscardPolicy, Format, Located, OpenOptions, Place, Target, Volume, VolumeType,
};

use super::attach::Attachment;
use super::serving::export;

/// What the guest writes: a text, at an offset, that is easy to recognise on the host.
const MARKER: &[u8] = b"Dear diary: what I write on this disk, the host must never read.";
const MARKER_AT: u64 = 1 << 20;
const SIZE: ByteCount = ByteCount(64 << 20);

/// See the whole of it work: make a key and a volume, serve it, write and read through NBD, and
/// compare what the guest sees with what the host sees
#[derive(clap::Args)]
#[command(after_help = "Everything happens in a temporary directory, which is removed at the end.")]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> Result<()> {
    let dir =
        tempfile::Builder::new().prefix("hostveil-demo-").tempdir().context("no temporary directory")?;
    let (key_file, image, socket) =
        (dir.path().join("vm.key"), dir.path().join("disk.img"), dir.path().join("nbd.sock"));

    println!("1. A key: 64 random bytes, mode 0600\n     {}", key_file.display());
    keys::write_new_key_file(&key_file, &SecretBytes::random(64, &OsEntropy)?)?;
    let passphrase = keys::read_key_file(&key_file)?;

    println!("2. A volume of {SIZE}: LUKS2, AES-256-XTS, Argon2id\n     {}", image.display());
    format(&image, &passphrase)?;

    println!("3. Served over NBD\n     {}", socket.display());
    let options = Options::default();
    let pool = options.limits.pool();
    let volume = Located::at(&place(&image), &open_options())?.unlock(&passphrase, pool.clone())?;
    let address = Address::Unix(socket);
    let listener = Listener::bind(&address, None)?;
    let service =
        Service { export: export("", &volume)?, disk: volume.disk.clone(), access: Access::default() };
    let server = Server::new(vec![service], pool, options)?;
    let stopper = server.stopper();
    let seen = std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(vec![Front { listener, offer: Offer::all() }]));
        let seen = be_the_guest(&address);
        stopper.stop();
        running.join().map_err(|_| anyhow::anyhow!("the server failed"))??;
        seen
    })?;
    compare(&image, &seen)?;
    advise(&address, &volume);
    Ok(())
}

fn place(image: &Path) -> Place {
    Place { disk: image.to_owned(), header: None }
}

fn open_options() -> OpenOptions {
    OpenOptions {
        read_only: false,
        discard: DiscardPolicy::Ignore,
        kind: Some(VolumeType::Luks),
        uuid: None,
        limits: CostLimits::of_this_machine(),
        require_authenticated_header: true,
        anchor: None,
        anchor_mode: None,
        sealed_memory: None,
    }
}

fn format(image: &Path, passphrase: &Passphrase) -> Result<()> {
    let options = CreateOptions {
        format: Format::Luks { sector_size: BlockSize::B4096, label: "demo".into() },
        size: Some(SIZE),
        pbkdf: luks::Pbkdf::Argon2id,
        preallocate: false,
        force: false,
    };
    let target = Target::examine(&place(image), &options)?;
    volume::create(&target, &options, passphrase, &OsEntropy, &Silent)?;
    Ok(())
}

/// Writes the marker through one connection and reads it back through another.
fn be_the_guest(address: &Address) -> Result<Vec<u8>> {
    println!("4. A guest attaches (the nbd crate's client), writes, flushes, and reads back");
    let Address::Unix(path) = address else { anyhow::bail!("the demo listens on a Unix socket") };
    let attach = || -> Result<_> {
        let mut stream = UnixStream::connect(path)?;
        let export = nbd::client::handshake(&mut stream, b"")?;
        ensure!(export.size == SIZE.0, "the export has {} bytes", export.size);
        Ok(nbd::client::NbdClient::new(stream, &export))
    };
    let mut writer = attach()?;
    writer.seek(SeekFrom::Start(MARKER_AT))?;
    writer.write_all(MARKER)?;
    writer.flush()?;
    let mut reader = attach()?;
    reader.seek(SeekFrom::Start(MARKER_AT))?;
    let mut seen = vec![0; 64];
    reader.read_exact(&mut seen)?;
    Ok(seen)
}

/// Shows both sides' view of the same bytes, and looks for the marker in all that is stored.
fn compare(image: &Path, guest: &[u8]) -> Result<()> {
    let file = std::fs::File::open(image)?;
    let mut host = vec![0; guest.len()];
    file.read_exact_at(&mut host, luks::DATA_OFFSET.0 + MARKER_AT)?;
    println!("\n   the guest sees, at {MARKER_AT:#x} of its disk:\n{}", dump(guest));
    println!("   the host sees, at the same place of the file:\n{}", dump(&host));
    ensure!(guest.starts_with(MARKER), "the guest read back something else than it wrote");
    let stored = std::fs::read(image)?;
    let found = stored.windows(MARKER.len()).any(|window| window == MARKER);
    ensure!(!found, "the guest's text lies readable in the image");
    println!("   the guest's text in all {} that the host stores: not found\n", ByteCount::of(&stored));
    Ok(())
}

/// Sixteen bytes a line, in hexadecimal and as text.
fn dump(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = line.iter().map(|b| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '.' });
        format!("     {:47}  {}\n", hex.join(" "), text.collect::<String>())
    };
    bytes.chunks(16).map(line).collect()
}

fn advise(address: &Address, volume: &Volume) {
    let attachment = Attachment { address, export: "", read_only: false, discard: false, tls: false };
    println!(
        "5. A real VM attaches such an export with\n\n     qemu-system-x86_64 ... {}\n",
        attachment.qemu()
    );
    println!("   This one ({}) is gone now. To make one that stays:\n", volume.uuid);
    println!("     hostveil-keygen -o vm.key");
    println!("     hostveil format --size 20G --key-file vm.key disk.img");
    println!("     hostveil serve --key-file vm.key disk.img");
}

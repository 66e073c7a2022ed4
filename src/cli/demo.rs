//! `hostveil demo`: the whole of it in a few seconds, with nothing installed: a key, a volume, a
//! server, a guest's write and read through an independent NBD client (the `nbd` crate's), what
//! the host sees of it, and what becomes of a bit that the host changes.

use std::fs::OpenOptions as FileOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::crypto::CostLimits;
use crate::env::{OsEntropy, Silent};
use crate::keys;
use crate::luks::Pbkdf;
use crate::net::{Address, Listener};
use crate::secret::{Passphrase, SecretBytes};
use crate::serve::{Access, Front, Offer, Options, Server, Service};
use crate::units::ByteCount;
use crate::volume::{
    self, CreateOptions, DiscardPolicy, Format, Located, OpenOptions, Place, SealedFormat, Target, VolumeType,
};

use super::attach::Attachment;
use super::serving::export;

/// What the guest writes: a text, at an offset, that is easy to recognise on the host.
const MARKER: &[u8] = b"Dear diary: what I write on this disk, the host must never read.";
const MARKER_AT: u64 = 1 << 20;
const SIZE: ByteCount = ByteCount(64 << 20);
const BLOCK: usize = 4096;

/// See the whole of it work: make a key and a volume, serve it, write and read through NBD, compare
/// what the guest sees with what the host sees, and change a bit behind the guest's back
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

    let format = Format::Sealed(SealedFormat::default());
    println!(
        "2. A volume of {SIZE}: {}, {}, Argon2id\n     {}",
        format.kind(),
        format.cipher(),
        image.display()
    );
    make(format, &image, &passphrase)?;

    println!("3. Served over NBD\n     {}", socket.display());
    let options = Options::default();
    let pool = options.limits.pool();
    let mut volume = Located::at(&place(&image), &open_options())?.unlock(&passphrase, pool.clone())?;
    volume.start_upkeep()?;
    let address = Address::Unix(socket);
    let listener = Listener::bind(&address, None)?;
    let service =
        Service { export: export("", &volume)?, disk: volume.disk.clone(), access: Access::default() };
    let server = Server::new(vec![service], pool, options)?;
    let stopper = server.stopper();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run(vec![Front { listener, offer: Offer::all() }]));
        let shown = show(&image, &address);
        stopper.stop();
        running.join().map_err(|_| anyhow::anyhow!("the server failed"))??;
        shown
    })?;
    let uuid = volume.uuid;
    volume.close()?;
    advise(&address, uuid);
    Ok(())
}

/// What guest and host see, and what the host can do about it.
fn show(image: &Path, address: &Address) -> Result<()> {
    let before = std::fs::read(image)?;
    println!("4. A guest attaches (the nbd crate's client), writes, flushes, and reads back");
    let mut writer = attach(address)?;
    writer.seek(SeekFrom::Start(MARKER_AT))?;
    writer.write_all(MARKER)?;
    writer.flush()?;
    let seen = read_back(address)?;
    ensure!(seen.starts_with(MARKER), "the guest read back something else than it wrote");
    let at = compare(image, &before, &seen)?;
    alter(image, at, address)
}

fn place(image: &Path) -> Place {
    Place { disk: image.to_owned(), header: None }
}

fn open_options() -> OpenOptions {
    OpenOptions {
        read_only: false,
        discard: DiscardPolicy::Ignore,
        kind: Some(VolumeType::Sealed),
        uuid: None,
        limits: CostLimits::of_this_machine(),
        require_authenticated_header: true,
        anchor: None,
        anchor_mode: None,
        sealed_memory: None,
    }
}

fn make(format: Format, image: &Path, passphrase: &Passphrase) -> Result<()> {
    let options =
        CreateOptions { format, size: Some(SIZE), pbkdf: Pbkdf::Argon2id, preallocate: false, force: false };
    let target = Target::examine(&place(image), &options)?;
    volume::create(&target, &options, passphrase, &OsEntropy, &Silent)?;
    Ok(())
}

/// A guest's connection.
fn attach(address: &Address) -> Result<nbd::client::NbdClient<UnixStream>> {
    let Address::Unix(path) = address else { anyhow::bail!("the demo listens on a Unix socket") };
    let mut stream = UnixStream::connect(path)?;
    let export = nbd::client::handshake(&mut stream, b"")?;
    ensure!(export.size == SIZE.0, "the export has {} bytes", export.size);
    Ok(nbd::client::NbdClient::new(stream, &export))
}

/// What a guest finds where the marker was written, through a connection of its own.
fn read_back(address: &Address) -> Result<Vec<u8>> {
    let mut reader = attach(address)?;
    reader.seek(SeekFrom::Start(MARKER_AT))?;
    let mut seen = vec![0; MARKER.len()];
    reader.read_exact(&mut seen)?;
    Ok(seen)
}

/// Shows both sides' view, and looks for the marker in all that is stored. Gives the place in the file where
/// the guest's block went: the last one that has changed, since data lies behind all else.
fn compare(image: &Path, before: &[u8], guest: &[u8]) -> Result<u64> {
    let stored = std::fs::read(image)?;
    let blocks = stored.chunks(BLOCK).zip(before.chunks(BLOCK));
    let last = blocks.enumerate().rfind(|(_, (now, before))| now != before);
    let at = last.context("the guest's write has changed nothing in the file")?.0 * BLOCK;
    println!("\n   the guest sees, at {MARKER_AT:#x} of its disk:\n{}", dump(guest));
    println!(
        "   the host sees, where the file has changed, at {at:#x}:\n{}",
        dump(&stored[at..at + guest.len()])
    );
    let found = stored.windows(MARKER.len()).any(|window| window == MARKER);
    ensure!(!found, "the guest's text lies readable in the image");
    println!("   the guest's text in all {} that the host stores: not found\n", ByteCount::of(&stored));
    Ok(at as u64)
}

/// Changes a bit of what is stored, and puts it back; a guest reads both times.
fn alter(image: &Path, at: u64, address: &Address) -> Result<()> {
    let file = FileOptions::new().read(true).write(true).open(image)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    println!("5. The host changes one bit there, and the guest reads again");
    file.write_all_at(&[byte[0] ^ 1], at)?;
    let refused = read_back(address).err().context("the guest has read an altered block")?;
    println!("     an error, and no data: {refused:#}");
    file.write_all_at(&byte, at)?;
    ensure!(read_back(address)?.starts_with(MARKER), "the block cannot be read any more");
    println!("   The host puts it back\n     the guest reads what it wrote\n");
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

fn advise(address: &Address, uuid: uuid::Uuid) {
    let attachment = Attachment { address, export: "", read_only: false, discard: false, tls: false };
    println!(
        "6. A real VM attaches such an export with\n\n     qemu-system-x86_64 ... {}\n",
        attachment.qemu()
    );
    println!("   This one ({uuid}) is gone now. To make one that stays:\n");
    println!("     hostveil-keygen -o vm.key");
    println!("     hostveil format --size 20G --key-file vm.key disk.img");
    println!("     hostveil serve --key-file vm.key disk.img");
}

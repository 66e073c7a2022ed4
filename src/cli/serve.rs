//! `hostveil serve`: unlocks a volume once and serves it over NBD until it is told to stop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, ErrorKind};
use crate::nbd::Export;
use crate::net::{Address, Listener};
use crate::serve::{Limits, Server, Service, Stopper};
use crate::units::ByteCount;
use crate::volume::{DiscardPolicy, Located, OpenOptions, Volume};

use super::attach::{Attachment, default_socket};
use super::format::TypeArg;
use super::place::{LimitArgs, PlaceArgs};
use super::prompt::KeyArgs;

/// Unlock a volume and serve it over NBD
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil serve --key-file vm.key disk.img\n  \
    hostveil serve --key-file vm.key --socket /run/vm/disk.sock --name vm disk.img\n  \
    hostveil serve --key-file vm.key --listen 127.0.0.1:10809 --read-only disk.img\n\n\
    Stop it with Ctrl-C or SIGTERM: requests in flight finish and everything is flushed.")]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// Listen on this Unix socket [default: one named after the disk in the user's runtime directory]
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,

    /// Listen on this loopback TCP address
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// The export's name
    #[arg(long, value_name = "EXPORT", default_value = "", value_parser = parse_export_name)]
    name: String,

    #[command(flatten)]
    key: KeyArgs,

    #[command(flatten)]
    limits: LimitArgs,

    /// Refuse a header that the volume key does not vouch for: LUKS1, and LUKS2 without hostveil's token
    #[arg(long)]
    require_authenticated_header: bool,

    /// Refuse the disk unless it holds this type of volume
    #[arg(long = "type", value_enum)]
    kind: Option<TypeArg>,

    /// Refuse the disk unless it holds the volume with this UUID
    #[arg(long)]
    uuid: Option<uuid::Uuid>,

    /// Let clients read only; others may read the disk at the same time
    #[arg(long)]
    read_only: bool,

    /// What a guest's discards do: 'unmap' gives space back to the host, and shows it which sectors
    /// are in use
    #[arg(long, value_enum, default_value_t = DiscardArg::Ignore)]
    discard: DiscardArg,

    /// Memory that all clients together can make the server take
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    max_memory: ByteCount,

    /// Print one line of JSON on stdout when ready, instead of the recipes
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum DiscardArg {
    /// Accept them and do nothing
    Ignore,
    /// Punch holes
    Unmap,
}

fn parse_export_name(text: &str) -> Result<String, String> {
    match text.len() {
        0..=4096 if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("an export's name has at most 4096 bytes".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let address = address(args)?;
    let memory = args.max_memory.to_usize().unwrap_or(usize::MAX);
    let limits = Limits { memory, ..Limits::default() };
    limits.check(false)?;
    let options = OpenOptions {
        read_only: args.read_only,
        discard: match args.discard {
            DiscardArg::Ignore => DiscardPolicy::Ignore,
            DiscardArg::Unmap => DiscardPolicy::Unmap,
        },
        kind: args.kind.map(Into::into),
        uuid: args.uuid,
        limits: args.limits.limits(),
        require_authenticated_header: args.require_authenticated_header,
    };
    let located = Located::at(&args.place.place(), &options)?;
    // Bound before the passphrase is asked for: a taken socket should not cost a key derivation.
    let listener = Listener::bind(&address)?;
    let passphrase = args.key.existing(&args.place.name())?;
    let pool = limits.pool();
    let volume = located.unlock(&passphrase, pool.clone())?;
    drop(passphrase);

    let export = export(&args.name, &volume)?;
    let service = Service { export, disk: volume.disk.clone() };
    let server = Server::new(vec![service], false, pool, limits)?;
    hear_signals(server.stopper())?;
    announce(args, listener.address(), &volume)?;
    server.run(vec![listener])?;
    tracing::info!("everything is flushed; goodbye");
    Ok(())
}

fn address(args: &Args) -> Result<Address, Error> {
    match (args.listen, &args.socket) {
        (Some(address), _) if !address.ip().is_loopback() => {
            let what =
                format!("{address} can be reached from other machines, and this server has no TLS yet");
            Err(Error::new(ErrorKind::InvalidInput, what).hint(
                "the traffic would be readable and writable on the way; listen on 127.0.0.1 or a Unix socket, \
                 and carry it in a tunnel",
            ))
        }
        (Some(address), _) => Ok(Address::Tcp(address)),
        (None, Some(path)) => Ok(Address::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone()))),
        (None, None) => default_socket(&args.place.disk).map(Address::Unix),
    }
}

/// How a volume presents itself to NBD clients.
pub(super) fn export(name: &str, volume: &Volume) -> Result<Export, Error> {
    let description = format!("hostveil {} volume {}", volume.kind, volume.uuid);
    Export::new(name, &description, volume.disk.geometry(), volume.disk.capabilities())
}

/// Has SIGINT and SIGTERM stop the server. SIGHUP, which a closing terminal sends, stops it as well:
/// flushing beats being killed.
fn hear_signals(stopper: Stopper) -> Result<(), Error> {
    let failed = |e| Error::io("cannot listen for signals", e);
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let thread = std::thread::Builder::new().name("signals".into());
    let spawned = thread.spawn(move || {
        for signal in &mut signals {
            tracing::info!(signal, "stopping; a second signal cuts connections at once");
            stopper.stop();
        }
    });
    spawned.map(drop).map_err(failed)
}

/// Says on stdout that the server is ready, and how to reach it.
fn announce(args: &Args, address: &Address, volume: &Volume) -> Result<(), Error> {
    let size = volume.disk.geometry().size;
    let discard = args.discard == DiscardArg::Unmap;
    let attachment = Attachment { address, export: &args.name, read_only: args.read_only, discard };
    let text = if args.json {
        let ready = serde_json::json!({
            "event": "ready",
            "uri": attachment.uri(),
            "export": args.name,
            "type": volume.kind.to_string(),
            "uuid": volume.uuid.to_string(),
            "size": size.0,
            "read_only": args.read_only,
            "qemu": attachment.qemu(),
            "libvirt": attachment.libvirt(),
        });
        format!("{ready}\n")
    } else {
        recipes(&args.place.disk, volume, &attachment)
    };
    super::print(&text)
}

fn recipes(disk: &Path, volume: &Volume, attachment: &Attachment<'_>) -> String {
    format!(
        "Serving {} ({} volume {}, {}) at\n\n  {}\n\nQEMU:\n\n  {}\n\nlibvirt:\n\n{}\n\nStop with Ctrl-C.\n",
        disk.display(),
        volume.kind,
        volume.uuid,
        volume.disk.geometry().size,
        attachment.uri(),
        attachment.qemu(),
        attachment.libvirt().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    )
}

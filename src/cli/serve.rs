//! `hostveil serve`: its arguments, which say what a configuration file says for a single export.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::anchor::AnchorAddress;
use crate::config::{Config, ExportConfig};
use crate::error::Error;
use crate::net::Address;
use crate::serve::{ClientRule, group};
use crate::units::ByteCount;
use crate::volume::{DiscardPolicy, Place};

use super::attach::default_socket;
use super::format::{AnchorModeArg, TypeArg};
use super::prompt::KeyArgs;
use super::serving::{self, Manner};

/// Unlock volumes and serve them over NBD
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil serve --key-file vm.key disk.img\n  \
    hostveil serve --key-file vm.key --socket /run/vm/disk.sock --name vm disk.img\n  \
    hostveil serve --key-file vm.key --listen 127.0.0.1:10809 --read-only disk.img\n  \
    hostveil serve --key-file vm.key --listen 0.0.0.0:10809 --tls-certificates /etc/pki/hostveil \\\n    \
      --client 'subject:CN=vm1,O=Example' disk.img\n  \
    hostveil serve --config /etc/hostveil.toml\n\n\
    Stop it with Ctrl-C or SIGTERM: requests in flight finish and everything is flushed.\n\
    docs/cli.md describes the configuration file.")]
#[expect(clippy::struct_excessive_bools, reason = "they are a command's flags")]
pub(super) struct Args {
    /// The volume's file or block device
    #[arg(required_unless_present = "config")]
    disk: Option<PathBuf>,

    /// Serve what this TOML file says: one export or several
    #[arg(long, value_name = "FILE", conflicts_with_all = ["disk", "header", "KeyArgs", "socket", "listen",
        "socket_group", "name", "clients", "list", "tls_certificates", "max_connections", "max_memory",
        "poll_max_us", "metrics", "max_kdf_memory", "require_authenticated_header", "kind", "uuid", "anchor", "anchor_mode",
        "sealed_memory", "read_only", "discard"])]
    config: Option<PathBuf>,

    /// The file with the volume's header, where it is kept apart from the data
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,

    /// Listen on this Unix socket [default: one named after the disk in the user's runtime directory]
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,

    /// Let the members of this group connect to the Unix socket too
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,

    /// Listen on this TCP address: loopback, unless clients must use TLS
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// Require TLS, with the certificates in this directory: ca-cert.pem, server-cert.pem, server-key.pem
    #[arg(long, value_name = "DIR")]
    tls_certificates: Option<PathBuf>,

    /// Serve this client alone; may be given several times. subject:, dns:, email:, uri:, ip: and sha256:
    /// match a certificate, user: and group: a process at a Unix socket
    #[arg(long = "client", value_name = "CLIENT")]
    clients: Vec<String>,

    /// The export's name
    #[arg(long, value_name = "EXPORT", default_value = "", value_parser = parse_export_name)]
    name: String,

    /// Tell clients the export's name when they ask for a list
    #[arg(long)]
    list: bool,

    /// Turn more connections than this away [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: Option<u16>,

    /// Memory that all clients together can make the server take [default: 256M]
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<ByteCount>,

    /// Look for a client's next small request for so many microseconds before sleeping; 0: sleep at once
    /// [default: 100]
    #[arg(long, value_name = "N")]
    poll_max_us: Option<u32>,

    #[command(flatten)]
    key: KeyArgs,

    /// Refuse headers whose key derivation needs more memory [default: half of this machine's, at
    /// most 4 GiB]
    #[arg(long, value_name = "SIZE")]
    max_kdf_memory: Option<ByteCount>,

    /// Refuse a header that the volume key does not vouch for: LUKS1, and LUKS2 without hostveil's token
    #[arg(long)]
    require_authenticated_header: bool,

    /// Refuse the disk unless it holds this type of volume
    #[arg(long = "type", value_enum)]
    kind: Option<TypeArg>,

    /// Refuse the disk unless it holds the volume with this UUID
    #[arg(long)]
    uuid: Option<uuid::Uuid>,

    /// Where the volume's anchor is, for a sealed volume that has one: file:PATH
    #[arg(long, value_name = "ANCHOR")]
    anchor: Option<AnchorAddress>,

    /// Refuse the volume unless its anchor guards it this way
    #[arg(long, value_enum)]
    anchor_mode: Option<AnchorModeArg>,

    /// Memory that a sealed volume's map and newest writes may take [default: 256M, and 1.2G
    /// for each TiB of the volume]
    #[arg(long, value_name = "SIZE")]
    sealed_memory: Option<ByteCount>,

    /// Let clients read only; others may read the disk at the same time
    #[arg(long)]
    read_only: bool,

    /// What a guest's discards do: 'unmap' gives space back to the host, and shows it which sectors
    /// are in use
    #[arg(long, value_enum, default_value_t = DiscardArg::Ignore)]
    discard: DiscardArg,

    /// Tell the server's figures there, over HTTP at /metrics in Prometheus's format: ADDR:PORT on
    /// loopback, or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = parse_metrics_address)]
    metrics: Option<Address>,

    /// Leave the process able to do everything that its user can
    #[arg(long)]
    no_sandbox: bool,

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

fn parse_metrics_address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return std::path::absolute(path).map(Address::Unix).map_err(|e| format!("'{path}' is no path: {e}"));
    }
    text.parse().map(Address::Tcp).map_err(|_| "write ADDR:PORT or unix:PATH".to_owned())
}

pub(super) fn run(args: &Args) -> Result<()> {
    let config = match (&args.config, &args.disk) {
        (Some(path), _) => Config::read(path)?,
        (None, Some(disk)) => args.config_for(disk.clone())?,
        (None, None) => anyhow::bail!("neither a disk nor --config was given"),
    };
    let manner = Manner { json: args.json, sandbox: !args.no_sandbox };
    Ok(serving::serve(&config, &manner)?)
}

impl Args {
    /// What the arguments say, as a configuration.
    fn config_for(&self, disk: PathBuf) -> Result<Config, Error> {
        let listen = match (self.listen, &self.socket) {
            (Some(address), _) => Address::Tcp(address),
            (None, Some(path)) => Address::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            (None, None) => Address::Unix(default_socket(&disk)?),
        };
        let export = ExportConfig {
            name: self.name.clone(),
            place: Place { disk, header: self.header.clone() },
            key: self.key.source(),
            read_only: self.read_only,
            discard: match self.discard {
                DiscardArg::Ignore => DiscardPolicy::Ignore,
                DiscardArg::Unmap => DiscardPolicy::Unmap,
            },
            kind: self.kind.map(Into::into),
            uuid: self.uuid,
            require_authenticated_header: self.require_authenticated_header,
            anchor: self.anchor.clone(),
            anchor_mode: self.anchor_mode.map(Into::into),
            sealed_memory: self.sealed_memory,
            sockets: Vec::new(),
            clients: self.clients.iter().map(|c| c.parse()).collect::<Result<Vec<ClientRule>, Error>>()?,
        };
        Ok(Config {
            listen: vec![listen],
            socket_group: self.socket_group.as_deref().map(group).transpose()?,
            tls_certificates: self.tls_certificates.clone(),
            list: self.list,
            max_kdf_memory: self.max_kdf_memory,
            max_connections: self.max_connections.map(usize::from),
            max_memory: self.max_memory,
            poll_max_us: self.poll_max_us,
            metrics: self.metrics.clone(),
            exports: vec![export],
        })
    }
}

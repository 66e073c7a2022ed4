//! [`Config`]: everything that a server is started with, whether it comes from a TOML file or from the
//! command line.
//!
//! A file holds no secret: it names key files and credentials. Relative paths in it start at its own
//! directory. An unknown key is an error, so that a misspelt restriction is not taken for none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;

use crate::anchor::{AnchorAddress, AnchorMode};
use crate::error::{Error, ErrorKind, Result};
use crate::keys::KeySource;
use crate::net::Address;
use crate::serve::{ClientRule, group};
use crate::units::ByteCount;
use crate::volume::{DiscardPolicy, Place, VolumeType};

/// The largest configuration that is read, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;
/// The most exports of one server.
const MAX_EXPORTS: usize = 1024;
/// Looking for a request longer than this is not looking but waiting.
const MAX_POLL_US: u32 = 10_000;

/// What a server serves, where, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the exports are offered that have no sockets of their own.
    pub listen: Vec<Address>,
    /// The group whose members may connect to Unix sockets, beside the owner.
    pub socket_group: Option<u32>,
    /// A directory of certificates; with it TLS is required of every client.
    pub tls_certificates: Option<PathBuf>,
    /// Whether clients are told the names of the exports that they may have.
    pub list: bool,
    /// The most memory that a header's key derivation may ask for.
    pub max_kdf_memory: Option<ByteCount>,
    /// The most connections at one time.
    pub max_connections: Option<usize>,
    /// The most memory that all clients together can make the server take.
    pub max_memory: Option<ByteCount>,
    /// How long a client's next small request is looked for before its thread sleeps, in microseconds.
    pub poll_max_us: Option<u32>,
    /// Where the server's figures are told: a Unix socket, or a loopback address.
    pub metrics: Option<Address>,
    /// The exports; at least one.
    pub exports: Vec<ExportConfig>,
}

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportConfig {
    /// Its name.
    pub name: String,
    /// Where its volume lies.
    pub place: Place,
    /// Where its key comes from; without it, a passphrase is asked for.
    pub key: Option<KeySource>,
    /// Clients may read only.
    pub read_only: bool,
    /// What a discard does.
    pub discard: DiscardPolicy,
    /// The type that must be found.
    pub kind: Option<VolumeType>,
    /// The UUID that must be found.
    pub uuid: Option<Uuid>,
    /// Refuse a header that the volume key does not vouch for.
    pub require_authenticated_header: bool,
    /// Where a sealed volume's anchor is.
    pub anchor: Option<AnchorAddress>,
    /// How that anchor must guard it.
    pub anchor_mode: Option<AnchorMode>,
    /// Memory that a sealed volume's map and newest writes may take.
    pub sealed_memory: Option<ByteCount>,
    /// Unix sockets of its own: it is offered there, and there alone.
    pub sockets: Vec<PathBuf>,
    /// Whom it is for.
    pub clients: Vec<ClientRule>,
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// Those of the file; [`ErrorKind::InvalidInput`], with the line, for what is not right in it.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(format!("cannot read the configuration {}", path.display()), e);
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_CONFIG {
            return Err(invalid(format!(
                "{} has {size} bytes, too many for a configuration",
                path.display()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, directory).map_err(|e| {
            let hint = e.hint_text().map(str::to_owned);
            let outer = Error::new(e.kind(), format!("the configuration {} is not right", path.display()));
            let outer = outer.because(e);
            match hint {
                Some(hint) => outer.hint(hint),
                None => outer,
            }
        })
    }

    /// Parses a TOML text; relative paths start at `directory`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn parse(text: &str, directory: &Path) -> Result<Self> {
        let file: File =
            toml::from_str(text).map_err(|e| Error::new(ErrorKind::InvalidInput, describe(text, &e)))?;
        let config = Self {
            listen: file.listen.into_iter().map(|listen| listen.address(directory)).collect::<Result<_>>()?,
            socket_group: file.socket_group.as_deref().map(group).transpose()?,
            tls_certificates: file.tls_certificates.map(|path| directory.join(path)),
            list: file.list,
            max_kdf_memory: file.max_kdf_memory.as_deref().map(size).transpose()?,
            max_connections: file.max_connections,
            max_memory: file.max_memory.as_deref().map(size).transpose()?,
            poll_max_us: file.poll_max_us,
            metrics: file.metrics.map(|listen| listen.address(directory)).transpose()?,
            exports: file.export.into_iter().map(|export| export.check(directory)).collect::<Result<_>>()?,
        };
        config.check()?;
        Ok(config)
    }

    /// Whether the parts fit together.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`].
    pub fn check(&self) -> Result<()> {
        match self.exports.len() {
            0 => return Err(invalid("there is no export in it".to_owned()).hint("add one: [[export]]")),
            1..=MAX_EXPORTS => {}
            n => return Err(invalid(format!("{n} exports are more than the {MAX_EXPORTS} of one server"))),
        }
        if self.max_connections == Some(0) {
            return Err(invalid("a server with no connections is of no use".to_owned()));
        }
        if self.poll_max_us.is_some_and(|micros| micros > MAX_POLL_US) {
            return Err(invalid(format!("a poll may last {MAX_POLL_US} microseconds at most")));
        }
        for address in &self.listen {
            self.check_address(address)?;
        }
        if let Some(Address::Tcp(address)) = &self.metrics
            && !address.ip().is_loopback()
        {
            let what = format!(
                "{address} can be reached from other machines, and figures are for everybody who asks"
            );
            return Err(invalid(what).hint("tell them at a loopback address or a Unix socket"));
        }
        self.exports.iter().try_for_each(|export| self.check_export(export))
    }

    fn check_address(&self, address: &Address) -> Result<()> {
        match address {
            Address::Tcp(address) if !address.ip().is_loopback() && self.tls_certificates.is_none() => {
                let what = format!("{address} can be reached from other machines, and there is no TLS");
                Err(invalid(what).hint(
                    "the traffic would be readable and writable on the way; give --tls-certificates DIR (in a \
                     configuration: tls-certificates), or listen on 127.0.0.1 or a Unix socket",
                ))
            }
            _ => Ok(()),
        }
    }

    /// An export that nobody could ever reach is a mistake.
    fn check_export(&self, export: &ExportConfig) -> Result<()> {
        let tls = self.tls_certificates.is_some();
        if !crate::serve::Access::new(export.clients.clone()).can_admit(tls) {
            let what = format!("no client can match what export '{}' asks of its clients", export.name);
            return Err(invalid(what).hint(if tls {
                "with TLS, clients are known by their certificates: subject:, dns:, email:, uri:, ip: or sha256:"
            } else {
                "without TLS, clients are known at Unix sockets alone, by user: or group:"
            }));
        }
        let same_name = self.exports.iter().filter(|other| other.name == export.name).count();
        if same_name > 1 {
            return Err(invalid(format!("there are {same_name} exports named '{}'", export.name)));
        }
        Ok(())
    }
}

/// The file, as TOML has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    listen: Vec<Listen>,
    socket_group: Option<String>,
    tls_certificates: Option<PathBuf>,
    #[serde(default)]
    list: bool,
    max_kdf_memory: Option<String>,
    max_connections: Option<usize>,
    max_memory: Option<String>,
    poll_max_us: Option<u32>,
    metrics: Option<Listen>,
    #[serde(default)]
    export: Vec<Export>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Listen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Export {
    name: String,
    disk: PathBuf,
    header: Option<PathBuf>,
    key_file: Option<PathBuf>,
    key_credential: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    discard: Discard,
    #[serde(rename = "type")]
    kind: Option<VolumeType>,
    uuid: Option<Uuid>,
    #[serde(default)]
    require_authenticated_header: bool,
    anchor: Option<String>,
    anchor_mode: Option<AnchorMode>,
    sealed_memory: Option<String>,
    #[serde(default)]
    sockets: Vec<PathBuf>,
    #[serde(default)]
    clients: Vec<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Discard {
    #[default]
    Ignore,
    Unmap,
}

impl Listen {
    fn address(self, directory: &Path) -> Result<Address> {
        match self {
            Self::Unix(path) => absolute(&directory.join(path)).map(Address::Unix),
            Self::Tcp(address) => Ok(Address::Tcp(address)),
        }
    }
}

impl Export {
    fn check(self, directory: &Path) -> Result<ExportConfig> {
        let key = match (self.key_file, self.key_credential) {
            (Some(_), Some(_)) => {
                let what = format!("export '{}' has both a key-file and a key-credential", self.name);
                return Err(invalid(what));
            }
            (Some(file), None) => Some(KeySource::File(directory.join(file))),
            (None, credential) => credential.map(KeySource::Credential),
        };
        let socket = |path: PathBuf| absolute(&directory.join(path));
        let anchor = |text: String| match text.parse::<AnchorAddress>() {
            Ok(address) => Ok(address.within(directory)),
            Err(what) => Err(invalid(what)),
        };
        Ok(ExportConfig {
            place: Place {
                disk: directory.join(self.disk),
                header: self.header.map(|header| directory.join(header)),
            },
            key,
            read_only: self.read_only,
            discard: match self.discard {
                Discard::Ignore => DiscardPolicy::Ignore,
                Discard::Unmap => DiscardPolicy::Unmap,
            },
            kind: self.kind,
            uuid: self.uuid,
            require_authenticated_header: self.require_authenticated_header,
            anchor: self.anchor.map(anchor).transpose()?,
            anchor_mode: self.anchor_mode,
            sealed_memory: self.sealed_memory.as_deref().map(size).transpose()?,
            sockets: self.sockets.into_iter().map(socket).collect::<Result<_>>()?,
            clients: self.clients.iter().map(|text| text.parse()).collect::<Result<_>>()?,
            name: self.name,
        })
    }
}

/// A socket's path with its directory: clients are told it, and they may be elsewhere.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io(format!("'{}' is no path", path.display()), e))
}

fn size(text: &str) -> Result<ByteCount> {
    text.parse().map_err(|_| invalid(format!("'{text}' is no size; write 512M or 2GiB")))
}

/// What is wrong, and in which line. The line itself is not shown: it may hold what somebody took for
/// the place of a secret.
fn describe(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().next().unwrap_or("it is not TOML");
    match error.span() {
        Some(span) => {
            let line = text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message.to_owned(),
    }
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

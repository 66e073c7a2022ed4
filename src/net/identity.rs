//! [`Identity`]: what is known for certain of the other side of a connection.

use std::fmt::{self, Write};
use std::net::IpAddr;

/// Who is at the other end, by what vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Nobody vouches: TCP without TLS.
    Unknown,
    /// The kernel vouches: a process of this machine, by a Unix socket.
    Process(Credentials),
    /// An authority vouches: the holder of a certificate, by TLS.
    Certificate(Box<ClientCertificate>),
}

/// For the log: what others chose is quoted.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Process(process) => write!(f, "user {}", process.uid),
            Self::Certificate(certificate) => {
                write!(f, "{:?} sha256:{}", certificate.subject, certificate.fingerprint_hex())
            }
        }
    }
}

/// A process as it was when it connected (unix(7), `SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its process id.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// A verified certificate's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The subject's distinguished name as GnuTLS writes it, and with it QEMU's `tls-authz`: in the
    /// certificate's own order, `CN=client,O=Example,C=GB`, special characters escaped (RFC 4514,
    /// section 2.4).
    pub subject: String,
    /// Subject alternative names: DNS names.
    pub dns: Vec<String>,
    /// Subject alternative names: e-mail addresses.
    pub email: Vec<String>,
    /// Subject alternative names: URIs.
    pub uri: Vec<String>,
    /// Subject alternative names: addresses.
    pub ip: Vec<IpAddr>,
    /// SHA-256 of the certificate's DER form.
    pub fingerprint: [u8; 32],
}

impl ClientCertificate {
    /// The fingerprint in hexadecimal.
    pub fn fingerprint_hex(&self) -> String {
        hex(&self.fingerprint)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! How a served export is attached: its NBD URI, and the exact lines for QEMU and libvirt.
//!
//! Every recipe pins `format=raw`: a guest can write anything to its disk, also something that looks
//! like a qcow2 header with a backing file on the host, and must not be believed.

use std::fmt::Write;
use std::path::Path;

use crate::net::Address;

/// An export's place.
pub(super) struct Attachment<'a> {
    pub(super) address: &'a Address,
    pub(super) export: &'a str,
    pub(super) read_only: bool,
    pub(super) discard: bool,
    pub(super) tls: bool,
}

/// What stands in recipes for the directory of the client's certificates.
const CLIENT_CERTIFICATES: &str = "/etc/pki/qemu";

impl Attachment<'_> {
    /// The export's URI (NBD URI specification, 2023).
    pub(super) fn uri(&self) -> String {
        let name = percent_encoded(self.export, b"/");
        let scheme = if self.tls { "nbds" } else { "nbd" };
        match self.address {
            Address::Unix(path) => {
                format!("{scheme}+unix:///{name}?socket={}", percent_encoded(&path.to_string_lossy(), b"/"))
            }
            Address::Tcp(address) => format!("{scheme}://{address}/{name}"),
        }
    }

    /// A QEMU argument that attaches the export as a virtio disk.
    pub(super) fn qemu(&self) -> String {
        let mut node = "driver=raw,node-name=veil,file.driver=nbd".to_owned();
        match self.address {
            Address::Unix(path) => {
                let path = path.to_string_lossy().replace(',', ",,");
                let _ = write!(node, ",file.server.type=unix,file.server.path={path}");
            }
            Address::Tcp(address) => {
                let (host, port) = (address.ip(), address.port());
                let _ =
                    write!(node, ",file.server.type=inet,file.server.host={host},file.server.port={port}");
            }
        }
        if !self.export.is_empty() {
            let _ = write!(node, ",file.export={}", self.export.replace(',', ",,"));
        }
        let mut credentials = String::new();
        if self.tls {
            node += ",file.tls-creds=veil-tls";
            credentials =
                format!("-object tls-creds-x509,id=veil-tls,endpoint=client,dir={CLIENT_CERTIFICATES} ");
        }
        if self.read_only {
            node += ",read-only=on";
        }
        if self.discard {
            node += ",discard=unmap";
        }
        format!("{credentials}-blockdev {} -device virtio-blk-pci,drive=veil", shell_quoted(&node))
    }

    /// A libvirt `<disk>` element.
    pub(super) fn libvirt(&self) -> String {
        let discard = if self.discard { " discard='unmap'" } else { "" };
        let name = match self.export {
            "" => String::new(),
            export => format!(" name='{}'", xml_escaped(export)),
        };
        let host = match self.address {
            Address::Unix(path) => {
                format!("transport='unix' socket='{}'", xml_escaped(&path.to_string_lossy()))
            }
            Address::Tcp(address) => format!("name='{}' port='{}'", address.ip(), address.port()),
        };
        let read_only = if self.read_only { "\n  <readonly/>" } else { "" };
        let tls = if self.tls { " tls='yes'" } else { "" };
        format!(
            "<disk type='network' device='disk'>\n  \
               <driver name='qemu' type='raw'{discard}/>\n  \
               <source protocol='nbd'{name}{tls}>\n    \
                 <host {host}/>\n  \
               </source>\n  \
               <target dev='vda' bus='virtio'/>{read_only}\n\
             </disk>"
        )
    }
}

/// RFC 3986 percent-encoding of everything but unreserved characters and `also`.
fn percent_encoded(text: &str, also: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn xml_escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// `text` as one word of a POSIX shell.
pub(super) fn shell_quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/,=:+@%".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The default export's socket in the user's runtime directory, named after the disk.
pub(super) fn default_socket(disk: &Path) -> crate::error::Result<std::path::PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let user = rustix::process::getuid();
    let dir = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("hostveil"),
        _ if user.is_root() => "/run/hostveil".into(),
        _ => format!("/tmp/hostveil-{}", user.as_raw()).into(),
    };
    let failed = |e| crate::error::Error::io(format!("cannot make the directory {}", dir.display()), e);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
    let found = std::fs::symlink_metadata(&dir).map_err(failed)?;
    if !found.is_dir() || found.uid() != user.as_raw() || found.mode() & 0o022 != 0 {
        let what = format!("{} does not belong to this user alone", dir.display());
        let error = crate::error::Error::new(crate::error::ErrorKind::Permission, what);
        return Err(error.hint("remove it, or choose a socket with --socket"));
    }
    let name = disk.file_name().map_or_else(|| "disk".into(), |name| name.to_string_lossy().into_owned());
    Ok(dir.join(format!("{name}.sock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment<'a>(address: &'a Address, export: &'a str) -> Attachment<'a> {
        Attachment { address, export, read_only: false, discard: true, tls: false }
    }

    #[test]
    fn recipes_pin_the_format_and_quote_what_is_odd() {
        let address = Address::Unix("/run/a b,c/x'.sock".into());
        let attachment = attachment(&address, "vm 1&");
        assert_eq!(attachment.uri(), "nbd+unix:///vm%201%26?socket=/run/a%20b%2Cc/x%27.sock");
        assert!(attachment.qemu().starts_with("-blockdev 'driver=raw,"), "{}", attachment.qemu());
        assert!(attachment.qemu().contains(r"path=/run/a b,,c/x'\''.sock,"));
        assert!(
            attachment.libvirt().contains("type='raw'") && attachment.libvirt().contains("name='vm 1&amp;'")
        );
        assert!(attachment.libvirt().contains("socket='/run/a b,c/x&apos;.sock'"));
    }

    #[test]
    fn tls_is_named_everywhere() {
        let address = Address::Tcp("192.0.2.1:10809".parse().unwrap());
        let attachment = Attachment { tls: true, ..attachment(&address, "vm") };
        assert_eq!(attachment.uri(), "nbds://192.0.2.1:10809/vm");
        assert!(attachment.qemu().starts_with("-object tls-creds-x509,id=veil-tls,"));
        assert!(attachment.qemu().contains(",file.tls-creds=veil-tls"));
        assert!(attachment.libvirt().contains("<source protocol='nbd' name='vm' tls='yes'>"));
    }

    #[test]
    fn tcp_exports_have_host_and_port() {
        let address = Address::Tcp("[::1]:10809".parse().unwrap());
        let attachment = attachment(&address, "");
        assert_eq!(attachment.uri(), "nbd://[::1]:10809/");
        assert!(attachment.qemu().contains("file.server.host=::1,file.server.port=10809"));
    }
}

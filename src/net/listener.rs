//! [`Listener`]: a listening Unix or TCP socket.
//!
//! A Unix socket is made with mode 0600 before anybody can connect to it, one left over by a server
//! that has died is recognised and replaced, and the file is removed when the listener goes, unless
//! somebody else's has taken its place.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::error::{Error, ErrorKind, Result};

use super::Stream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket's path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// A listening socket.
pub struct Listener {
    fd: OwnedFd,
    address: Address,
    /// Device and inode of the Unix socket's file, to recognise it when it is to be removed.
    file: Option<(u64, u64)>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when a server answers there, [`ErrorKind::AlreadyExists`] when the path is
    /// something else than a socket.
    pub fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Unix(path) => bind_unix(path),
            Address::Tcp(address) => bind_tcp(*address),
        }
    }

    /// Where it listens; for TCP port 0, the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the next waiting connection, or waits for one.
    pub fn accept(&self) -> std::io::Result<Stream> {
        let (fd, from) = rustix::net::acceptfrom_with(&self.fd, SocketFlags::CLOEXEC)?;
        let peer = match &self.address {
            Address::Unix(_) => match sockopt::socket_peercred(&fd) {
                Ok(peer) => format!("process {} of user {}", peer.pid.as_raw_nonzero(), peer.uid.as_raw()),
                Err(_) => "an unknown process".to_owned(),
            },
            Address::Tcp(_) => match from.map(SocketAddr::try_from) {
                Some(Ok(address)) => address.to_string(),
                _ => "an unknown address".to_owned(),
            },
        };
        Ok(Stream::new(fd, peer))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && let Ok(now) = fs::symlink_metadata(path)
            && self.file == Some((now.dev(), now.ino()))
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> Result<Listener> {
    let failed = |e: Errno| Error::io(format!("cannot listen at {}", path.display()), e);
    let name = SocketAddrUnix::new(path).map_err(|e| match e {
        Errno::NAMETOOLONG => Error::new(
            ErrorKind::InvalidInput,
            format!(
                "the socket's path {} is longer than the 107 bytes that a Unix socket allows",
                path.display()
            ),
        )
        .hint("choose a shorter one with --socket"),
        e => failed(e),
    })?;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(failed)?;
    match rustix::net::bind(&fd, &name) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path)?;
            rustix::net::bind(&fd, &name).map_err(failed)?;
        }
        result => result.map_err(failed)?,
    }
    // Nobody can connect before `listen`, so nobody connects before the mode is right.
    let private = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
    private.map_err(|e| Error::io(format!("cannot make {} private", path.display()), e))?;
    let made =
        fs::symlink_metadata(path).map_err(|e| Error::io(format!("cannot look at {}", path.display()), e))?;
    rustix::net::listen(&fd, BACKLOG).map_err(failed)?;
    Ok(Listener { fd, address: Address::Unix(path.to_owned()), file: Some((made.dev(), made.ino())) })
}

/// Removes a socket that nobody answers at any more.
fn remove_stale(path: &Path) -> Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if !is_socket {
        let what = format!("{} exists and is not a socket", path.display());
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another path with --socket"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing a socket that its server left behind");
            fs::remove_file(path)
                .map_err(|e| Error::io(format!("cannot remove the stale {}", path.display()), e))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(format!("cannot tell whether a server answers at {}", path.display()), e)),
        Ok(_) => Err(Error::new(ErrorKind::Busy, format!("another server listens at {}", path.display()))
            .hint("choose another path with --socket, or stop that server")),
    }
}

fn bind_tcp(address: SocketAddr) -> Result<Listener> {
    let failed = |e: std::io::Error| Error::io(format!("cannot listen at {address}"), e);
    let listener = std::net::TcpListener::bind(address).map_err(|e| {
        let busy = e.kind() == std::io::ErrorKind::AddrInUse;
        if busy {
            Error::new(ErrorKind::Busy, format!("another server listens at {address}"))
        } else {
            failed(e)
        }
    })?;
    let address = Address::Tcp(listener.local_addr().map_err(failed)?);
    Ok(Listener { fd: listener.into(), address, file: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&Address::Unix(path.clone())).err().unwrap().kind(), ErrorKind::Busy);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let old = Listener::bind(&Address::Unix(path.clone())).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Listener::bind(&Address::Unix(path.clone())).unwrap();
        drop(old);
        assert!(path.exists(), "the old listener must not remove the new one's socket");
        drop(new);
        fs::write(&path, "precious").unwrap();
        assert_eq!(
            Listener::bind(&Address::Unix(path.clone())).err().unwrap().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_long_path_is_explained() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert_eq!(Listener::bind(&Address::Unix(path)).err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}

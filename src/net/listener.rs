//! [`Listener`]: a listening Unix or TCP socket.
//!
//! A Unix socket is made with mode 0600 before anybody can connect to it, one left over by a server
//! that has died is recognised and replaced, and the file is removed when the listener goes, unless
//! somebody else's has taken its place.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::error::{Error, ErrorKind, Result};

use super::{Credentials, Stream};

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
    /// Whether only this process's user, and root, may connect.
    private: bool,
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
    /// Listens at `address`. A Unix socket is for its owner alone, or also for the members of `group`,
    /// where one is given.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when a server answers there, [`ErrorKind::AlreadyExists`] when the path is
    /// something else than a socket.
    pub fn bind(address: &Address, group: Option<u32>) -> Result<Self> {
        match address {
            Address::Unix(path) => bind_unix(path, group),
            Address::Tcp(address) => bind_tcp(*address),
        }
    }

    /// The Unix socket's file, if it was made here and is removed with the listener.
    pub fn own_file(&self) -> Option<&Path> {
        match (&self.address, self.file) {
            (Address::Unix(path), Some(_)) => Some(path),
            _ => None,
        }
    }

    /// Where it listens; for TCP port 0, the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the next waiting connection, or waits for one.
    ///
    /// # Errors
    /// Those of the socket; `PermissionDenied` for another user's process at a private socket, whose
    /// mode somebody must have changed.
    pub fn accept(&self) -> std::io::Result<Stream> {
        let (fd, from) = rustix::net::acceptfrom_with(&self.fd, SocketFlags::CLOEXEC)?;
        let credentials = match &self.address {
            Address::Unix(_) => Some(credentials(&fd)?),
            Address::Tcp(_) => None,
        };
        let peer = match (credentials, from.map(SocketAddr::try_from)) {
            (Some(peer), _) => format!("process {} of user {}", peer.pid, peer.uid),
            (None, Some(Ok(address))) => address.to_string(),
            _ => "an unknown address".to_owned(),
        };
        if self.private && credentials.is_some_and(|peer| !is_own(peer)) {
            return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, peer));
        }
        Ok(Stream::new(fd, peer, credentials))
    }

    /// Takes over a socket that listens already, as a service manager passes it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what is not a listening Unix or TCP stream socket.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self> {
        let unfit = || Error::new(ErrorKind::InvalidInput, "an inherited descriptor is no listening socket");
        let listens = sockopt::socket_acceptconn(&fd).map_err(|_| unfit())?;
        if !listens || sockopt::socket_type(&fd).map_err(|_| unfit())? != SocketType::STREAM {
            return Err(unfit());
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|_| unfit())?;
        let name = rustix::net::getsockname(&fd).map_err(|_| unfit())?;
        let address = match (SocketAddrUnix::try_from(name.clone()), SocketAddr::try_from(name)) {
            (Ok(unix), _) => Address::Unix(unix_path(&unix).ok_or_else(unfit)?),
            (_, Ok(tcp)) => Address::Tcp(tcp),
            _ => return Err(unfit()),
        };
        Ok(Self { fd, address, file: None, private: false })
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

fn credentials(fd: &OwnedFd) -> std::io::Result<Credentials> {
    let peer = sockopt::socket_peercred(fd)?;
    Ok(Credentials { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw(), gid: peer.gid.as_raw() })
}

/// Whether a process is this one's user's, or root's.
fn is_own(peer: Credentials) -> bool {
    peer.uid == 0 || peer.uid == rustix::process::geteuid().as_raw()
}

fn unix_path(name: &SocketAddrUnix) -> Option<PathBuf> {
    name.path_bytes().map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)))
}

fn bind_unix(path: &Path, group: Option<u32>) -> Result<Listener> {
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
    let private = match group {
        None => fs::set_permissions(path, fs::Permissions::from_mode(0o600)),
        Some(_) => std::os::unix::fs::chown(path, None, group)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o660))),
    };
    private.map_err(|e| Error::io(format!("cannot set who may connect to {}", path.display()), e))?;
    let made =
        fs::symlink_metadata(path).map_err(|e| Error::io(format!("cannot look at {}", path.display()), e))?;
    rustix::net::listen(&fd, BACKLOG).map_err(failed)?;
    Ok(Listener {
        fd,
        address: Address::Unix(path.to_owned()),
        file: Some((made.dev(), made.ino())),
        private: group.is_none(),
    })
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
    Ok(Listener { fd: listener.into(), address, file: None, private: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&Address::Unix(path.clone()), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&Address::Unix(path.clone()), None).err().unwrap().kind(), ErrorKind::Busy);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let old = Listener::bind(&Address::Unix(path.clone()), None).unwrap();
        fs::remove_file(&path).unwrap();
        let new = Listener::bind(&Address::Unix(path.clone()), None).unwrap();
        drop(old);
        assert!(path.exists(), "the old listener must not remove the new one's socket");
        drop(new);
        fs::write(&path, "precious").unwrap();
        assert_eq!(
            Listener::bind(&Address::Unix(path.clone()), None).err().unwrap().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_long_path_is_explained() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert_eq!(Listener::bind(&Address::Unix(path), None).err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}

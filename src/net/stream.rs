//! [`Stream`]: a connected socket, shared by its reader and whoever sends on it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sockopt};

/// Bytes that the kernel may queue for sending: room for several large replies, so that a sender
/// seldom sleeps in the middle of one.
const SEND_BUFFER: usize = 4 << 20;

/// Whether a send may sleep until the peer has made room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait for room.
    Wait,
    /// Fail with [`io::ErrorKind::WouldBlock`] instead.
    Now,
}

/// A connected Unix or TCP socket.
pub struct Stream {
    fd: OwnedFd,
    peer: String,
}

impl Stream {
    /// Takes over a connected socket; `peer` names the other side in logs.
    pub(super) fn new(fd: OwnedFd, peer: String) -> Self {
        // The forced size passes the system's limit, and needs a privilege; the plain one is cut to it.
        if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        }
        // Fails on Unix sockets, which never delay.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        Self { fd, peer }
    }

    /// The other side, as logs name it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Receives into `parts` in order; 0 at the end of the stream.
    pub fn receive(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match rustix::io::readv(&self.fd, parts) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Sends some of `parts`, in order; at least one byte unless all are empty.
    pub fn send(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        let flags = match patience {
            Patience::Wait => SendFlags::NOSIGNAL,
            Patience::Now => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        };
        loop {
            match rustix::net::sendmsg(&self.fd, parts, &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Sends all of `bytes`.
    pub fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(&[IoSlice::new(bytes)], Patience::Wait)?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Makes receivers, also one that waits, see the end of the stream; sending goes on.
    pub fn stop_receiving(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
    }

    /// Ends the connection in both directions, for everybody who waits on it.
    pub fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// Limits how long a send waits for room (`None`: for ever). After it a send that has moved nothing
    /// fails with [`io::ErrorKind::WouldBlock`].
    pub fn set_send_deadline(&self, limit: Option<std::time::Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, limit)?)
    }

    /// Has the system ask the other end of a silent TCP connection whether it is still there: after
    /// `idle`, and then four times within as long again. Nothing happens on a Unix socket, whose other
    /// end cannot vanish unnoticed.
    pub fn keep_alive(&self, idle: std::time::Duration) {
        let _ = sockopt::set_tcp_keepidle(&self.fd, idle)
            .and_then(|()| sockopt::set_tcp_keepintvl(&self.fd, idle / 4))
            .and_then(|()| sockopt::set_tcp_keepcnt(&self.fd, 4))
            .and_then(|()| sockopt::set_socket_keepalive(&self.fd, true));
    }

    /// Limits how long a receive waits (`None`: for ever).
    pub fn set_receive_deadline(&self, limit: Option<std::time::Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, limit)?)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

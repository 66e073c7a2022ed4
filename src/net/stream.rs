//! [`Stream`]: a connection, shared by its reader and whoever sends on it; in clear at first, and under
//! TLS from [`Stream::secure`] on.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, sockopt};

use crate::error::Result;

use super::identity::{Credentials, Identity};
use super::tls::{Session, TlsConfig};

/// Bytes that the kernel may queue for sending. Much more would let replies leave the CPU's cache before
/// the client reads them: with 4 MiB, four connections reading 1 MiB at a time get a quarter less.
const SEND_BUFFER: usize = 512 << 10;

/// Whether a send may sleep until the peer has made room, and a receive until it has sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait.
    Wait,
    /// Fail with [`io::ErrorKind::WouldBlock`] instead.
    Now,
}

/// A connection over a Unix or TCP socket.
pub struct Stream {
    socket: Socket,
    peer: String,
    credentials: Option<Credentials>,
    tls: OnceLock<Secured>,
}

/// What TLS adds to a stream.
struct Secured {
    session: Session,
    identity: Identity,
}

/// The socket itself.
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Stream {
    /// Takes over a connected socket; `peer` names the other side in logs.
    pub(super) fn new(fd: OwnedFd, peer: String, credentials: Option<Credentials>) -> Self {
        // The forced size passes the system's limit, and needs a privilege; the plain one is cut to it.
        if sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
        }
        // Fails on Unix sockets, which never delay.
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        Self { socket: Socket { fd }, peer, credentials, tls: OnceLock::new() }
    }

    /// The other side, as logs name it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Who is known to be at the other side. A certificate counts alone: who has shown one is not
    /// taken for a local process as well.
    pub fn identity(&self) -> Identity {
        match (self.tls.get(), self.credentials) {
            (Some(secured), _) => secured.identity.clone(),
            (None, Some(credentials)) => Identity::Process(credentials),
            (None, None) => Identity::Unknown,
        }
    }

    /// Goes over to TLS, as the server. To be called once, before anything else uses the stream at the
    /// same time, and with nothing received that was not consumed.
    ///
    /// # Errors
    /// Where the client does not prove who it is within `limit`; the stream is of no use then.
    pub fn secure(&self, config: &TlsConfig, limit: Duration) -> Result<()> {
        let (session, certificate) = Session::accept(&self.socket, config, limit)?;
        let identity = Identity::Certificate(Box::new(certificate));
        let _ = self.tls.set(Secured { session, identity });
        Ok(())
    }

    /// Receives into `parts` in order; 0 at the end of the stream.
    pub fn receive(&self, parts: &mut [IoSliceMut<'_>], patience: Patience) -> io::Result<usize> {
        match self.tls.get() {
            None => self.socket.receive(parts, patience),
            Some(secured) => secured.session.receive(&self.socket, parts, patience),
        }
    }

    /// Sends some of `parts`, in order; at least one byte unless all are empty. What was taken may wait
    /// in this process until the next call or [`Self::flush`].
    pub fn send(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
        match self.tls.get() {
            None => self.socket.send(parts, patience),
            Some(secured) => secured.session.send(&self.socket, parts, patience),
        }
    }

    /// Sends what [`Self::send`] has taken and not yet passed on.
    pub fn flush(&self, patience: Patience) -> io::Result<()> {
        match self.tls.get() {
            None => Ok(()),
            Some(secured) => secured.session.flush(&self.socket, patience),
        }
    }

    /// Sends all of `bytes`.
    pub fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(&[IoSlice::new(bytes)], Patience::Wait)?;
            bytes = &bytes[sent..];
        }
        self.flush(Patience::Wait)
    }

    /// Makes receivers, also one that waits, see the end of the stream; sending goes on.
    pub fn stop_receiving(&self) {
        let _ = rustix::net::shutdown(&self.socket.fd, Shutdown::Read);
    }

    /// Makes the other side see the end of the stream, behind all that was sent; receiving goes on. Not
    /// for TLS, which says goodbye itself.
    pub fn stop_sending(&self) {
        let _ = rustix::net::shutdown(&self.socket.fd, Shutdown::Write);
    }

    /// Ends the connection in both directions, for everybody who waits on it.
    pub fn hang_up(&self) {
        if let Some(secured) = self.tls.get() {
            secured.session.say_goodbye(&self.socket);
        }
        let _ = rustix::net::shutdown(&self.socket.fd, Shutdown::Both);
    }

    /// Limits how long a receive waits (`None`: for ever). After it a receive that has moved nothing
    /// fails with [`io::ErrorKind::WouldBlock`].
    pub fn set_receive_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        self.socket.set_receive_deadline(limit)
    }

    /// Limits how long a send waits for room (`None`: for ever). After it a send that has moved nothing
    /// fails with [`io::ErrorKind::WouldBlock`].
    pub fn set_send_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.socket.fd, sockopt::Timeout::Send, limit)?)
    }

    /// Has the system ask the other end of a silent TCP connection whether it is still there: after
    /// `idle`, and then four times within as long again. Nothing happens on a Unix socket, whose other
    /// end cannot vanish unnoticed.
    pub fn keep_alive(&self, idle: Duration) {
        let fd = &self.socket.fd;
        let _ = sockopt::set_tcp_keepidle(fd, idle)
            .and_then(|()| sockopt::set_tcp_keepintvl(fd, idle / 4))
            .and_then(|()| sockopt::set_tcp_keepcnt(fd, 4))
            .and_then(|()| sockopt::set_socket_keepalive(fd, true));
    }
}

impl Socket {
    pub(super) fn receive(&self, parts: &mut [IoSliceMut<'_>], patience: Patience) -> io::Result<usize> {
        loop {
            let received = match patience {
                Patience::Wait => rustix::io::readv(&self.fd, parts),
                Patience::Now => {
                    let (mut none, flags) = (RecvAncillaryBuffer::default(), RecvFlags::DONTWAIT);
                    rustix::net::recvmsg(&self.fd, parts, &mut none, flags).map(|message| message.bytes)
                }
            };
            match received {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    pub(super) fn send(&self, parts: &[IoSlice<'_>], patience: Patience) -> io::Result<usize> {
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

    pub(super) fn set_receive_deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, limit)?)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }
}

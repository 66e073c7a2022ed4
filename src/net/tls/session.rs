//! [`Session`]: a TLS connection on a socket that one thread reads and others write.
//!
//! The connection's state has one lock, which is never held across a system call, so that a sender who
//! waits for room does not keep the reader from reading. What is encrypted leaves in the order in which
//! it was encrypted: whoever sends holds `outgoing` meanwhile.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ServerConnection;

use crate::error::{Error, ErrorKind, Result};
use crate::net::stream::{Patience, Socket};

use crate::net::identity::ClientCertificate;

use super::TlsConfig;

/// Plaintext that is encrypted at one go, in bytes: eight records.
const CHUNK: usize = 128 << 10;
/// Ciphertext that is received at one go, in bytes.
const RECEIVE: usize = 128 << 10;

/// An established session.
pub(in crate::net) struct Session {
    connection: Mutex<ServerConnection>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

/// Ciphertext from the socket that the connection has not taken yet.
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Ciphertext that waits to leave.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Session {
    /// Shakes hands; returns when the client has proved who it is.
    ///
    /// # Errors
    /// [`ErrorKind::Permission`] for a client that does not show a certificate that counts,
    /// [`ErrorKind::InvalidInput`] for one that does not speak TLS, [`ErrorKind::Cancelled`] when it
    /// takes longer than `limit`, and the socket's own errors.
    pub(in crate::net) fn accept(
        socket: &Socket,
        config: &TlsConfig,
        limit: Duration,
    ) -> Result<(Self, ClientCertificate)> {
        let began = Instant::now();
        let mut connection = ServerConnection::new(Arc::clone(&config.rustls))
            .map_err(|e| Error::new(ErrorKind::InvalidInput, "no TLS connection can be made").because(e))?;
        connection.set_buffer_limit(None);
        let session = Self {
            connection: Mutex::new(connection),
            incoming: Mutex::new(Incoming { bytes: vec![0; RECEIVE].into(), start: 0, end: 0 }),
            outgoing: Mutex::default(),
        };
        while session.lock().is_handshaking() {
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Cancelled, "the TLS handshake took too long"));
            }
            session.handshake_step(socket, left)?;
        }
        session.flush(socket, Patience::Wait).map_err(lost)?;
        let certificate = session.client_certificate()?;
        Ok((session, certificate))
    }

    fn handshake_step(&self, socket: &Socket, left: Duration) -> Result<()> {
        self.flush(socket, Patience::Wait).map_err(lost)?;
        if !self.lock().wants_read() {
            return Ok(());
        }
        socket.set_receive_deadline(Some(left)).map_err(lost)?;
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        match incoming.fill(socket, Patience::Wait) {
            Ok(0) => return Err(Error::new(ErrorKind::Io, "the client left during the TLS handshake")),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(lost(e)),
        }
        while incoming.start < incoming.end && self.lock().is_handshaking() {
            if let Err(error) = self.take_in(&mut incoming) {
                // The alert that tells the client why.
                let _ = self.flush(socket, Patience::Now);
                return Err(refused(error));
            }
        }
        Ok(())
    }

    fn client_certificate(&self) -> Result<ClientCertificate> {
        match self.lock().peer_certificates() {
            Some([certificate, ..]) => ClientCertificate::parse(certificate),
            _ => Err(Error::new(ErrorKind::Permission, "the client showed no certificate")),
        }
    }

    /// Receives plaintext into `parts`, in order; 0 at the end of the stream.
    pub(in crate::net) fn receive(
        &self,
        socket: &Socket,
        parts: &mut [IoSliceMut<'_>],
        patience: Patience,
    ) -> io::Result<usize> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.lock().reader().read_vectored(parts) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // A stream that ends without goodbye: NBD says itself where a session ends.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if incoming.start == incoming.end && incoming.fill(socket, patience)? == 0 {
                return Ok(0);
            }
            self.take_in(&mut incoming).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        }
    }

    /// Gives the connection some of what was received.
    fn take_in(&self, incoming: &mut Incoming) -> std::result::Result<(), rustls::Error> {
        let mut connection = self.lock();
        let mut rest = &incoming.bytes[incoming.start..incoming.end];
        let before = rest.len();
        connection.read_tls(&mut rest).map_err(|e| rustls::Error::General(e.to_string()))?;
        incoming.start += before - rest.len();
        connection.process_new_packets().map(drop)
    }

    /// Encrypts and sends some of `parts`, in order, at least one byte unless all are empty. What is
    /// taken here but does not leave at once leaves with the next call, or with [`Self::flush`].
    pub(in crate::net) fn send(
        &self,
        socket: &Socket,
        parts: &[IoSlice<'_>],
        patience: Patience,
    ) -> io::Result<usize> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.drain(socket, patience)?;
        let mut taken = 0;
        let mut connection = self.lock();
        for part in parts {
            let part = &part[..part.len().min(CHUNK - taken)];
            connection.writer().write_all(part)?;
            taken += part.len();
        }
        outgoing.collect(connection)?;
        match outgoing.drain(socket, patience) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
            _ => Ok(taken),
        }
    }

    /// Sends whatever is encrypted already.
    pub(in crate::net) fn flush(&self, socket: &Socket, patience: Patience) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        outgoing.collect(self.lock())?;
        outgoing.drain(socket, patience)
    }

    /// Says goodbye, if that takes no waiting.
    pub(in crate::net) fn say_goodbye(&self, socket: &Socket) {
        if let Ok(mut outgoing) = self.outgoing.try_lock() {
            let mut connection = self.lock();
            connection.send_close_notify();
            if outgoing.collect(connection).is_ok() {
                let _ = outgoing.drain(socket, Patience::Now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Incoming {
    /// Receives more ciphertext; called when all was taken.
    fn fill(&mut self, socket: &Socket, patience: Patience) -> io::Result<usize> {
        (self.start, self.end) = (0, 0);
        self.end = socket.receive(&mut [IoSliceMut::new(&mut self.bytes)], patience)?;
        Ok(self.end)
    }
}

impl Outgoing {
    /// Takes what the connection has encrypted.
    fn collect(&mut self, mut connection: MutexGuard<'_, ServerConnection>) -> io::Result<()> {
        while connection.wants_write() {
            connection.write_tls(&mut self.bytes)?;
        }
        Ok(())
    }

    fn drain(&mut self, socket: &Socket, patience: Patience) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            self.sent += socket.send(&[IoSlice::new(&self.bytes[self.sent..])], patience)?;
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

fn lost(error: io::Error) -> Error {
    Error::io("the connection was lost during the TLS handshake", error)
}

/// Why a handshake was refused, in terms of what an administrator can act on.
fn refused(error: rustls::Error) -> Error {
    let (kind, what) = match &error {
        rustls::Error::NoCertificatesPresented => (ErrorKind::Permission, "the client showed no certificate"),
        rustls::Error::InvalidCertificate(_) => {
            (ErrorKind::Permission, "the client's certificate does not count")
        }
        rustls::Error::AlertReceived(_) => (ErrorKind::Permission, "the client refused the TLS handshake"),
        _ => (ErrorKind::InvalidInput, "the TLS handshake failed"),
    };
    Error::new(kind, what).because(error)
}

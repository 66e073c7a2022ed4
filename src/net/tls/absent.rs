//! What stands for TLS in a build without it: nothing can be made of these types, and asking for TLS is
//! an error, never a connection without it.

use std::convert::Infallible;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::net::identity::ClientCertificate;
use crate::net::stream::{Patience, Socket};

/// What cannot be configured here.
#[derive(Clone)]
pub struct TlsConfig(Infallible);

pub(in crate::net) struct Session(Infallible);

impl TlsConfig {
    /// Refuses.
    ///
    /// # Errors
    /// Always [`ErrorKind::Unsupported`].
    pub fn load(_directory: &Path) -> Result<Self> {
        let error = Error::new(ErrorKind::Unsupported, "this program was built without TLS");
        Err(error.hint("build it with the feature aws-lc, which is on by default"))
    }
}

impl Session {
    pub(in crate::net) fn accept(
        _: &Socket,
        config: &TlsConfig,
        _: Duration,
    ) -> Result<(Self, ClientCertificate)> {
        match config.0 {}
    }

    pub(in crate::net) fn receive(
        &self,
        _: &Socket,
        _: &mut [IoSliceMut<'_>],
        _: Patience,
    ) -> io::Result<usize> {
        match self.0 {}
    }

    pub(in crate::net) fn send(&self, _: &Socket, _: &[IoSlice<'_>], _: Patience) -> io::Result<usize> {
        match self.0 {}
    }

    pub(in crate::net) fn flush(&self, _: &Socket, _: Patience) -> io::Result<()> {
        match self.0 {}
    }

    pub(in crate::net) fn say_goodbye(&self, _: &Socket) {
        match self.0 {}
    }
}

//! What a service manager passes in and wants to hear: listening sockets that it has opened
//! (sd_listen_fds(3)), and when the service is ready or stops (sd_notify(3)).

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{Error, ErrorKind, Result};
use crate::sys;

use super::Listener;

/// The first inherited descriptor.
const FIRST: i32 = 3;
/// The most sockets that are taken over.
const MOST: u32 = 64;

/// The sockets that were passed to this process, none when it was started by hand.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when what was passed is not a listening stream socket.
pub fn inherited_listeners() -> Result<Vec<Listener>> {
    let variable = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    // The variables may be meant for a parent that forgot to unset them.
    if variable("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").unwrap_or(0);
    if count > MOST {
        let what = format!("{count} inherited sockets are more than the {MOST} that are taken over");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let count = i32::try_from(count).unwrap_or(0);
    let take = |number| {
        let fd = sys::duplicate_descriptor(number)
            .map_err(|e| Error::io(format!("the inherited descriptor {number} cannot be used"), e))?;
        Listener::adopt(fd)
    };
    (FIRST..FIRST + count).map(take).collect()
}

/// Tells the service manager how the service is; nobody, when none asked.
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Connects to the manager, if there is one, so that later words need no path any more.
    pub fn connect() -> Self {
        let connect = |name: &OsStr| {
            let socket = UnixDatagram::unbound().ok()?;
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
                _ => SocketAddr::from_pathname(name).ok()?,
            };
            socket.connect_addr(&address).ok()?;
            Some(socket)
        };
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = name.as_deref().and_then(connect);
        if name.is_some() && socket.is_none() {
            tracing::warn!("the service manager's NOTIFY_SOCKET cannot be reached");
        }
        Self { socket }
    }

    /// The service does its work; `status` is a line for people.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=flushing and stopping\n");
    }

    fn say(&self, what: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(what.as_bytes())
        {
            tracing::warn!(%error, "the service manager does not listen");
        }
    }
}

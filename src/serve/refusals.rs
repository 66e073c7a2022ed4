//! [`Refusals`]: what the server does not do for somebody: counted, and told in the log in a line each, as
//! long as there are few. Of a flood it tells the beginning, and then how many more there were.
//!
//! A line names the peer as the system knows it, the export by its own name, and the reason in this
//! program's words: nothing that a client sent stands in it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::net::{Identity, Stream};

/// Lines of one kind of peer in [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What was refused, as figures tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A connection: no more clients can attach.
    Connections,
    /// A handshake that made room for a newer one.
    Ousted,
    /// A handshake that took too long.
    HandshakeTimeout,
    /// A handshake that broke the protocol.
    Handshake,
    /// An export that does not exist, or not for this client.
    Export,
    /// A handshake without TLS where that is required.
    TlsRequired,
    /// A TLS handshake: a certificate that does not count, or no TLS at all.
    Tls,
    /// A request, before anything was done for it.
    Request,
    /// A request that was carried out, and failed.
    Failed,
    /// A stream of requests that broke the protocol.
    Protocol,
    /// A request that stopped arriving.
    Stalled,
    /// Replies that the client did not read.
    Unread,
    /// A connection that a fault of this server ended.
    Fault,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 13] = [
        Self::Connections,
        Self::Ousted,
        Self::HandshakeTimeout,
        Self::Handshake,
        Self::Export,
        Self::TlsRequired,
        Self::Tls,
        Self::Request,
        Self::Failed,
        Self::Protocol,
        Self::Stalled,
        Self::Unread,
        Self::Fault,
    ];

    /// Its name among the figures, and in the log.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Ousted => "ousted",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Handshake => "handshake",
            Self::Export => "export",
            Self::TlsRequired => "tls_required",
            Self::Tls => "tls",
            Self::Request => "request",
            Self::Failed => "failed",
            Self::Protocol => "protocol",
            Self::Stalled => "stalled",
            Self::Unread => "unread",
            Self::Fault => "fault",
        }
    }
}

/// What kind of peer it is: a flood of one kind must not hide what another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A process at a Unix socket.
    Local,
    /// A client with a certificate that counts.
    Certified,
    /// Anybody else, over TCP.
    Remote,
}

impl Peer {
    /// As far as it is known by now.
    pub(super) fn of(stream: &Stream) -> Self {
        match stream.identity() {
            Identity::Process(_) => Self::Local,
            Identity::Certificate(_) => Self::Certified,
            Identity::Unknown => Self::Remote,
        }
    }
}

/// The log's share of what is refused.
#[derive(Default)]
pub(super) struct Refusals {
    peers: [Mutex<Lines>; 3],
}

/// One kind of peer's lines.
#[derive(Default)]
struct Lines {
    began: Option<Instant>,
    told: u32,
    suppressed: u64,
}

impl Refusals {
    /// Tells of something that was refused.
    pub(super) fn tell(
        &self,
        peer: Peer,
        who: &str,
        export: Option<&str>,
        kind: Kind,
        why: &dyn fmt::Display,
    ) {
        let may = self.lines(peer).may_tell(Instant::now());
        if may {
            let (reason, export) = (kind.label(), export.unwrap_or("-"));
            tracing::warn!(peer = who, export, reason, "refused: {why}");
        }
    }

    /// Tells how many lines were left out, where that has not been said for a while. Says whether there
    /// will be something to tell later.
    pub(super) fn catch_up(&self) -> bool {
        let now = Instant::now();
        let left = [Peer::Local, Peer::Certified, Peer::Remote].map(|peer| self.lines(peer).catch_up(now));
        left.contains(&true)
    }

    /// Tells at once how many lines were left out.
    pub(super) fn finish(&self) {
        for peer in [Peer::Local, Peer::Certified, Peer::Remote] {
            self.lines(peer).tell_suppressed();
        }
    }

    fn lines(&self, peer: Peer) -> MutexGuard<'_, Lines> {
        self.peers[peer as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn may_tell(&mut self, now: Instant) -> bool {
        self.catch_up(now);
        self.began.get_or_insert(now);
        if self.told < LINES {
            self.told += 1;
            return true;
        }
        self.suppressed += 1;
        false
    }

    /// Begins anew when the window is over. Says whether lines were left out that were not told of yet.
    fn catch_up(&mut self, now: Instant) -> bool {
        if self.began.is_some_and(|began| now.saturating_duration_since(began) >= WINDOW) {
            self.tell_suppressed();
            (self.began, self.told) = (None, 0);
        }
        self.suppressed > 0
    }

    fn tell_suppressed(&mut self) {
        if self.suppressed > 0 {
            tracing::warn!("refused: {} more like these, not told one by one", self.suppressed);
            self.suppressed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::with_log;

    fn tell(refusals: &Refusals, peer: Peer) {
        refusals.tell(peer, "process 1 of user 2", Some("vm"), Kind::Request, &"22");
    }

    #[test]
    fn a_refusal_is_a_line_with_peer_export_and_reason() {
        with_log(|log| {
            tell(&Refusals::default(), Peer::Local);
            let lines = log.lines();
            assert_eq!(lines.len(), 1);
            for part in
                ["WARN", "refused: 22", "peer=\"process 1 of user 2\"", "export=\"vm\"", "reason=\"request\""]
            {
                assert!(lines[0].contains(part), "{lines:?}");
            }
        });
    }

    #[test]
    fn a_flood_is_cut_off_and_summed_up() {
        with_log(|log| {
            let refusals = Refusals::default();
            (0..1000).for_each(|_| tell(&refusals, Peer::Local));
            assert!(refusals.lines(Peer::Local).suppressed >= 1000 - 2 * u64::from(LINES));
            let told = log.lines().iter().filter(|line| line.contains("reason=")).count();
            // The thousand may lie on both sides of a window's end.
            assert!((10..=20).contains(&told), "{told}");
            tell(&refusals, Peer::Remote);
            assert_eq!(log.lines().len(), 1, "another kind of peer has lines of its own");
            refusals.finish();
            let rest = log.lines();
            assert!(rest.len() == 1 && rest[0].contains(" more like these"), "{rest:?}");
            refusals.finish();
            assert_eq!(log.lines(), Vec::<String>::new());
        });
    }

    #[test]
    fn the_next_window_has_lines_again_and_begins_with_the_sum() {
        with_log(|log| {
            let mut lines = Lines::default();
            let start = Instant::now();
            assert_eq!((0..15).filter(|_| lines.may_tell(start)).count(), 10);
            assert!(lines.catch_up(start) && log.lines().is_empty());
            assert!(lines.may_tell(start + WINDOW));
            assert!(log.lines()[0].contains("5 more like these"));
            assert!(!lines.catch_up(start + WINDOW) && log.lines().is_empty());
        });
    }

    #[test]
    fn kinds_stand_where_their_numbers_say() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }
}

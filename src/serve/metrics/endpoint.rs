//! [`Endpoint`]: tells the figures over HTTP/1, on a socket and a thread of its own.
//!
//! It answers `GET /metrics`, one connection at a time, each within a deadline and with 4 KiB of request
//! at most, and closes it after the answer. Nothing that is asked changes anything.

use std::io::{self, BufWriter, IoSliceMut, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::net::{Listener, Patience, Stream};

use super::text::Now;
use crate::serve::server::Shared;

/// The longest request, its headers included.
const MAX_REQUEST: usize = 4096;
/// What is sent at one go.
const PIECE: usize = 16 << 10;

/// A socket where the figures are to be had.
pub(in crate::serve) struct Endpoint {
    pub(in crate::serve) listener: Listener,
    pub(in crate::serve) shared: Arc<Shared>,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Figures,
    FiguresHead,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLong,
}

impl Answer {
    /// RFC 9110, 15: Status Codes.
    fn status(self) -> &'static str {
        match self {
            Self::Figures | Self::FiguresHead => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::TooLong => "431 Request Header Fields Too Large",
        }
    }
}

impl Endpoint {
    /// Answers until the server stops.
    pub(in crate::serve) fn run(&self) {
        let stopper = &self.shared.stopper;
        while !stopper.is_stopping() {
            let wake = PollFd::from_borrowed_fd(stopper.wake(), PollFlags::IN);
            let socket = PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN);
            let _ = rustix::event::poll(&mut [wake, socket], None);
            if stopper.is_stopping() {
                return;
            }
            match self.listener.accept() {
                Ok(stream) => {
                    if let Err(error) = self.answer(&stream) {
                        tracing::debug!(peer = stream.peer(), %error, "nobody was told the figures");
                    }
                    stream.hang_up();
                }
                // The system's lack of descriptors passes.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn answer(&self, stream: &Stream) -> io::Result<()> {
        let deadline = Instant::now() + self.shared.limits.scrape;
        let answer = request(stream, deadline)?;
        let mut out = BufWriter::with_capacity(PIECE, Timed { stream, deadline });
        let kind =
            if answer.status().starts_with("200") { "text/plain; version=0.0.4" } else { "text/plain" };
        // RFC 9112, 6.3: without a length the answer goes to the end of the connection.
        let allow = if answer == Answer::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let status = answer.status();
        write!(
            out,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\n{allow}Connection: close\r\n\r\n"
        )?;
        match answer {
            Answer::Figures => self.shared.metrics.write(&mut out, &self.now())?,
            Answer::FiguresHead => {}
            _ => writeln!(out, "{status}")?,
        }
        out.flush()?;
        linger(stream, deadline);
        Ok(())
    }

    fn now(&self) -> Now {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let shared = &self.shared;
        Now {
            attached: count(shared.registry.attached()),
            shaking_hands: count(shared.registry.shaking_hands()),
            memory_limit: count(shared.limits.memory),
            memory_kept: count(shared.pool.kept()),
        }
    }
}

/// Reads a request to the end of its headers and judges it.
fn request(stream: &Stream, deadline: Instant) -> io::Result<Answer> {
    let mut bytes = [0; MAX_REQUEST];
    let mut len = 0;
    loop {
        let received = receive(stream, &mut bytes[len..], deadline)?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += received;
        if bytes[..len].windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(judge(&bytes[..len]));
        }
        if len == bytes.len() {
            return Ok(Answer::TooLong);
        }
    }
}

/// RFC 9112, 3: Request Line.
fn judge(request: &[u8]) -> Answer {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return Answer::BadRequest };
    if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") || !method.iter().all(u8::is_ascii_uppercase) {
        return Answer::BadRequest;
    }
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    match (path, method) {
        (b"/metrics", b"GET") => Answer::Figures,
        (b"/metrics", b"HEAD") => Answer::FiguresHead,
        (b"/metrics", _) => Answer::MethodNotAllowed,
        _ => Answer::NotFound,
    }
}

/// Ends the answer, and waits a moment for the other side to do the same: an end while something that it
/// sent lies unread would take the answer away from it.
fn linger(stream: &Stream, deadline: Instant) {
    stream.stop_sending();
    let mut left = 16 * MAX_REQUEST;
    let mut bytes = [0; 512];
    while let Ok(received @ 1..) = receive(stream, &mut bytes, deadline) {
        left = left.saturating_sub(received);
        if left == 0 {
            return;
        }
    }
}

fn receive(stream: &Stream, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    stream.set_receive_deadline(Some(left(deadline)?))?;
    stream.receive(&mut [IoSliceMut::new(into)], Patience::Wait)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Writes to a stream until a deadline.
struct Timed<'a> {
    stream: &'a Stream,
    deadline: Instant,
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_send_deadline(Some(left(self.deadline)?))?;
        self.stream.send(&[io::IoSlice::new(bytes)], Patience::Wait)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_judged_by_their_first_line() {
        for (line, answer) in [
            ("GET /metrics HTTP/1.1", Answer::Figures),
            ("GET /metrics?name=x HTTP/1.0", Answer::Figures),
            ("HEAD /metrics HTTP/1.1", Answer::FiguresHead),
            ("POST /metrics HTTP/1.1", Answer::MethodNotAllowed),
            ("GET / HTTP/1.1", Answer::NotFound),
            ("GET /metrics/../etc/passwd HTTP/1.1", Answer::NotFound),
            ("GET http://host/metrics HTTP/1.1", Answer::NotFound),
            ("GET /metrics HTTP/2.0", Answer::BadRequest),
            ("PRI * HTTP/2.0", Answer::BadRequest),
            ("GET /metrics", Answer::BadRequest),
            ("GET  /metrics HTTP/1.1", Answer::BadRequest),
            ("get /metrics HTTP/1.1", Answer::BadRequest),
            ("GET /metrics HTTP/1.1 x", Answer::BadRequest),
            ("", Answer::BadRequest),
            ("\0\u{ff}", Answer::BadRequest),
        ] {
            assert_eq!(judge(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()), answer, "{line:?}");
        }
    }
}

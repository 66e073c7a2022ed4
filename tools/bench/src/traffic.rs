//! [`Traffic`]: a fixed rate of block I/O on a server, in the background, checked as it goes.
//!
//! One thread sends requests on a schedule, another takes the replies. Where the server cannot keep up,
//! no more than [`DEPTH`] requests wait, and the rate is missed, which is told.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;
use serde::{Deserialize, Serialize};

use crate::client::{self, Client, STAMP_EVERY, has_stamp, noise, put_stamp, wrong_data};
use crate::figure::float;
use crate::server::Server;

/// Requests in flight, at most.
const DEPTH: usize = 32;

/// What the requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Io {
    Read,
    Write,
    /// In turns.
    Mixed,
}

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) io: Io,
    /// Bytes per second.
    pub(crate) rate: ByteCount,
    /// Bytes of a request, a multiple of [`STAMP_EVERY`].
    pub(crate) len: u32,
    /// The requests stay within the disk's first so many bytes.
    pub(crate) span: u64,
    /// Whether what is read was written by [`Client::fill`] or by us.
    pub(crate) checked: bool,
}

/// What was moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl Moved {
    /// Bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        float(self.bytes.into()) / self.time.as_secs_f64().max(1e-9)
    }
}

/// A request in flight.
#[derive(Clone, Copy)]
struct Request {
    at: u64,
    write: bool,
}

#[derive(Default)]
struct State {
    /// By cookie.
    in_flight: Vec<(u64, Request)>,
    moved: u64,
    failed: Option<Error>,
}

struct Shared {
    state: Mutex<State>,
    /// A reply came, or something failed.
    changed: Condvar,
    stop: AtomicBool,
}

/// I/O that goes on until it is finished or dropped.
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    stream: UnixStream,
    threads: Vec<JoinHandle<()>>,
    start: Instant,
}

impl Traffic {
    pub(crate) fn start(server: &Server, plan: Plan) -> Result<Self> {
        let cannot = |e| Error::io("cannot load a server", e);
        let client = server.connect()?;
        let stream = client.stream.try_clone().map_err(cannot)?;
        let replies = client.stream.try_clone().map_err(cannot)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let mut traffic = Self { shared, stream, threads: Vec::new(), start: Instant::now() };
        let (sender, receiver) = (Arc::clone(&traffic.shared), Arc::clone(&traffic.shared));
        traffic.spawn(move || sender.send_all(client, plan)).map_err(cannot)?;
        traffic.spawn(move || receiver.receive_all(replies, plan)).map_err(cannot)?;
        Ok(traffic)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().spawn(work)?);
        Ok(())
    }

    /// What has been moved so far.
    pub(crate) fn moved(&self) -> Moved {
        Moved { bytes: self.shared.lock().moved, time: self.start.elapsed() }
    }

    /// Ends it, once all that is in flight has been answered; whether all went well.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.end();
        match self.shared.lock().failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in it has been reported on standard error.
            let _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            // Nobody wants the rest any more.
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            self.end();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.failed.get_or_insert(error);
        state.in_flight.clear();
        drop(state);
        self.stop.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// The sending thread.
    fn send_all(&self, mut client: Client, plan: Plan) {
        if let Err(error) = self.send_on_schedule(&mut client, plan) {
            self.fail(Error::io("cannot send a request", error));
        }
        let state = self.lock();
        let waiting = |state: &mut State| !state.in_flight.is_empty();
        drop(self.changed.wait_while(state, waiting));
        // The receiving thread sees the end.
        let _ = client.stream.shutdown(std::net::Shutdown::Both);
    }

    fn send_on_schedule(&self, client: &mut Client, plan: Plan) -> io::Result<()> {
        let interval = Duration::from_secs_f64(f64::from(plan.len) / float(plan.rate.0.max(1).into()));
        let mut payload = noise(usize::try_from(plan.len).unwrap_or(STAMP_EVERY));
        let mut due = Instant::now();
        for cookie in 0.. {
            let now = Instant::now();
            // What was missed stays missed: no burst makes up for it.
            due = due.max(now.checked_sub(interval * u32::try_from(DEPTH).unwrap_or(1)).unwrap_or(now));
            std::thread::sleep(due.saturating_duration_since(now));
            due += interval;
            let request = plan.request(cookie);
            if !self.admit(cookie, request) {
                return Ok(());
            }
            let command = if request.write { client::WRITE } else { client::READ };
            client.stream.write_all(&client::request(command, cookie, request.at, plan.len))?;
            if request.write {
                for (at, block) in (request.at..).step_by(STAMP_EVERY).zip(payload.chunks_mut(STAMP_EVERY)) {
                    put_stamp(block, at);
                }
                client.stream.write_all(&payload)?;
            }
        }
        Ok(())
    }

    /// Waits until one more may be in flight; not, once it is to end.
    fn admit(&self, cookie: u64, request: Request) -> bool {
        let full = |state: &mut State| state.in_flight.len() >= DEPTH && !self.stop.load(Ordering::Relaxed);
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        let go_on = !self.stop.load(Ordering::Relaxed);
        if go_on {
            state.in_flight.push((cookie, request));
        }
        go_on
    }

    /// The receiving thread.
    fn receive_all(&self, stream: UnixStream, plan: Plan) {
        let mut stream = io::BufReader::with_capacity(1 << 18, stream);
        let mut data = vec![0; usize::try_from(plan.len).unwrap_or(0)];
        loop {
            let cookie = match client::reply(&mut stream) {
                Ok(cookie) => cookie,
                Err(_) if self.stop.load(Ordering::Relaxed) && self.lock().in_flight.is_empty() => return,
                Err(error) => return self.fail(Error::io("cannot receive a reply", error)),
            };
            let Some(request) = self.request_of(cookie) else {
                return self.fail(Error::new(ErrorKind::Io, "the server replied to nothing"));
            };
            if !request.write {
                if let Err(error) = stream.read_exact(&mut data) {
                    return self.fail(Error::io("cannot receive data", error));
                }
                let mut blocks = (request.at..).step_by(STAMP_EVERY).zip(data.chunks(STAMP_EVERY));
                if let Some((at, _)) = blocks.find(|(at, block)| plan.checked && !has_stamp(block, *at)) {
                    return self.fail(wrong_data(at));
                }
            }
            self.answered(cookie, plan.len);
        }
    }

    fn request_of(&self, cookie: u64) -> Option<Request> {
        let state = self.lock();
        state.in_flight.iter().find(|(number, _)| *number == cookie).map(|(_, request)| *request)
    }

    fn answered(&self, cookie: u64, len: u32) {
        let mut state = self.lock();
        state.in_flight.retain(|(number, _)| *number != cookie);
        state.moved += u64::from(len);
        drop(state);
        self.changed.notify_all();
    }
}

impl Plan {
    /// The request of this number: somewhere on the disk, so that no cache of the server's foresees it.
    fn request(&self, number: u64) -> Request {
        let places = (self.span / u64::from(self.len)).max(1);
        let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) % places;
        let write = match self.io {
            Io::Read => false,
            Io::Write => true,
            Io::Mixed => number.is_multiple_of(2),
        };
        Request { at: place * u64::from(self.len), write }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_within_their_span() {
        let plan = Plan { io: Io::Mixed, rate: ByteCount(1), len: 65_536, span: 1 << 20, checked: true };
        let requests: Vec<_> = (0..1000).map(|number| plan.request(number)).collect();
        assert!(requests.iter().all(|request| request.at % 65_536 == 0 && request.at + 65_536 <= 1 << 20));
        assert_eq!(requests.iter().filter(|request| request.write).count(), 500);
        let mut places: Vec<_> = requests.iter().map(|request| request.at).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 16, "every place is asked for");
    }
}

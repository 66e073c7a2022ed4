//! What io_uring would save a request of 4 KiB: the system calls of an NBD server without anything else that it
//! does, by system calls as `serve/` makes them and by a ring, in answer to the same client.
//!
//! `cargo bench --bench io_uring`. Between the store and the socket lies the cipher, so that a ring takes two turns for
//! a batch of reads (all reads; the reply, and receiving what comes next), and one for a batch of writes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use io_uring::{IoUring, opcode, types};
use rustix::net::{RecvFlags, recv};

const PAGE_LEN: u32 = 4096;
const PAGE: usize = PAGE_LEN as usize;
/// proto.md, Request message and Simple reply message.
const REQUEST: usize = 28;
const REPLY: usize = 16;

#[derive(Clone, Copy)]
enum Way {
    SystemCalls,
    Ring,
}

/// Which of the two the requests are.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

impl Kind {
    /// Bytes of so many requests, and of their replies.
    fn sizes(self, depth: usize) -> (usize, usize) {
        match self {
            Self::Read => (depth * REQUEST, depth * (REPLY + PAGE)),
            Self::Write => (depth * (REQUEST + PAGE), depth * REPLY),
        }
    }
}

/// A server of batches of `depth` requests, which it does not look at: they are for the first pages of `store`.
struct Server {
    socket: UnixStream,
    store: File,
    kind: Kind,
    depth: usize,
    received: Vec<u8>,
    pages: Vec<u8>,
    headers: Vec<u8>,
}

impl Server {
    fn new(socket: UnixStream, store: File, kind: Kind, depth: usize) -> Self {
        let received = vec![0; kind.sizes(depth).0];
        Self {
            socket,
            store,
            kind,
            depth,
            received,
            pages: vec![7; depth * PAGE],
            headers: vec![0; depth * REPLY],
        }
    }

    /// Until the client hangs up.
    fn run(&mut self, way: Way) -> io::Result<()> {
        match way {
            Way::SystemCalls => loop {
                self.receive()?;
                self.serve_by_system_calls()?;
            },
            Way::Ring => self.serve_by_ring(),
        }
    }

    /// Waits for a whole batch, as the ring does: whoever is woken for every piece of one is slower by that.
    fn receive(&mut self) -> io::Result<()> {
        let (received, _) = recv(&self.socket, &mut *self.received, RecvFlags::WAITALL)?;
        if received < self.received.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn serve_by_system_calls(&mut self) -> io::Result<()> {
        for (number, page) in self.pages.chunks_exact_mut(PAGE).enumerate() {
            let at = (number * PAGE) as u64;
            match self.kind {
                Kind::Read => self.store.read_exact_at(page, at)?,
                Kind::Write => self.store.write_all_at(page, at)?,
            }
        }
        let mut reply = self.reply();
        let mut rest = reply.as_mut_slice();
        while !rest.is_empty() {
            let sent = (&self.socket).write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    /// Headers, each with its page if it was a read.
    fn reply(&self) -> Vec<IoSlice<'_>> {
        let headers = self.headers.chunks_exact(REPLY);
        match self.kind {
            Kind::Read => headers
                .zip(self.pages.chunks_exact(PAGE))
                .flat_map(|(header, page)| [IoSlice::new(header), IoSlice::new(page)])
                .collect(),
            Kind::Write => vec![IoSlice::new(&self.headers)],
        }
    }

    fn serve_by_ring(&mut self) -> io::Result<()> {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(u32::try_from(self.depth + 2).unwrap_or(64))?;
        ring.submitter().register_files(&[self.store.as_raw_fd(), self.socket.as_raw_fd()])?;
        self.receive()?;
        loop {
            self.push_pages(&mut ring)?;
            let mut turn = self.depth;
            if matches!(self.kind, Kind::Read) {
                wait(&mut ring, turn)?;
                turn = 0;
            }
            let reply = self.reply();
            let send = opcode::Writev::new(
                types::Fixed(1),
                reply.as_ptr().cast(),
                u32::try_from(reply.len()).unwrap_or(0),
            );
            let receive = opcode::Recv::new(
                types::Fixed(1),
                self.received.as_mut_ptr(),
                u32::try_from(self.received.len()).unwrap_or(0),
            )
            .flags(libc::MSG_WAITALL);
            for entry in [send.build(), receive.build()] {
                // SAFETY: what the entry points to lives until `wait` has seen its end.
                unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
            }
            wait(&mut ring, turn + 2)?;
        }
    }

    /// One entry for each page.
    fn push_pages(&mut self, ring: &mut IoUring) -> io::Result<()> {
        let kind = self.kind;
        for (number, page) in self.pages.chunks_exact_mut(PAGE).enumerate() {
            let (at, len) = ((number * PAGE) as u64, PAGE_LEN);
            let entry = match kind {
                Kind::Read => opcode::Read::new(types::Fixed(0), page.as_mut_ptr(), len).offset(at).build(),
                Kind::Write => opcode::Write::new(types::Fixed(0), page.as_ptr(), len).offset(at).build(),
            };
            // SAFETY: the page lives in `self`, until after `wait` has seen the entry's end.
            unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Submits, and waits for so many ends; an error or a short transfer is one of the whole.
fn wait(ring: &mut IoUring, ends: usize) -> io::Result<()> {
    ring.submit_and_wait(ends)?;
    for end in ring.completion() {
        match end.result() {
            error if error < 0 => return Err(io::Error::from_raw_os_error(-error)),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
    Ok(())
}

fn transport(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("io_uring");
    for (name, kind) in [("read", Kind::Read), ("write", Kind::Write)] {
        for depth in [1, 32] {
            group.throughput(Throughput::Elements(depth as u64));
            for (way, told) in [(Way::SystemCalls, "system calls"), (Way::Ring, "ring")] {
                let (mut client, socket) = UnixStream::pair().expect("a pair of sockets");
                let store = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
                store.set_len((32 * PAGE) as u64).expect("room for 32 pages");
                store.write_all_at(&vec![1; 32 * PAGE], 0).expect("room for 32 pages");
                let server = std::thread::spawn(move || Server::new(socket, store, kind, depth).run(way));
                let (requests, replies) = kind.sizes(depth);
                let (requests, mut replies) = (vec![3; requests], vec![0; replies]);
                group.bench_function(BenchmarkId::new(format!("{name}, {told}"), depth), |bencher| {
                    bencher.iter(|| {
                        client.write_all(&requests).expect("the server receives");
                        client.read_exact(&mut replies).expect("the server replies");
                    });
                });
                drop(client);
                let end = server.join().expect("no panic").expect_err("it runs until its client leaves");
                assert!(
                    matches!(end.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
                    "{end}"
                );
            }
        }
    }
    group.finish();
}

criterion_group!(benches, transport);
criterion_main!(benches);

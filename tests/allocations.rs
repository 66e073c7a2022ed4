//! Small requests allocate nothing once a connection is warm: a server over a LUKS volume in memory, a
//! client at the other end of a socket, and an allocator that counts what every thread does, so that the
//! receiver, the judge of requests, the buffers, the cipher, the replies and the outbox are all in it.
//!
//! One test in one program: whatever else ran beside it would be counted too.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::alloc::System;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hostveil::backing::{Backing, MemoryBacking};
use hostveil::block::{BufferPool, ByteGranular, Disk};
use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm};
use hostveil::env::{OsEntropy, Silent};
use hostveil::luks;
use hostveil::nbd::Export;
use hostveil::net::{Address, Listener};
use hostveil::secret::{Passphrase, SecretBytes};
use hostveil::serve::{Access, Front, Offer, Options, Server, Service};
use hostveil::units::{BlockSize, ByteCount};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SIZE: u64 = 4 << 20;
const LEN: usize = 4096;
const READ: u8 = 0;
const WRITE: u8 = 1;
/// Requests that are sent together.
const TOGETHER: usize = 16;

/// A LUKS volume in memory, as `volume::open` stacks it but for the file.
fn volume(pool: &BufferPool) -> Disk {
    let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(ByteCount(luks::DATA_OFFSET.0 + SIZE)));
    let passphrase = || Passphrase::new(SecretBytes::copy_of(b"a passphrase").unwrap());
    let options = luks::FormatOptions {
        data_size: ByteCount(SIZE),
        sector_size: BlockSize::B4096,
        label: String::new(),
        pbkdf: luks::Pbkdf::Exactly(KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 }),
        apart: false,
    };
    luks::format(store.as_ref(), &options, &passphrase(), &OsEntropy, &Silent).unwrap();
    let header = luks::RawHeader::read(store.as_ref()).unwrap();
    let header = header.check(&CostLimits::of_this_machine()).unwrap();
    let unlocked = header.unlock(store.as_ref(), &passphrase(), None).unwrap();
    let options = luks::DeviceOptions { read_only: false, discard: luks::DiscardPolicy::Ignore };
    let device = luks::Device::new(store, unlocked, options, pool.clone()).unwrap();
    Disk::new(ByteGranular::new(Disk::new(device), pool.clone()))
}

/// A client that allocates nothing either, once it is attached.
struct Client {
    stream: UnixStream,
    requests: Vec<u8>,
    replies: Vec<u8>,
}

impl Client {
    /// A connection in transmission, with simple replies.
    fn attach(socket: &std::path::Path) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(export[..8], SIZE.to_be_bytes());
        Self { stream, requests: vec![0; TOGETHER * (28 + LEN)], replies: vec![0; TOGETHER * (16 + LEN)] }
    }

    /// Sends `count` requests in one piece, at places next to each other, and takes the replies.
    fn exchange(&mut self, kind: u8, count: usize) {
        let (request_len, reply_len) = match kind {
            WRITE => (28 + LEN, 16),
            _ => (28, 16 + LEN),
        };
        for (number, request) in self.requests.chunks_exact_mut(request_len).take(count).enumerate() {
            request[..28].fill(0);
            request[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
            request[7] = kind;
            request[16..24].copy_from_slice(&((number * LEN) as u64).to_be_bytes());
            request[24..28].copy_from_slice(&4096_u32.to_be_bytes());
            request[28..].fill(0x5a);
        }
        self.stream.write_all(&self.requests[..count * request_len]).unwrap();
        let replies = &mut self.replies[..count * reply_len];
        self.stream.read_exact(replies).unwrap();
        for reply in replies.chunks_exact(reply_len) {
            assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "no good reply");
            assert!(reply[16..].iter().all(|byte| *byte == 0x5a), "not what was written");
        }
    }

    /// Both commands, alone and many at once.
    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            for together in [1, TOGETHER] {
                self.exchange(WRITE, together);
                self.exchange(READ, together);
            }
        }
    }
}

#[test]
fn small_requests_allocate_nothing_in_the_steady_state() {
    let options = Options::default();
    let pool = options.limits.pool();
    let disk = volume(&pool);
    let export = Export::new("", "", disk.geometry(), disk.capabilities()).unwrap();
    let service = Service { export, disk, access: Access::default() };
    let server = Server::new(vec![service], pool, options).unwrap();
    let stopper = server.stopper();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = Listener::bind(&Address::Unix(socket.clone()), None).unwrap();
    let running = std::thread::spawn(move || server.run(vec![Front { listener, offer: Offer::all() }]));

    let mut client = Client::attach(&socket);
    client.rounds(200);
    let region = Region::new(ALLOCATOR);
    client.rounds(500);
    let change = region.change();
    let requests = 500 * 2 * (1 + TOGETHER);
    assert_eq!(
        (change.allocations, change.reallocations),
        (0, 0),
        "{requests} requests allocated {} bytes",
        change.bytes_allocated
    );
    drop(client);
    stopper.stop();
    running.join().unwrap().unwrap();
    // The count is no constant: making a vector is seen.
    let region = Region::new(ALLOCATOR);
    drop(std::hint::black_box(vec![1_u8]));
    assert_eq!(region.change().allocations, 1);
}

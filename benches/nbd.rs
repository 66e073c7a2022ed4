//! The NBD codec alone: judging a request's header, building a reply's, a whole handshake.
//!
//! `cargo bench --bench nbd`; beside what a system call costs, all of it should be nothing.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use hostveil::block::{Capabilities, Discard, Geometry};
use hostveil::nbd::wire::NBD_REQUEST_MAGIC;
use hostveil::nbd::{Echo, Export, Exports, Handshake, Negotiated, Step, TlsMode};
use hostveil::units::{BlockSize, ByteCount, ByteOffset};

/// What a client sends: its flags, `STRUCTURED_REPLY`, and GO for the default export.
const HELLO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// What a reply repeats.
const ECHO: Echo = Echo { cookie: 7, offset: 4096 };

fn exports() -> Option<Arc<Exports>> {
    let size = ByteCount(1 << 40);
    let shape = Geometry { size, block: BlockSize::BYTE, preferred: BlockSize::B4096 };
    let can = Capabilities { read_only: false, discard: Discard::Ignored, fast_zeroes: false };
    Some(Arc::new(Exports::new(vec![Export::new("", "", shape, can).ok()?]).ok()?))
}

/// A session, as far as the client's words lead to one.
fn negotiate(exports: &Arc<Exports>, mut input: &[u8]) -> Option<Negotiated> {
    let (mut state, _greeting) = Handshake::new(Arc::clone(exports), TlsMode::Off);
    loop {
        match state.step(input) {
            Step::Reply { state: next, consumed, .. } => {
                input = &input[consumed..];
                state = next;
            }
            Step::Ready { session, .. } => return Some(session),
            _ => return None,
        }
    }
}

/// proto.md, Request message.
fn request(kind: u16) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[16..24].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    bytes[24..].copy_from_slice(&4096_u32.to_be_bytes());
    bytes
}

fn codec(criterion: &mut Criterion) {
    let Some(exports) = exports() else { return eprintln!("no exports to negotiate about") };
    let Some(session) = negotiate(&exports, HELLO) else { return eprintln!("the handshake leads nowhere") };
    let mut group = criterion.benchmark_group("nbd");
    group.bench_function("a handshake", |bencher| {
        bencher.iter(|| negotiate(black_box(&exports), black_box(HELLO)));
    });
    let transmission = session.transmission();
    for (name, kind) in [("read", 0), ("write", 1), ("what there is not", 77)] {
        let header = request(kind);
        group.bench_function(format!("judging {name}"), |bencher| {
            bencher.iter(|| transmission.admit(black_box(&header)));
        });
    }
    let replies = session.replies();
    group.bench_function("a reply without data", |bencher| bencher.iter(|| replies.done(black_box(ECHO))));
    group.bench_function("a read's reply", |bencher| {
        bencher.iter(|| replies.read_header(black_box(ECHO), ByteOffset(4096), 4096));
    });
}

criterion_group!(benches, codec);
criterion_main!(benches);

//! A LUKS volume of 2 TiB on a sparse file, through the server: lengths beyond 32 bits, end to end.

use hostveil::block::BufferPool;
use hostveil::crypto::CostLimits;
use hostveil::nbd::Form;
use hostveil::serve::Limits;

use crate::client::*;
use crate::harness::Running;
use crate::process::{Volume, allocated};

const SIZE: u64 = 2 << 40;

#[test]
fn a_luks_volume_of_two_tebibytes_takes_requests_as_large_as_itself() {
    let volume = Volume::create(SIZE);
    let pool = BufferPool::new(1 << 20);
    let opened = volume.open(pool.clone(), CostLimits::of_this_machine());
    let running = Running::of(opened.disk.clone(), pool, Limits::default());
    let mut client = running.attach(Form::Extended);
    client.write(0, 1, SIZE - 5000, &[7; 5000]);
    assert_eq!(client.outcome(), (1, 0));
    // What was never written has no data in the store, and what was has.
    client.request(NBD_CMD_BLOCK_STATUS, 0, 2, 0, SIZE);
    let reply = client.reply();
    let mut reader = Reader::new(&reply.payload);
    let (_context, count) = (reader.u32(), reader.u32());
    assert_eq!(count, Some(2));
    assert_eq!((reader.u64(), reader.u64()), (Some(SIZE - 8192), Some(1)), "a hole, of noise");
    assert_eq!((reader.u64(), reader.u64(), reader.end()), (Some(8192), Some(0), Some(())));
    // Zeroes would have to be written, and so are not fast.
    client.request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 3, 0, SIZE);
    assert_eq!(client.outcome(), (3, ENOTSUP));
    // The file's system blocks are given back, all of them at once.
    client.request(NBD_CMD_TRIM, 0, 4, 0, SIZE);
    assert_eq!(client.outcome(), (4, 0));
    assert_ne!(client.read(SIZE - 5000, 5000), Ok(vec![7; 5000]));
    // Without extended headers as far as their lengths go.
    let mut old = running.attach(Form::Structured);
    old.request(NBD_CMD_TRIM, 0, 5, 0, u32::MAX.into());
    assert_eq!(old.outcome(), (5, 0));
    old.request(NBD_CMD_BLOCK_STATUS, 0, 6, 0, u32::MAX.into());
    let payload = old.reply().payload;
    assert_eq!(payload[4..], [&u32::MAX.to_be_bytes()[..], &1u32.to_be_bytes()].concat());
    // A request for all of it is begun, harms nobody, and ends with its client.
    client.request(NBD_CMD_WRITE_ZEROES, 0, 7, 0, SIZE);
    old.request(NBD_CMD_FLUSH, 0, 8, 0, 0);
    assert_eq!(old.outcome(), (8, 0));
    drop(client);
    drop(old);
    drop(running);
    assert!(allocated(&volume.disk) < SIZE / 100);
}

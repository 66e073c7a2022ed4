//! The engine of sealed volumes over a store in memory: blocks, the journal, the map's pages, checkpoints, mounts.
//!
//! `cargo bench --bench sealed`; what the cipher alone takes is `--bench aead`.

use std::error::Error;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use hostveil::backing::{Backing, MemoryBacking};
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::crypto::Suite;
use hostveil::env::OsEntropy;
use hostveil::sealed::{
    Device, HeaderPin, KeySchedule, Limits, MountOptions, Parameters, VolumeId, format_volume,
};
use hostveil::secret::{SecretBytes, VolumeKey};
use hostveil::units::ByteOffset;

const BLOCK: usize = 4096;
/// 256 MiB.
const BLOCKS: u64 = 1 << 16;
/// Entries of a journal block.
const GROUP: u64 = 100;
const HEADER: HeaderPin = HeaderPin { sequence: 1, digest: [3; 32] };

fn keys() -> hostveil::error::Result<KeySchedule> {
    let volume = VolumeId { uuid: uuid::Uuid::nil(), suite: Suite::Aes256Gcm };
    KeySchedule::new(volume, &VolumeKey::new(SecretBytes::copy_of(&[1; 32])?))
}

fn mount(store: &Arc<dyn Backing>, page_cache: usize, read_only: bool) -> hostveil::error::Result<Device> {
    let limits = Some(Limits { page_cache, ..Limits::for_volume(BLOCKS) });
    let options = MountOptions { read_only, header: HEADER, anchor: None, limits, clocks: (0, 0) };
    Device::mount(store, keys()?, &options, &OsEntropy)
}

/// A volume that was wholly written, and is not mounted.
fn written() -> Result<Arc<dyn Backing>, Box<dyn Error>> {
    let parameters = Parameters::for_volume(BLOCKS, 8);
    let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(parameters.store_size()?));
    format_volume(&store, keys()?, HEADER, parameters, None, &OsEntropy)?;
    let device = mount(&store, 64 << 20, false)?;
    let (disk, pool) = (Disk::new(device.clone()), BufferPool::new(1 << 20));
    for first in (0..BLOCKS).step_by(256) {
        disk.write(at(first), pool.copy_of(&vec![5; 256 * BLOCK])?, Durability::Flush)?;
    }
    device.close()?;
    Ok(store)
}

fn at(lba: u64) -> ByteOffset {
    ByteOffset(lba * BLOCK as u64)
}

/// Writes so many scattered blocks.
fn scatter(disk: &Disk, pool: &BufferPool, next: &mut u64, count: u64) -> hostveil::error::Result<()> {
    for _ in 0..count {
        *next = (*next + 40_503) % BLOCKS;
        disk.write(at(*next), pool.copy_of(&[6; BLOCK])?, Durability::Flush)?;
    }
    Ok(())
}

fn engine(criterion: &mut Criterion) {
    if let Err(error) = measure(criterion) {
        eprintln!("not measured: {error}");
    }
}

fn measure(criterion: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let store = written()?;
    let pool = BufferPool::new(1 << 20);
    let mut group = criterion.benchmark_group("sealed");
    for (name, page_cache) in [("in the cache", 64 << 20), ("not in the cache", 0)] {
        let disk = Disk::new(mount(&store, page_cache, true)?);
        let (mut block, mut lba) = (vec![0; BLOCK], 0);
        group.bench_function(format!("a read of 4 KiB, its page of the map {name}"), |bencher| {
            bencher.iter(|| {
                lba = (lba + 40_503) % BLOCKS;
                disk.read(at(lba), &mut block)
            });
        });
    }
    let device = mount(&store, 64 << 20, false)?;
    let disk = Disk::new(device.clone());
    let mut next = 0;
    group.bench_function("a write of 4 KiB, its share of journal and checkpoints included", |bencher| {
        bencher.iter(|| {
            let done = scatter(&disk, &pool, &mut next, 1);
            done.and(device.keep_up())
        });
    });
    group.bench_function(format!("a flush of {GROUP} blocks: a journal block"), |bencher| {
        bencher.iter_batched(
            || device.keep_up().and_then(|()| scatter(&disk, &pool, &mut next, GROUP)),
            |ready| ready.and_then(|()| disk.flush()),
            BatchSize::PerIteration,
        );
    });
    group.sample_size(20);
    group.bench_function("a checkpoint of 2000 scattered blocks", |bencher| {
        bencher.iter_batched(
            || device.run_checkpoint().and_then(|()| scatter(&disk, &pool, &mut next, 2000)),
            |ready| ready.and_then(|()| device.run_checkpoint()),
            BatchSize::PerIteration,
        );
    });
    scatter(&disk, &pool, &mut next, 2000)?;
    disk.flush()?;
    drop((disk, device));
    group.bench_function("a read-only mount, with 2000 blocks in the journal", |bencher| {
        bencher.iter(|| mount(&store, 64 << 20, true).map(drop));
    });
    Ok(())
}

criterion_group!(benches, engine);
criterion_main!(benches);

//! Throughput of AES-256-XTS: both backends, both common sector sizes, small and large calls.
//!
//! `cargo bench --bench xts`; compare it with `cryptsetup benchmark -c aes-xts -s 512`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hostveil::crypto::{Backend, xts};
use hostveil::units::BlockSize;

fn throughput(criterion: &mut Criterion) {
    let key: Vec<u8> = (0..64).collect();
    for backend in [Backend::Fastest, Backend::Reference] {
        let Ok(xts) = xts(&key, backend) else { return eprintln!("{backend:?} takes no AES-256 key") };
        for (sector_size, call) in [
            (BlockSize::B512, 4096),
            (BlockSize::B4096, 4096),
            (BlockSize::B512, 1 << 20),
            (BlockSize::B4096, 1 << 20),
        ] {
            let mut data = vec![0; call];
            let sectors = format!("{call} bytes in {}-byte sectors", sector_size.bytes());
            let mut group = criterion.benchmark_group(xts.name());
            group.throughput(Throughput::Bytes(call as u64));
            group.bench_function(BenchmarkId::new("encrypt", &sectors), |bencher| {
                bencher.iter(|| xts.encrypt(&mut data, sector_size, 77));
            });
            group.bench_function(BenchmarkId::new("decrypt", &sectors), |bencher| {
                bencher.iter(|| xts.decrypt(&mut data, sector_size, 77));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = throughput
}
criterion_main!(benches);

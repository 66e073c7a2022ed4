//! Throughput of authenticated encryption: every suite, both backends, a block, a run of blocks, 1 MiB.
//!
//! `cargo bench --bench aead`; compare it with `--bench xts`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hostveil::crypto::{AeadKey, Backend, Suite};

fn throughput(criterion: &mut Criterion) {
    for suite in Suite::ALL {
        for backend in [Backend::Fastest, Backend::Reference] {
            let Ok(key) = AeadKey::with_backend(suite, &[7; 32], backend) else {
                return eprintln!("no memory for a key");
            };
            for len in [4096, 65536, 1 << 20] {
                let mut group = criterion.benchmark_group(key.name());
                group.throughput(Throughput::Bytes(len as u64));
                let mut data = vec![0; len];
                group.bench_function(BenchmarkId::new("seal", len), |bencher| {
                    bencher.iter(|| key.seal(&[1; 12], &[2; 32], &mut data));
                });
                let mut sealed = vec![0; len];
                let Ok(tag) = key.seal(&[1; 12], &[2; 32], &mut sealed) else { return };
                let mut data = sealed.clone();
                group.bench_function(BenchmarkId::new("open, with a copy", len), |bencher| {
                    bencher.iter(|| {
                        data.copy_from_slice(&sealed);
                        key.open(&[1; 12], &[2; 32], &mut data, &tag)
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = throughput
}
criterion_main!(benches);

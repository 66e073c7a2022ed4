//! Key derivation at fixed costs: Argon2id by memory and lanes, PBKDF2 by hash.
//!
//! `cargo bench --bench kdf`; `hostveil format` calibrates its costs by the same functions.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hostveil::crypto::{Hash, Kdf, KdfAlgorithm};

fn derivation(criterion: &mut Criterion) {
    let pbkdf2 = [Hash::Sha256, Hash::Sha512].map(|hash| KdfAlgorithm::Pbkdf2 { hash, iterations: 10_000 });
    let argon2id = [(16 << 10, 1), (64 << 10, 1), (64 << 10, 4)]
        .map(|(memory_kib, lanes)| KdfAlgorithm::Argon2id { time: 1, memory_kib, lanes });
    let mut group = criterion.benchmark_group("kdf");
    for algorithm in pbkdf2.into_iter().chain(argon2id) {
        let kdf = Kdf { algorithm, salt: vec![7; 32] };
        group.bench_function(BenchmarkId::new(algorithm.name(), format!("{algorithm:?}")), |bencher| {
            bencher.iter(|| kdf.derive(b"a passphrase", &mut [0; 64]));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = derivation
}
criterion_main!(benches);

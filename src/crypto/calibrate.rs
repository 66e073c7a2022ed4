//! Choosing the cost of a new key slot's key derivation: about a second on this machine.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::units::ByteCount;

use super::kdf::half_of_memory_kib;
use super::{Hash, Kdf, KdfAlgorithm};

/// How long deriving a key shall take.
const TARGET: Duration = Duration::from_secs(1);

/// What cryptsetup demands of a new slot at least, and what the format's reader accepts at most.
const MIN_TIME: u32 = 4;
const MAX_LANES: u32 = 4;
/// RFC 9106, 4: the smaller of its two recommendations is 64 MiB. cryptsetup's default limit is 1 GiB.
const MIN_MEMORY_KIB: u64 = 64 << 10;
const MAX_MEMORY_KIB: u64 = 1 << 20;
/// Passes beyond which a machine's measurement is not believed.
const MAX_TIME: u32 = 32;

/// PBKDF2 is measured until it has taken this long.
const SAMPLE: Duration = Duration::from_millis(60);
const MIN_ITERATIONS: u32 = 600_000;
const MAX_ITERATIONS: u32 = 20_000_000;

/// Argon2id with costs that take about a second here: at least four passes, up to four lanes, 64 MiB
/// to 1 GiB of memory, at most half of the machine's.
pub fn calibrate_argon2id() -> Result<KdfAlgorithm> {
    let lanes = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let lanes = u32::try_from(lanes).unwrap_or(MAX_LANES).clamp(1, MAX_LANES);
    let most = half_of_memory_kib().clamp(8 * u64::from(lanes), MAX_MEMORY_KIB);
    let sample = MIN_MEMORY_KIB.min(most);
    let algorithm = argon2id(MIN_TIME, sample, lanes);
    let taken = time_of(algorithm)?;
    Ok(scale_argon2id(sample * u64::from(MIN_TIME), taken, most, lanes))
}

/// Costs that fill the memory of a second, given that filling `kib_passes` took `taken`.
fn scale_argon2id(kib_passes: u64, taken: Duration, most: u64, lanes: u32) -> KdfAlgorithm {
    let affordable = scaled(kib_passes, taken);
    // Whole MiB, because people read these numbers; unless the machine has not even the minimum.
    let memory = affordable / u64::from(MIN_TIME) / ByteCount::KIB * ByteCount::KIB;
    let memory = memory.clamp(MIN_MEMORY_KIB.min(most), most);
    let time = u32::try_from(affordable / memory.max(1)).unwrap_or(MAX_TIME);
    argon2id(time.clamp(MIN_TIME, MAX_TIME), memory, lanes)
}

fn argon2id(time: u32, memory_kib: u64, lanes: u32) -> KdfAlgorithm {
    KdfAlgorithm::Argon2id { time, memory_kib: u32::try_from(memory_kib).unwrap_or(u32::MAX), lanes }
}

/// PBKDF2 with SHA-256 and as many iterations as take about a second here, at least 600,000.
pub fn calibrate_pbkdf2() -> Result<KdfAlgorithm> {
    let pbkdf2 = |iterations| KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations };
    let mut iterations = 20_000;
    let mut taken = time_of(pbkdf2(iterations))?;
    while taken < SAMPLE && iterations < MAX_ITERATIONS {
        iterations *= 2;
        taken = time_of(pbkdf2(iterations))?;
    }
    let affordable = u32::try_from(scaled(iterations.into(), taken)).unwrap_or(MAX_ITERATIONS);
    Ok(pbkdf2(affordable.clamp(MIN_ITERATIONS, MAX_ITERATIONS)))
}

/// How much work fits into the target time, given that `work` took `taken`.
fn scaled(work: u64, taken: Duration) -> u64 {
    let scaled = u128::from(work) * TARGET.as_micros() / taken.as_micros().max(1);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How long it takes to derive a key of a LUKS2 slot's length.
fn time_of(algorithm: KdfAlgorithm) -> Result<Duration> {
    let kdf = Kdf { algorithm, salt: vec![0; 32] };
    let start = Instant::now();
    kdf.derive(b"a passphrase of some length", &mut [0; 64])?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2id_uses_memory_first_and_passes_after() {
        let costs = |mib_per_second: u64, most| match scale_argon2id(
            mib_per_second << 10,
            Duration::from_secs(1),
            most,
            4,
        ) {
            KdfAlgorithm::Argon2id { time, memory_kib, lanes: 4 } => (time, memory_kib >> 10),
            other => panic!("{other:?}"),
        };
        assert_eq!(costs(2000, MAX_MEMORY_KIB), (4, 500));
        assert_eq!(costs(8192, MAX_MEMORY_KIB), (8, 1024));
        assert_eq!(costs(2000, 200 << 10), (10, 200));
        assert_eq!(costs(10, MAX_MEMORY_KIB), (4, 64));
        assert_eq!(costs(10_000_000, MAX_MEMORY_KIB), (32, 1024));
        assert_eq!(costs(500, 32 << 10), (15, 32));
    }

    #[test]
    fn what_is_chosen_here_is_within_bounds() {
        match calibrate_argon2id().unwrap() {
            KdfAlgorithm::Argon2id { time, memory_kib, lanes } => {
                assert!((MIN_TIME..=MAX_TIME).contains(&time) && (1..=MAX_LANES).contains(&lanes));
                assert!(u64::from(memory_kib) <= half_of_memory_kib().min(MAX_MEMORY_KIB));
            }
            other => panic!("{other:?}"),
        }
        match calibrate_pbkdf2().unwrap() {
            KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations } => {
                assert!((MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations));
            }
            other => panic!("{other:?}"),
        }
    }
}

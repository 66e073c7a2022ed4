//! Key derivation from passphrases: Argon2 and PBKDF2, and limits on what a header may make us
//! compute.
//!
//! The parameters come from a header that the host can change, so a caller checks the cost against
//! [`CostLimits`] before anything is allocated or computed. What derivation leaves in the memory that
//! it allocates is zeroed; that memory is too large to be locked.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroize;

use crate::env::in_threads_of_its_own;
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteCount;

use super::Hash;

/// A way from a passphrase to a key: an algorithm with its costs, and a salt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kdf {
    /// The algorithm and its costs.
    pub algorithm: KdfAlgorithm,
    /// The salt.
    pub salt: Vec<u8>,
}

/// A key derivation function with its costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdfAlgorithm {
    /// Argon2i, version 0x13 (RFC 9106).
    Argon2i {
        /// Passes over the memory.
        time: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes, which may be computed in parallel.
        lanes: u32,
    },
    /// Argon2id, version 0x13 (RFC 9106).
    Argon2id {
        /// Passes over the memory.
        time: u32,
        /// Memory in KiB.
        memory_kib: u32,
        /// Lanes, which may be computed in parallel.
        lanes: u32,
    },
    /// PBKDF2 (RFC 8018, 5.2) with HMAC.
    Pbkdf2 {
        /// The hash inside the HMAC.
        hash: Hash,
        /// Iterations for each block of output.
        iterations: u32,
    },
}

/// What key derivation may cost. A cost above it is refused before any of it is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostLimits {
    /// Argon2's memory in KiB.
    pub memory_kib: u64,
    /// Argon2's memory in KiB times its passes.
    pub kib_passes: u64,
    /// Argon2's lanes.
    pub lanes: u32,
    /// PBKDF2's iterations.
    pub iterations: u64,
}

/// Costs below which a passphrase is easily guessed: no program chooses so little today. KiB times
/// passes of Argon2, and iterations of PBKDF2.
const CHEAP_KIB_PASSES: u64 = 64 << 10;
const CHEAP_ITERATIONS: u64 = 100_000;

const KIB_PER_GIB: u64 = ByteCount::GIB / ByteCount::KIB;

impl CostLimits {
    /// The limits on this machine: 4 GiB or half of the machine's memory, whichever is less; 32 GiB
    /// filled in all passes together; 16 lanes; 50 million iterations. At these limits a derivation
    /// takes less than a minute.
    pub fn of_this_machine() -> Self {
        Self {
            memory_kib: (4 * KIB_PER_GIB).min(half_of_memory_kib()),
            kib_passes: 32 * KIB_PER_GIB,
            lanes: 16,
            iterations: 50_000_000,
        }
    }
}

/// Half of the machine's memory in KiB.
pub(super) fn half_of_memory_kib() -> u64 {
    let info = rustix::system::sysinfo();
    // The structure's integers are wider on some targets than on others.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
    let units = u64::try_from(info.totalram).unwrap_or(0);
    units.saturating_mul(u64::from(info.mem_unit)) / 2 / ByteCount::KIB
}

impl KdfAlgorithm {
    /// Its name in LUKS headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Argon2i { .. } => "argon2i",
            Self::Argon2id { .. } => "argon2id",
            Self::Pbkdf2 { .. } => "pbkdf2",
        }
    }

    /// What it costs: KiB times passes for Argon2, and iterations for PBKDF2; for summing over the
    /// attempts that a header asks for.
    pub fn cost(self) -> (u64, u64) {
        match self {
            Self::Argon2i { time, memory_kib, .. } | Self::Argon2id { time, memory_kib, .. } => {
                (u64::from(time) * u64::from(memory_kib), 0)
            }
            Self::Pbkdf2 { iterations, .. } => (0, iterations.into()),
        }
    }

    /// Says in the log when a key slot's passphrase is easy to guess, for that its derivation is cheap.
    pub fn warn_if_cheap(self) {
        let (kib_passes, iterations) = self.cost();
        if kib_passes < CHEAP_KIB_PASSES && iterations < CHEAP_ITERATIONS {
            tracing::warn!(
                kdf = self.name(),
                kib_passes,
                iterations,
                "this key slot's key derivation is cheap, so its passphrase is easy to guess"
            );
        }
    }

    /// Checks that the parameters make sense and that the cost is within `limits`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] for parameters that the algorithm does not have,
    /// [`ErrorKind::Unsupported`] for a cost above the limits.
    pub fn check_cost(self, limits: &CostLimits) -> Result<()> {
        match self {
            Self::Argon2i { time, memory_kib, lanes } | Self::Argon2id { time, memory_kib, lanes } => {
                // RFC 9106, 3.1: at least one pass, one lane, and eight blocks of 1 KiB a lane.
                if time == 0 || lanes == 0 || u64::from(memory_kib) < 8 * u64::from(lanes) {
                    let what =
                        format!("Argon2 cannot work with {time} passes, {memory_kib} KiB and {lanes} lanes");
                    return Err(Error::new(ErrorKind::CorruptHeader, what));
                }
                within("lanes", lanes.into(), limits.lanes.into())?;
                within("KiB of memory", memory_kib.into(), limits.memory_kib)?;
                within("KiB filled in all passes", self.cost().0, limits.kib_passes)
            }
            Self::Pbkdf2 { iterations: 0, .. } => {
                Err(Error::new(ErrorKind::CorruptHeader, "PBKDF2 cannot work with 0 iterations"))
            }
            Self::Pbkdf2 { iterations, .. } => within("iterations", iterations.into(), limits.iterations),
        }
    }
}

fn within(what: &str, asked: u64, limit: u64) -> Result<()> {
    if asked <= limit {
        return Ok(());
    }
    let what = format!("key derivation asks for {asked} {what}; this machine's limit is {limit}");
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// What may still be computed in one attempt to open a volume: a header may have many key slots, and
/// all of them together may cost as much as the limits allow for one.
pub struct Budget {
    kib_passes: u64,
    iterations: u64,
}

impl Budget {
    /// One attempt's.
    pub fn new(limits: &CostLimits) -> Self {
        Self { kib_passes: limits.kib_passes, iterations: limits.iterations }
    }

    /// Takes what a derivation costs, before it is computed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when that much is not left.
    pub fn spend(&mut self, kdf: &Kdf) -> Result<()> {
        let (kib_passes, iterations) = kdf.algorithm.cost();
        let left = self.kib_passes.checked_sub(kib_passes).zip(self.iterations.checked_sub(iterations));
        let (kib_passes, iterations) = left.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "trying every key slot of this header would take too long")
                .hint("name the key slot that the passphrase belongs to")
        })?;
        *self = Self { kib_passes, iterations };
        Ok(())
    }
}

impl Kdf {
    /// Fills `out` with the key that belongs to `passphrase`. Costs what the algorithm says:
    /// [`KdfAlgorithm::check_cost`] comes first. Argon2's lanes run in threads that end with it.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] without the memory, [`ErrorKind::CorruptHeader`] for parameters that
    /// the algorithm does not have.
    pub fn derive(&self, passphrase: &[u8], out: &mut [u8]) -> Result<()> {
        match self.algorithm {
            KdfAlgorithm::Argon2i { time, memory_kib, lanes } => {
                self.argon2(Algorithm::Argon2i, (memory_kib, time, lanes), passphrase, out)
            }
            KdfAlgorithm::Argon2id { time, memory_kib, lanes } => {
                self.argon2(Algorithm::Argon2id, (memory_kib, time, lanes), passphrase, out)
            }
            KdfAlgorithm::Pbkdf2 { hash, iterations } => {
                hash.pbkdf2(passphrase, &self.salt, iterations, out);
                Ok(())
            }
        }
    }

    fn argon2(
        &self,
        algorithm: Algorithm,
        (memory_kib, time, lanes): (u32, u32, u32),
        passphrase: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let refused =
            |e| Error::new(ErrorKind::CorruptHeader, "Argon2 cannot work with these parameters").because(e);
        let params = Params::new(memory_kib, time, lanes, Some(out.len())).map_err(refused)?;
        let mut memory = Memory::new(params.block_count())?;
        let argon2 = Argon2::new(algorithm, Version::V0x13, params);
        let derive = || {
            argon2
                .hash_password_into_with_memory(passphrase, &self.salt, out, &mut memory.0[..])
                .map_err(refused)
        };
        in_threads_of_its_own(usize::try_from(lanes).unwrap_or(usize::MAX), derive)
    }
}

/// Argon2's memory, zeroed on drop.
struct Memory(Vec<Block>);

impl Memory {
    fn new(blocks: usize) -> Result<Self> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("no {blocks} KiB of memory for key derivation"))
                .because(e)
        })?;
        memory.resize(blocks, Block::new());
        Ok(Self(memory))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for block in &mut self.0 {
            block.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CostLimits =
        CostLimits { memory_kib: 1 << 22, kib_passes: 1 << 25, lanes: 16, iterations: 50_000_000 };

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|n| char::from_digit(n.into(), 16)).collect()
    }

    fn derive(algorithm: KdfAlgorithm, passphrase: &[u8], salt: &[u8], len: usize) -> String {
        let mut out = vec![0; len];
        Kdf { algorithm, salt: salt.to_vec() }.derive(passphrase, &mut out).unwrap();
        hex(&out)
    }

    /// RFC 6070 for SHA-1; RFC 7914, 11 for SHA-256.
    #[test]
    fn pbkdf2_vectors() {
        let pbkdf2 = |hash, iterations| KdfAlgorithm::Pbkdf2 { hash, iterations };
        assert_eq!(
            derive(pbkdf2(Hash::Sha1, 2), b"password", b"salt", 20),
            "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"
        );
        let (long, salt) = (b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt");
        assert_eq!(
            derive(pbkdf2(Hash::Sha1, 4096), long, salt, 25),
            "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"
        );
        assert_eq!(
            derive(pbkdf2(Hash::Sha256, 1), b"passwd", b"salt", 64),
            "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
             49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"
        );
        assert_eq!(
            derive(pbkdf2(Hash::Sha512, 4096), b"password", b"salt", 64),
            "d197b1b33db0143e018b12f3d1d1479e6cdebdcc97c5c0f87f6902e072f457b5\
             143f30602641b3d55cd335988cb36b84376060ecd532e039b742a239434af2d5"
        );
    }

    /// The vectors that the reference implementation (libargon2) ships, and one of its answers for the
    /// lengths that LUKS uses. RFC 9106's own vectors need a secret and associated data, which LUKS
    /// does not have.
    #[test]
    fn argon2_vectors() {
        let argon2id = |time, memory_kib, lanes| KdfAlgorithm::Argon2id { time, memory_kib, lanes };
        assert_eq!(
            derive(
                KdfAlgorithm::Argon2i { time: 2, memory_kib: 65536, lanes: 1 },
                b"password",
                b"somesalt",
                32
            ),
            "c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0"
        );
        assert_eq!(
            derive(argon2id(2, 65536, 1), b"password", b"somesalt", 32),
            "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"
        );
        assert_eq!(
            derive(argon2id(2, 256, 2), b"password", b"somesalt", 32),
            "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"
        );
        let salt: Vec<u8> = (0..32).collect();
        assert_eq!(
            derive(argon2id(4, 130, 3), b"correct horse", &salt, 64),
            "4faf3b1d1653db43e2105edbc22a4863f658309f84fdb853e2b7999883123e19\
             0340460e56c14b667b1f90c0c7ca5e083aea7c5fd110dad92414157403bf5103"
        );
    }

    #[test]
    fn costs_are_refused_before_they_are_spent() {
        let check = |algorithm: KdfAlgorithm| algorithm.check_cost(&LIMITS).map_err(|e| e.kind());
        let argon2id = |time, memory_kib, lanes| check(KdfAlgorithm::Argon2id { time, memory_kib, lanes });
        let pbkdf2 = |iterations| check(KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations });
        assert_eq!(argon2id(8, 1 << 22, 16), Ok(()));
        assert_eq!(argon2id(9, 1 << 22, 16), Err(ErrorKind::Unsupported));
        assert_eq!(argon2id(1, (1 << 22) + 1, 1), Err(ErrorKind::Unsupported));
        assert_eq!(argon2id(u32::MAX, u32::MAX, 1), Err(ErrorKind::Unsupported));
        assert_eq!(argon2id(1, 1024, 17), Err(ErrorKind::Unsupported));
        assert_eq!(argon2id(0, 1024, 1), Err(ErrorKind::CorruptHeader));
        assert_eq!(argon2id(1, 1024, 0), Err(ErrorKind::CorruptHeader));
        assert_eq!(argon2id(1, 8 * 4 - 1, 4), Err(ErrorKind::CorruptHeader));
        assert_eq!(pbkdf2(50_000_000), Ok(()));
        assert_eq!(pbkdf2(50_000_001), Err(ErrorKind::Unsupported));
        assert_eq!(pbkdf2(0), Err(ErrorKind::CorruptHeader));
        assert!(CostLimits::of_this_machine().memory_kib > 0);
    }

    #[test]
    fn parameters_that_argon2_does_not_have_are_errors() {
        for (algorithm, salt) in [
            (KdfAlgorithm::Argon2i { time: 1, memory_kib: 7, lanes: 1 }, &b"somesalt"[..]),
            (KdfAlgorithm::Argon2id { time: 0, memory_kib: 64, lanes: 1 }, b"somesalt"),
            (KdfAlgorithm::Argon2id { time: 1, memory_kib: 64, lanes: 1 }, b"short"),
        ] {
            let kdf = Kdf { algorithm, salt: salt.to_vec() };
            assert_eq!(kdf.derive(b"x", &mut [0; 32]).unwrap_err().kind(), ErrorKind::CorruptHeader);
        }
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        assert_eq!(Memory::new(usize::MAX / 1024).err().unwrap().kind(), ErrorKind::OutOfMemory);
    }
}
